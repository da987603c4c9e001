"""`torch.profiler` Chrome traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .linking import Launches, linked
from .records import Argument, MeasuredKernel, MeasuredOp, Profile, ProfileError, tensor

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_DTYPES = {
    "float": "float32", "double": "float64", "long": "int64", "long int": "int64", "int": "int32",
    "short": "int16", "short int": "int16", "char": "int8", "signed char": "int8",
    "unsigned char": "uint8", "bool": "bool", "c10::Half": "float16", "c10::BFloat16": "bfloat16",
    "c10::Float8_e4m3fn": "float8_e4m3fn", "c10::Float8_e5m2": "float8_e5m2",
    "c10::Float8_e4m3fnuz": "float8_e4m3fnuz", "c10::Float8_e5m2fnuz": "float8_e5m2fnuz",
    "c10::complex<float>": "complex64", "c10::complex<double>": "complex128",
}  # fmt: skip


def read_chrome(path: Path, raw: bytes, step: int | None) -> Profile:
    """The profile in the bytes of a Chrome trace; see `read_profile`."""
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
    profile = linked(str(path), ops, kernels, launches, ())
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
            found.append(Argument((tensor(shape, stride, _DTYPES[kind]),), text=text))
        elif shape and isinstance(shape[0], list):  # a list has one dtype, or "TensorList"
            listed = stride if stride and len(stride) == len(shape) else [None] * len(shape)
            inner = next((dtype for name, dtype in _DTYPES.items() if name in kind), "bfloat16")
            pairs = zip(shape, listed, strict=True)
            found.append(Argument(tuple(tensor(s, t, inner) for s, t in pairs), True, text))
        else:
            found.append(Argument(text=text))
    return tuple(found)


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
