"""`python -m tracer.checkpoint`: what a released checkpoint holds, its weights, its precision.

    inventory DIR|hub-id                        tensors, dtypes, shards, from headers alone
    stats DIR [--csv out.csv] [--json]          statistics of every weight, read once
    convert SRC DST --dtype fp8|bf16            with block scales of 128x128

`stats --csv` writes rows as they are computed to `out.csv.partial`, which becomes `out.csv` with
the last one and stays where it is if something stops the command.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tabulate import tabulate

from tracer.models import ConfigError
from tracer.models.inventory import find_checkpoint, inventory
from tracer.models.shards import CheckpointError, open_checkpoint
from tracer.models.weight_rows import COLUMNS, SIGMA, grouped, worst_underflow

from .errors import UserError
from .progress import progress
from .report.text import plural, si, size


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="tracer.checkpoint", description="Checkpoints of the DeepSeek layout.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("inventory", help="tensors, dtypes, shards, from headers alone")
    add.add_argument("source", metavar="DIR|HUB-ID")
    _shared(add, _inventory)
    add = commands.add_parser("stats", help="statistics of every weight, streamed")
    add.add_argument("source", metavar="DIR")
    add.add_argument("--csv", type=Path, metavar="FILE", help="a row for every tensor")
    add.add_argument("--sigma", type=float, default=SIGMA, metavar="K",
        help=f"an outlier is above K standard deviations (default {SIGMA:g})")  # fmt: skip
    _shared(add, _stats)
    add = commands.add_parser("convert", help="BF16 <-> FP8 with 128x128 block scales")
    add.add_argument("source", metavar="SRC")
    add.add_argument("destination", type=Path, metavar="DST")
    add.add_argument("--dtype", required=True, choices=("fp8", "bf16"))
    add.set_defaults(run=_convert)
    return p


def _shared(p: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str]) -> None:
    p.add_argument("--top", type=int, default=40, metavar="N", help="rows of a table (default 40)")
    p.add_argument("--json", action="store_true", help="one JSON document on standard output")
    p.set_defaults(run=run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for input that cannot be used, said in one line."""
    try:
        options = parser().parse_args(argv)
        if getattr(options, "top", 1) < 1:
            raise UserError(f"--top {options.top}: give at least 1")
        try:
            print(options.run(options))
        except (CheckpointError, ConfigError) as error:
            raise UserError(str(error)) from error
    except UserError as error:
        print(f"tracer.checkpoint: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tracer.checkpoint: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


# -- inventory -------------------------------------------------------------------------------------


def _inventory(options: argparse.Namespace) -> str:
    found = inventory(find_checkpoint(options.source))
    if options.json:
        return json.dumps(found.as_dict(), indent=1)
    return render_inventory(found, options.top)


def render_inventory(found: Any, top: int = 40) -> str:
    """The tables of an `Inventory` as text."""
    tensors = sum(line.tensors for line in found.lines)
    head = (
        f"{found.where}: {plural(tensors, 'tensor')}, {sum(found.elements.values()):,} elements, "
        f"{size(sum(found.nbytes.values()))} in {plural(len(found.shards), 'shard')}"
    )
    by_dtype = [
        (dtype, f"{found.elements[dtype]:,}", size(nbytes))
        for dtype, nbytes in sorted(found.nbytes.items(), key=lambda item: -item[1])
    ]
    lines = [
        (line.pattern, line.dtype, "x".join(map(str, line.shape)) or "scalar",
         f"{line.tensors:,}", si(line.elements), size(line.nbytes))
        for line in sorted(found.lines, key=lambda line: -line.nbytes)
    ]  # fmt: skip
    smallest, largest = min(found.shards.values()), max(found.shards.values())
    return "\n\n".join([
        head,
        _table(("dtype", "elements", "bytes"), by_dtype, 1),
        _table(("tensors", "dtype", "shape", "count", "elements", "bytes"), lines, 3, top),
        f"shards: {size(smallest)} to {size(largest)} each",
        "\n".join(_agreement(found)),
    ])  # fmt: skip


def _agreement(found: Any, examples: int = 3) -> Iterator[str]:
    if found.agrees is None:
        yield "config: none of this family, so not compared"
        return
    if found.agrees:
        yield "config: agrees, no tensor missing, none unexpected, all shapes as expected"
    for what, names in (
        ("missing", found.missing), ("unexpected", found.unexpected),
        ("other than the config says", found.mismatched), ("not in the index", found.unindexed),
    ):  # fmt: skip
        if names:
            more = f", and {len(names) - examples:,} more" if len(names) > examples else ""
            yield f"config: {len(names):,} {what}: {', '.join(names[:examples])}{more}"


# -- statistics ------------------------------------------------------------------------------------


def _stats(options: argparse.Namespace) -> str:
    from tracer.models.weight_stats import measured_entries, weight_stats

    if not options.sigma > 0:
        raise UserError(f"--sigma {options.sigma}: give a number above 0")
    source = open_checkpoint(options.source)
    rows = weight_stats(source, sigma=options.sigma)
    if options.csv is not None:
        rows = written_rows(rows, options.csv, COLUMNS)
    weights = sum(entry.numel for entry in measured_entries(source))
    found, done = [], 0
    with progress() as say:
        say("reading weights", 0, weights)
        for row in rows:
            found.append(row)
            done += row.count
            say(row.name, done, weights)
    if options.json:
        return json.dumps(stats_document(options.source, found), indent=1)
    return render_stats(options.source, found, options.top)


def written_rows(rows: Iterable[Any], path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Pass rows on and write each to `path` with `.partial` behind; rename with the last one.

    Raises:
        UserError: the file cannot be written, or the checkpoint not be read to its end.
    """
    partial, count = path.with_name(path.name + ".partial"), 0
    try:
        if path.is_dir():
            raise UserError(f"--csv {path}: a folder; give a file")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                shape = "x".join(map(str, row.shape))
                writer.writerow({**row.as_dict(), "shape": shape})
                file.flush()
                count += 1
                yield row
            os.fsync(file.fileno())
        partial.replace(path)
    except CheckpointError as error:
        raise UserError(f"{error}; the {plural(count, 'row')} before it: {partial}") from error
    except OSError as error:
        raise UserError(f"--csv {path}: cannot be written ({error.strerror})") from error


def stats_document(source: str, rows: Sequence[Any]) -> dict[str, Any]:
    """Rows, their groups and the worst by FP8 underflow as one JSON document."""
    return {
        "source": source,
        "tensors": [row.as_dict() for row in rows],
        "groups": [group.as_dict() for group in grouped(rows)],
        "worst_underflow": [row.name for row in worst_underflow(rows)],
    }


def render_stats(source: str, rows: Sequence[Any], top: int = 40) -> str:
    """Groups of layers by name pattern, then the tensors that FP8 hurts most, as text."""
    parts = [
        f"{source}: {plural(len(rows), 'tensor')}, {sum(row.count for row in rows):,} weights; "
        f"lost: not zero, and rounded to zero by E4M3 with one scale a tensor, or a 128x128 block"
    ]
    sigma = f"{rows[0].sigma:g}" if rows else "k"
    headers = (
        "tensors", "count", "mean", "std", "abs max", f"> {sigma} sigma", "lost/tensor",
        "lost/block",
    )  # fmt: skip
    groups = grouped(rows)
    for layers in dict.fromkeys(group.layers for group in groups):
        lines = [
            (g.pattern, f"{g.tensors:,}", *map(_number, (g.mean, g.std, g.abs_max)),
             *map(_share, (g.outlier_share, g.lost_per_tensor, g.lost_per_block)))
            for g in groups if g.layers == layers
        ]  # fmt: skip
        parts.append(_table((layers, *headers[1:]), lines, 1, top))
    worst = [
        (row.name, row.dtype, _number(row.abs_max), _share(row.lost_per_tensor),
         _share(row.lost_per_block))
        for row in worst_underflow(rows)
    ]  # fmt: skip
    if worst:
        names = ("lose most to FP8 underflow", "dtype", "abs max", "lost/tensor", "lost/block")
        parts.append(_table(names, worst, 2))
    broken = [row for row in rows if row.nonfinite]
    if broken:
        parts.append(
            f"NaN or infinite: {sum(row.nonfinite for row in broken):,} weights in "
            f"{plural(len(broken), 'tensor')}, such as {broken[0].name}"
        )
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    """A share in percent; a share that is there never reads as none."""
    if value is None:
        return "-"
    return "0" if not value else f"{value * 100:.3g}%"


# -- conversion ------------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> str:
    from tracer.models.convert import convert

    source = open_checkpoint(options.source)
    nbytes = 0
    for number, written in enumerate(convert(source, options.destination, options.dtype), 1):
        nbytes += written.nbytes
        done = "was there" if written.kept else size(written.nbytes)
        print(f"{number}/{len(source.shards)} {written.shard}: {done}", file=sys.stderr)
    return (
        f"{options.destination}: {options.dtype}, {size(nbytes)} in "
        f"{plural(len(source.shards), 'shard')}, from {size(sum(source.shards.values()))}"
    )


def _table(
    headers: Sequence[str], rows: Sequence[tuple[str, ...]], left: int, top: int | None = None
) -> str:
    """The first `left` columns to the left, numbers to the right, at most `top` rows."""
    shown = list(rows[:top])
    if top is not None and len(rows) > top:
        shown.append((f"{len(rows) - top} more", *[""] * (len(headers) - 1)))
    align = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(shown, headers, colalign=align if shown else None, disable_numparse=True)


if __name__ == "__main__":
    sys.exit(main())
