"""Roles follow from what happens to a storage; routing laws against simulation."""

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracer
from tracer.cost.conventions import distinct_experts

ROLES = ("weights", "activations", "kv", "temporary", "gradients", "optimizer")


def role_of(t, packet, which=0, phase="forward"):
    """The role of the first output of the `which`-th op of this name, in bytes of the ledger."""
    matches = [
        i for i, op in enumerate(t.trace.ops)
        if op.overload_packet == f"aten.{packet}" and op.phase == phase
    ]  # fmt: skip
    (part,) = [p for p in t.ledger(execution="naive").parts() if p.op == matches[which]]
    (role,) = part.cost.write
    return role


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 4))
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        h = x.sin()  # used here only
        return (h @ self.w).cos()  # the product here only; the result leaves


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x).exp()


def test_what_a_call_keeps_to_itself_is_temporary_and_what_crosses_is_activation():
    model, x = Outer(), torch.ones(2, 4)
    with torch.no_grad(), tracer.trace(model) as t:
        model(x)
    assert role_of(t, "sin") == "temporary"
    assert role_of(t, "mm") == "temporary"
    assert role_of(t, "cos") == "activations"  # read by the caller
    assert role_of(t, "exp") == "temporary"  # nobody else reads it
    naive = t.ledger(execution="naive").total()
    one = 4 * 2 * 4
    # x is read once, cos is written and read.
    assert naive.bytes_by_role == {
        "weights": 4 * 16, "activations": 3 * one, "temporary": 5 * one, "kv": 0, "gradients": 0,
        "optimizer": 0,
    }  # fmt: skip


def test_what_the_backward_needs_is_activation():
    model = Outer()
    with tracer.trace(model) as t:
        model(torch.ones(2, 4)).sum().backward()
    assert role_of(t, "sin") == "activations"  # for the weight's gradient
    assert role_of(t, "mm") == "activations"  # for cos
    assert role_of(t, "exp") == "activations"  # its own derivative


def test_gradients_and_their_makers():
    model = Outer()
    with tracer.trace(model) as t:
        model(torch.ones(2, 4)).sum().backward()
    assert t.ledger(execution="naive").total("backward").write["gradients"] == 4 * 16


def test_buffers_are_weights():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x):
            return x * self.scale

    model = Scaled()
    with tracer.trace(model) as t:
        model(torch.ones(2, 4))
    assert t.cost.read["weights"] == 16


def test_marked_storages_are_what_they_were_marked_as():
    cache = torch.zeros(10, 4)
    with tracer.trace() as t:
        t.mark("kv", [cache])
        cache[3:4].copy_(torch.ones(1, 4))
        cache.sum(0)
    cost = t.ledger(execution="naive").total()
    assert (cost.write["kv"], cost.read["kv"]) == (16, 160)


def test_a_view_of_a_weight_is_a_weight():
    model = nn.Linear(4, 6, bias=False)
    with torch.no_grad(), tracer.trace(model) as t:
        torch.ones(2, 3) @ model.weight[:, 1:].t()[:3]
    assert t.cost.read["weights"] == 4 * 3 * 6


@pytest.mark.parametrize("execution", ["naive", "efficient"])
def test_bytes_by_role_sum_to_the_total(execution):
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    with tracer.trace(model) as t:
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
    cost = t.ledger(execution=execution).total()
    assert tuple(cost.bytes_by_role) == ROLES
    assert sum(cost.bytes_by_role.values()) == cost.total_bytes
    assert set(cost.read) | set(cost.write) <= set(ROLES)
    phases = ("forward", "backward", "recompute", "optimizer")
    assert tracer.Cost.sum(t.ledger(execution=execution).total(p) for p in phases) == cost


# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "k", "tokens"), [(8, 1, 3), (8, 2, 4), (16, 4, 1), (32, 4, 10), (64, 6, 64)]
)
def test_expected_distinct_experts_against_simulation(experts, k, tokens):
    rng = numpy.random.default_rng(0)
    trials = 4000
    # k distinct experts a token, all equally likely: the k smallest of uniform numbers.
    chosen = rng.random((trials, tokens, experts)).argpartition(k - 1, axis=-1)[..., :k]
    hit = numpy.zeros((trials, experts), bool)
    numpy.put_along_axis(hit, chosen.reshape(trials, -1), True, axis=1)
    counts = hit.sum(1)
    error = counts.std() / trials**0.5
    law = distinct_experts("uniform", experts, k, tokens)
    assert abs(counts.mean() - law) <= 5 * error + 1e-9
    assert k <= law <= min(experts, k * tokens)


def test_the_law_has_its_limits():
    assert distinct_experts("uniform", 256, 8, 1) == pytest.approx(8)
    assert distinct_experts("uniform", 256, 8, 10**6) == pytest.approx(256)
    assert distinct_experts("uniform", 256, 8, 0) == 0
    assert distinct_experts("uniform", 4, 4, 1) == 4
    assert distinct_experts("all", 256, 8, 1) == 256
    assert distinct_experts("same", 256, 8, 10**6) == 8
    assert distinct_experts("same", 4, 8, 10) == 4


E, K, D, HID = 16, 4, 32, 64


class Experts(nn.Module):
    """Top-k routing into a grouped product, as models write it: sort, offsets, gather."""

    def __init__(self, k=K, groups=0, device="meta"):
        super().__init__()
        self.k, self.groups = k, groups
        self.gate = nn.Parameter(torch.empty(E, D, dtype=torch.bfloat16, device=device))
        self.w = nn.Parameter(torch.empty(E, D, HID, dtype=torch.bfloat16, device=device))

    def forward(self, x):
        scores = (x @ self.gate.t()).float().sigmoid()
        if self.groups:
            best = scores.view(len(x), self.groups, -1).amax(-1).topk(2).indices
            keep = torch.zeros(len(x), self.groups, device=x.device).scatter_(1, best, 1.0)
            scores = scores * keep.repeat_interleave(E // self.groups, 1)
        chosen = scores.topk(self.k, -1).indices
        flat = chosen.flatten()
        order = flat.argsort()
        counts = torch.zeros(E, dtype=torch.int32, device=x.device)
        counts = counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))
        offsets = counts.cumsum(0).to(torch.int32)
        rows = x[order // self.k]
        return torch._grouped_mm(rows, self.w, offsets)


def expert_bytes(t):
    """Bytes of weights that the grouped product reads."""
    costs = t.ledger(execution="naive").by(lambda kernel, part: kernel.name)
    return costs["_grouped_mm"].read["weights"]


def test_experts_are_read_by_simulated_routing():
    """Real routing of random tokens, many times: the mean bytes are the ledger's."""
    tokens = 6
    model = Experts()
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.empty(tokens, D, dtype=torch.bfloat16, device="meta"))
    torch.manual_seed(0)
    hits = []
    for _ in range(3000):
        choice = torch.rand(tokens, E).topk(K).indices
        hits.append(len(choice.unique()))
    mean = sum(hits) / len(hits)
    one_expert = 2 * D * HID
    assert expert_bytes(t) == pytest.approx(mean * one_expert, rel=0.01)
    assert expert_bytes(t) == round(E * (1 - (1 - K / E) ** tokens) * one_expert)


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_top_k_is_found_through_the_dataflow(k, groups):
    model = Experts(k, groups)
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.empty(5, D, dtype=torch.bfloat16, device="meta"))
    one_expert = 2 * D * HID
    by_law = {
        "uniform": E * (1 - (1 - k / E) ** 5),
        "all": E,
        "same": k,
    }
    for law, experts in by_law.items():
        ledger = t.ledger(tracer.Conventions(routing=law), execution="naive")
        costs = ledger.by(lambda kernel, part: kernel.name)["_grouped_mm"]
        assert costs.read["weights"] == round(experts * one_expert), law
        assert costs.total_flops == 2 * 5 * k * D * HID  # the law does not change the work


def test_backward_reads_the_same_experts_again_and_writes_all_gradients():
    model = Experts()
    x = torch.empty(6, D, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with tracer.trace(model) as t:
        model(x).square().sum().backward()
    backward = [
        part.cost for kernel in t.ledger(execution="naive").kernels if kernel.phase == "backward"
        and kernel.name == "_grouped_mm" for part in kernel.parts
    ]  # fmt: skip
    hit = E * (1 - (1 - K / E) ** 6)
    one_expert = 2 * D * HID
    reads = sorted(cost.read.get("weights", 0) for cost in backward)
    writes = sorted(cost.write.get("gradients", 0) for cost in backward)
    assert reads == [0, round(hit * one_expert)]
    assert writes == [0, E * one_expert]


def test_routing_is_marked_as_an_estimate():
    model = Experts()
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.empty(6, D, dtype=torch.bfloat16, device="meta"))
    assert t.ledger().coverage()["estimated"]["flops"] > 0.5


def test_embedding_of_expert_ids_is_not_taken_for_the_choice():
    """A top-k that has nothing to do with the routing is not asked."""

    class Misleading(Experts):
        def forward(self, x):
            x = x + x.topk(3, -1).values.sum(-1, keepdim=True)
            return super().forward(x)

    model = Misleading()
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.empty(5, D, dtype=torch.bfloat16, device="meta"))
    assert expert_bytes(t) == round(E * (1 - (1 - K / E) ** 5) * 2 * D * HID)


def test_f_cross_entropy_backward_is_not_a_weight():
    logits = torch.ones(4, 10, requires_grad=True)
    with tracer.trace() as t:
        F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)).backward()
    assert "weights" not in t.cost.read
