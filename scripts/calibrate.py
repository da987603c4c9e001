#!/usr/bin/env python
"""Fit a chip's kernel constants from measured rows, and write them beside its datasheet.

    python scripts/calibrate.py h200_sxm --data ../shared/measured            # print only
    python scripts/calibrate.py h200_sxm --data ../shared/measured --write    # into the chip's TOML

Half of the shapes, chosen by a hash of the shape, is fitted; the errors printed are those of the
other half. Families without rows keep the constants that they have. A fit whose constants the rows
cannot tell apart is refused, with the constants by name.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tracer.errors import UserError
from tracer.hardware import Chip, load_chip
from tracer.machine.calibration import Calibration, calibration_of
from tracer.machine.families import predict
from tracer.machine.fit import Fit, FitError, fit
from tracer.machine.kernels import FAMILIES, NETWORK, SHARES
from tracer.machine.measured import Rows, read_folder

CHIPS = Path(__file__).parent.parent / "hardware" / "chips"

# Where a fit starts, and what it cannot see: those values are given, with the reason.
START: Mapping[str, Mapping[str, float]] = {
    "gemm": {"launch": 2.5e-6, "memory": 0.87, "matrix": 0.87, "prologue": 150, "serial": 0.5},
    "gemm_fp8": {"launch": 4.5e-6, "memory": 0.8, "matrix": 0.85, "prologue": 400, "split": 8e-6,
                 "quantise": 4.0},
    "gemm_fp8_block": {"launch": 4e-6, "memory": 0.8, "matrix": 0.7, "prologue": 200,
                       "quantise": 5.0},
    "attention_prefill": {"launch": 8e-6, "matrix": 0.8, "rows": 9.0},
    "mla_prefill": {"launch": 15e-6, "matrix": 0.8, "rows": 14.0, "tail": 0.5},
    "attention_decode": {"launch": 9e-6, "memory": 0.9, "reduce": 3e-7, "rows": 2.0},
    "mla_decode": {"launch": 9e-6, "memory": 0.9, "matrix": 0.65, "reduce": 1.5e-6, "rows": 5.0},
    "grouped": {"launch": 100e-6, "memory": 0.9, "matrix": 0.7, "rows": 0.5},
    "elementwise": {"launch": 1.5e-6, "memory": 0.88, "scalar": 1.3, "gather": 0.8, "reduce": 2.5},
    "collective": {"launch": 4e-6, "hop": 9e-7, "link": 0.8, "fill": 40e-6, "reduce": 1.2,
                   "copy": 0.4},
}  # fmt: skip
HALF_HIDDEN = "given: half of the exponentials hidden; one head size cannot tell it from `matrix`"
REACH = "stas00/ml-engineering@744d01e: H100 SXM (same die), 794.5 of 989 TFLOP/s BF16"
OLDER = "given: FlashAttention-3 paper (arXiv 2407.08608), 35 % of H100's peak against 75 %"
GIVEN: Mapping[str, Mapping[str, tuple[float, float, str]]] = {
    "power": {
        "settle": (1e-3, 0.5, "given: 1 ms, the scale of a power controller's window"),
        "reach": (0.803, 0.03, REACH),
    },
    "gemm_fp8_block": {"split": (0.0, 0.0, "given: block-scaled kernels do not split k")},
    "attention_prefill": {
        "exposed": (0.5, 0.24, HALF_HIDDEN),
        "tail": (0.0, 0.0, "given: persistent kernels, longest rows first"),
        "portable": (0.47, 0.15, OLDER),
    },
    "mla_prefill": {"exposed": (0.5, 0.24, HALF_HIDDEN), "portable": (0.47, 0.15, OLDER)},
    "attention_decode": {"matrix": (0.65, 0.1, "given: MLA's; flash decode is memory-bound")},
}
TOGETHER = {"gemm": {"sag": 0.12}}  # constants of `power` that a family's fit finds as well


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for input that cannot be used."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("chip", help="id or path of the chip file to calibrate")
    p.add_argument("--data", required=True, type=Path, help="folder with measured rows")
    p.add_argument("--family", action="append", help=f"repeatable; of {', '.join(START)}")
    p.add_argument("--from", dest="origin", help="who measured it; default the folder's name")
    p.add_argument("--all", action="store_true", help="fit every row; no error is then unseen")
    p.add_argument("--write", action="store_true", help="write the constants into the chip file")
    options = p.parse_args(argv)
    try:
        chip = load_chip(options.chip)
        tables, lines = calibrate(chip, options.data, options.family, every=options.all)
        print("\n".join(lines))
        text = as_toml(chip, tables, options.origin or options.data.resolve().name)
        if options.write:
            path = Path(options.chip) if options.chip.endswith(".toml") else None
            write(path or CHIPS / f"{chip.id}.toml", text)
        else:
            print("\n" + text)
    except UserError as error:
        print(f"calibrate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


Table = dict[str, tuple[float, float, str]]  # constant -> value, spread, source


def calibrate(
    chip: Chip, data: Path, families: Sequence[str] | None = None, *, every: bool = False
) -> tuple[dict[str, Table], list[str]]:
    """Constants by family, and the lines to print.

    Raises:
        UserError: unknown family, no rows, or constants that are not identifiable.
    """
    for name in families or ():
        if name not in START:
            raise UserError(f"--family {name!r}: choose one of {', '.join(START)}")
    rows = {r.family: r for r in read_folder(data) if r.chip == chip.id}
    wanted = [name for name in START if name in rows and (not families or name in families)]
    if not wanted:
        raise UserError(f"{data}: no rows of {chip.name} for {', '.join(families or START)}")
    calibration = _start(chip)
    tables: dict[str, Table] = {}
    lines = [f"{'family':18s} {'rows':>5s} {'MAPE':>6s} {'bias':>6s}  errors of the other half, %"]
    for family in wanted:
        used = rows[family] if every else rows[family].subset(rows[family].fitted)
        source = f"{len(used)} shapes of {rows[family].file}"
        try:
            found = fit_family(family, used, calibration)
        except FitError as error:
            raise FitError(f"{rows[family].file}: {family}: {error}") from None
        calibration = _with(calibration, family, found.values)
        error = predict(family, used.columns, calibration) / used.seconds - 1
        # 80 % of a normal distribution lie within 1.2816 standard deviations.
        misfit = float(np.percentile(np.abs(error), 80)) / 1.2816
        for name, value in found.values.items():
            home = "power" if name in TOGETHER.get(family, {}) else family
            table = tables.setdefault(home, _given(chip, home))
            table[name] = (value, found.spreads[name], source)
        tables[family]["misfit"] = (misfit, 0.0, source)
        tables[family]["backend"] = (float(np.median(used.second)) - 1, 0.0, source)
        lines.append(_line(family, rows[family], calibration, every))
    return tables, lines


def _given(chip: Chip, family: str) -> Table:
    """Constants that are not fitted; a chip file that has its own reach keeps it."""
    table = dict(GIVEN.get(family, {}))
    own = chip.calibration.get(family, {}).get("reach")
    if own is not None:
        table["reach"] = (own.value, own.spread, own.source)
    return table


def fit_family(family: str, rows: Rows, calibration: Calibration) -> Fit:
    """Fit one family's constants on `rows`, the others as in `calibration`."""
    start = {**START[family], **TOGETHER.get(family, {})}

    def model(values: Mapping[str, float]) -> np.ndarray:
        return predict(family, rows.columns, _with(calibration, family, values))

    limits = dict.fromkeys(SHARES & set(start), 1.0)
    return fit(model, rows.seconds, start, upper=limits)


def _start(chip: Chip) -> Calibration:
    """The chip's calibration as it is, or the starting values where no chip has any.

    Matrix shares are about to be the chip's own, so that no other chip's reach scales them.
    """
    try:
        found = calibration_of(chip)
        return replace(found, base_reach=found["power"].reach)
    except UserError:
        values = {
            family: {**START.get(family, {"sag": 0.12}),
                     **{name: given[0] for name, given in GIVEN.get(family, {}).items()}}
            for family in FAMILIES
        }  # fmt: skip
        tuples = {family: kind(**values[family]) for family, kind in FAMILIES.items()}
        return Calibration(chip, tuples, {}, {}, {}, dict.fromkeys(FAMILIES, chip.id), 0.803)


def _with(calibration: Calibration, family: str, values: Mapping[str, float]) -> Calibration:
    """`calibration` with a family's given and new values, and those it finds along."""
    along = TOGETHER.get(family, {})
    given = {name: item[0] for name, item in GIVEN.get(family, {}).items()}
    own = {**given, **{name: value for name, value in values.items() if name not in along}}
    families = {**calibration.families, family: calibration[family]._replace(**own)}
    shared = {name: value for name, value in values.items() if name in along}
    if shared:
        families["power"] = families["power"]._replace(**shared)
    return replace(calibration, families=families)


def _line(family: str, rows: Rows, calibration: Calibration, every: bool) -> str:
    unseen = rows if every else rows.subset(~rows.fitted)
    error = predict(family, unseen.columns, calibration) / unseen.seconds - 1
    long = unseen.seconds >= 100e-6
    text = f"{family:18s} {len(unseen):5d} {np.abs(error).mean():6.1%} {error.mean():+6.1%}"
    if long.any():
        text += f"  > 100 us: {np.abs(error[long]).mean():.1%} {error[long].mean():+.1%}"
    return text + ("  (fitted rows: nothing was held out)" if every else "")


def as_toml(chip: Chip, tables: Mapping[str, Table], data: str) -> str:
    """The `[calibration]` section: new tables, and those of the chip that were not fitted."""
    lines = ["[calibration]", f'data = "{data}"', f'date = "{datetime.date.today()}"']
    for family, kind in {**FAMILIES, **NETWORK}.items():
        table = tables.get(family)
        if table is None:
            old = chip.calibration.get(family, {})
            table = {name: (c.value, c.spread, c.source) for name, c in old.items()}
        if not table:
            continue
        lines += ["", f"[calibration.{family}]"]
        order = [*kind._fields, "misfit", "backend"]  # type: ignore[attr-defined]
        for name in sorted(table, key=order.index):
            value, spread, text = table[name]
            lines.append(
                f'{name} = {{ value = {value:.4g}, spread = {spread:.2g}, source = "{text}" }}'
            )
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Replace the file's `[calibration]` section, which stands last, by `text`."""
    kept = path.read_text().split("\n[calibration]", maxsplit=1)[0].rstrip("\n")
    path.write_text(f"{kept}\n\n{text}")


if __name__ == "__main__":
    sys.exit(main())
