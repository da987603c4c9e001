"""Which files of a folder an earlier report of ours wrote, so that those it had alone can go.

`.tracer-files.json` has the path and the SHA-256 of every file of the last report. A file goes only
if it is still what was written then: one that somebody changed or put there stays, wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from .text import plural

MANIFEST = ".tracer-files.json"


class Written:
    """The files of one report in `out`, in the order in which they are made.

    As a block: once it ends well, files that the last report wrote and this one did not are
    removed. An error leaves them, and the list then has both, so that a later report removes them.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.paths: list[Path] = []
        self.removed: list[Path] = []
        self._before = _listed(out / MANIFEST)
        self._mine: dict[str, str] = {}

    def add(self, path: Path) -> None:
        """Note a file that is whole."""
        self.paths.append(path)
        self._mine[path.relative_to(self.out).as_posix()] = _digest(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        from .files import write_whole

        listed = self._before | self._mine
        if error is None:
            listed = self._mine
            self._remove()
        try:
            write_whole(self.out / MANIFEST, json.dumps({"files": listed}, indent=1) + "\n")
        except OSError:
            if error is None:
                raise

    def _remove(self) -> None:
        for name, digest in self._before.items():
            path = self.out / name
            if name not in self._mine and _inside(path, self.out) and _digest(path) == digest:
                try:
                    path.unlink()
                except OSError:
                    continue  # it may be open elsewhere: not worth a report
                self.removed.append(path)

    def lines(self) -> list[str]:
        """A line a file, one a folder of many, and one for what was removed."""
        lines = [f"wrote {path}" for path in self.paths if path.parent == self.out]
        for folder in sorted({path.parent for path in self.paths} - {self.out}):
            count = sum(path.parent == folder for path in self.paths)
            lines.append(f"wrote {folder}{os.sep} ({plural(count, 'file')})")
        if self.removed:
            names = ", ".join(path.relative_to(self.out).as_posix() for path in self.removed[:3])
            more = ", ..." if len(self.removed) > 3 else ""
            lines.append(
                f"removed {plural(len(self.removed), 'file')} of an earlier report ({names}{more})"
            )
        return lines


def _listed(path: Path) -> dict[str, str]:
    """Path and digest of each file in a list; nothing if it is none of ours."""
    try:
        found = json.loads(path.read_text())["files"]
        return {name: digest for name, digest in found.items() if _plain(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name != MANIFEST


def _inside(path: Path, out: Path) -> bool:
    """Whether a path is a file of this folder itself, by no link."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.resolve().parent == out.resolve() / path.relative_to(out).parent


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
