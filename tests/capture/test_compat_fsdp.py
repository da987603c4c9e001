"""`fully_shard` on meta records what torch's own records of fake tensors, messages and memory."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tracer.capture import Capture, compat_fakes
from tracer.capture.compat_fsdp import fully_shard_on_meta
from tracer.capture.grounds import FAKE, fake_twin, on
from tracer.capture.groups import fake_world

WORLD = 4
FREE = ("aten.view.default", "aten.detach.default")  # the first call of fully_shard looks around


class Block(nn.Module):
    """7 rows on 4 ranks: slices of 2, 2, 2 and 1."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def step(model, device):
    with Capture(model) as capture:
        model(torch.ones(3, 5, device=device)).sum().backward()
    return capture.trace


def on_meta():
    with torch.device("meta"):
        model = nn.Sequential(Block(), Block())
    for module in (*model, model):
        fully_shard_on_meta(module, mesh=init_device_mesh("cpu", (WORLD,)))
    return step(model, "meta")


def on_fake():
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = nn.Sequential(Block(), Block())
    with on(FAKE):
        model = fake_twin(model)
        with compat_fakes.outside_fake_mode():
            for module in (*model, model):
                fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))
        return step(model, "cpu")


def seen(trace):
    """Ops with their shapes, and bytes and life of every storage that one of them made."""
    kept = [op for op in trace.ops if op.name not in FREE]
    places = {id(op): place for place, op in enumerate(kept)}
    ops, lives = [], []
    for op in kept:
        shapes = [(t.shape, t.stride, t.dtype) for t in (*op.inputs(), *op.outputs)]
        ops.append((op.name, op.phase, shapes))
    for storage in trace.storages:
        if storage.born >= 0:
            later = (op for op in trace.ops[storage.died or len(trace.ops) :] if id(op) in places)
            made = places.get(id(trace.ops[storage.born]))
            lives.append((storage.nbytes, made, places.get(id(next(later, None)))))
    return ops, lives


@pytest.mark.parametrize("rank", [0, WORLD - 1])
def test_meta_runs_as_fake_tensors_do(rank):
    """The last rank's slices are shorter, which fake ones are padded for again."""
    with fake_world(WORLD, rank):
        ours, theirs = seen(on_meta()), seen(on_fake())
    padding = ("aten.new_zeros.default", "aten.slice.Tensor", "aten.copy_.default")
    if rank:
        assert [op for op in theirs[0] if op[0] in padding]
        theirs = [op for op in theirs[0] if op[0] not in padding], None
        ours = [op for op in ours[0] if op[0] not in padding], None
    assert ours == theirs
    # Both blocks in the forward and again before their backward; the root has nothing of its own.
    collectives = Counter(name for name, *_ in ours[0] if name.startswith("c10d."))
    assert collectives == {
        "c10d._allgather_base_.default": 4, "c10d._reduce_scatter_base_.default": 2,
    }  # fmt: skip


def test_torch_refuses_to_run_parameters_on_meta():
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = Block()
    with fake_world(WORLD, 0):
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
        with pytest.raises(RuntimeError, match="materialized from meta device"):
            model(torch.ones(3, 5, device="meta"))
