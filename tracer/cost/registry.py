"""Where formulas are looked up: `@cost("aten::mm")` over a function that reads like the schema.

A formula takes the op's own arguments, named as in its schema, with `TensorRef`s in place of
tensors, and the keyword `out` (a tuple of `TensorRef`s). If it names a keyword `env`, it also gets
the conventions in force. It returns `Work`.

    @cost("mylib::fused_mlp")
    def fused_mlp(x, w_up, w_down, *, out):
        return Work(flops=4 * x.numel * w_up.shape[0], kind=GEMM)
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..capture.records import Op, TensorRef
from ..errors import UserError
from .conventions import Conventions
from .work import Work


class Env(NamedTuple):
    """What a formula may need beyond its arguments.

    `top_k` is how many experts a token chooses, read from the dataflow in front of a grouped
    matmul; None where no top-k was found.
    """

    conventions: Conventions
    top_k: int | None


class Formula(NamedTuple):
    """A registered function and what it asks for."""

    function: Callable[..., Work]
    parameters: tuple[str, ...]  # positional names, in order: how bytes overrides find arguments
    wants_env: bool

    def __call__(self, op: Op, env: Env) -> Work:
        # `out=`, `values=` and the like are where results go; a formula gets them all as `out`.
        results = results_of(op)
        kwargs = {name: value for name, value in op.kwargs.items() if name not in results}
        if self.wants_env:
            kwargs["env"] = env
        return self.function(*op.args, **kwargs, out=op.outputs)


def results_of(op: Op) -> set[str]:
    """Names of the keyword arguments that the op only writes: `out=`, `values=`, `grad_input=`."""
    if not op.mutates or not op.kwargs:
        return set()
    return {
        name
        for name, value in op.kwargs.items()
        if any(ref.storage in op.mutates for ref in _tensors((value,)))
    }


def _tensors(tree: Any) -> Iterator[TensorRef]:
    for item in tree:
        if type(item) is TensorRef:
            yield item
        elif type(item) is tuple:
            yield from _tensors(item)


class Registry:
    """Formulas by op name. Tests and sessions may work on a copy: see `scope`."""

    def __init__(self) -> None:
        self._formulas: dict[str, Formula] = {}

    def cost(self, *names: str) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
        """Register a formula for ops named `namespace::op` or `namespace::op.overload`.

        Raises:
            UserError: for a name without `::`, or a function without the keyword `out`.
        """
        for name in names:
            if "::" not in name:
                raise UserError(f"cost({name!r}): write the op as 'namespace::name'")

        def register(function: Callable[..., Work]) -> Callable[..., Work]:
            parameters = inspect.signature(function).parameters
            if "out" not in parameters:
                raise UserError(
                    f"the formula {function.__name__!r} needs a keyword 'out' "
                    "(a tuple with a TensorRef for every output)"
                )
            positional = tuple(
                p.name
                for p in parameters.values()
                if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            )
            for name in names:
                key = name.replace("::", ".")
                self._formulas[key] = Formula(function, positional, "env" in parameters)
            return function

        return register

    def find(self, op: Op) -> Formula | None:
        """The formula of this overload, else of this op, else None."""
        return self._formulas.get(op.name) or self._formulas.get(op.overload_packet)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Formulas registered in this block are forgotten at its end."""
        before = dict(self._formulas)
        try:
            yield
        finally:
            self._formulas = before

    def items(self) -> Iterator[tuple[str, Formula]]:
        """Names as `namespace.op`, in the order in which they were registered."""
        yield from self._formulas.items()

    def __len__(self) -> int:
        return len(self._formulas)


registry = Registry()
cost = registry.cost
