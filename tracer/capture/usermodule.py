"""A person's own module: `package.module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from .compat import tree_map
from .grounds import FAKE, GROUNDS, REAL, REAL_BATCH, REAL_TOKENS, device_of, fake_twin
from .inputspec import InputSpec
from .loss import any_loss
from .program import INFERENCE, TRAINING, Run, no_state

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class ModuleProgram:
    """What `factory()` returns, under the `Program` protocol.

    Args:
        target: "package.module:factory" or "file.py:factory"; the current directory is importable.
        inputs: the inputs, where the factory returns none.

    Raises:
        UserError: nothing to import, no such attribute, not callable, what it returns is no module,
            a compiled one, no inputs are known, or they are not those of its forward.
    """

    layers = 0
    longest = None
    shortest = 1
    grounds = GROUNDS

    def __init__(self, target: str, inputs: Sequence[InputSpec] = ()) -> None:
        self.name = target
        self.cures: list[str] = []
        self.compiles = True
        self._factory = _load_factory(target)
        self._specs = tuple(inputs)
        self._built: dict[str, tuple[nn.Module, Inputs | None]] = {}
        self._elsewhere = ""  # why the factory did not run under torch.device("meta")
        module, given = self._make("meta")
        if given is None and not self._specs and _required(module):
            raise UserError(
                f"--module {target}: {type(module).__name__}.forward takes "
                f"{', '.join(_required(module))}: give each as --input, such as "
                f"--input '{_required(module)[0]}:bf16[B,S,64]', or return (module, inputs)"
            )
        if self._specs:
            _check_names(module, self._specs)
        trains = any(p.requires_grad for p in module.parameters())
        self.phases = (TRAINING, INFERENCE) if trains else (INFERENCE,)
        self.source = f"module {type(module).__name__}"
        self.dtype = _main_dtype(module)

    def module(self, phase: str, ground: str) -> nn.Module:
        """The module, made anew for each device."""
        return self._make(_place(ground))[0]

    def _make(self, device: str) -> tuple[nn.Module, Inputs | None]:
        if device not in self._built:
            if device == FAKE:
                module, inputs = self._make("meta")
                moved = None if inputs is None else _moved(inputs, device)
                self._built[device] = fake_twin(module), moved
            else:
                self._built[device] = self._call(device)
        return self._built[device]

    def _call(self, device: str) -> tuple[nn.Module, Inputs | None]:
        try:
            with torch.device(device):
                made = self._factory()
        except Exception as error:  # any code of theirs
            if device != "meta":
                raise _failed(self.name, error) from error
            self._elsewhere = f"{type(error).__name__} under torch.device('meta')"
            try:
                made = self._factory()
            except Exception as again:
                raise _failed(self.name, again) from again
        module, inputs = _split(self.name, made)
        if device == "meta":
            module = module.to("meta")
        return module, None if inputs is None else _moved(inputs, device)

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run:
        """Inputs from the specs, else those that the factory returned."""
        device = device_of(ground)
        module, given = self._make(_place(ground))
        if ground == REAL:
            batch, seq = min(batch, REAL_BATCH), min(seq, REAL_TOKENS)
            context = min(context, REAL_TOKENS)
        module.train(phase == TRAINING)
        if self._specs:
            args = tuple(
                s.tensor(batch, seq, context, device) for s in self._specs if s.name is None
            )
            kwargs = {s.name: s.tensor(batch, seq, context, device) for s in self._specs if s.name}
            sequences = any("S" in dim.split("*") for s in self._specs for dim in s.dims)
        else:
            args, kwargs = given or ((), {})
            batch, sequences = _batch_of(args, kwargs), False
        notes = [f"the module was built on its own device: {self._elsewhere}"]
        return Run(
            lambda: module(*args, **kwargs), any_loss, no_state, batch, seq if sequences else 1,
            context, tuple(notes if self._elsewhere else ()),
        )  # fmt: skip

    def adapt(self, error: Exception) -> bool:
        """Nothing is changed in a person's own module."""
        return False


def _load_factory(target: str) -> Callable[[], Any]:
    place, colon, attribute = target.partition(":")
    if not colon or not place or not attribute:
        raise UserError(
            f"--module {target!r}: write PACKAGE.MODULE:FACTORY or FILE.py:FACTORY; FACTORY() "
            "returns an nn.Module or (module, inputs)"
        )
    home = str(Path.cwd())
    if home not in sys.path:
        sys.path.insert(0, home)
    module = _import_file(target, place) if place.endswith(".py") else _import(target, place)
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [key for key in vars(found) if not key.startswith("_")]
            raise UserError(
                f"--module {target}: {place} has no {name!r}; {did_you_mean(name, public)}"
            )
        found = getattr(found, name)
    if isinstance(found, nn.Module):
        return lambda: found
    if not callable(found):
        raise UserError(f"--module {target}: {attribute} is a {type(found).__name__}, not callable")
    factory: Callable[[], Any] = found
    return factory


def _import(target: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise UserError(
            f"--module {target}: cannot import {place} ({type(error).__name__}: {_line(error)})"
        ) from error


def _import_file(target: str, place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise UserError(f"--module {target}: no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"--module {target}: cannot import {place} ({type(error).__name__}: {_line(error)})"
        ) from error
    return module


def _split(target: str, made: Any) -> tuple[nn.Module, Inputs | None]:
    inputs: Inputs | None = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, given = made
        if isinstance(given, Mapping):
            inputs = (), dict(given)
        else:
            inputs = (tuple(given) if isinstance(given, (tuple, list)) else (given,)), {}
    if not isinstance(made, nn.Module):
        raise UserError(
            f"--module {target}: it returned a {type(made).__name__}, "
            "not an nn.Module or (module, inputs)"
        )
    return made, inputs


def _required(module: nn.Module) -> list[str]:
    return [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _check_names(module: nn.Module, specs: Sequence[InputSpec]) -> None:
    """Every name is one of forward's, and nothing that forward needs is missing."""
    parameters = inspect.signature(module.forward).parameters
    kind = type(module).__name__
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for spec in specs:
            if spec.name is not None and spec.name not in parameters:
                raise UserError(
                    f"--input {spec.text!r}: {kind}.forward takes no {spec.name!r}; "
                    f"{did_you_mean(spec.name, parameters)}"
                )
    named = {spec.name for spec in specs if spec.name is not None}
    first = sum(spec.name is None for spec in specs)
    missing = [name for name in _required(module)
               if name not in named and list(parameters).index(name) >= first]  # fmt: skip
    if missing:
        raise UserError(
            f"{kind}.forward also needs {', '.join(missing)}: give each as --input, such as "
            f"--input '{missing[0]}:bf16[B,S,64]'"
        )


def _moved(inputs: Inputs, device: str) -> Inputs:
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # A fake tensor of a meta one, whose values there are none to copy.
        return torch.empty_like(value, device="cpu") if device == FAKE else value.to(device)

    args, kwargs = tree_map(move, inputs)
    return args, kwargs


def _place(ground: str) -> str:
    """Where a module for `ground` is kept: one on each device, and a fake one."""
    return FAKE if ground == FAKE else device_of(ground)


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """First dimension of the first tensor that has one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim():
            return max(1, int(value.shape[0]))
    return 1


def _main_dtype(module: nn.Module) -> str:
    """Short name of the dtype of most parameters."""
    counts: dict[torch.dtype, int] = {}
    for p in module.parameters():
        counts[p.dtype] = counts.get(p.dtype, 0) + p.numel()
    main = max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return names.get(main, str(main).removeprefix("torch."))


def _failed(target: str, error: Exception) -> UserError:
    return UserError(f"--module {target}: it raises {type(error).__name__}: {_line(error)}")


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"
