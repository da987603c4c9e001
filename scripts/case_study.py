"""The second seed, a case study of DeepSeek-V3, claim by claim: writes docs/case_study.md.

    python scripts/case_study.py            # write docs/case_study.md
    python scripts/case_study.py --check    # fail if it would change

Half a minute on two cores. The claims are in scripts/case_claims/, a chapter a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from case_claims import Case, rows  # noqa: E402
from case_claims.page import page  # noqa: E402

PAGE = ROOT / "docs" / "case_study.md"


def main() -> int:
    """Write the page, or say whether it is as it would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    options = parser.parse_args()
    case = Case()
    text = page(case, rows(case))
    if not options.check:
        PAGE.write_text(text)
        print(f"wrote {PAGE.relative_to(ROOT)}")
        return 0
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what scripts/case_study.py writes: run it")
    return 1


if __name__ == "__main__":
    sys.exit(main())
