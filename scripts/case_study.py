"""The second seed, a case study of DeepSeek-V3, claim by claim: writes docs/case_study.md.

    python scripts/case_study.py            # write docs/case_study.md
    python scripts/case_study.py --check    # fail if it would change

Half a minute on two cores. The claims are in scripts/case_claims/, a chapter a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from case_claims import Case, rows  # noqa: E402
from case_claims.page import page  # noqa: E402
from pages import write_or_check  # noqa: E402

PAGE = ROOT / "docs" / "case_study.md"


def written() -> str:
    """The page."""
    case = Case()
    return page(case, rows(case))


def main() -> int:
    """Write or compare."""
    return write_or_check(PAGE, written, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
