"""The one error that a person causes: a line that repeats what was given and what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints its message alone and exits with code 2."""


def did_you_mean(given: str, known: Iterable[str], limit: int = 4) -> str:
    """The known names nearest to `given`, as a phrase for an error message.

    >>> did_you_mean("h20_sxm", ["h200_sxm", "h100_sxm", "tpu_v6e"])
    'did you mean h200_sxm, h100_sxm?'
    """
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), folded, n=limit, cutoff=0.5)
    near += [low for low in folded if given and given.lower() in low and low not in near]
    if near:
        return f"did you mean {', '.join(folded[low] for low in near[:limit])}?"
    return f"known: {', '.join(names)}"
