"""Measured profiles -> op trees and kernels, and which predicted op each of them is."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from .chrome import read_chrome
from .nsight import read_nsight
from .records import Argument, MeasuredKernel, MeasuredOp, Profile, ProfileError


def read_profile(path: Path, step: int | None = None) -> Profile:
    """The profile in `path`; with `ProfilerStep#` marks, the last one or that of number `step`.

    Raises:
        ProfileError: a file that is missing, damaged, or no profiler trace of a GPU.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head == b"SQLite format 3\0":
            return read_nsight(path)
        raw = path.read_bytes()
        return read_chrome(path, gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw, step)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ProfileError(f"{path}: damaged or truncated gzip file: {error}") from None
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


__all__ = ["Argument", "MeasuredKernel", "MeasuredOp", "Profile", "ProfileError", "read_profile"]
