"""Whether formulas give what a trace of numbers counts: the second route to the same figures."""

from __future__ import annotations

from collections.abc import Mapping

from ..algebra.expression import value_at
from ..cost import Ledger

_TABLES = ("flops", "recompute_flops", "read", "write", "messages")


def differences(symbolic: Ledger, concrete: Ledger, point: Mapping[str, int]) -> str:
    """What of two ledgers' totals is not equal at `point`, the first one found; "" if nothing is.

    A model may read the values of a tensor where it has them and take another path where it has
    none: then its formulas are those of another program.
    """
    ours, theirs = symbolic.total(), concrete.total()
    for name in _TABLES:
        found = _first(getattr(ours, name), getattr(theirs, name), point)
        if found:
            return f"{name} {found}"
    return _first({"vector": ours.vector_flops}, {"vector": theirs.vector_flops}, point)


def _first(mine: Mapping[str, int], other: Mapping[str, int], point: Mapping[str, int]) -> str:
    for key in {**mine, **other}:
        value = value_at(mine.get(key, 0), point)
        if value != other.get(key, 0):
            return f"{key}: {value:,} is not {other.get(key, 0):,}"
    return ""
