"""A measured timeline: ops of the CPU, kernels of the GPU, and who launched whom.

Times are seconds from the start of the file's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import UserError

Tensor = tuple[tuple[int, ...], tuple[int, ...] | None, str]  # shape, stride if known, dtype


class ProfileError(UserError):
    """A file that is not a profiler trace of a GPU; says what and where."""


@dataclass(frozen=True)
class Argument:
    """One argument of a measured op: tensors as (shape, stride or None, dtype), else a text."""

    tensors: tuple[Tensor, ...] = ()
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


def tensor(shape: list[int], stride: list[int] | None, dtype: str) -> Tensor:
    """Shape, stride where it is whole, dtype."""
    known = stride is not None and len(stride) == len(shape)
    sizes = tuple(int(size) for size in shape)
    return sizes, tuple(int(s) for s in stride or ()) if known else None, dtype
