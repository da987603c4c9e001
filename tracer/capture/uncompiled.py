"""Torch without its compiler, for programs that compile nothing.

Torch wraps dispatch modes, reference kernels and optimizers so that its compiler leaves them alone.
The first call of each imports the whole compiler to hear that it is not running: about a second
of every cold start, in which nothing of it is used. Fake tensors import it for one of its settings.
`tests/capture/test_uncompiled.py` states what is relied on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_VALIDATOR = "torch.fx.experimental.validator"  # of symbolic sizes; imports the compiler
_REMEMBERED = "__dynamo_disable"  # where torch keeps what the compiler made of a function


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """A block whose code calls no compiler, so that torch need not import it.

    What was imported before stays as it is. An import of the compiler inside of the block finds an
    empty package with its settings (`config`); one after the block finds the whole.
    """
    if _COMPILER in sys.modules:
        yield
        return
    left_alone: list[Any] = []
    absent = {_COMPILER: _compiler(left_alone), _VALIDATOR: _validator()}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n in absent or n.startswith(f"{_COMPILER}.")]:
            del sys.modules[name]
        for function in left_alone:  # a compiler that comes later is to be asked again
            vars(function).pop(_REMEMBERED, None)


def _compiler(left_alone: list[Any]) -> ModuleType:
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        left_alone.append(function)
        return function

    package = ModuleType(_COMPILER)
    package.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    package.disable = disable  # type: ignore[attr-defined]
    package.graph_break = lambda: None  # type: ignore[attr-defined]
    return package


def _validator() -> ModuleType:
    module = ModuleType(_VALIDATOR)
    module.translation_validation_enabled = lambda: False  # type: ignore[attr-defined]
    return module
