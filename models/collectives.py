"""Collectives that autograd sees through, and nothing at all in a group of one.

All of them cut or join the first dimension. `Group` names a process group of `torch.distributed`;
the ops are the functional ones, which run on meta tensors too.

What goes forward fixes what comes back:

| forward | backward | where |
|---|---|---|
| `copy`: nothing | all-reduce | in front of a product that is cut by columns |
| `all_reduce` | nothing | behind a product that is cut by rows |
| `gather`: all-gather | reduce-scatter, or own slice | as `copy`, from tokens that are cut |
| `scatter_sum`: reduce-scatter | all-gather | as `all_reduce`, to tokens that are cut |
| `split`: own slice | all-gather | from what every rank has to tokens that are cut |
| `exchange`: all-to-all | all-to-all back | tokens to their experts and back |
| `send`, `receive` | receive, send | between stages of a pipeline |
"""

from dataclasses import dataclass

import torch

_ops = torch.ops._c10d_functional


@dataclass(frozen=True)
class Group:
    """A process group as one of its ranks sees it.

    name: of the process group; "" for a group of one, which needs none.
    size: ranks in it.
    rank: this process's place among them.
    """

    name: str = ""
    size: int = 1
    rank: int = 0


ALONE = Group()


def _done(y: torch.Tensor) -> torch.Tensor:
    _ops.wait_tensor(y)
    return y


def raw_all_reduce(x: torch.Tensor, group: Group, op: str = "sum") -> torch.Tensor:
    """The sum (or "max") over the group, without autograd."""
    return x if group.size == 1 else _done(_ops.all_reduce(x.contiguous(), op, group.name))


def raw_gather(x: torch.Tensor, group: Group) -> torch.Tensor:
    """[n, ...] of every rank as [size · n, ...], without autograd."""
    if group.size == 1:
        return x
    return _done(_ops.all_gather_into_tensor(x.contiguous(), group.size, group.name))


def raw_scatter_sum(x: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's slice of the sum over the group, without autograd."""
    if group.size == 1:
        return x
    return _done(_ops.reduce_scatter_tensor(x.contiguous(), "sum", group.size, group.name))


def raw_exchange(
    x: torch.Tensor, receive: list[int], send: list[int], group: Group
) -> torch.Tensor:
    """Rows cut by `send` go to the ranks in order; `receive` rows come. Without autograd."""
    if x.dtype.itemsize == 1:  # not every backend knows FP8
        x, dtype = x.view(torch.uint8), x.dtype
        return _done(_ops.all_to_all_single(x.contiguous(), receive, send, group.name)).view(dtype)
    return _done(_ops.all_to_all_single(x.contiguous(), receive, send, group.name))


def own_slice(x: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's part of the first dimension, a view."""
    rows = x.shape[0] // group.size
    return x[group.rank * rows : (group.rank + 1) * rows]


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, *xs):
        ctx.group = group
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx, *grads):
        if len(grads) == 1:
            return None, raw_all_reduce(grads[0], ctx.group)
        summed = raw_all_reduce(torch.cat(grads, dim=-1), ctx.group)
        return None, *summed.split([g.shape[-1] for g in grads], dim=-1)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, x):
        return raw_all_reduce(x, group)

    @staticmethod
    def backward(ctx, grad):
        return None, grad


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, partial, x):
        ctx.group, ctx.partial = group, partial
        return raw_gather(x, group)

    @staticmethod
    def backward(ctx, grad):
        back = raw_scatter_sum if ctx.partial else own_slice
        return None, None, back(grad, ctx.group)


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, x):
        ctx.group = group
        return raw_scatter_sum(x, group)

    @staticmethod
    def backward(ctx, grad):
        return None, raw_gather(grad, ctx.group)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, x):
        ctx.group = group
        return own_slice(x, group)

    @staticmethod
    def backward(ctx, grad):
        return None, raw_gather(grad, ctx.group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, receive, send, x):
        ctx.group, ctx.receive, ctx.send = group, receive, send
        return raw_exchange(x, receive, send, group)

    @staticmethod
    def backward(ctx, grad):
        return None, None, None, raw_exchange(grad, ctx.send, ctx.receive, ctx.group)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, peer, x):
        ctx.group, ctx.peer = group, peer
        _done(_ops.isend(x.contiguous(), peer, 0, group.name))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        buffer = torch.empty_like(grad, memory_format=torch.contiguous_format)
        return None, None, _done(_ops.irecv(buffer, ctx.peer, 0, ctx.group.name))


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, peer, buffer):
        ctx.group, ctx.peer = group, peer
        return _done(_ops.irecv(buffer, peer, 0, group.name))

    @staticmethod
    def backward(ctx, grad):
        _done(_ops.isend(grad.contiguous(), ctx.peer, 0, ctx.group.name))
        return None, None, None


def copy(group: Group, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same tensors; their gradients, one message, are summed over the group."""
    return xs if group.size == 1 else _Copy.apply(group, *xs)


def all_reduce(x: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum over the group, which every rank uses alike."""
    return x if group.size == 1 else _AllReduce.apply(group, x)


def gather(x: torch.Tensor, group: Group, *, partial: bool) -> torch.Tensor:
    """All slices. `partial`: ranks use them for different things, so gradients are summed."""
    return x if group.size == 1 else _Gather.apply(group, partial, x)


def scatter_sum(x: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's slice of the sum over the group."""
    return x if group.size == 1 else _ScatterSum.apply(group, x)


def split(x: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's slice of what all ranks have."""
    return x if group.size == 1 else _Split.apply(group, x)


def exchange(x: torch.Tensor, receive: list[int], send: list[int], group: Group) -> torch.Tensor:
    """Rows to the ranks that are to have them, see `raw_exchange`."""
    return x if group.size == 1 else _Exchange.apply(group, receive, send, x)


def send(x: torch.Tensor, peer: int, group: Group) -> torch.Tensor:
    """Hand x to a rank (numbered in the group); the backward gets the gradient from there.

    Start the backward from the result with any gradient of its shape: it is not read.
    """
    return _Send.apply(group, peer, x)


def receive(buffer: torch.Tensor, peer: int, group: Group) -> torch.Tensor:
    """What a rank has sent, of the shape of `buffer`; the backward returns the gradient there."""
    return _Receive.apply(group, peer, buffer)
