"""Write the files of `--out`: each complete or not at all, data before pictures."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .report import Report
from .rows import COLUMNS, TIME_COLUMNS, timed_rows
from .summary import Study
from .written import Written

if TYPE_CHECKING:
    from .pictures import Helper


def check_folder(out: str) -> Path:
    """The folder of `--out`, checked before any work starts and made only when there is output.

    Raises:
        UserError: the name is empty or impossible, the path is a file or lies under one, or the
            place cannot be written.
    """
    path = Path(out)
    if not out.strip() or "\0" in out:
        raise UserError(f"--out {out!r}: give a folder")
    try:
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out[:80]}: not a possible folder ({error.args[-1]})") from error
    if not existing.is_dir():
        raise UserError(f"--out {out}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--out {out}: {existing} cannot be written")
    return path


def write(report: Report, out: Path, helper: Helper | None = None) -> Written:
    """Everything of `--out`, data before pictures, the page last; returns what was written.

    `report.json`, the report's own files (`ops.csv`, say), `tables/*.csv`, `report.md`,
    `figures/*.svg` and `.png`, `report.html`. What fails midway leaves what was written before it;
    what does not removes the files that an earlier report had and this one has not.
    `helper`: another process, to draw some of the figures.
    """
    from . import html, markdown
    from .data import as_csv, full_document, tables_of
    from .pictures import Pictures

    try:
        for folder in (out, out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot make this folder ({error.strerror})") from error
    with Written(out) as written:
        drawn = Pictures(report.sections, helper)
        document = json.dumps(full_document(report), indent=1) + "\n"
        written.add(write_whole(out / "report.json", document))
        for name, make in report.files.items():
            written.add(write_whole(out / name, make()))
        for table in tables_of(report.sections):
            written.add(write_whole(out / "tables" / f"{table.name}.csv", as_csv(table)))
        written.add(write_whole(out / "report.md", markdown.render(report)))
        pictures = {}
        for picture in drawn:
            pictures[picture.name] = picture
            for ending, content in (("svg", picture.svg.encode()), ("png", picture.png)):
                path = out / "figures" / f"{picture.name}.{ending}"
                written.add(write_whole(path, functools.partial(_bytes, content)))
        written.add(write_whole(out / "report.html", html.render(report, pictures)))
    return written


def _bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def ops_csv(study: Study) -> str:
    """One row for every op of every result; costs include all layers that the op stands for."""
    buffer = io.StringIO()
    columns = ("chip", "workload", "exec", *COLUMNS, *TIME_COLUMNS)
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for step in study.steps:
        head = {
            "chip": step.chip.id,
            "workload": step.workload.phase,
            "exec": step.ledger.execution,
        }
        for row in timed_rows(step.times):
            writer.writerow(head | row)
    return buffer.getvalue()


def write_whole(path: Path, content: str | Callable[[Path], object]) -> Path:
    """Make the file under another name and move it into place, so that no half of it is seen.

    `content` is its text, or a function that writes the file it is given.
    """
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        if isinstance(content, str):
            part.write_text(content)
        else:
            content(part)
        part.replace(path)
    except FileNotFoundError:
        raise UserError(f"cannot write {path}: its folder does not exist") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return path
