"""Measured kernels against predicted ops: which belong together, and what is left over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tracer.hardware import Chip

from ..capture.records import Op, Storage, TensorRef, Trace
from ..cost import NAIVE, Ledger, price
from ..cost.work import UNMODELLED
from ..errors import UserError
from ..machine import Timing, time_ledger
from .records import Argument, MeasuredKernel, MeasuredOp, Profile

# Codes of c10::ScalarType, as the profiler writes them for an argument `dtype`.
_CODES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32",
    7: "float64", 9: "complex64", 10: "complex128", 11: "bool", 15: "bfloat16",
    23: "float8_e5m2", 24: "float8_e4m3fn",
}  # fmt: skip


class Predicted(NamedTuple):
    """One op and its seconds: the estimate, and those of the datasheet's peaks."""

    name: str  # as the profiler has it: aten::mm
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    kind: str
    module: str
    seconds: float
    matrix: float
    vector: float
    memory: float
    modelled: bool


@dataclass(frozen=True)
class Match:
    """A measured op with its kernels, and the predicted op that it is, if there is one."""

    op: MeasuredOp
    kernels: tuple[MeasuredKernel, ...]
    predicted: Predicted | None
    module: str

    @property
    def seconds(self) -> float:
        """Measured GPU time of its kernels."""
        return sum(kernel.seconds for kernel in self.kernels)


@dataclass(frozen=True)
class Matching:
    """Everything measured and everything predicted, each thing once."""

    matches: tuple[Match, ...]
    unexplained: tuple[MeasuredKernel, ...]  # kernels that no op launched
    absent: tuple[Predicted, ...]  # predicted ops that launched no kernel


def from_ledger(ledger: Ledger, chip: Chip, timing: Timing) -> list[Predicted]:
    """The ops of a ledger that runs each as a kernel of its own, repeated ones spelled out."""
    found = []
    trace = ledger.trace
    for item in time_ledger(ledger, chip, timing).kernels:
        part = item.kernel.parts[0]
        op = trace.ops[part.op]
        tensors = list(op.inputs())
        times = max(op.times, 1)
        one = Predicted(
            op.overload_packet.replace(".", "::", 1), tuple(ref.shape for ref in tensors),
            tuple(ref.dtype for ref in tensors), item.kernel.kind, part.module,
            item.total / times, item.matrix / times, item.vector / times, item.memory / times,
            part.confidence != UNMODELLED,
        )  # fmt: skip
        found += [one] * times
    return found


def against_model(profile: Profile, predicted: Iterable[Predicted]) -> Matching:
    """Pair by name, shapes and dtypes; then by name and shapes; then by name. Each in order."""
    left: dict[int, Predicted] = dict(enumerate(predicted))
    kept = set(profile.kernels)
    pairs: dict[MeasuredOp, Predicted] = {}
    levels: tuple[Callable[[Any], Any], ...] = (
        lambda x: (x.name, _of(x.shapes), _of(x.dtypes)),
        lambda x: (x.name, _of(x.shapes)),
        lambda x: x.name if not _of(x.shapes) else None,
    )
    if not profile.has_shapes:
        levels = (lambda x: x.name,)
    for key in levels:
        queues: dict[Any, deque[int]] = {}
        for number, item in left.items():
            queues.setdefault(key(item), deque()).append(number)
        for root in profile.roots:
            for op in _candidates(root, pairs, kept):
                place = key(op)
                if place is not None and queues.get(place):
                    pairs[op] = left.pop(queues[place].popleft())
    matches = []
    for op, kernels in _units(profile.roots, pairs, kept):
        known = pairs.get(op)
        module = known.module if known else profile.modules.get(op, "")
        matches.append(Match(op, kernels, known, module))
    return Matching(tuple(matches), _unexplained(profile), tuple(left.values()))


def _of(value: Any) -> Any:
    """A measured op computes its shapes, a predicted one holds them."""
    return value() if callable(value) else value


def _candidates(
    op: MeasuredOp, pairs: dict[MeasuredOp, Predicted], kept: set[MeasuredKernel]
) -> Iterable[MeasuredOp]:
    """Ops with kernels, outermost first; below one that has its match there is nothing to find."""
    todo = [op]
    while todo:
        at = todo.pop()
        if at in pairs or not any(kernel in kept for kernel in at.all_kernels()):
            continue
        # An op around one that has its match already is not the same op.
        if not at.is_module and not _covers(at, pairs):
            yield at
        if at not in pairs:
            todo.extend(reversed(at.children))


def _covers(op: MeasuredOp, pairs: dict[MeasuredOp, Predicted]) -> bool:
    return any(child in pairs or _covers(child, pairs) for child in op.children)


def _units(
    ops: Iterable[MeasuredOp], pairs: dict[MeasuredOp, Predicted], kept: set[MeasuredKernel]
) -> Iterable[tuple[MeasuredOp, tuple[MeasuredKernel, ...]]]:
    for op in ops:
        if op in pairs:
            yield op, tuple(kernel for kernel in op.all_kernels() if kernel in kept)
            continue
        own = tuple(kernel for kernel in op.kernels if kernel in kept)
        if own:
            yield op, own
        yield from _units(op.children, pairs, kept)


def _unexplained(profile: Profile) -> tuple[MeasuredKernel, ...]:
    return tuple(kernel for kernel in profile.kernels if kernel.op is None)


# -- a trace on its own ----------------------------------------------------------------------------


def on_its_own(profile: Profile, chip: Chip, timing: Timing) -> Matching:
    """Every op that launched a kernel, priced from the shapes that the profiler recorded."""
    kept = set(profile.kernels)
    known: dict[Any, Predicted] = {}

    def predict(op: MeasuredOp) -> Predicted:
        key = (op.name, op.arguments)
        if key not in known:
            known[key] = _replayed(op, chip, timing)
        return known[key]._replace(module=profile.modules.get(op, ""))

    matches = []
    for op, kernels in _units(profile.roots, {}, kept):
        found = predict(op) if op.arguments is not None else None
        modelled = found is not None and found.modelled
        module = profile.modules.get(op, "")
        matches.append(Match(op, kernels, found if modelled else None, module))
    absent = []
    for op in profile.walk():
        leaf = not op.children and not op.kernels and op.arguments
        if leaf and any(size for shape in op.shapes() for size in shape):
            found = predict(op)
            if found.modelled and found.kind not in ("free", "other") and found.seconds:
                absent.append(found)
    return Matching(tuple(matches), _unexplained(profile), tuple(absent))


def _replayed(op: MeasuredOp, chip: Chip, timing: Timing) -> Predicted:
    """Run the op once on meta tensors of the recorded shapes, and price what was recorded."""
    try:
        trace = _replay(op)
        modelled = trace is not None
        ledger = price(trace or _bare(op), execution=NAIVE)
        parts = from_ledger(ledger, chip, timing)
    except UserError:  # a formula that cannot read it, or a precision that the chip lacks
        parts, modelled = [], False
    main = max(parts, key=lambda part: part.seconds, default=None)
    return Predicted(
        op.name, op.shapes(), op.dtypes(), main.kind if main else "other", "",
        sum(p.seconds for p in parts), sum(p.matrix for p in parts),
        sum(p.vector for p in parts), sum(p.memory for p in parts),
        modelled and all(part.modelled for part in parts),
    )  # fmt: skip


def _replay(op: MeasuredOp) -> Trace | None:
    """The records of `op` on meta tensors; None where torch has no such op or cannot run it."""
    import torch

    from ..capture import Capture

    space, _, name = op.name.partition("::")
    packet = getattr(getattr(torch.ops, space, None), name, None) if name else None
    if packet is None or not hasattr(packet, "overloads"):
        return None
    for label in packet.overloads():
        overload = getattr(packet, label)
        schema = overload._schema.arguments
        if len(schema) != len(op.arguments or ()):
            continue
        try:
            args: list[Any] = []
            kwargs: dict[str, Any] = {}
            for formal, given in zip(schema, op.arguments or (), strict=True):
                value = _value(given, formal)
                if formal.kwarg_only:
                    kwargs[formal.name] = value
                else:
                    args.append(value)
            with torch.no_grad(), Capture() as capture:
                overload(*args, **kwargs)
        except Exception:  # whatever torch raises for arguments of another overload
            continue
        return capture.trace
    return None


def _value(given: Argument, formal: Any) -> Any:
    """A tensor on meta, or the scalar that the text of a `Concrete Input` says."""
    import ast

    import torch

    kind = str(formal.type)
    if given.tensors:
        made = []
        for shape, stride, dtype in given.tensors:
            steps = stride if stride is not None else _contiguous(shape)
            made.append(
                torch.empty_strided(shape, steps, dtype=getattr(torch, dtype), device="meta")
            )
        return made if given.listed else made[0]
    if "Tensor" in kind or "Device" in kind or "Layout" in kind or "Generator" in kind:
        return None
    # ScalarType arguments are ints to the schema, by their name alone are they told apart.
    try:
        value = ast.literal_eval(given.text) if given.text else None
    except (ValueError, SyntaxError):
        value = given.text if "str" in kind else None
    if formal.name in ("dtype", "out_dtype") and isinstance(value, int):
        return getattr(torch, _CODES.get(value, "float32"))
    if formal.name in ("layout", "device", "memory_format"):
        return None
    if value is None:
        if formal.has_default_value():
            return formal.default_value
        if kind.startswith("Optional"):
            return None
        plain = {"int": -1, "float": 1.0, "bool": False, "number": 1, "List[int]": [-1]}
        return plain.get(kind)
    return value


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _bare(op: MeasuredOp) -> Trace:
    """An op that torch does not know, as its inputs alone."""
    trace = Trace()
    from ..capture.records import FORWARD, Call

    refs: list[TensorRef] = []
    for shape, dtype in zip(op.shapes(), op.dtypes(), strict=True):
        ref = TensorRef(shape, _contiguous(shape), dtype, len(refs), 0)
        trace.storages.append(Storage(ref.nbytes, -1))
        refs.append(ref)
    trace.calls.append(Call("", "", 0))
    name = op.name.replace("::", ".") + ".default"
    trace.ops.append(Op(name, tuple(refs), {}, (), (), 0, FORWARD))
    return trace
