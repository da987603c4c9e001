"""What scripts that write a page of docs/ share: write it, or say that it is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(page: Path, text: Callable[[], str], doc: str) -> int:
    """The command line of such a script: writes `page`, or with --check compares it with `text()`.

    Returns the exit code, 1 for a page that would change. `doc` is the script's docstring.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    options = parser.parse_args()
    written = text()
    if not options.check:
        page.write_text(written)
        print(f"wrote {page}")
        return 0
    if page.is_file() and page.read_text() == written:
        return 0
    print(f"{page} is out of date: run {sys.argv[0]}", file=sys.stderr)
    return 1
