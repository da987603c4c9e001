"""ZeRO (arXiv 1910.02054) with explicit collectives: what data-parallel ranks do not repeat.

A *unit* is a module that is gathered and sharded as one: a decoder layer, the embedding, the head.
Its trainable parameters lie in one flat tensor a group of ranks and dtype, a `Bucket`, padded to
whole slices; a rank owns one slice.

| level | a rank keeps | in forward and backward | at the end of a step |
|---|---|---|---|
| 0 | everything | | all-reduce of gradients |
| 1 | its slice of the optimizer state | | reduce-scatter of gradients, all-gather of parameters |
| 2 | and of gradients | reduce-scatter of gradients | all-gather of parameters |
| 3 | and of parameters | all-gather before both, reduce-scatter of gradients | |

Level 3 does what `torch.distributed.fsdp.fully_shard` does, which refuses meta tensors: it frees a
unit's parameters behind its forward, gathers them again when its backward first asks for one, and
with a checkpointed unit gathers in the recomputation alone. Gradients are sums over the group: the
loss has to be scaled. A gradient is copied into a flat tensor before it is sent, as FSDP does.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from .collectives import Group, own_slice, raw_all_reduce, raw_gather, raw_scatter_sum


@dataclass(frozen=True)
class Bucket:
    """Parameters of one unit that the same ranks share.

    Attributes:
        name: of the group and dtype, "dp_bfloat16".
        group: the ranks.
        entries: (path within the unit, shape) of every parameter, in the order of the flat tensor.
        numel: elements, those of the padding included.
    """

    name: str
    group: Group
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    numel: int

    @property
    def sizes(self) -> list[int]:
        """Elements of every parameter, and of the padding if there is any."""
        sizes = [torch.Size(shape).numel() for _, shape in self.entries]
        rest = self.numel - sum(sizes)
        return [*sizes, rest] if rest else sizes

    def views(self, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters in `flat`."""
        for (path, shape), part in zip(self.entries, flat.split(self.sizes), strict=False):
            yield path, part.view(shape)

    def flatten(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """A copy of `tensors` in one, with the padding."""
        flat = [t.reshape(-1) for t in tensors]
        rest = self.numel - sum(t.numel() for t in flat)
        return torch.cat([*flat, flat[0].new_zeros(rest)] if rest else flat)


def buckets_of(unit: nn.Module, group_of: Callable[[str], tuple[str, Group]]) -> tuple[Bucket, ...]:
    """The trainable parameters of a unit by group and dtype; `group_of` takes a path within it."""
    found: dict[str, tuple[Group, list[tuple[str, tuple[int, ...]]]]] = {}
    for path, parameter in unit.named_parameters():
        if parameter.requires_grad:
            axis, group = group_of(path)
            key = f"{axis}_{str(parameter.dtype).removeprefix('torch.')}"
            found.setdefault(key, (group, []))[1].append((path, tuple(parameter.shape)))
    made = []
    for name, (group, entries) in found.items():
        numel = sum(torch.Size(shape).numel() for _, shape in entries)
        padded = -(-numel // group.size) * group.size
        made.append(Bucket(name, group, tuple(entries), padded))
    return tuple(made)


def _owner(unit: nn.Module, path: str) -> tuple[nn.Module, str]:
    where, _, name = path.rpartition(".")
    return unit.get_submodule(where), name


@dataclass(eq=False)
class _Whole:
    """The gathered parameters of one bucket in one forward, and in its backward once asked for."""

    group: Group
    shard: torch.Tensor
    full: torch.Tensor | None = field(default=None)

    def again(self) -> torch.Tensor:
        if self.full is None:
            self.full = raw_gather(self.shard.detach(), self.group)
        return self.full


class _GatherParameters(torch.autograd.Function):
    """Slice -> whole flat tensor; the gradient comes back as the slice of its sum."""

    @staticmethod
    def forward(ctx, shard, whole, flat):
        ctx.whole = whole
        return raw_gather(shard, whole.group) if flat is None else flat.view_as(flat)

    @staticmethod
    def backward(ctx, grad):
        ctx.whole.full = None  # its last use
        return raw_scatter_sum(grad, ctx.whole.group), None, None


class Unit(nn.Module):
    """Mixed into a module that ZeRO shards as one; `with self.whole():` around its forward."""

    buckets: tuple[Bucket, ...] = ()
    level = 0
    regather = True

    def shard_(self, level: int, group_of: Callable[[str], tuple[str, Group]], regather: bool):
        """Lay the parameters out for `level`. `regather`: see `whole`."""
        self.level, self.regather = level, regather
        self.buckets = buckets_of(self, group_of)
        for bucket in self.buckets:
            if level and bucket.group.size > 1:
                self._lay_out(bucket)

    @torch.no_grad()
    def _lay_out(self, bucket: Bucket) -> None:
        owners = [_owner(self, path) for path, _ in bucket.entries]
        flat = bucket.flatten([getattr(module, name).detach() for module, name in owners])
        slice_ = own_slice(flat, bucket.group)
        if self.level < 3:
            self.register_buffer(f"flat_{bucket.name}", flat, persistent=False)
        else:
            slice_ = slice_.clone()
        for (module, name), (_, view) in zip(owners, bucket.views(flat), strict=True):
            del module._parameters[name]
            if self.level == 1:
                module.register_parameter(name, nn.Parameter(view))
        self.register_parameter(f"shard_{bucket.name}", nn.Parameter(slice_))

    def sharded(self, bucket: Bucket) -> nn.Parameter | None:
        """The slice that this rank owns; None where it owns all, parameter by parameter."""
        return self._parameters.get(f"shard_{bucket.name}")

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The parameters are in place in this block.

        What autograd saves of them is noted and gathered again in the backward (level 3). A
        checkpointed unit saves nothing in its forward, and what its recomputation gathers stays
        until the backward behind it is done: there `regather` is False.
        """
        if self.level < 2 or not any(self.sharded(b) is not None for b in self.buckets):
            yield
            return
        placed: list[tuple[nn.Module, str]] = []
        wholes: dict[int, _Whole] = {}
        for bucket in self.buckets:
            shard = self.sharded(bucket)
            if shard is None:
                continue
            whole = _Whole(bucket.group, shard)
            flat = None if self.level == 3 else getattr(self, f"flat_{bucket.name}")
            full = _GatherParameters.apply(shard, whole, flat)
            wholes[id(full)] = whole
            for path, view in bucket.views(full):
                module, name = _owner(self, path)
                module.__dict__[name] = view
                placed.append((module, name))
            del full
        try:
            with self._saving_notes(wholes):
                yield
        finally:
            for module, name in placed:
                del module.__dict__[name]

    def _saving_notes(self, wholes: dict[int, _Whole]) -> contextlib.AbstractContextManager:
        if self.level < 3 or not self.regather:
            return contextlib.nullcontext()

        def pack(tensor):
            whole = wholes.get(id(tensor._base))
            if whole is None:
                return tensor
            return whole, tensor.shape, tensor.stride(), tensor.storage_offset()

        def unpack(saved):
            if isinstance(saved, torch.Tensor):
                return saved
            whole, shape, stride, offset = saved
            return whole.again().as_strided(shape, stride, offset)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def units_of(model: nn.Module) -> Iterator[Unit]:
    """All units of a model."""
    for module in model.modules():
        if isinstance(module, Unit):
            yield module


def owned(model: nn.Module) -> Iterator[nn.Parameter]:
    """What this rank's optimizer updates: slices where ZeRO cuts, else whole parameters."""
    for unit in units_of(model):
        for bucket in unit.buckets:
            shard = unit.sharded(bucket)
            if shard is not None:
                yield shard
                continue
            for path, _ in bucket.entries:
                yield unit.get_parameter(path)


@torch.no_grad()
def reduce_gradients(model: nn.Module) -> None:
    """Sum the gradients of a step over the ranks that share parameters (levels 0 and 1).

    The sum stands in `.grad` of what `owned` yields. Levels 2 and 3 have done it in the backward.
    """
    for unit in units_of(model):
        for bucket in unit.buckets:
            if bucket.group.size == 1 or unit.level > 1:
                continue
            parameters = [unit.get_parameter(path) for path, _ in bucket.entries]
            flat = bucket.flatten([p.grad for p in parameters])
            shard = unit.sharded(bucket)
            if shard is None:
                for p, (_, view) in zip(
                    parameters, bucket.views(raw_all_reduce(flat, bucket.group)), strict=True
                ):
                    p.grad = view
            else:
                shard.grad = raw_scatter_sum(flat, bucket.group)
                for p in parameters:
                    p.grad = None
            del flat  # one bucket at a time: the next one is laid out in its place


@torch.no_grad()
def gather_parameters(model: nn.Module) -> None:
    """Behind the optimizer: every rank gets the slices that the others updated (levels 1, 2)."""
    for unit in units_of(model):
        for bucket in unit.buckets:
            shard = unit.sharded(bucket)
            if shard is not None and unit.level < 3:
                flat = getattr(unit, f"flat_{bucket.name}")
                out = torch.ops._c10d_functional.all_gather_into_tensor_out(
                    shard, bucket.group.size, bucket.group.name, out=flat
                )
                torch.ops._c10d_functional.wait_tensor(out)
                del out
