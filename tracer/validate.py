"""`python -m tracer.validate`: the time model against every measured kernel at hand.

Beside it, in the same table, what a plain roofline says of the same rows, and a roofline with one
efficiency for all (the best that one number can do). Writes `docs/accuracy.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from tracer.hardware import load_chip

from .errors import UserError
from .machine.adapters import eager_rows
from .machine.calibration import OWN, Calibration, calibration_of
from .machine.eager import EagerScore, score_eager
from .machine.families import predict, roofline
from .machine.fit import SIZE_CLASSES
from .machine.measured import Array, MeasuredError, Rows, open_table, read_folder
from .report import accuracy
from .report.records import AccuracyRow

REPOSITORY = Path(__file__).parent.parent
BUNDLED = REPOSITORY / "hardware" / "measured"
PAGE = Path("docs") / "accuracy.md"

# A median this far off is no model error: someone wrote milliseconds or seconds.
_UNITS = 300.0


class Score(NamedTuple):
    """Relative errors of one set of rows, as shares: 0.05 is 5 %."""

    rows: int
    mape: float
    median: float
    p90: float
    bias: float

    @classmethod
    def of(cls, predicted: Array, measured: Array) -> Score:
        """Errors of predicted over measured seconds."""
        error = predicted / measured - 1
        size = np.abs(error)
        return cls(
            len(error), float(size.mean()), float(np.median(size)),
            float(np.percentile(size, 90)), float(error.mean()),
        )  # fmt: skip


class Line(NamedTuple):
    """One row of the table: a family on a chip."""

    family: str
    chip: str
    status: str  # whose constants: the chip's own, its generation's, another's
    unseen: bool  # no row of the line was fitted
    score: Score
    classes: tuple[Score | None, ...]  # by size class, None where there is no row
    plain: Score  # roofline at the datasheet's peaks
    single: Score  # roofline at one efficiency, chosen to fit these rows best
    inside: float  # share of rows within the model's own P10-P90 of one kernel

    @property
    def constants(self) -> str:
        """Whose constants they are, and whether any row is new to them."""
        return self.status if self.unseen else f"{self.status}, all rows fitted"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for a file that cannot be believed."""
    p = _Parser(prog="tracer.validate", description="Score the time model against measurements.")
    p.add_argument("--data", type=Path, action="append", default=[], metavar="DIR",
        help="folder with measured CSV files; repeatable")  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", help=f"the page to write ({PAGE})")
    try:
        options = p.parse_args(argv)
        text, rows = validate([*options.data, *([BUNDLED] if BUNDLED.is_dir() else [])])
        if text is None:
            print("nothing to validate: give a folder of measured CSV files with --data")
            return 0
        print(text)
        home = (REPOSITORY / "pyproject.toml").is_file() and options.out is None
        page = REPOSITORY / PAGE if home else options.out
        if page is not None:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(_PREAMBLE + text + "\n")
            print(f"wrote {page}", file=sys.stderr)
        if home:  # the reports that others make show it too
            accuracy.FILE.write_text(accuracy.accuracy_csv(rows))
            print(f"wrote {accuracy.FILE}", file=sys.stderr)
    except UserError as error:
        print(f"tracer.validate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tracer.validate: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def validate(folders: Sequence[Path]) -> tuple[str | None, list[AccuracyRow]]:
    """The tables as Markdown, None where no folder has a measured row, and their main columns.

    Raises:
        UserError: a file that cannot be read or believed.
    """
    rows: list[Rows] = []
    eager: list[EagerScore] = []
    for folder in folders:
        rows += read_folder(folder)
        for path in sorted(folder.glob("eager_ops_*.csv")):
            with open_table(path) as table:
                eager.append(score_eager(path.stem, list(eager_rows(table))))
    lines = [line for item in rows for line in [score(item)] if line is not None]
    if not lines and not eager:
        return None, []
    order = list(dict.fromkeys(line.family for line in lines))
    lines.sort(key=lambda line: (order.index(line.family), line.chip))
    parts = [as_markdown(lines)] if lines else []
    parts += [item.as_markdown() for item in eager]
    return "\n\n".join(parts), [_accuracy(line) for line in lines]


def _accuracy(line: Line) -> AccuracyRow:
    scores = (line.score.mape, line.score.bias, line.plain.mape, line.single.mape)
    percent = (value * 100 for value in scores)
    return AccuracyRow(line.family, line.chip, line.constants, line.score.rows, *percent)


def score(rows: Rows) -> Line | None:
    """The errors of one family on one chip, on the rows that were not fitted.

    Raises:
        MeasuredError: a column of times that must be in another unit.
    """
    cal = calibration_of(load_chip(rows.chip))
    own = cal.origin[rows.family] == rows.chip
    everything = own and rows.family in _FITTED_WHOLE
    tested = rows if everything else rows.subset(~rows.fitted)
    if not len(tested):
        return None
    predicted = predict(rows.family, tested.columns, cal)
    _check_units(rows, float(np.median(tested.seconds / predicted)))
    compute, memory = roofline(rows.family, tested.columns, cal.chip)
    bound = np.maximum(compute, memory)
    scores = []
    for low, high in SIZE_CLASSES:
        inside = (tested.seconds >= low) & (tested.seconds < high)
        scores.append(Score.of(predicted[inside], tested.seconds[inside]) if inside.any() else None)
    return Line(
        rows.family, rows.chip, OWN if own else cal.status(), not everything,
        Score.of(predicted, tested.seconds), tuple(scores), Score.of(bound, tested.seconds),
        _one_efficiency(bound, tested.seconds),
        _inside(cal, rows.family, predicted, tested.seconds),
    )  # fmt: skip


# Families with too few rows to hold half of them back; the table says so.
_FITTED_WHOLE = {"elementwise"}


def _check_units(rows: Rows, ratio: float) -> None:
    if not 1 / _UNITS < ratio < _UNITS:
        factor = ratio if ratio > 1 else 1 / ratio
        way = "longer" if ratio > 1 else "shorter"
        raise MeasuredError(
            f"{rows.file}: column of times, all {len(rows)} rows of {rows.family}: the median is "
            f"{factor:,.0f} times {way} than predicted; are they in microseconds?"
        )


def _one_efficiency(bound: Array, measured: Array) -> Score:
    """The roofline over the one efficiency with the least mean absolute error."""
    tried = np.exp(np.linspace(np.log(0.02), np.log(2.0), 200))
    errors = np.abs(bound[None, :] / tried[:, None] / measured[None, :] - 1).mean(axis=1)
    return Score.of(bound / tried[int(errors.argmin())], measured)


def _inside(cal: Calibration, family: str, predicted: Array, measured: Array) -> float:
    """Share of measured times within P10-P90 of one kernel's prediction."""
    width = 1.2816 * cal.misfit[family]
    return float((np.abs(np.log(measured / predicted)) <= width).mean())


_PREAMBLE = """# Accuracy

Written by `python -m tracer.validate --data DIR`; do not edit. Errors are those of predicted over
measured kernel time, in %, on rows that no constant was fitted to: where a chip was calibrated, the
half of the shapes that a hash left out; everywhere else, the same half, of a chip that the
constants have never seen. Where several backends were measured, the best one counts; MLA and
experts (`grouped`) are TensorRT-LLM's. *MAPE* is the mean absolute error, *bias* the mean signed
one; the classes are by measured time. *plain* is the roofline at datasheet peaks, *one eff.* the
same with the one efficiency that fits the line best.

"""

HEADERS = (
    "family", "chip", "constants", "rows", "MAPE", "median", "p90", "bias",
    "<20 us", "20-100", ">100 us", "bias >100", "plain", "one eff.", "in P10-P90",
)  # fmt: skip


def as_markdown(lines: Sequence[Line]) -> str:
    """The table, one line a family and chip."""
    rows = []
    for line in lines:
        s = line.score
        by_class = [f"{c.mape * 100:.1f}" if c else "-" for c in line.classes]
        long = line.classes[-1]
        rows.append((
            line.family, line.chip, line.constants, f"{s.rows:,}", f"{s.mape * 100:.1f}",
            f"{s.median * 100:.1f}", f"{s.p90 * 100:.1f}", f"{s.bias * 100:+.1f}", *by_class,
            f"{long.bias * 100:+.1f}" if long else "-", f"{line.plain.mape * 100:.1f}",
            f"{line.single.mape * 100:.1f}", f"{line.inside * 100:.0f}",
        ))  # fmt: skip
    table = [HEADERS, tuple("-" if i < 3 else "-:" for i in range(len(HEADERS))), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


if __name__ == "__main__":
    sys.exit(main())
