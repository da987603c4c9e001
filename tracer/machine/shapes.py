"""From a kernel of a ledger to the numbers that its family's formula takes.

Shapes come from the op's record, FLOPs and bytes from the ledger, so that conventions (residency,
fusion, routing) hold here as well. Anything that is not understood falls back to `other`: bytes and
FLOPs without a shape.

In a symbolic trace the values are expressions. Where a family hangs on a size, the family is that
of the traced sizes and the trace's scope notes the guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..algebra import Expr, Value, least, most, sample
from ..capture.records import Op, TensorRef
from ..cost import EFFICIENT, Kernel, Ledger
from ..cost.work import (
    ATTENTION,
    CONV,
    COPY,
    GATHER,
    GEMM,
    GROUPED_GEMM,
    OPTIMIZER,
    POINTWISE,
    REDUCTION,
    ROW,
    SORT,
)
from .kernels import CLASSES, CONTIGUOUS, REDUCE, SCALAR
from .kernels import GATHER as GATHERED

OTHER = "other"  # matrix work without a known shape

# Operands of at most a byte use the FP8 kernels' constants.
SMALL = ("fp8", "fp6", "fp4", "int8", "int4")

MEASURED = ("bf16", "fp16", "fp8")  # of products; FP16 kernels are those of BF16

_LATENT = 512  # value size of absorbed MLA: a latent that all heads share
_DECODE_ROWS = 64  # queries that share a KV head, up to which a kernel streams the cache


class Shape(NamedTuple):
    """One launch of a kernel for its family's formula; all `values` of a family have one set.

    `measured` is whether kernels of its kind and precision were: a convolution or a product in
    FP32 takes the form of measured products, and how well that fits nobody looked.
    """

    family: str
    precision: str
    values: Mapping[str, Value]
    measured: bool = True


def shape_of(ledger: Ledger, kernel: Kernel) -> Shape:
    """The family of `kernel` and what its formula needs, of one launch."""
    launches = max(kernel.launches, 1)
    moved = kernel.cost.total_bytes / launches
    flops = kernel.cost.total_flops / launches
    recomputed = sum(kernel.cost.recompute_flops.values()) / launches
    main = max(kernel.parts, key=lambda part: sample(part.cost.total_flops))
    op = ledger.trace.ops[main.op]
    precision = max(kernel.cost.flops, key=lambda p: sample(kernel.cost.flops[p]), default="bf16")
    found = None
    if flops and kernel.kind in (GEMM, CONV):
        found = _product(op, flops, moved, precision)
    elif flops and kernel.kind == GROUPED_GEMM:
        found = _grouped(op, flops, moved, precision)
    elif flops and kernel.kind == ATTENTION:
        found = _attention(op, flops, recomputed, kernel, ledger.conventions.causal)
    if found is not None:
        family, values = found
        return Shape(family, precision, values, kernel.kind != CONV and precision in MEASURED)
    if flops:
        values = {"flops": flops + recomputed, "moved": moved}
        return Shape(OTHER, precision, values, measured=False)
    vector = kernel.cost.vector_flops / launches
    access = access_of(op, kernel, ledger.execution == EFFICIENT)
    elements = _number(most([ref.numel for ref in (*op.outputs, *op.inputs())] or [0]))
    if access == GATHERED and op.outputs:  # the table that is gathered from does not count
        elements = least((elements, moved / (2 * op.outputs[0].itemsize)))
    values = {
        "moved": moved, "elements": elements, "access": float(CLASSES.index(access)),
        "vector": vector,
    }  # fmt: skip
    return Shape("elementwise", precision, values)


Found = tuple[str, dict[str, Value]] | None


def _number(size: Any) -> Any:
    """A size as a float, or the expression that it is."""
    return size if isinstance(size, Expr) else float(size)


def _product(op: Op, flops: Any, moved: Any, precision: str) -> Found:
    """[batch, m, k] @ [batch, k, n]; k from the FLOPs, convolutions as implicit products."""
    out = op.outputs[0].shape
    batch, n = 1.0, _number(out[-1]) if out else 1.0
    m = op.outputs[0].numel / n if n else 0.0
    name = op.overload_packet.rpartition(".")[2]
    if "conv" in name and len(out) > 2:
        n = _number(out[1])
        m = op.outputs[0].numel / n if n else 0.0
    elif name in ("bmm", "baddbmm") or (name == "matmul" and len(out) > 2):
        batch = _number(_numel(out[:-2]))
        m = _number(out[-2])
    elif name in ("mv", "addmv", "dot", "vdot"):
        m, n = _number(op.outputs[0].numel), 1.0
    if not m * n * batch:
        return None
    values = {"m": m, "n": n, "k": flops / (2 * batch * m * n), "batch": batch, "moved": moved}
    if precision not in SMALL:
        return "gemm", values
    return "gemm_fp8_block" if _block_scaled(op) else "gemm_fp8", values


def _block_scaled(op: Op) -> bool:
    """Whether an operand has more than one scale along k: [m, k / 128] beside [m, k]."""
    tensors = list(op.inputs())
    scales = [ref for ref in tensors[2:] if ref.dtype.startswith("float") and len(ref.shape) == 2]
    return bool(tensors) and any(
        all(size > 1 for size in ref.shape) and ref.numel < tensors[0].numel for ref in scales
    )


def _grouped(op: Op, flops: Any, moved: Any, precision: str) -> Found:
    """Rows [R, K] times [E, K, N]: experts that are read follow from the bytes of the ledger."""
    tensors = list(op.inputs())
    x, out = tensors[0], op.outputs[0]
    if len(out.shape) == 3:  # weight gradients: a product an expert
        batch, m, n = (_number(size) for size in out.shape)
        if not batch * m * n:
            return None
        k = flops / (2 * batch * m * n)
        family = "gemm_fp8_block" if precision in SMALL else "gemm"
        return family, {"m": m, "n": n, "k": k, "batch": batch, "moved": moved}
    if len(x.shape) != 2 or not x.numel:
        return None
    rows, k = (_number(size) for size in x.shape)
    if op.overload_packet == _HEAD:
        rows = _number(op.args[3])
    n = flops / (2 * rows * k)
    weight = max(tensors[1:], key=lambda ref: sample(ref.nbytes), default=x)
    weights, _ = expert_bytes(op, moved)
    experts = _number(weight.shape[0]) if len(weight.shape) == 3 else 1.0
    active = least((most((weights / (k * n * weight.itemsize), 1.0)), experts, rows))
    return "grouped", {"rows": rows, "active": active, "k": k, "n": n, "moved": moved}


_HEAD = "tracer.grouped_mm_head"  # of all rows, those in front


def expert_bytes(op: Op, moved: Any) -> tuple[Any, Any]:
    """Of the bytes that a grouped product moves, the weights of experts that it reads, and the
    gradients of experts that it writes.
    """
    x, out = next(iter(op.inputs())), op.outputs[0]
    if len(out.shape) == 3:
        return 0.0, least((out.nbytes, moved))
    share = op.args[3] / _number(x.shape[0]) if op.overload_packet == _HEAD else 1.0
    return most((moved - share * (x.nbytes + out.nbytes), 0.0)), 0.0


# Where `is_causal` stands among the arguments; only asked if the ledger counts whole squares.
_CAUSAL = {"_scaled_dot_product_flash_attention": 4, "_flash_attention_forward": 8}


def _attention(op: Op, flops: Any, recomputed: Any, kernel: Kernel, counted: str) -> Found:
    """Prefill, or decode where few queries share a KV head; masks follow from the FLOPs."""
    name = op.overload_packet.rpartition(".")[2]
    backward = "backward" in name
    operands = _operands(op)
    if operands is None:
        return None
    q, k, v = (_heads_first(ref, name) for ref in operands)
    batch, heads, queries, size = (_number(x) for x in q)
    kv_heads, keys, size_v = _number(k[1]), _number(k[2]), _number(v[3])
    pair = 2 * batch * heads * (size + size_v)
    forward = flops / 2 if backward else flops
    share = forward / (pair * queries * keys)
    if counted != "pairs" and not backward:
        flag = op.kwargs.get("is_causal")
        place = _CAUSAL.get(name, 6)
        if flag is None and len(op.args) > place:
            flag = op.args[place]
        share = share / 2 if flag is True else share
    rows = heads / kv_heads * queries
    # Absorbed MLA: the values are the first elements of the one key that all heads share.
    _, key, value = operands
    one = (key.storage, key.offset) == (value.storage, value.offset)
    latent = size_v >= _LATENT or (kv_heads == 1 and one and size > size_v)
    if not backward and keys > 1 and (latent or rows <= _DECODE_ROWS):
        moved = kernel.cost.total_bytes / max(kernel.launches, 1)
        own = next(r for r in op.inputs() if len(r.shape) == 4).nbytes + op.outputs[0].nbytes
        family = "mla_decode" if latent else "attention_decode"
        return family, {
            "batch": batch, "kv_heads": kv_heads, "rows": rows, "keys": keys, "size": size,
            "size_v": size_v, "nbytes": most((moved - own, 0.0)),
        }  # fmt: skip
    family = "attention_prefill" if size == size_v else "mla_prefill"
    passes = (flops + recomputed) / forward
    return family, {
        "batch": batch, "heads": heads, "kv_heads": kv_heads, "queries": queries, "keys": keys,
        "size": size, "size_v": size_v, "share": least((share, 1.0)), "passes": passes,
    }  # fmt: skip


def attention_operands(op: Op) -> tuple[tuple[int, ...], ...] | None:
    """[B, H, S, D] of query, key and value of a fused attention op; None if it has none such."""
    name = op.overload_packet.rpartition(".")[2]
    operands = _operands(op)
    return None if operands is None else tuple(_heads_first(ref, name) for ref in operands)


def _operands(op: Op) -> list[TensorRef] | None:
    """Query, key and value; a backward has the output's gradient in front of them."""
    tensors = [ref for ref in op.inputs() if len(ref.shape) == 4]
    tensors = tensors[1 if "backward" in op.overload_packet else 0 :][:3]
    return tensors if len(tensors) == 3 else None


def _heads_first(ref: TensorRef, name: str) -> tuple[int, ...]:
    """[B, H, S, D]; `_flash_attention_*` and `_efficient_attention_*` have [B, S, H, D]."""
    b, x, y, d = ref.shape
    tokens_first = name.startswith(("_flash_attention", "_efficient_attention"))
    return (b, y, x, d) if tokens_first else (b, x, y, d)


# Reductions that torch runs as one hand-written kernel at the memory's speed.
_FUSED_ROWS = ("softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm", "cross_entropy")


def access_of(op: Op, kernel: Kernel, compiled: bool) -> str:
    """How a kernel without matrix work reaches memory.

    A compiled kernel is written for its shapes and streams, unless it gathers. Otherwise a single
    op runs as torch has it: with vector loads only if all operands are contiguous and of one shape.
    """
    name = op.overload_packet.rpartition(".")[2]
    if len(kernel.parts) > 1 or kernel.kind == OPTIMIZER or name.startswith("_foreach"):
        return CONTIGUOUS
    if kernel.kind in (GATHER, SORT):
        return GATHERED
    if compiled or kernel.kind not in (POINTWISE, COPY, ROW, REDUCTION):
        return CONTIGUOUS
    if name in ("cat", "stack"):
        return GATHERED
    tensors = [ref for ref in op.inputs() if ref.numel > 1]
    if kernel.kind in (ROW, REDUCTION):
        fused = any(part in name for part in _FUSED_ROWS)
        return CONTIGUOUS if fused else REDUCE
    largest = most([ref.numel for ref in (*op.outputs, *tensors)] or [0])
    same = all(ref.numel == largest and contiguous(ref) for ref in tensors)
    return CONTIGUOUS if same else SCALAR


def contiguous(ref: TensorRef) -> bool:
    """Whether the elements lie in memory without gaps, in the order of the shape."""
    expected = 1
    for size, stride in zip(reversed(ref.shape), reversed(ref.stride), strict=True):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
