"""Throughput of the streamed weight statistics against plain sequential reading, in one run.

    python scripts/bench_checkpoint.py                # 2 GB, BF16 and FP8, in the temp folder
    python scripts/bench_checkpoint.py --gigabytes 8 --folder /mnt/disk

Writes a checkpoint of several shards with the matrix shapes of DeepSeek-V3's experts, then reads it
in turn: `read` fills one 4 MiB buffer again and again, `stats` is `weight_stats`. *cold* drops the
files from the page cache before each (posix_fadvise, after fsync), so that both wait for the disk;
*cached* reads each file once before, so that neither does. The ratio that matters for a checkpoint
larger than memory is the cold one; a read from the page cache only copies memory.

Reading needs little of a processor and statistics need all of it, so ratios mean something on an
idle machine alone: the load is printed beside them, and the CPU time of a GB, which other programs
disturb less. That time over the number of cores is what statistics can take at best.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from tracer.models.shard_writer import Planned, ShardWriter, finish, split
from tracer.models.shards import Checkpoint, open_checkpoint
from tracer.models.strips import as_bytes
from tracer.models.weight_stats import weight_stats

SHAPE = (2048, 7168)  # gate_proj of one expert of DeepSeek-V3
SHARDS = 4


def main() -> None:
    """Print one table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--gigabytes", type=float, default=2.0)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="on the disk to measure (default: temp)")
    args = options.parse_args()
    rows, load = [], os.getloadavg()
    for kind in ("BF16", "F8_E4M3"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            checkpoint = write(Path(folder), kind, int(args.gigabytes * 1e9))
            for state, prepare in (("cold", drop), ("cached", read)):
                rows.append(measure(checkpoint, kind, state, prepare, args.rounds))
    headers = (
        "weights", "pages", "GB", "read GB/s", "stats GB/s", "stats / read, median", "best",
        "stats CPU s/GB",
    )  # fmt: skip
    print(tabulate(rows, headers, floatfmt=".2f"))
    print(f"{os.cpu_count()} cores, load {load[0]:.1f} before and {os.getloadavg()[0]:.1f} after")


def write(folder: Path, kind: str, nbytes: int) -> Checkpoint:
    """Normal weights of std 0.02; in FP8 the largest value of each block is 448."""
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.02
    rows, columns = SHAPE[0] // 128, SHAPE[1] // 128
    if kind == "BF16":
        data, extra = as_bytes(weights.bfloat16()), []
    else:
        data, extra = as_bytes((weights * (448 / 0.1)).to(torch.float8_e4m3fn)), [(rows, columns)]
    names = [f"model.layers.3.mlp.experts.{i}.gate_proj.weight" for i in range(nbytes // len(data))]
    tensors = [Planned(name, kind, SHAPE) for name in names]
    plan = split(tensors, -(-nbytes // SHARDS))
    for shard, members in plan.items():
        scales = [Planned(t.name + "_scale_inv", "F32", s) for t in members for s in extra]
        with ShardWriter(folder / shard, [*members, *scales], {}) as writer:
            for tensor in members:
                writer.put(tensor.name, data)
            for scale in scales:
                writer.put(scale.name, as_bytes(torch.full((rows, columns), 0.1 / 448)))
        members.extend(scales)
    finish(folder, {}, plan)
    return open_checkpoint(folder)


def drop(checkpoint: Checkpoint) -> None:
    """Forget the pages of all shards."""
    for shard in checkpoint.shards:
        descriptor = os.open(Path(checkpoint.where) / shard, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(checkpoint: Checkpoint) -> None:
    """Every shard from front to back, one buffer."""
    buffer = bytearray(4 << 20)
    for shard in checkpoint.shards:
        with (Path(checkpoint.where) / shard).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass


def stats(checkpoint: Checkpoint) -> None:
    """All rows, thrown away."""
    for _ in weight_stats(checkpoint):
        pass


def measure(
    checkpoint: Checkpoint,
    kind: str,
    state: str,
    prepare: Callable[[Checkpoint], None],
    rounds: int,
) -> tuple[object, ...]:
    """Both in turn, several rounds: best rates, and the ratio round by round."""
    total = sum(checkpoint.shards.values()) / 1e9
    taken: dict[str, list[float]] = {"read": [], "stats": []}
    processor: list[float] = []
    for _ in range(rounds):
        for name, job in (("read", read), ("stats", stats)):
            prepare(checkpoint)
            start, cpu = time.perf_counter(), time.process_time()
            job(checkpoint)
            taken[name].append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    ratios = [r / s for r, s in zip(taken["read"], taken["stats"], strict=True)]
    return (
        kind, state, total, total / min(taken["read"]), total / min(taken["stats"]),
        statistics.median(ratios), max(ratios), min(processor) / total,
    )  # fmt: skip


if __name__ == "__main__":
    main()
