"""Messages of collectives: recorded with their group, priced by group, and no memory traffic."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from tracer.capture import Capture
from tracer.capture.store import load, save
from tracer.cost import Cost, price
from tracer.cost.work import COLLECTIVE
from tracer.hardware import load_chip
from tracer.machine import Timing, time_ledger

F = torch.ops._c10d_functional
ROWS, WIDTH, RANKS = 8, 16, 4
TENSOR = ROWS * WIDTH * 2  # bytes of a BF16 [8, 16]: 256


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("fake", store=FakeStore(), rank=6, world_size=16)
    try:
        yield dist.new_group([2, 4, 6, 8], group_desc="tp")
    finally:
        dist.destroy_process_group()


def tensor(rows: int = ROWS) -> torch.Tensor:
    return torch.empty(rows, WIDTH, device="meta", dtype=torch.bfloat16)


def ledger(run):
    with Capture() as capture:
        run()
    return price(capture.trace, strict=True)


FUNCTIONAL = {
    "all_reduce": (lambda x, g: F.all_reduce(x, "sum", g), TENSOR),
    "all_reduce_coalesced": (lambda x, g: F.all_reduce_coalesced([x, x], "sum", g), 2 * TENSOR),
    "all_gather_into_tensor": (lambda x, g: F.all_gather_into_tensor(x, RANKS, g), 4 * TENSOR),
    "reduce_scatter_tensor": (lambda x, g: F.reduce_scatter_tensor(x, "sum", RANKS, g), TENSOR),
    "all_to_all_single": (lambda x, g: F.all_to_all_single(x, [2] * 4, [2] * 4, g), TENSOR),
    "broadcast": (lambda x, g: F.broadcast(x, 2, g), TENSOR),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_collectives(group, name):
    call, expected = FUNCTIONAL[name]
    x = tensor()
    priced = ledger(lambda: call(x, group.group_name))
    (kernel,) = priced.kernels
    assert (kernel.kind, kernel.name) == (COLLECTIVE, name)
    assert kernel.cost == Cost(messages={group.group_name: expected})


IN_PLACE = {
    "allreduce_": (lambda x, wide, g: dist.all_reduce(x, group=g), TENSOR),
    "broadcast_": (lambda x, wide, g: dist.broadcast(x, 2, group=g), TENSOR),
    "send": (lambda x, wide, g: dist.send(x, 8, group=g), TENSOR),
    "recv_": (lambda x, wide, g: dist.recv(x, 4, group=g), TENSOR),
    "_allgather_base_": (lambda x, wide, g: dist.all_gather_single(wide, x, group=g), 4 * TENSOR),
    "_reduce_scatter_base_": (
        lambda x, wide, g: dist.reduce_scatter_single(x, wide, group=g), 4 * TENSOR,
    ),
    "alltoall_base_": (lambda x, wide, g: dist.all_to_all_single(x, x.clone(), group=g), TENSOR),
    "allgather_": (
        lambda x, wide, g: dist.all_gather(list(wide.chunk(RANKS)), x, group=g), 4 * TENSOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_collectives_know_their_group(group, name):
    call, expected = IN_PLACE[name]
    x, wide = tensor(), tensor(RANKS * ROWS)
    priced = ledger(lambda: call(x, wide, group))
    kernel = next(k for k in priced.kernels if k.kind == COLLECTIVE)
    assert kernel.name == name
    assert kernel.cost == Cost(messages={group.group_name: expected})


def test_waiting_and_barriers_are_free(group):
    def run():
        F.wait_tensor(tensor())
        dist.barrier(group)

    assert [k.name for k in ledger(run).kernels if k.kind == COLLECTIVE] == []


def test_groups_stand_in_the_header_and_survive_a_file(group, tmp_path):
    with Capture() as capture:
        F.all_reduce(tensor(), "sum", group.group_name)
    where = {"axis": "tp", "size": 4, "start": 2, "stride": 2}
    assert capture.trace.header["groups"][group.group_name] == where
    save(capture.trace, tmp_path / "trace.json.gz")
    loaded = load(tmp_path / "trace.json.gz")
    assert loaded.header["groups"] == json.loads(json.dumps(capture.trace.header["groups"]))
    assert price(loaded).total() == price(capture.trace).total()


def test_uneven_ranks_are_listed(group):
    odd = dist.new_group([0, 1, 6])
    with Capture() as capture:
        pass
    where = capture.trace.header["groups"][odd.group_name]
    assert (where["size"], where["ranks"]) == (3, [0, 1, 6])
    dist.destroy_process_group(odd)


def test_messages_add_and_scale():
    a, b = Cost(messages={"tp": 3}), Cost(messages={"tp": 4, "ep": 5})
    assert (a + b).messages == {"tp": 7, "ep": 5}
    assert (3 * b).messages == {"tp": 12, "ep": 15}
    assert Cost.sum([a, b, b]).messages == {"tp": 11, "ep": 10}
    assert (a + b).message_bytes == 12


class Reduced(nn.Module):
    """relu(x) summed over the group, and used again beside its sum."""

    def __init__(self, group: str):
        super().__init__()
        self.group = group

    def forward(self, x):
        y = x.relu()
        total = F.all_reduce(y, "sum", self.group)
        F.wait_tensor(total)
        return y * total


def test_a_tensor_that_a_collective_reads_must_reach_memory(group):
    """Relu and mul fuse, but what is sent has to be written: relu 1 write, mul reads the sum."""
    model = Reduced(group.group_name)
    with torch.no_grad(), Capture(model) as capture:
        model(tensor())
    total = price(capture.trace).total()
    assert sum(total.write.values()) == 2 * TENSOR  # relu's result and the product


@pytest.mark.parametrize("model", ["roofline", "kernels"])
def test_collectives_take_network_time_only(group, model):
    def run():
        x = tensor().relu()
        F.all_reduce(x, "sum", group.group_name)

    priced, chip, timing = ledger(run), load_chip("h200_sxm"), Timing(model=model)
    alone = time_ledger(priced, chip, timing)
    assert [k.kernel.name for k in alone.kernels] == ["relu"]
    assert alone.network == 0.0
    assert any("no network" in note for note in alone.notes())
    seconds = time_ledger(priced, chip, timing, lambda k: k.cost.message_bytes / 1e9)
    assert seconds.network == TENSOR / 1e9
    assert seconds.step == alone.step + TENSOR / 1e9
    assert not any("no network" in note for note in seconds.notes())
