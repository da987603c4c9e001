"""Coverage, strictness, custom formulas, conventions: nothing is zero in silence."""

import contextlib

import pytest
import torch
from torch import nn

import tracer
from tracer.cost import registry
from tracer.cost.registry import Registry
from tracer.cost.work import ATTENTION, GEMM, Cost, Work


@pytest.fixture
def library():
    """A custom op library that goes away with the test."""
    with torch.library._scoped_library("h4test", "DEF") as lib, registry.scope():
        lib.define("mlp(Tensor x, Tensor up, Tensor down, float scale=1.0, *, bool fast=False) "
                   "-> Tensor")  # fmt: skip
        lib.define("mlp.wide(Tensor x, Tensor up, Tensor down, int times) -> Tensor")
        lib.define("touch(Tensor(a!) x) -> ()")
        for key in ("CPU", "Meta"):
            lib.impl("mlp", lambda x, up, down, scale=1.0, *, fast=False: x.clone(), key)
            lib.impl("mlp.wide", lambda x, up, down, times: x.clone(), key)
            lib.impl("touch", lambda x: None, key)
        yield torch.ops.h4test


X, UP, DOWN = (5, 8), (8, 32), (32, 8)


def operands():
    return [torch.ones(*shape) for shape in (X, UP, DOWN)]


def test_an_unknown_op_is_priced_by_its_bytes_and_named(library):
    inputs = operands()
    with tracer.trace() as t:
        library.mlp(*inputs)
        library.mlp(*inputs)
        inputs[0] @ inputs[1]
    naive = t.ledger(execution="naive")
    assert naive.unmodelled() == {"h4test.mlp.default": 2}
    cost = naive.by(lambda kernel, part: kernel.name)["mlp"]
    one = 4 * (2 * 5 * 8 + 8 * 32 + 32 * 8)
    assert cost.total_bytes == 2 * one
    assert cost.total_flops == cost.vector_flops == 0
    product = 4 * (5 * 8 + 8 * 32 + 5 * 32)
    coverage = naive.coverage()
    assert coverage["unmodelled"] == {
        "ops": pytest.approx(2 / 3),
        "flops": 0,
        "bytes": pytest.approx(2 * one / (2 * one + product)),
    }
    assert coverage["exact"]["flops"] == 1
    assert "h4test.mlp.default" in str(t)


def test_an_unknown_op_that_only_writes(library):
    x = torch.ones(5, 8)
    with tracer.trace() as t:
        library.touch(x)
    assert t.cost.total_bytes == 2 * 4 * 40  # read and written
    assert t.ledger().unmodelled() == {"h4test.touch.default": 1}


def test_strict_names_the_op_the_module_and_the_way_out(library):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x)

    class Block(nn.Module):
        def forward(self, x):
            return library.mlp(x, *operands()[1:])

    model = Model()
    with tracer.trace(model) as t:
        model(torch.ones(*X))
    with pytest.raises(tracer.UserError) as caught:
        tracer.price(t.trace, strict=True)
    message = str(caught.value)
    assert "h4test.mlp.default" in message
    assert "'block'" in message
    assert "@tracer.cost('h4test::mlp')" in message
    assert "\n" not in message


def test_strict_passes_when_everything_is_known():
    with tracer.trace() as t:
        operands()[0] @ operands()[1]
    assert tracer.price(t.trace, strict=True).total() == t.cost


def test_three_lines_price_a_custom_op(library):
    @tracer.cost("h4test::mlp")
    def mlp(x, up, down, scale=1.0, *, fast=False, out):
        return Work(flops=2 * x.numel * up.shape[1] + 2 * out[0].numel * down.shape[0], kind=GEMM)

    inputs = operands()
    with tracer.trace() as t:
        library.mlp(*inputs, 2.0, fast=True)
    assert t.cost.flops == {"fp32": 2 * 5 * 8 * 32 + 2 * 5 * 32 * 8}
    assert t.cost.total_bytes == 4 * (5 * 8 + 8 * 32 + 32 * 8 + 5 * 8)
    assert not t.ledger().unmodelled()


def test_a_formula_of_an_overload_comes_before_that_of_the_op(library):
    @tracer.cost("h4test::mlp")
    def general(*args, out, **kwargs):
        return Work(flops=1)

    @tracer.cost("h4test::mlp.wide")
    def special(x, up, down, times, *, out):
        return Work(flops=10 * times)

    inputs = operands()
    with tracer.trace() as t:
        library.mlp(*inputs)
        library.mlp.wide(*inputs, 3)
    assert t.flops == 1 + 30


def test_a_formula_states_bytes_precision_vector_work_and_recompute(library):
    @tracer.cost("h4test::mlp")
    def mlp(x, up, down, *rest, out, **kwargs):
        return Work(
            flops=100, vector=7, recompute=50, precision="fp8", kind=ATTENTION,
            read={"up": 11}, write={0: 13}, confidence="estimated",
        )  # fmt: skip

    inputs = operands()
    with tracer.trace() as t:
        library.mlp(*inputs)
    cost = t.cost
    assert (cost.flops, cost.recompute_flops, cost.vector_flops) == ({"fp8": 100}, {"fp8": 50}, 7)
    assert sum(cost.read.values()) == 4 * (5 * 8 + 32 * 8) + 11
    assert sum(cost.write.values()) == 13
    assert t.ledger().coverage().keys() == {"estimated"}
    assert [k.kind for k in t.ledger().kernels] == [ATTENTION]


def test_a_formula_may_ask_for_the_conventions(library):
    @tracer.cost("h4test::mlp")
    def mlp(x, up, down, *rest, out, env, **kwargs):
        return Work(flops=1 if env.conventions.causal == "pairs" else 2)

    with tracer.trace() as t:
        library.mlp(*operands())
    assert t.flops == 1
    assert t.ledger(tracer.Conventions(causal="full")).total().total_flops == 2


def test_scope_forgets_and_restores(library):
    before = len(registry)
    with registry.scope():

        @tracer.cost("aten::mm", "h4test::mlp")
        def other(*args, out, **kwargs):
            return Work(flops=5)

        with tracer.trace() as t:
            operands()[0] @ operands()[1]
        assert t.flops == 5
    assert len(registry) == before
    with tracer.trace() as t:
        operands()[0] @ operands()[1]
    assert t.flops == 2 * 5 * 8 * 32
    with pytest.raises(ZeroDivisionError), registry.scope():
        tracer.cost("h4test::mlp")(lambda *args, out, **kwargs: Work())
        raise ZeroDivisionError
    assert len(registry) == before


def test_a_registry_of_ones_own():
    mine = Registry()

    @mine.cost("aten::mm")
    def mm(self, mat2, *, out):
        return Work(flops=3)

    with tracer.trace() as t:
        operands()[0] @ operands()[1]
    assert tracer.price(t.trace, formulas=mine).total().total_flops == 3
    assert t.flops == 2 * 5 * 8 * 32


@pytest.mark.parametrize("name", ["aten.mm", "mm", "", "aten:mm"])
def test_a_name_without_a_namespace_is_refused(name):
    with pytest.raises(tracer.UserError, match="namespace::name"):
        tracer.cost(name)


def test_a_formula_without_out_is_refused():
    with pytest.raises(tracer.UserError, match=r"'no_out' needs a keyword 'out'"), registry.scope():

        @tracer.cost("h4test::mlp")
        def no_out(x):
            return Work()


def test_a_formula_that_does_not_fit_its_op_says_which(library):
    @tracer.cost("h4test::mlp")
    def wrong_arguments(x, *, out):
        return Work()

    with tracer.trace() as t:
        library.mlp(*operands())
    with pytest.raises(tracer.UserError, match=r"'wrong_arguments' cannot read h4test\.mlp"):
        t.ledger()


@pytest.mark.parametrize(
    "body",
    [lambda x: x.missing, lambda x: x.shape[9], lambda x: None + 1, lambda x: 1 // 0,
     lambda x: {}["key"]],
    ids=["attribute", "index", "type", "division", "key"],
)  # fmt: skip
def test_a_formula_that_raises_is_named(library, body):
    @tracer.cost("h4test::mlp")
    def fragile(x, up, down, *rest, out, **kwargs):
        return Work(flops=body(x))

    with tracer.trace() as t:
        library.mlp(*operands())
    with pytest.raises(tracer.UserError, match="'fragile' cannot read"):
        t.ledger()


def test_a_formula_that_returns_something_else_is_named(library):
    @tracer.cost("h4test::mlp")
    def forgot(x, up, down, *rest, out, **kwargs):
        return None

    with tracer.trace() as t:
        library.mlp(*operands())
    with pytest.raises(tracer.UserError, match="forgot"):
        t.ledger()


def test_a_formula_that_overrides_an_argument_it_does_not_have_is_named(library):
    @tracer.cost("h4test::mlp")
    def misspelt(x, up, down, *rest, out, **kwargs):
        return Work(read={"upp": 3})

    with tracer.trace() as t:
        library.mlp(*operands())
    with pytest.raises(tracer.UserError, match="upp"):
        t.ledger()


def test_custom_ops_of_torch_library():
    @torch.library.custom_op("h4custom::scale", mutates_args=())
    def scale(x: torch.Tensor, by: float) -> torch.Tensor:
        return x * by

    @scale.register_fake
    def _(x, by):
        return torch.empty_like(x)

    x = torch.ones(3, 4)
    with registry.scope():
        tracer.cost("h4custom::scale")(lambda x, by, *, out: Work(vector=x.numel))
        for device in ("cpu", "meta"):
            with tracer.trace() as t:
                scale(x.to(device), 2.0)
            custom = [op for op in t.trace.ops if op.overload_packet == "h4custom.scale"]
            assert len(custom) == 1
            costs = t.ledger(execution="naive").by(lambda kernel, part: kernel.name)
            assert costs["scale"].vector_flops == 12
            assert costs["scale"].total_bytes == 2 * 48
            # Counted once: not the op and then its body as well.
            assert "mul" not in costs


def test_kernels_know_their_module_and_phase():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with tracer.trace(model) as t:
        model(torch.ones(3, 4)).sum().backward()
    by_module = t.ledger().by(lambda kernel, part: part.module)
    assert by_module["0"].total_flops == 2 * (2 * 3 * 4 * 8)  # no gradient of the input
    assert by_module["2"].total_flops == 3 * (2 * 3 * 8 * 2)
    assert {k.phase for k in t.ledger().kernels} == {"forward", "backward"}
    sizes = [cost.total_bytes for cost in by_module.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_unknown_execution():
    with tracer.trace() as t:
        pass
    with pytest.raises(tracer.UserError, match="eager"):
        t.ledger(execution="eager")


def test_an_empty_trace():
    with tracer.trace() as t:
        pass
    assert t.cost == Cost()
    assert t.ledger().coverage() == {}
    assert t.on("h200_sxm").step == 0
    assert "0 ops" in str(t)


# -- cost algebra ----------------------------------------------------------------------------------


def test_cost_adds_and_scales():
    a = Cost({"bf16": 1}, 2, {"bf16": 3}, {"weights": 4}, {"kv": 5})
    b = Cost({"fp8": 10}, 20, {}, {"weights": 40, "activations": 7}, {})
    assert a + b == Cost(
        {"bf16": 1, "fp8": 10}, 22, {"bf16": 3}, {"weights": 44, "activations": 7}, {"kv": 5}
    )
    assert 58 * a == a * 58 == Cost.sum([a] * 58)
    assert (a + b).total_flops == 11
    assert (a + b).total_bytes == 4 + 5 + 47
    assert a + Cost() == a
    with contextlib.suppress(AttributeError):
        a.vector_flops = 3
        raise AssertionError("a cost can be changed")


# -- conventions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("causal", "half"), ("causal", ""), ("routing", "zipf"), ("routing", None),
        ("weight_residency", 0), ("weight_residency", -1), ("weight_residency", float("nan")),
        ("weight_residency", float("inf")), ("activation_fusion", 0),
        ("activation_fusion", float("nan")),
    ],
)  # fmt: skip
def test_bad_conventions_name_the_field_and_the_value(field, value):
    with pytest.raises(tracer.UserError, match=field) as caught:
        tracer.Conventions(**{field: value})
    assert repr(value).strip("'") in str(caught.value)


def test_default_notes_say_what_is_counted():
    notes = " ".join(tracer.Conventions().notes())
    for phrase in ("2 FLOPs", "S(S+1)/2", "causal=pairs", "routing=uniform", "E(1-(1-k/E)^T)"):
        assert phrase in notes
    assert "residency" not in notes
    assert "activation_fusion" not in notes


def test_assumptions_are_printed_and_flagged_below_the_compulsory_traffic():
    above = tracer.Conventions(weight_residency=4).notes()
    (line,) = [note for note in above if "weight_residency=4" in note]
    assert "BELOW" in line
    below = tracer.Conventions(weight_residency=0.5).notes()
    (line,) = [note for note in below if "weight_residency=0.5" in note]
    assert "BELOW" not in line
    fused = tracer.Conventions(activation_fusion=0.25).notes()
    assert any("activation_fusion=0.25" in note and "assumption" in note for note in fused)
    assert any("all S^2" in note for note in tracer.Conventions(causal="full").notes())


def test_assumptions_change_only_their_own_bytes():
    model = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16))
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.ones(4, 16))
    plain = t.cost
    resident = t.ledger(tracer.Conventions(weight_residency=2)).total()
    assert resident.read["weights"] * 2 == plain.read["weights"]
    assert resident.read["activations"] == plain.read["activations"]
    assert resident.flops == plain.flops
    fused = t.ledger(tracer.Conventions(activation_fusion=0.5)).total()
    assert fused.read["weights"] == plain.read["weights"]
    assert fused.read["activations"] * 2 == plain.read["activations"]


def test_a_session_prices_each_convention_once():
    with tracer.trace() as t:
        operands()[0] @ operands()[1]
    assert t.ledger() is t.ledger(tracer.Conventions())
    assert t.ledger(tracer.Conventions(causal="full")) is not t.ledger()
