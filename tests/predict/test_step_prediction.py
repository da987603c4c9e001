"""A step on a chip: keys and numbers of the result, feasibility, inventory, peak memory."""

import json
import math

import pytest
import torch
from torch import nn

import tracer
from tracer.capture import Capture
from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.hardware import Chip
from tracer.predict import memory, predict, take_inventory

ROLES = ("weights", "activations", "kv", "temporary", "gradients", "optimizer")

# `issues show 2` names these; more may be there.
REQUIRED = {
    "phase", "exec", "batch", "seq", "context", "flops", "vector_flops", "bytes",
    "arithmetic_intensity", "t_compute", "t_hbm", "t_network", "t_step", "t_bound",
    "tokens_per_s", "regime", "feasible", "coverage",
}  # fmt: skip


def toy(capacity=1e9, **changes):
    values = {
        "id": "toy", "name": "Toy", "vendor": "Test", "generation": "none",
        "peak": {"bf16": 1e15, "fp32": 1e14}, "vector": {"fp32": 1e13},
        "memory_capacity": capacity, "memory_bandwidth": 1e12,
    }  # fmt: skip
    return Chip(**{**values, **changes})


def roofline(**values):
    extra = {"model": "roofline"} if "model" in tracer.Timing.names() else {}
    return tracer.Timing(**extra, **values)


@pytest.fixture
def ledger():
    model = nn.Linear(64, 32, bias=False, device="meta")
    x = torch.empty(8, 64, device="meta")
    with torch.no_grad(), Capture(model) as capture:
        model(x)
    return price(capture.trace)


def test_the_result_has_the_keys_of_the_issue_and_adds_up(ledger):
    work = Workload("prefill", batch=2, seq=4, context=99)
    result = predict(work, ledger, toy(), roofline(launch=1e-6)).as_dict()
    assert result.keys() >= REQUIRED
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    flops, moved = 2 * 8 * 64 * 32, 4 * (8 * 64 + 64 * 32 + 8 * 32)
    assert result["phase"] == "prefill"
    assert result["exec"] == "efficient"
    assert (result["batch"], result["seq"], result["context"]) == (2, 4, 99)
    assert result["flops"] == flops
    assert result["vector_flops"] == 0
    assert set(result["bytes"]) == {*ROLES, "total"}
    assert result["bytes"]["total"] == moved == sum(result["bytes"][role] for role in ROLES)
    assert result["bytes"]["weights"] == 4 * 64 * 32
    assert result["arithmetic_intensity"] == pytest.approx(flops / moved)
    assert result["t_compute"] == pytest.approx(flops / 1e14)
    assert result["t_hbm"] == pytest.approx(moved / 1e12)
    assert result["t_network"] == 0
    assert result["t_step"] == pytest.approx(1e-6 + moved / 1e12)
    assert result["t_bound"] == pytest.approx(moved / 1e12)
    assert result["tokens_per_s"] == pytest.approx(8 / result["t_step"])
    assert result["regime"] == "latency"
    assert result["feasible"] is True
    rows = result["coverage"].values()
    for what in ("ops", "flops", "bytes", "time"):
        assert sum(row[what] for row in rows) == pytest.approx(1)


def test_mfu_is_published_work_over_peak_and_time(ledger):
    step = predict(Workload("prefill"), ledger, toy(), roofline(launch=0))
    assert step.mfu == pytest.approx(2 * 8 * 64 * 32 / 1e14 / step.times.step)
    assert 0 < step.mfu < 1


@pytest.mark.parametrize(
    ("phase", "tokens"), [("training", 3 * 7), ("prefill", 3 * 7), ("decode", 3)]
)
def test_tokens_of_a_step(phase, tokens):
    assert Workload(phase, batch=3, seq=7, context=11).tokens == tokens


def test_feasibility_turns_at_the_byte(ledger):
    need = memory(ledger).total
    assert need == 4 * (64 * 32 + 8 * 64 + 8 * 32)  # weights, input, result
    assert predict(Workload("prefill"), ledger, toy(need)).feasible
    tight = predict(Workload("prefill"), ledger, toy(need - 1))
    assert not tight.feasible
    assert tight.chips_at_least == 2
    assert predict(Workload("prefill"), ledger, toy(need / 4.5)).chips_at_least == 5
    assert predict(Workload("prefill"), ledger, toy(need)).chips_at_least == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0), ("batch", -1), ("seq", 0), ("context", -5), ("batch", 1.5), ("seq", "many"),
        ("phase", "inference"), ("phase", ""), ("optimizer", "lion"), ("batch", None),
        ("batch", float("nan")),
    ],
)  # fmt: skip
def test_bad_workloads_name_the_field_and_the_value(field, value):
    with pytest.raises(tracer.UserError, match=field) as caught:
        Workload(**{"phase": "prefill", field: value})
    assert str(value) in str(caught.value)


# -- inventory -------------------------------------------------------------------------------------


def inventory(model, x, tokens):
    with torch.no_grad(), Capture(model) as capture:
        model(x)
    return take_inventory(capture.trace, tokens)


def test_parameters_count_once_and_buffers_are_none():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.layer = nn.Linear(8, 8)
            self.unused = nn.Linear(8, 100)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("scale", torch.ones(8, dtype=torch.bfloat16))

        def forward(self, ids):
            return self.head(self.layer(self.embed(ids)) * self.scale)

    found = inventory(Model(), torch.zeros(1, 4, dtype=torch.long), 4)
    assert found.parameters == 50 * 8 + (8 * 8 + 8) + (8 * 100 + 100)
    assert found.active_parameters == 50 * 8 + (8 * 8 + 8)
    assert found.weight_bytes == 4 * found.parameters + 2 * 8
    assert found.kv_bytes_per_token == 0


def test_parameters_that_share_one_flat_storage_are_all_active():
    """RNNs of cuDNN and FSDP keep many parameters in one storage."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.ones(32)
            self.a, self.b = (nn.Parameter(part.view(4, 4)) for part in flat.chunk(2))

        def forward(self, x):
            return x @ self.a @ self.b

    found = inventory(Flat(), torch.ones(2, 4), 2)
    assert (found.parameters, found.active_parameters) == (32, 32)


def test_active_parameters_of_a_mixture_are_k_in_e():
    experts, k, d, hidden = 8, 2, 16, 32

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(d, experts, bias=False)
            self.w = nn.Parameter(torch.empty(experts, d, hidden))

        def forward(self, x):
            chosen = self.gate(x).topk(k, -1).indices.flatten()
            counts = torch.zeros(experts, dtype=torch.int32, device=x.device)
            counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
            rows = x.repeat_interleave(k, 0)
            return torch._grouped_mm(rows, self.w, counts.cumsum(0, dtype=torch.int32))

    model = Mixture().to("meta", torch.bfloat16)
    found = inventory(model, torch.empty(5, d, device="meta", dtype=torch.bfloat16), 5)
    assert found.parameters == d * experts + experts * d * hidden
    assert found.active_parameters == d * experts + k * d * hidden


def test_kv_bytes_are_what_one_token_writes():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Linear(16, 4, bias=False)
            self.cache = None

        def forward(self, x):
            self.cache[: len(x)] = self.k(x)
            return self.cache.sum()

    model = Cached()
    model.cache = torch.zeros(100, 4)
    with torch.no_grad(), Capture(model) as capture:
        capture.mark("kv", [model.cache])
        model(torch.ones(6, 16))
    assert take_inventory(capture.trace, 6).kv_bytes_per_token == 4 * 4


# -- memory ----------------------------------------------------------------------------------------


class Meter(torch.utils._python_dispatch.TorchDispatchMode):
    """A second route to the peak: sums the live storages after every op, by weak references."""

    def __init__(self, known=()):
        super().__init__()
        self.live = {}
        self.outside = {t.untyped_storage()._cdata for t in known}
        self.now = self.peak = 0  # without `known`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, torch.Tensor):
                storage = item.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.live and key not in self.outside:
                    self.now += size

                    def died(_, key=key, size=size):
                        del self.live[key]
                        self.now -= size

                    self.live[key] = weakref.ref(storage, died)
        self.peak = max(self.peak, self.now)
        return out


def chain(x):
    for _ in range(6):
        x = x.sin()
    return x


def fan(x):
    kept = [x.sin() for _ in range(4)]
    return sum(kept)


def waves(x):
    a = torch.cat([x, x, x]).exp().sum()
    b = torch.cat([x, x]).cos().sum()
    return a + b


@pytest.mark.parametrize("program", [chain, fan, waves])
def test_peak_of_small_programs_without_gradients(program):
    x = torch.ones(1000)
    with torch.no_grad(), Meter([x]) as meter:
        program(x)
    with torch.no_grad(), Capture() as capture:
        program(x)
    held = memory(price(capture.trace, execution="naive"))
    assert held.activations == held.total == meter.peak + x.nbytes


def test_peak_of_a_chain_by_hand():
    """Beside the input two values are alive at a time: the one read and the one written."""
    x = torch.ones(1000)
    with torch.no_grad(), Capture() as capture:
        chain(x)
    assert memory(price(capture.trace, execution="naive")).activations == 3 * 4000
    # Fused, only input and result are in memory.
    assert memory(price(capture.trace, execution="efficient")).activations == 2 * 4000


def test_a_tensor_that_the_trace_allocates_and_only_reads_is_in_memory():
    """`torch.empty` stands for data in shape-only runs: nobody writes it, and it is there."""
    with torch.no_grad(), Capture() as capture:
        x = torch.empty(1000, device="meta")
        y = x.sin()
    assert x.shape == y.shape
    for execution in ("naive", "efficient"):
        assert memory(price(capture.trace, execution=execution)).total == 2 * 4000


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)),
    "norms": lambda: nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh(), nn.Softmax(-1)),
    "deep": lambda: nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(5)]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_of_forward_and_backward(name, device):
    def step(model, x):
        model(x).sum().backward()

    def fresh():
        return MODELS[name]().to(device), torch.ones(128, 64, device=device)

    model, x = fresh()
    with Meter([x, *model.parameters()]) as meter:
        step(model, x)
    model, x = fresh()
    with Capture(model) as capture:
        step(model, x)
    held = memory(price(capture.trace, execution="naive"))
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert (held.weights, held.gradients, held.optimizer, held.kv) == (parameters, parameters, 0, 0)
    # Gradients come one by one; held throughout, they make the total the larger of the two.
    moving = held.gradients + held.activations - x.nbytes
    assert meter.peak <= moving <= meter.peak + held.gradients
    assert held.total == held.weights + held.gradients + held.activations


def test_adamw_has_two_moments_and_they_are_held():
    model, x = MODELS["mlp"](), torch.ones(128, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    with Capture(model) as capture:
        model(x).sum().backward()
        optimizer.step()
    held = memory(price(capture.trace, execution="naive"))
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert 0 <= held.optimizer - 2 * parameters <= 4 * 4  # a step counter a parameter


def test_a_cache_is_held():
    cache = torch.zeros(100, 4)
    with Capture() as capture:
        capture.mark("kv", [cache])
        cache[2:3].copy_(torch.ones(1, 4))
    assert memory(price(capture.trace)).kv == 1600


def test_checkpointing_holds_less():
    from torch.utils.checkpoint import checkpoint_sequential

    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])

    def peak(run):
        model.zero_grad(set_to_none=True)
        x = torch.ones(512, 64, requires_grad=True)
        with Capture(model) as capture:
            run(x).sum().backward()
        return memory(price(capture.trace, execution="naive")).activations

    plain = peak(model)
    segmented = peak(lambda x: checkpoint_sequential(model, 4, x, use_reentrant=False))
    one = 4 * 512 * 64
    assert plain >= 9 * one  # the input, and the result of every tanh, which the next layer saves
    # Saved: the inputs of four segments and, one at a time, the two results inside of a segment.
    assert segmented <= plain - 3 * one


def test_folded_memory_is_that_of_the_full_trace():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                [nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(9)]
            )

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Stack().to("meta")
    found = []
    for fold in (0, 9):
        model.zero_grad(set_to_none=True)
        with Capture(model, fold=fold) as capture:
            model(torch.empty(4, 16, device="meta")).sum().backward()
            capture.unfold()
            with capture.paused():
                for p in model.parameters():
                    p.grad = torch.empty_like(p) if p.grad is None else p.grad
        found.append([memory(price(capture.trace, execution=e)) for e in ("naive", "efficient")])
    assert found[0] == found[1]


def test_numbers_are_finite_on_every_chip(ledger):
    for name in tracer.hardware.chip_ids():
        chip = tracer.load_chip(name)
        if "fp32" not in chip.peak and "fp32" not in chip.vector:
            continue
        step = predict(Workload("prefill"), ledger, chip)
        assert math.isfinite(step.times.step)
        assert step.times.step >= step.times.bound
