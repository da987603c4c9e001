"""Random programs: a fused schedule must be one that a machine could run, and its bytes enough.

For every program the needed traffic is worked out element by element from the records, without
the code under test: what a kernel reads and did not make, what it makes and others need.
"""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracer

N = 4


def op_list():
    pick = st.integers(0, 5)
    return st.lists(
        st.tuples(st.sampled_from(sorted(ACTIONS)), pick, pick), min_size=1, max_size=16
    )


ACTIONS = {
    "sin": lambda x, y: x.sin(),
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "row": lambda x, y: x.softmax(-1),
    "row sum": lambda x, y: x / x.sum(-1, keepdim=True),
    "column sum": lambda x, y: x - y.sum(0),
    "all": lambda x, y: x * y.sum(),
    "mm": lambda x, y: x @ y,
    "clone": lambda x, y: x.clone(),
    "transpose": lambda x, y: x.t(),
    "halves": lambda x, y: torch.cat([x[:, 2:] * 2, x[:, :2]], -1),
    "swap": lambda x, y: torch.cat([x[2:], y[:2]]),
    "add_": lambda x, y: x.add_(1).exp(),
    "mul_": lambda x, y: x.mul_(y).sin() if x.data_ptr() != y.data_ptr() else x.sin(),
    "copy_": lambda x, y: x.copy_(y) if x.data_ptr() != y.data_ptr() else x,
    "zero_": lambda x, y: x.zero_(),
    "top": lambda x, y: x[:2].copy_(y[2:]) if x.data_ptr() != y.data_ptr() else x,
    "left": lambda x, y: x[:, :2].mul_(3),
    "bottom": lambda x, y: x[2:].zero_(),
    "drop": None,
}


def run(program):
    """Run the random program; the last tensors stay alive, as results."""
    with torch.no_grad():
        live = [torch.ones(N, N), torch.ones(N, N)]
        with tracer.trace() as t:
            for name, i, j in program:
                x, y = live[i % len(live)], live[j % len(live)]
                if name == "drop":
                    if len(live) > 1:
                        live.pop(i % len(live))
                    del x, y
                    continue
                new = ACTIONS[name](x, y)
                del x, y
                if new is not None and new.shape == (N, N):
                    live.append(new)
                del new
                if len(live) > 5:
                    live.pop(0)
    return t, live


def elements(ref):
    """(storage, address) of every element of a strided reference."""
    found = {ref.offset}
    for size, stride in zip(ref.shape, ref.stride, strict=True):
        found = {at + step * stride for at in found for step in range(size)}
    return {(ref.storage, at) for at in found}


def touched(op):
    """(read, written) elements of an op, by what torch documents of it."""
    inputs = list(op.inputs())
    written = set()
    for ref in op.outputs:
        written |= elements(ref)
    if op.overload_packet in ("aten.zero_", "aten.fill_"):
        read = set()
    elif op.overload_packet == "aten.copy_":
        read = elements(inputs[1])
    else:
        read = set().union(*map(elements, inputs)) if inputs else set()
    return read, written


def needed(trace, members_of_kernels):
    """Bytes that each kernel must read and write at least, FP32."""
    kernel_of = {i: n for n, members in enumerate(members_of_kernels) for i in members}
    access = {i: touched(trace.ops[i]) for i in kernel_of}
    reads = []
    for members in members_of_kernels:
        made, fetched = set(), set()
        for i in members:
            read, written = access[i]
            fetched |= read - made
            made |= written
        reads.append(4 * len(fetched))
    writes = [set() for _ in members_of_kernels]
    holder = {}  # element -> op that wrote its current value
    for i in sorted(kernel_of):
        read, written = access[i]
        for element in read:
            if element in holder and kernel_of[holder[element]] != kernel_of[i]:
                writes[kernel_of[holder[element]]].add(element)
        for element in written:
            holder[element] = i
    for element, writer in holder.items():
        if trace.storages[element[0]].died is None:
            writes[kernel_of[writer]].add(element)
    return reads, [4 * len(found) for found in writes]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(op_list())
def test_a_fused_schedule_keeps_every_dependency(program):
    t, _ = run(program)
    ledger = t.ledger(execution="efficient")
    kernel_of = {p.op: n for n, k in enumerate(ledger.kernels) for p in k.parts}
    access = {i: touched(t.trace.ops[i]) for i in kernel_of}
    ops = sorted(kernel_of)
    for late in ops:
        read_late, written_late = access[late]
        for early in ops:
            if early >= late:
                break
            read_early, written_early = access[early]
            if written_early & (read_late | written_late) or read_early & written_late:
                assert kernel_of[early] <= kernel_of[late], (
                    t.trace.ops[early].name, t.trace.ops[late].name,
                )  # fmt: skip
    for kernel in ledger.kernels:
        members = [p.op for p in kernel.parts]
        assert members == sorted(members)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(op_list())
def test_fused_bytes_are_enough_and_never_more_than_unfused(program):
    t, _ = run(program)
    naive, efficient = t.ledger(execution="naive"), t.ledger(execution="efficient")
    parts = sorted(p.op for k in efficient.kernels for p in k.parts)
    assert parts == sorted(p.op for k in naive.kernels for p in k.parts)
    assert len(set(parts)) == len(parts)
    members = [[p.op for p in k.parts] for k in efficient.kernels]
    reads, writes = needed(t.trace, members)
    for kernel, read, written in zip(efficient.kernels, reads, writes, strict=True):
        assert sum(kernel.cost.read.values()) >= read, kernel.name
        assert sum(kernel.cost.write.values()) >= written, kernel.name
    a, b = naive.total(), efficient.total()
    assert a.flops == b.flops
    assert a.vector_flops == b.vector_flops
    for role in set(a.read) | set(b.read):
        assert b.read.get(role, 0) <= a.read.get(role, 0)
    for role in set(a.write) | set(b.write):
        assert b.write.get(role, 0) <= a.write.get(role, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["mm", "transpose"]), st.integers(0, 5),
                          st.integers(0, 5)), max_size=10))  # fmt: skip
def test_programs_without_fusible_ops_cost_the_same_in_both(program):
    t, _ = run(program)
    naive, efficient = (t.ledger(execution=e).total() for e in ("naive", "efficient"))
    assert naive == efficient


@settings(max_examples=100, deadline=None)
@given(op_list())
def test_children_sum_to_the_parent(program):
    t, _ = run(program)
    for execution in ("naive", "efficient"):
        ledger = t.ledger(execution=execution)
        for key in (lambda k, p: k.name, lambda k, p: p.confidence, lambda k, p: str(p.op)):
            assert tracer.Cost.sum(ledger.by(key).values()) == ledger.total()
