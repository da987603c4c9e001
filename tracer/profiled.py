"""Measured timelines: `torch.profiler` Chrome traces and Nsight Systems SQLite, as one `Profile`.

Times are seconds from the start of the file's clock. A GPU kernel belongs to the innermost op that
launched it: by the `External id` that both carry, else by the launch with its correlation id and
the op that was open on that thread then.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_NVTX = re.compile(r"^(?P<name>[\w:.]+), (?:seq|op_id) = ")
_SIZES = re.compile(r"sizes = (\[.*?\])(?:, input_op_ids|$)")
_DTYPES = {
    "float": "float32", "double": "float64", "long": "int64", "long int": "int64", "int": "int32",
    "short": "int16", "short int": "int16", "char": "int8", "signed char": "int8",
    "unsigned char": "uint8", "bool": "bool", "c10::Half": "float16", "c10::BFloat16": "bfloat16",
    "c10::Float8_e4m3fn": "float8_e4m3fn", "c10::Float8_e5m2": "float8_e5m2",
    "c10::Float8_e4m3fnuz": "float8_e4m3fnuz", "c10::Float8_e5m2fnuz": "float8_e5m2fnuz",
    "c10::complex<float>": "complex64", "c10::complex<double>": "complex128",
}  # fmt: skip


class ProfileError(UserError):
    """A file that is not a profiler trace of a GPU; says what and where."""


@dataclass(frozen=True)
class Argument:
    """One argument of a measured op: tensors as (shape, stride or None, dtype), else a text."""

    tensors: tuple[tuple[tuple[int, ...], tuple[int, ...] | None, str], ...] = ()
    listed: bool = False
    text: str = ""


@dataclass(eq=False)
class MeasuredOp:
    """An op on the CPU's timeline; `kernels` are those that no op inside of it launched."""

    name: str
    thread: object
    start: float
    end: float
    arguments: tuple[Argument, ...] | None = None  # None: not recorded
    external: int | None = None
    sequence: int | None = None
    is_module: bool = False
    parent: MeasuredOp | None = field(default=None, repr=False)
    children: list[MeasuredOp] = field(default_factory=list, repr=False)
    kernels: list[MeasuredKernel] = field(default_factory=list, repr=False)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors among the arguments."""
        return tuple(t[0] for a in self.arguments or () for t in a.tensors)

    def dtypes(self) -> tuple[str, ...]:
        """Their dtypes, by torch's names."""
        return tuple(t[2] for a in self.arguments or () for t in a.tensors)

    def all_kernels(self) -> Iterable[MeasuredKernel]:
        """Kernels launched by this op and by those inside of it."""
        yield from self.kernels
        for child in self.children:
            yield from child.all_kernels()


@dataclass(eq=False)
class MeasuredKernel:
    """A kernel, copy or fill on the GPU."""

    name: str
    start: float
    end: float
    correlation: int | None = None
    external: int | None = None
    op: MeasuredOp | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.end - self.start


@dataclass(frozen=True)
class Profile:
    """Roots of the CPU's op trees and the GPU's kernels, both in time order."""

    path: str
    roots: tuple[MeasuredOp, ...]
    kernels: tuple[MeasuredKernel, ...]
    modules: Mapping[MeasuredOp, str]
    notes: tuple[str, ...] = ()

    @property
    def has_shapes(self) -> bool:
        """Whether any op has its arguments' shapes."""
        return any(op.arguments is not None for op in self.walk())

    def walk(self) -> Iterable[MeasuredOp]:
        """Every op, parents first."""
        todo = list(reversed(self.roots))
        while todo:
            op = todo.pop()
            yield op
            todo.extend(reversed(op.children))


def read_profile(path: Path, step: int | None = None) -> Profile:
    """The profile in `path`; with `ProfilerStep#` marks, the last one or that of number `step`.

    Raises:
        ProfileError: a file that is missing, damaged, or no profiler trace of a GPU.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head == b"SQLite format 3\0":
            return _read_nsight(path)
        raw = path.read_bytes()
        return _read_chrome(path, gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw, step)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ProfileError(f"{path}: damaged or truncated gzip file: {error}") from None
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None


# -- torch.profiler --------------------------------------------------------------------------------


def _read_chrome(path: Path, raw: bytes, step: int | None) -> Profile:
    try:
        document = json.loads(raw)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} of {len(raw):,} bytes"
        raise ProfileError(f"{path}: not JSON, or truncated: {error.msg} at {where}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{path}: not JSON: {error}") from None
    if isinstance(document, dict) and "traceEvents" not in document:
        keys = ", ".join(list(document)[:6]) or "nothing"
        raise ProfileError(f"{path}: not a profiler trace: no 'traceEvents', it has {keys}")
    events = document["traceEvents"] if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise ProfileError(f"{path}: not a profiler trace: no list of events")
    ops, kernels, launches, steps = [], [], dict[int, tuple[object, float, int | None]](), {}
    categories: dict[str, int] = {}
    for number, event in enumerate(events):
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        category, args = str(event.get("cat", "none")).lower(), event.get("args") or {}
        categories[category] = categories.get(category, 0) + 1
        try:
            start, name = float(event["ts"]) * 1e-6, str(event["name"])
            end = start + float(event.get("dur", 0)) * 1e-6
            thread = (event.get("pid"), event.get("tid"))
            correlation, external = _integer(args, "correlation"), _integer(args, "External id")
            if category in GPU_CATEGORIES:
                kernels.append(MeasuredKernel(name, start, end, correlation, external))
            elif category in ("cuda_runtime", "cuda_driver", "hip_runtime"):
                if correlation is not None:
                    launches[correlation] = (thread, start, external)
            elif category == "cpu_op":
                ops.append(MeasuredOp(
                    name, thread, start, end, _arguments(args), external,
                    _integer(args, "Sequence number"),
                ))  # fmt: skip
            elif category == "python_function" and name.startswith("nn.Module: "):
                ops.append(MeasuredOp(name[11:], thread, start, end, is_module=True))
            elif category == "user_annotation" and name.startswith("ProfilerStep#"):
                steps[int(name[13:])] = (start, end)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileError(
                f"{path}: event {number}: not as the profiler writes it "
                f"({type(error).__name__}: {error})"
            ) from None
    if not kernels:
        found = ", ".join(f"{n:,} {name}" for name, n in categories.items()) or "no timed events"
        raise ProfileError(
            f"{path}: no GPU kernels, only {found}: profile with ProfilerActivity.CUDA"
        )
    profile = _linked(str(path), ops, kernels, launches, ())
    return _one_step(profile, launches, steps, step)


def _integer(args: Mapping[str, Any], key: str) -> int | None:
    value = args.get(key, args.get(key.lower()))
    return None if value is None else int(value)


def _arguments(args: Mapping[str, Any]) -> tuple[Argument, ...] | None:
    """From the parallel lists that `record_shapes=True` leaves."""
    dims, types = args.get("Input Dims"), args.get("Input type")
    if dims is None or types is None:
        return None
    strides, texts = args.get("Input Strides") or [], args.get("Concrete Inputs") or []
    found = []
    for number, (shape, kind) in enumerate(zip(dims, types, strict=False)):
        text = str(texts[number]) if number < len(texts) else ""
        stride = strides[number] if number < len(strides) else None
        if kind in _DTYPES:
            found.append(Argument((_tensor(shape, stride, _DTYPES[kind]),), text=text))
        elif shape and isinstance(shape[0], list):  # a list has one dtype, or "TensorList"
            listed = stride if stride and len(stride) == len(shape) else [None] * len(shape)
            inner = next((dtype for name, dtype in _DTYPES.items() if name in kind), "bfloat16")
            pairs = zip(shape, listed, strict=True)
            found.append(Argument(tuple(_tensor(s, t, inner) for s, t in pairs), True, text))
        else:
            found.append(Argument(text=text))
    return tuple(found)


def _tensor(
    shape: list[int], stride: list[int] | None, dtype: str
) -> tuple[tuple[int, ...], tuple[int, ...] | None, str]:
    known = stride is not None and len(stride) == len(shape)
    sizes = tuple(int(size) for size in shape)
    return sizes, tuple(int(s) for s in stride or ()) if known else None, dtype


Launches = Mapping[int, tuple[object, float, int | None]]


def _linked(
    path: str, ops: list[MeasuredOp], kernels: list[MeasuredKernel], launches: Launches,
    notes: tuple[str, ...],
) -> Profile:  # fmt: skip
    """Nest the ops of each thread, give every kernel its op and every op its module."""
    roots: list[MeasuredOp] = []
    threads: dict[object, list[MeasuredOp]] = {}
    for op in ops:
        threads.setdefault(op.thread, []).append(op)
    for members in threads.values():
        stack: list[MeasuredOp] = []
        for op in sorted(members, key=lambda op: (op.start, -op.end)):
            while stack and stack[-1].end <= op.start:
                stack.pop()
            if stack:
                op.parent = stack[-1]
                stack[-1].children.append(op)
            else:
                roots.append(op)
            stack.append(op)
    by_id: dict[int | None, MeasuredOp] = {}
    by_id |= {op.external: op for op in ops if op.external is not None}
    opened = _Opened(roots)
    kernels.sort(key=lambda kernel: kernel.start)
    for kernel in kernels:
        found = by_id.get(kernel.external)
        launch = launches.get(kernel.correlation) if kernel.correlation is not None else None
        if found is None and launch is not None:
            thread, start, external = launch
            found = by_id.get(external) or opened.at(thread, start)
        kernel.op = found
        if found is not None:
            found.kernels.append(kernel)
    roots.sort(key=lambda op: op.start)
    return Profile(path, tuple(roots), tuple(kernels), _modules(ops), notes)


class _Opened:
    """Which op was open on a thread at a time."""

    def __init__(self, roots: list[MeasuredOp]) -> None:
        self._roots: dict[object, list[MeasuredOp]] = {}
        for op in roots:
            self._roots.setdefault(op.thread, []).append(op)

    def at(self, thread: object, time: float) -> MeasuredOp | None:
        from bisect import bisect_right

        level, found = self._roots.get(thread, []), None
        while level:
            place = bisect_right(level, time, key=lambda op: op.start) - 1
            if place < 0 or level[place].end < time:
                break
            if not level[place].is_module:
                found = level[place]
            level = level[place].children
        return found


def _modules(ops: list[MeasuredOp]) -> dict[MeasuredOp, str]:
    """The open `nn.Module` frames; a backward op has those of its forward, by sequence number."""
    own: dict[MeasuredOp, str] = {}
    forward: dict[int, str] = {}
    for op in ops:
        frames, at = [], op.parent
        while at is not None:
            if at.is_module:
                frames.append(at.name)
            at = at.parent
        own[op] = ".".join(reversed(frames))
        if own[op] and op.sequence is not None:
            forward[op.sequence] = own[op]
    for op in ops:
        at = op
        while at is not None and not own[op]:
            if at.sequence is not None:
                own[op] = forward.get(at.sequence, "")
            at = at.parent
    return own


def _one_step(
    profile: Profile, launches: Launches, steps: Mapping[int, tuple[float, float]],
    step: int | None,
) -> Profile:  # fmt: skip
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps)) or "no ProfilerStep marks"
        raise ProfileError(f"{profile.path}: --step {step}: it has {known}")
    for number in sorted(steps, reverse=True) if step is None else (step,):
        low, high = steps[number]
        kernels = []
        for kernel in profile.kernels:
            launch = launches.get(kernel.correlation) if kernel.correlation is not None else None
            time = launch[1] if launch else kernel.op.start if kernel.op else kernel.start
            if low <= time <= high:
                kernels.append(kernel)
        if kernels:
            roots = tuple(op for root in profile.roots for op in _within(root, low, high))
            note = f"ProfilerStep#{number} of {len(steps)}"
            return Profile(profile.path, roots, tuple(kernels), profile.modules, (note,))
        if step is not None:
            raise ProfileError(f"{profile.path}: --step {step}: no GPU kernels in it")
    return profile


def _within(op: MeasuredOp, low: float, high: float) -> Iterable[MeasuredOp]:
    if low <= op.start and op.end <= high:
        yield op
    elif op.start < high and op.end > low:
        for child in op.children:
            yield from _within(child, low, high)


# -- Nsight Systems --------------------------------------------------------------------------------


def _read_nsight(path: Path) -> Profile:
    connection = None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        return _from_tables(path, connection)
    except sqlite3.Error as error:
        raise ProfileError(f"{path}: not a readable Nsight Systems export: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _from_tables(path: Path, connection: sqlite3.Connection) -> Profile:
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = [str(name) for (name,) in connection.execute(query)]
    if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
        raise ProfileError(
            f"{path}: no table CUPTI_ACTIVITY_KIND_KERNEL, only {', '.join(tables) or 'none'}: "
            "export with `nsys export --type sqlite` a run that traced CUDA"
        )
    texts: dict[int, str] = {}
    if "StringIds" in tables:
        texts = dict(connection.execute("SELECT id, value FROM StringIds"))
    columns = {
        row[1] for row in connection.execute("PRAGMA table_info(CUPTI_ACTIVITY_KIND_KERNEL)")
    }
    name = "demangledName" if "demangledName" in columns else "shortName"
    kernels = [
        MeasuredKernel(texts.get(label, str(label)), start * 1e-9, end * 1e-9, correlation)
        for start, end, correlation, label in connection.execute(
            f"SELECT start, end, correlationId, {name} FROM CUPTI_ACTIVITY_KIND_KERNEL"
        )
    ]
    if not kernels:
        raise ProfileError(f"{path}: no GPU kernels: CUPTI_ACTIVITY_KIND_KERNEL is empty")
    launches: dict[int, tuple[object, float, int | None]] = {}
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        rows = connection.execute(
            "SELECT correlationId, globalTid, start FROM CUPTI_ACTIVITY_KIND_RUNTIME"
        )
        launches = {number: (thread, start * 1e-9, None) for number, thread, start in rows}
    ops: list[MeasuredOp] = []
    notes: tuple[str, ...] = ()
    if "NVTX_EVENTS" in tables:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(NVTX_EVENTS)")}
        label = "textId" if "textId" in columns else "NULL"
        rows = connection.execute(
            f"SELECT start, end, text, {label}, globalTid FROM NVTX_EVENTS WHERE end IS NOT NULL"
        )
        for start, end, text, number, thread in rows:
            full = text or texts.get(number, "")
            match = _NVTX.match(full)
            if match:
                sizes = _nvtx_sizes(full)
                ops.append(MeasuredOp(match["name"], thread, start * 1e-9, end * 1e-9, sizes))
    if any(op.arguments is not None for op in ops):
        notes = ("NVTX ranges hold no dtypes: bfloat16 is assumed",)
    return _linked(str(path), ops, kernels, launches, notes)


def _nvtx_sizes(text: str) -> tuple[Argument, ...] | None:
    """`sizes = [[2, 3], [3, 4]]` of `emit_nvtx(record_shapes=True)`."""
    match = _SIZES.search(text)
    if match is None:
        return None
    try:
        sizes = ast.literal_eval(match[1])
    except (ValueError, SyntaxError):
        return None
    return tuple(
        Argument((_tensor(size, None, "bfloat16"),)) if size else Argument() for size in sizes
    )
