#!/usr/bin/env python
"""The network model against measured collectives, through the group API.

    python scripts/score_network.py --data ../shared/measured

Every row counts, of every library version. Chips without a bundled cluster are left out and named.
`python -m tracer.validate` scores the same formula as a kernel family, on unfitted rows alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from tracer.errors import UserError
from tracer.hardware import Cluster, cluster_ids, load_cluster
from tracer.machine.measured import MeasuredError, read_file
from tracer.parallel.expert_exchange import ep_tpot_limit
from tracer.parallel.groups import packed
from tracer.parallel.network import network_of

LONG = 16 * 2**20  # bytes


class Line(NamedTuple):
    """Mean absolute relative errors of one operation on so many chips of a domain."""

    chip: str
    op: str
    ranks: int
    rows: int
    every: float
    bias: float
    long_rows: int
    long: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; exit code 2 for a folder that cannot be believed."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="measured CSV files")
    options = p.parse_args(argv)
    try:
        lines = score(options.data)
    except UserError as error:
        print(f"score_network: {error}", file=sys.stderr)
        return 2
    headers = ("chip", "op", "ranks", "rows", "MAPE %", "bias %", "rows > 16 MiB", "MAPE %")
    table = [
        (
            x.chip, x.op, x.ranks, x.rows, f"{x.every * 100:.1f}", f"{x.bias * 100:+.1f}",
            x.long_rows, f"{x.long * 100:.1f}" if x.long_rows else "-",
        )
        for x in lines
    ]  # fmt: skip
    print(tabulate(table, headers, disable_numparse=True))
    print("\nleast time a token under expert parallelism (arXiv 2505.09343: 14.76 and 0.82 ms)")
    for bandwidth in (50e9, 900e9):
        for hidden in (7000, 7168):
            limit = ep_tpot_limit(bandwidth, hidden=hidden)
            print(f"{bandwidth / 1e9:4.0f} GB/s, hidden {hidden}: {limit * 1e3:6.2f} ms")
    return 0


def score(folder: Path) -> list[Line]:
    """Errors by chip, operation and number of ranks.

    Raises:
        MeasuredError: no such folder, or a file with a fault.
    """
    if not folder.is_dir():
        raise MeasuredError(f"{folder}: no such folder")
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("*.csv")):
        for sample in read_file(path):
            if sample.family == "collective":
                reduces, ranks, nbytes = sample.values
                key = (sample.chip, "all_reduce" if reduces else "all_gather", int(ranks))
                found.setdefault(key, []).append((nbytes, sample.seconds))
    lines = []
    for (chip, op, ranks), rows in sorted(found.items()):
        cluster = cluster_of(chip)
        if cluster is None:
            print(f"note: no cluster of {chip}: {len(rows)} rows left out", file=sys.stderr)
            continue
        sizes, measured = np.array(rows).T
        predicted = network_of(cluster).time(op, sizes, packed(ranks, cluster)).seconds
        error, long = predicted / measured - 1, sizes > LONG
        lines.append(Line(
            chip, op, ranks, len(rows), float(np.abs(error).mean()), float(error.mean()),
            int(long.sum()), float(np.abs(error[long]).mean()) if long.any() else 0.0,
        ))  # fmt: skip
    return lines


def cluster_of(chip: str) -> Cluster | None:
    """A bundled cluster of that chip: within one domain they are all alike."""
    clusters = (load_cluster(name) for name in cluster_ids())
    return next((cluster for cluster in clusters if cluster.chip.id == chip), None)


if __name__ == "__main__":
    sys.exit(main())
