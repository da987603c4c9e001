"""Storages: one id for one piece of memory, born and dead at the right op."""

import random

import pytest
import torch
from torch import nn

import tracer


def test_views_share_an_id_and_copies_do_not():
    x = torch.zeros(4, 4)
    with tracer.trace() as t:
        a = x.view(2, 8)
        b = x[1:].t().unsqueeze(0)
        c = x.clone()
        d = x.detach()
    ids = [op.outputs[-1].storage for op in t.trace.ops]
    view, *chain, clone, detach = ids
    assert view == detach == chain[0] == chain[-1]
    assert clone != view
    assert all(v.numel() for v in (a, b, c, d))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ids_are_unique_although_addresses_are_used_again(device):
    x = torch.ones(256, device=device)
    with tracer.trace() as t:
        for _ in range(200):
            torch.exp(x)  # dropped at once: the allocator hands the same memory out again
    outputs = [op.outputs[0].storage for op in t.trace.ops]
    assert len(set(outputs)) == 200
    for index, storage in enumerate(outputs):
        record = t.trace.storages[storage]
        assert (record.born, record.died, record.nbytes) == (index, index + 1, 1024)


def test_birth_and_death_of_a_chain():
    x = torch.ones(10)
    with torch.no_grad(), tracer.trace() as t:
        h = x
        for _ in range(3):
            h = h.sin()
    inputs = t.trace.storages[t.trace.ops[0].args[0].storage]
    assert (inputs.born, inputs.died) == (-1, None)
    lives = [
        (s.born, s.died) for s in (t.trace.storages[op.outputs[0].storage] for op in t.trace.ops)
    ]
    # h is rebound after the next op has run: it dies when that op is on record.
    assert lives == [(0, 2), (1, 3), (2, None)]


def test_what_autograd_saves_dies_in_backward():
    x = torch.ones(10, requires_grad=True)
    with tracer.trace() as t:
        y = x.exp()  # saved: its own derivative
        z = y.sum()
        del y
        z.backward()
    names = [op.overload_packet for op in t.trace.ops]
    exp = t.trace.storages[t.trace.ops[0].outputs[0].storage]
    first_backward = next(i for i, op in enumerate(t.trace.ops) if op.phase == "backward")
    multiply = names.index("aten.mul")
    assert exp.born == 0
    assert first_backward <= multiply < exp.died <= len(names)


def test_what_lives_after_the_trace_has_no_death():
    with tracer.trace() as t:
        x = torch.ones(3)
    del x
    assert t.trace.storages[0].died is None


def test_inputs_and_outside_tensors_are_older_than_the_trace():
    x, w = torch.ones(2, 3), torch.ones(3, 3)
    model = nn.Linear(3, 3)
    with tracer.trace(model) as t:
        model(x @ w)
    born = {p.storage: -1 for p in t.trace.parameters}
    for index, op in enumerate(t.trace.ops):
        for ref in op.inputs():
            born.setdefault(ref.storage, -1)
        for ref in op.outputs:
            born.setdefault(ref.storage, index)
    assert {sid: s.born for sid, s in enumerate(t.trace.storages)} == born


def test_a_storage_has_the_size_of_memory_not_of_the_view():
    x = torch.zeros(100, dtype=torch.float64)
    with tracer.trace() as t:
        x[:3] + 1
    assert t.trace.storages[t.trace.ops[0].args[0].storage].nbytes == 800


def test_random_programs_agree_with_a_model_of_memory():
    """A list of names stands in for the allocator; every storage must be where the model has it."""
    rng = random.Random(0)
    for _ in range(20):
        alive, expected, made = {}, {}, 0
        tensors = {}
        with torch.no_grad(), tracer.trace() as t:
            for step in range(60):
                if tensors and rng.random() < 0.4:
                    name = rng.choice(list(tensors))
                    del tensors[name]
                    expected[alive.pop(name)][1] = made
                else:
                    size = rng.randrange(1, 50)
                    tensors[step] = torch.ones(size)
                    alive[step], made = made, made + 1
                    expected[alive[step]] = [4 * size, None]
        found = {s.born: [s.nbytes, s.died] for s in t.trace.storages}
        assert found == expected


def test_the_optimizer_and_gradients_have_their_roles():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with tracer.trace(model) as t:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    sizes = {}
    for storage in t.trace.storages:
        sizes.setdefault(storage.role, []).append(storage.nbytes)
    assert sorted(sizes["weights"]) == [16, 64]
    assert sorted(sizes["gradients"]) == [16, 64]
    assert sorted(sizes["optimizer"]) == [16, 64]


def test_gradients_that_were_dropped_before_the_end_are_still_gradients():
    """A step without a torch optimizer: plain SGD by hand, then zero_grad."""
    model = nn.Linear(4, 4)
    with tracer.trace(model) as t:
        model(torch.ones(2, 4)).sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
        model.zero_grad()
    assert sorted(s.nbytes for s in t.trace.storages if s.role == "gradients") == [16, 64]


def test_the_first_role_stays():
    model = nn.Linear(4, 4)
    with tracer.trace(model) as t:
        t.mark("kv", [model.weight])
        model(torch.ones(2, 4))
    assert t.trace.storages[0].role == "weights"
