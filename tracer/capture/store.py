"""A trace as a file: gzipped JSON, written and read without torch. Loading is the identity."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from ..algebra import Scope
from ..algebra.plain import from_plain, scope_from_plain, scope_to_plain, to_plain
from ..errors import UserError
from .records import Call, Fold, Op, Parameter, Storage, TensorRef, Trace

FORMAT, VERSION = "tracer-trace", 1


def save(trace: Trace, path: str | Path) -> Path:
    """Write `trace` to `path` (`.json.gz` by custom); the file appears whole or not at all."""
    target = Path(path)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "header": {key: to_plain(value) for key, value in trace.header.items()},
        "scope": None if trace.scope is None else scope_to_plain(trace.scope),
        "calls": trace.calls,
        "parameters": trace.parameters,
        "folds": trace.folds,
        "pointwise": sorted(trace.pointwise),
        "storages": [[to_plain(s.nbytes), s.born, s.died, s.role] for s in trace.storages],
        "ops": [
            [op.name, _encode(op.args), {k: _encode(v) for k, v in op.kwargs.items()},
             _encode(op.outputs), op.mutates, op.call, op.phase, op.times]
            for op in trace.ops
        ],
    }  # fmt: skip
    part = target.with_name(f".{target.name}.part")
    try:
        # No time stamp inside: the same trace gives the same bytes.
        part.write_bytes(gzip.compress(json.dumps(document).encode(), 6, mtime=0))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def load(path: str | Path) -> Trace:
    """Read a trace that `save` wrote.

    Raises:
        UserError: no such file, not a trace, truncated, or written by a newer version.
    """
    try:
        document = json.loads(gzip.decompress(Path(path).read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no trace at {path}") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a trace file or is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path} is JSON, but not a trace")
    version = document.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"{path} has trace format {version}; this version reads up to {VERSION}")
    try:
        return _trace(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a whole trace: {type(error).__name__} {error}") from error


def _trace(document: dict[str, Any]) -> Trace:
    scope = None if document.get("scope") is None else scope_from_plain(document["scope"])
    return Trace(
        ops=[
            Op(name, _decode(args, scope), {k: _decode(v, scope) for k, v in kwargs.items()},
               _decode(outputs, scope), tuple(mutates), call, phase, times)
            for name, args, kwargs, outputs, mutates, call, phase, times in document["ops"]
        ],
        calls=[Call(*call) for call in document["calls"]],
        storages=[Storage(_number(size, scope), *rest) for size, *rest in document["storages"]],
        parameters=[Parameter(p[0], tuple(p[1]), *p[2:]) for p in document["parameters"]],
        folds=tuple(Fold(name, n, tuple(members)) for name, n, members in document["folds"]),
        pointwise=frozenset(document["pointwise"]),
        header={key: _header(value, scope) for key, value in document["header"].items()},
        scope=scope,
    )  # fmt: skip


def _header(value: Any, scope: Scope | None) -> Any:
    sized = scope is not None and isinstance(value, dict) and "terms" in value
    return _number(value, scope) if sized else value


# JSON knows neither tuples nor tensor references nor complex numbers nor expressions.


def _encode(value: Any) -> Any:
    if type(value) is TensorRef:
        shape, stride, dtype, storage, offset = value
        return {"t": [_encode(shape), _encode(stride), dtype, storage, _encode(offset)]}
    if type(value) is tuple:
        return [_encode(item) for item in value]
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    return to_plain(value)


def _decode(value: Any, scope: Scope | None) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, scope) for item in value)
    if isinstance(value, dict):
        if "c" in value:
            return complex(*value["c"])
        if "t" not in value:
            return _number(value, scope)
        shape, stride, dtype, storage, offset = value["t"]
        if scope is None:
            return TensorRef(tuple(shape), tuple(stride), dtype, storage, offset)
        sizes = tuple(_number(n, scope) for n in shape), tuple(_number(n, scope) for n in stride)
        return TensorRef(*sizes, dtype, storage, _number(offset, scope))
    return value


def _number(value: Any, scope: Scope | None) -> Any:
    return value if scope is None else from_plain(value, scope)
