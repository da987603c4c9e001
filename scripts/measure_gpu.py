#!/usr/bin/env python
"""Time op families over a fixed grid on this machine's CUDA GPU, for `tracer.validate --data`.

    python scripts/measure_gpu.py --dry-run                         # the grid; on any machine
    python scripts/measure_gpu.py --out hardware/measured           # all families
    python scripts/measure_gpu.py --out DIR --families gemm,layers

Writes `measured_<family>_<chip>.csv` in the format of `tracer.machine.measured` (`latency_us`: a
CUDA graph, which is what the time model predicts; `eager_us`: host launches included), a table of
whole layers with the allocator's peak in bytes, and `environment_<chip>.json`. Every time
is the median of repeats with the L2 cache flushed before each, in microseconds. A family whose file
is there is left alone, so that a run that was cut off goes on; `--again` measures it once more.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import itertools
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracer.errors import UserError
from tracer.hardware import load_chip
from tracer.machine.kernels import CLASSES
from tracer.machine.measured import COLUMNS

Case = dict[str, Any]
Timer = Callable[[Callable[[], Any]], "tuple[float, float]"]  # -> µs in a CUDA graph, µs eager

DEVICE = "cuda"

# Sizes of products that models have: (n, k) of projections and MLPs from 1B to 671B.
_WEIGHTS = (
    (1024, 1024), (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (7168, 2048),
    (8192, 8192), (7168, 16384), (24576, 1536), (129280, 7168),
)  # fmt: skip
_ROWS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LAYERS = ("deepseek_v3_dense", "deepseek_v3_moe", "llama_8b")
LAYER_COLUMNS = ("layer", "pass", "batch", "seq", "latency_us", "eager_us", "peak_bytes")


def _products() -> list[Case]:
    return [{"m": m, "n": n, "k": k} for m, (n, k) in itertools.product(_ROWS, _WEIGHTS)]


def _grid(**axes: Sequence[Any]) -> list[Case]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _heads(cases: Iterable[Case]) -> list[Case]:
    """`pair` is (heads, kv_heads)."""
    return [
        {"heads": case["pair"][0], "kv_heads": case["pair"][1],
         **{k: v for k, v in case.items() if k != "pair"}}
        for case in cases
    ]  # fmt: skip


GRID: Mapping[str, list[Case]] = {
    "gemm": _products(),
    "gemm_fp8": [case for case in _products() if case["m"] % 16 == 0],
    "attention_prefill": _heads(_grid(
        pair=((8, 1), (32, 8), (32, 32), (64, 8)), batch=(1, 4), keys=(256, 1024, 4096, 8192),
        size=(64, 128),
    )),
    "attention_decode": _heads(_grid(
        pair=((8, 1), (32, 8), (64, 8)), batch=(1, 8, 64), keys=(512, 4096, 32768), size=(128,),
    )),
    "mla_decode": _grid(heads=(16, 64, 128), batch=(1, 8, 64), keys=(512, 4096, 16384)),
    "grouped": _grid(
        tokens=(16, 128, 1024, 4096), top_k=(8,), experts=(8, 32, 64), hidden=(7168,),
        inner=(2048,),
    ),
    "elementwise": _grid(
        access=CLASSES, elements=tuple(2**n for n in range(12, 29, 2)),
    ),
    "layers": [
        {"layer": layer, "pass": way, "batch": batch, "seq": seq}
        for layer in _LAYERS for way in ("forward", "backward")
        for batch, seq in ((1, 512), (1, 4096), (4, 2048))
    ],
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 where it cannot measure."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--out", type=Path, default=Path("measured"), metavar="DIR")
    p.add_argument("--families", metavar="A,B", help=f"of {', '.join(GRID)}; default all")
    p.add_argument("--chip", metavar="ID", help="the chip; default by the GPU's name")
    p.add_argument("--repeats", type=int, default=21, metavar="N", help="median of N (default 21)")
    p.add_argument("--again", action="store_true", help="measure families that have a file")
    p.add_argument("--dry-run", action="store_true", help="print the grid and stop")
    options = p.parse_args(argv)
    try:
        names = options.families.split(",") if options.families else list(GRID)
        for name in names:
            if name not in GRID:
                raise UserError(f"--families {name!r}: choose of {', '.join(GRID)}")
        if options.repeats < 1:
            raise UserError(f"--repeats {options.repeats}: give at least 1")
        if options.dry_run:
            print("\n".join(plan(names)))
            return 0
        return _measure_all(options, names)
    except UserError as error:
        print(f"measure_gpu: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"measure_gpu: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def plan(names: Iterable[str]) -> list[str]:
    """The grid as text: a line a family, then a line a case."""
    lines = []
    for name in names:
        lines.append(f"{name}: {len(GRID[name])} cases")
        lines += ["  " + " ".join(f"{k}={v}" for k, v in case.items()) for case in GRID[name]]
    return lines


def _measure_all(options: argparse.Namespace, names: Sequence[str]) -> int:
    import torch

    if not torch.cuda.is_available():
        raise UserError("no CUDA GPU here: --dry-run prints the grid, the rest needs one")
    chip = load_chip(options.chip).id if options.chip else chip_of(torch.cuda.get_device_name())
    options.out.mkdir(parents=True, exist_ok=True)
    record = environment(options.repeats)
    timer = gpu_timer(options.repeats)
    for name in names:
        path = options.out / f"measured_{name}_{chip}.csv"
        if path.exists() and not options.again:
            print(f"{path}: there already, left alone", file=sys.stderr)
            continue
        skipped = measure(name, chip, path, timer)
        record["skipped"] += skipped
        print(f"wrote {path}; {len(skipped)} cases skipped", file=sys.stderr)
    record["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    (options.out / f"environment_{chip}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def chip_of(name: str) -> str:
    """The chip id of a GPU's name.

    Raises:
        UserError: none that is known; --chip names it.
    """
    known = {
        "H200": "h200_sxm", "H100 PCIe": "h100_pcie", "H100 NVL": "h100_nvl", "H100": "h100_sxm",
        "H800": "h800_sxm", "H20": "h20", "GB200": "gb200", "B200": "b200_sxm", "L40S": "l40s",
        "B300": "b300_sxm", "A100-PCIE": "a100_pcie", "A100 80GB PCIe": "a100_pcie",
        "A100": "a100_sxm", "RTX 4090": "rtx_4090",
    }  # fmt: skip
    for part, chip in known.items():
        if part.lower() in name.lower():
            return str(load_chip(chip).id)
    raise UserError(f"the GPU {name!r} is not known by its name: give --chip")


def measure(family: str, chip: str, path: Path, timer: Timer) -> list[str]:
    """Time every case of a family into `path`; returns the cases that this GPU cannot run."""
    rows, skipped = [], []
    cases = GRID[family]
    for number, case in enumerate(cases, start=1):
        text = " ".join(f"{k}={v}" for k, v in case.items())
        print(f"\r{family} {number}/{len(cases)} {text:60.60s}", end="", file=sys.stderr)
        try:
            rows.append(_one(family, case, timer))
        except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            skipped.append(f"{family} {text}: {type(error).__name__}: {reason}")
        _free()
    print(file=sys.stderr)
    write(family, chip, path, rows)
    return skipped


def write(family: str, chip: str, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows as CSV, whole or not at all. Those of layers are not kernels: no `family` column."""
    columns: tuple[str, ...] = LAYER_COLUMNS
    if family in COLUMNS:
        columns = ("family", "chip", "backend", *COLUMNS[family], "latency_us", "eager_us")
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({"family": family, "chip": chip, "backend": "torch", **row})
    part.replace(path)


def environment(repeats: int) -> Case:
    """What the times depend on; no name of a machine is in it."""
    import torch

    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        state = dict(zip(query.split(","), run.stdout.strip().split(", "), strict=False))
    except (OSError, subprocess.SubprocessError):
        state = {}
    return {
        "gpu": torch.cuda.get_device_name(), "nvidia_smi": state, "torch": torch.__version__,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(), "repeats": repeats,
        "timing": "median, L2 flushed before each; CUDA graph (latency_us) and eager (eager_us)",
        "skipped": [],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


# -- on the GPU ------------------------------------------------------------------------------------


def gpu_timer(repeats: int) -> Timer:
    """Times a call, in µs: captured in a CUDA graph, and launched by the host."""
    import torch

    size = max(torch.cuda.get_device_properties(0).L2_cache_size, 1 << 25)
    flush = torch.empty(4 * size, dtype=torch.uint8, device=DEVICE)

    def median(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times)

    def timer(call: Callable[[], Any]) -> tuple[float, float]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        eager = median(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        return median(graph.replay), eager

    return timer


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _one(family: str, case: Case, timer: Timer) -> Case:
    """The row of one case: its columns and times."""
    import torch

    if family == "layers":
        return _layer(case, timer)
    with torch.no_grad():
        call, more = _CALLS[family](case)
        latency, eager = timer(call)
    return {**case, **more, "latency_us": f"{latency:.3f}", "eager_us": f"{eager:.3f}"}


def _randn(*shape: int, dtype: Any = None) -> Any:
    import torch

    made = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    return made if dtype is None else made.to(dtype)


def _gemm(x: Case) -> Any:
    a, b = _randn(x["m"], x["k"]), _randn(x["n"], x["k"])
    return lambda: a @ b.t(), {}


def _gemm_fp8(x: Case) -> Any:
    """The activation is quantised in the call, as the rows of other sources have it."""
    import torch

    e4m3 = torch.float8_e4m3fn
    a, b = _randn(x["m"], x["k"]), _randn(x["n"], x["k"], dtype=e4m3)
    one = torch.ones((), device=DEVICE)
    return lambda: torch._scaled_mm(
        a.to(e4m3), b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    ), {}  # fmt: skip


def _attend(x: Case, queries: int) -> Any:
    import torch

    q = _randn(x["batch"], x["heads"], queries, x["size"])
    k, v = (_randn(x["batch"], x["kv_heads"], x["keys"], x["size"]) for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(q, k, v, is_causal=queries > 1, enable_gqa=True), {}


def _mla(x: Case) -> Any:
    """Absorbed: all heads share one latent of 512, with 64 more for positions in the keys."""
    q = _randn(x["batch"], x["heads"], 576)
    cache = _randn(x["batch"], x["keys"], 576)

    def call() -> Any:
        scores = (q @ cache.transpose(1, 2) * 576**-0.5).softmax(-1)
        return scores @ cache[..., :512]

    return call, {"backend": "torch, unfused"}


def _grouped(x: Case) -> Any:
    """Gate and up, SiLU, down, on rows sorted by expert, balanced; quantised rows as FP8 has it."""
    import torch

    e4m3 = torch.float8_e4m3fn
    pairs, experts = x["tokens"] * x["top_k"], x["experts"]
    rows = _randn(pairs, x["hidden"])
    up = _randn(experts, 2 * x["inner"], x["hidden"], dtype=e4m3).transpose(1, 2)
    down = _randn(experts, x["hidden"], x["inner"], dtype=e4m3).transpose(1, 2)
    ends = torch.arange(1, experts + 1, device=DEVICE, dtype=torch.int32) * (pairs // experts)
    ones = torch.ones(pairs, device=DEVICE)
    scales = [torch.ones(experts, n, device=DEVICE) for n in (2 * x["inner"], x["hidden"])]

    def product(a: Any, b: Any, scale: Any) -> Any:
        more = {"offs": ends, "out_dtype": torch.bfloat16, "use_fast_accum": True}
        return torch._scaled_grouped_mm(a.to(e4m3), b, ones, scale, **more)

    def call() -> Any:
        gate, value = product(rows, up, scales[0]).chunk(2, -1)
        return product(torch.nn.functional.silu(gate) * value, down, scales[1])

    return call, {}


def _elementwise(x: Case) -> Any:
    """A copy, a sum with a row, rows picked by number, and a row sum."""
    import torch

    n, width = x["elements"], 1024
    table = _randn(n // width, width)
    target = torch.empty_like(table)
    if x["access"] == "contiguous":
        return lambda: target.copy_(table), {"bytes": 4 * n}
    if x["access"] == "scalar":
        row = _randn(width)
        return lambda: torch.add(table, row, out=target), {"bytes": 4 * n + 2 * width}
    if x["access"] == "gather":
        order = torch.randperm(n // width, device=DEVICE)
        return lambda: torch.index_select(table, 0, order, out=target), {"bytes": 4 * n}
    return lambda: table.sum(-1), {"bytes": 2 * n + 2 * (n // width)}


_CALLS: Mapping[str, Callable[[Case], Any]] = {
    "gemm": _gemm,
    "gemm_fp8": _gemm_fp8,
    "attention_prefill": lambda x: _attend(x, x["keys"]),
    "attention_decode": lambda x: _attend(x, 1),
    "mla_decode": _mla,
    "grouped": _grouped,
    "elementwise": _elementwise,
}


def _layer(case: Case, timer: Timer) -> Case:
    """One layer, forward or forward and backward; the peak is that of an eager call, in bytes."""
    import torch

    block, inputs = _block(case)
    backward = case["pass"] == "backward"

    def call() -> None:
        out = block(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        if backward:
            for parameter in block.parameters():
                parameter.grad = None
            out.float().square().mean().backward()

    with torch.set_grad_enabled(backward):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        latency, eager = timer(call)
    return {**case, "latency_us": f"{latency:.3f}", "eager_us": f"{eager:.3f}", "peak_bytes": peak}


def _block(case: Case) -> Any:
    """A module on the GPU in BF16 with its inputs."""
    import torch

    batch, seq = case["batch"], case["seq"]
    if case["layer"] == "llama_8b":
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
            num_key_value_heads=8, num_hidden_layers=1, vocab_size=256, use_cache=False,
        )  # fmt: skip
        with torch.device(DEVICE):
            model = LlamaModel(config).to(torch.bfloat16)
        return _picked(model, "last_hidden_state"), (_tokens(batch, seq, 256),)
    from tracer.models import build, bundled_config

    dense = int(case["layer"] == "deepseek_v3_dense")
    config = {**bundled_config("deepseek-ai/DeepSeek-V3"), "num_hidden_layers": 1,
              "first_k_dense_replace": dense, "vocab_size": 256}  # fmt: skip
    model = build(config, training=case["pass"] == "backward", device=DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model, (_tokens(batch, seq, 256),)


def _tokens(batch: int, seq: int, vocabulary: int) -> Any:
    import torch

    return torch.randint(vocabulary, (batch, seq), device=DEVICE)


def _picked(model: Any, field: str) -> Any:
    """`model` with one field of its output as the output."""
    import torch

    class Picked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return getattr(self.model(*inputs), field)

    return Picked()


if __name__ == "__main__":
    sys.exit(main())
