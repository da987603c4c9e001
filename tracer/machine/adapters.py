"""Tables of other projects, read as samples of the families. Understood by file name.

ai-dynamo/aiconfigurator: `gemm_<chip>.csv` (a column of µs a backend), `attention_context_`,
`attention_generation_`, `mla_context_`, `mla_generation_`, `moe_` and `nccl_<chip>.csv`.
AMD-AGI/TraceLens: `eager_ops_<model>_<chip>.csv`, the ops of one eager forward.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from .kernels import CLASSES, CONTIGUOUS, GATHER, REDUCE, SCALAR
from .measured import Adapter, Row, Sample, Table, chip_id

DTYPES = {"bfloat16": "gemm", "float16": "gemm", "fp8": "gemm_fp8", "fp8_block": "gemm_fp8_block"}
# Where backends differ by software and not by chance, one is taken as the truth.
MLA_BACKEND = MOE_BACKEND = "trtllm"
# The bundled table of experts is DeepSeek-V3's; it has no columns for these.
TOP_K, EXPERTS, HIDDEN, INNER = 8, 256, 7168, 2048


def adapter_of(name: str) -> Adapter | None:
    """The reader of a file by its name, None if it is none of these."""
    for pattern, adapter in _ADAPTERS:
        if re.fullmatch(pattern, name):
            return adapter
    return None


def gemm(table: Table) -> Iterator[Sample]:
    """Dense products: `gemm_dtype`, m, n, k, and a column `<backend>_us` for each backend."""
    table.need("gemm_dtype", "m", "n", "k")
    backends = [column for column in table.header if column.endswith("_us")]
    if not backends:
        table.need("<backend>_us")
    chip = chip_id(table.path.stem.removeprefix("gemm_"), str(table.path))
    for row in table:
        family = DTYPES.get(row.text("gemm_dtype"))
        if family is None:
            continue
        shape = (row.size("m"), row.size("n"), row.size("k"))
        for backend in backends:
            if row.text(backend):
                yield Sample(family, chip, shape, row.microseconds(backend), row.where)


def attention_context(table: Table) -> Iterator[Sample]:
    """Causal flash attention over whole prompts."""
    yield from _attention(table, "attention_prefill")


def attention_generation(table: Table) -> Iterator[Sample]:
    """Flash attention of one token a sequence."""
    yield from _attention(table, "attention_decode")


def _attention(table: Table, family: str) -> Iterator[Sample]:
    columns = ("num_heads", "num_key_value_heads", "batch_size", "kv_len", "head_dim")
    table.need("system", "latency_us", *columns)
    for row in table:
        yield _sample(row, family, tuple(row.size(column) for column in columns))


def mla_context(table: Table) -> Iterator[Sample]:
    """MLA prefill in the 192/128 form (TensorRT-LLM), BF16 cache."""
    yield from _mla(table, "context_mla_perf", "mla_prefill")


def mla_generation(table: Table) -> Iterator[Sample]:
    """Absorbed MLA decode (TensorRT-LLM), BF16 cache."""
    yield from _mla(table, "generation_mla_perf", "mla_decode")


def _mla(table: Table, name: str, family: str) -> Iterator[Sample]:
    columns = ("num_heads", "batch_size", "kv_len")
    table.need("system", "table", "backend", "kv_cache_dtype", "latency_us", *columns)
    for row in table:
        chosen = row.text("table") == name and row.text("backend").startswith(MLA_BACKEND)
        if chosen and row.text("kv_cache_dtype") == "bfloat16":
            yield _sample(row, family, tuple(row.size(column) for column in columns))


def moe(table: Table) -> Iterator[Sample]:
    """Layers of routed experts, FP8, balanced routing (TensorRT-LLM)."""
    table.need("system", "backend", "distribution", "moe_tp_size", "moe_ep_size", "num_tokens")
    table.need("latency_us")
    for row in table:
        balanced = row.text("distribution") == "balanced"
        if balanced and row.text("backend").startswith(MOE_BACKEND):
            inner = INNER / row.size("moe_tp_size")
            experts = EXPERTS / row.size("moe_ep_size")
            values = (row.size("num_tokens"), float(TOP_K), experts, float(HIDDEN), inner)
            yield _sample(row, "grouped", values)


def nccl(table: Table) -> Iterator[Sample]:
    """All-reduce and all-gather of one node; `bytes` is the result's size on every rank."""
    table.need("system", "op_name", "num_gpus", "bytes", "latency_us")
    kinds = {"all_reduce": 1.0, "all_gather": 0.0}
    for row in table:
        kind = kinds.get(row.text("op_name"))
        if kind is not None:
            values = (kind, row.size("num_gpus"), row.size("bytes"))
            yield _sample(row, "collective", values)


def _sample(row: Row, family: str, values: tuple[float, ...]) -> Sample:
    chip = chip_id(row.text("system"), row.where)
    return Sample(family, chip, values, row.microseconds("latency_us"), row.where)


BYTES = {"BFloat16": 2, "Half": 2, "float": 4, "double": 8, "long int": 8, "bool": 1}
_POINTWISE = {"pow", "silu", "neg", "rsqrt", "cos", "sin", "eq", "add", "mul", "copy_"}
_BINARY = {"add", "mul"}


def eager_ops(table: Table) -> Iterator[Sample]:
    """The ops without matrix work of an eager forward; see `eager_row`."""
    for _row, _, sample in eager_rows(table):
        if sample is not None and sample.family == "elementwise":
            yield sample


def eager_rows(table: Table) -> Iterator[tuple[Row, float, Sample | None]]:
    """Every line with how often it ran and its sample, None where no family takes it."""
    table.need("device", "op", "input_dims", "dtypes", "count", "kernel_us_median", "kernel_us_sum")
    for row in table:
        yield row, row.size("count"), eager_row(row)


def eager_row(row: Row) -> Sample | None:
    """One profiled op as a sample; strides are not recorded, so access follows from the op.

    A `copy_` within one dtype exists to change a layout; four-dimensional operands of `add` and
    `neg` are the transposed heads and their halves; operands of other shapes are broadcast.
    """
    chip, seconds = chip_id(row.text("device"), row.where), row.microseconds("kernel_us_median")
    op = row.text("op").removeprefix("aten::")
    shapes = _tensors(ast.literal_eval(row.text("input_dims")))
    names = [str(x) for x in ast.literal_eval(row.text("dtypes"))]
    if op in ("mm", "addmm"):
        (m, k), (_, n) = shapes[-2:]
        return Sample("gemm", chip, (m, n, k), seconds, row.where)
    if op == "_scaled_dot_product_flash_attention":
        batch, heads, keys, size = shapes[0]
        values = (heads, shapes[1][1], batch, keys, size)
        return Sample("attention_prefill", chip, values, seconds, row.where)
    sizes = [next((v for k, v in BYTES.items() if k in name), 4) for name in names]
    counts = [_numel(shape) for shape in shapes]
    largest = max(counts, default=0)
    if not largest:
        return None
    if op == "index_select":
        rows, width = counts[-1], shapes[0][-1]
        return _elementwise(row, chip, GATHER, 2 * rows * width * sizes[0], rows * width, seconds)
    if op == "cat":
        total = sum(counts)
        return _elementwise(row, chip, GATHER, 2 * total * 2, total, seconds)
    if op in ("mean", "all"):
        return _elementwise(row, chip, REDUCE, largest * sizes[0], largest, seconds)
    if op not in _POINTWISE:
        return None
    read = sum(n * s for n, s in zip(counts, sizes, strict=False))
    if op == "copy_":  # the destination comes first; what it held is not read
        moved = counts[0] * sizes[0] + counts[1] * sizes[1]
        access = SCALAR if sizes[0] == sizes[1] else CONTIGUOUS
        return _elementwise(row, chip, access, moved, largest, seconds)
    broadcast = op in _BINARY and len(counts) > 1 and min(counts) < largest
    strided = op in ("add", "neg") and len(shapes[0]) == 4
    access = SCALAR if broadcast or strided else CONTIGUOUS
    return _elementwise(row, chip, access, read + largest * max(sizes[: len(counts)]), largest,
                        seconds)  # fmt: skip


def _elementwise(
    row: Row, chip: str, access: str, moved: float, elements: float, seconds: float
) -> Sample:
    values = (float(CLASSES.index(access)), float(moved), float(elements))
    return Sample("elementwise", chip, values, seconds, row.where)


def _tensors(dims: Any) -> list[tuple[int, ...]]:
    """Shapes among nested tuples of dimensions; () stands for a scalar and is dropped."""
    found: list[tuple[int, ...]] = []
    for item in dims:
        if isinstance(item, tuple) and item and isinstance(item[0], int):
            found.append(item)
        elif isinstance(item, tuple):
            found += _tensors(item)
    return found


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


_ADAPTERS: tuple[tuple[str, Adapter], ...] = (
    (r"gemm_.*\.csv", gemm),
    (r"attention_context_.*\.csv", attention_context),
    (r"attention_generation_.*\.csv", attention_generation),
    (r"mla_context_.*\.csv", mla_context),
    (r"mla_generation_.*\.csv", mla_generation),
    (r"moe_.*\.csv", moe),
    (r"nccl_.*\.csv", nccl),
    (r"eager_ops_.*\.csv", eager_ops),
)
