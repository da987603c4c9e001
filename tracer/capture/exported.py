"""A `torch.export` program from a .pt2 file.

It is unflattened into modules again, so that ops carry the paths of the model that was exported,
and its graph is interpreted on meta. Its sizes are those it was exported with.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ..errors import UserError
from .compat import tree_map
from .grounds import META, VALUES
from .loss import any_loss
from .program import INFERENCE, TRAINING, Run, no_state
from .usermodule import _batch_of, _main_dtype


class ExportedProgram:
    """A .pt2 file under the `Program` protocol.

    Raises:
        UserError: no such file, not a program that torch.export wrote, or one without inputs.
    """

    layers = 0
    longest = None
    shortest = 1
    grounds = (META, VALUES)

    def __init__(self, path: str) -> None:
        self.name = path
        self.cures: list[str] = []
        self.compiles = True
        self._module, self._args, self._kwargs = _load(path)
        trains = any(p.requires_grad for p in self._module.parameters())
        self.phases = (TRAINING, INFERENCE) if trains else (INFERENCE,)
        self.source = "torch.export program"
        self.dtype = _main_dtype(self._module)

    def module(self, phase: str, ground: str) -> nn.Module:
        """The program as modules, on meta."""
        return self._module

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run:
        """The inputs that the program was exported with; the sizes asked for do not apply."""
        notes = ("sizes are those that the program was exported with",)
        return Run(
            lambda: self._module(*self._args, **self._kwargs), any_loss, no_state,
            _batch_of(self._args, self._kwargs), 1, 1, notes,
        )  # fmt: skip

    def adapt(self, error: Exception) -> bool:
        """A graph is what it is."""
        return False


def _load(path: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if not Path(path).is_file():
        raise UserError(f"--exported {path}: no such file")
    with _silence():
        try:
            program = torch.export.load(path)
        except Exception as error:  # zip, pickle, schema: whatever a foreign file provokes
            lines = str(error).strip().splitlines() or ["no message"]
            raise UserError(
                f"--exported {path}: torch.export cannot load it "
                f"({type(error).__name__}: {lines[0]}); save one with torch.export.save"
            ) from error
        example = program.example_inputs
        program = move_to_device_pass(program, "meta")
        if example is None:
            args, kwargs = _from_placeholders(program), {}
        else:
            args, kwargs = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example)
        return torch.export.unflatten(program), tuple(args), dict(kwargs)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Torch logs a traceback of its own for a file that it cannot read; the error says it all."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _from_placeholders(program: Any) -> tuple[Any, ...]:
    """Inputs by their recorded shapes; a dynamic dimension has its hint."""
    wanted = set(program.graph_signature.user_inputs)
    values = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                shape = [_hint(size) for size in value.shape]
                value = torch.zeros(shape, dtype=value.dtype, device="meta")
            values.append(value)
    return tuple(values)


def _hint(size: Any) -> int:
    """A dimension as a number; of a dynamic one, the size that it was exported with."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)
