"""Hand formulas and traced ones are one polynomial, module by module: differences expand to 0.

Not equal at some points, but for every B, S and L.
"""

import pytest
import sympy
from family_traces import (
    MODELS,
    V3,
    by_module,
    dims,
    flops,
    passing_bytes,
    symbolic_ledger,
    weights_read,
)
from mla_formulas import (
    BF16,
    absorbed_core_flops,
    decode_flops,
    forward_flops,
    kv_bytes_per_token,
    linears,
    naive_core_flops,
    naive_core_score_flops,
    weight_bytes,
)

from tracer.algebra.plain import to_sympy
from tracer.capture.records import BACKWARD
from tracer.cost import EXECUTIONS
from tracer.cost.work import GEMM

B, S, L = (sympy.Symbol(name, positive=True, integer=True) for name in "BSL")


def assert_identical(traced, by_hand):
    """The same modules, and for each the same polynomial."""
    assert traced.keys() == by_hand.keys()
    wrong = {
        module: difference
        for module, value in traced.items()
        if (difference := sympy.expand(to_sympy(value) - by_hand[module])) != 0
    }
    assert wrong == {}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_prefill_flops(model, execution):
    """MLA's naive form, experts, dense FFN, gate, shared experts and head."""
    traced = by_module(symbolic_ledger(model, "prefill", execution=execution), flops)
    assert_identical(traced, forward_flops(dims(model), B, S))


@pytest.mark.parametrize("model", MODELS)
def test_prefill_flops_of_all_pairs(model):
    full = forward_flops(dims(model), B, S, causal="full")
    assert_identical(by_module(symbolic_ledger(model, "prefill", causal="full"), flops), full)
    assert_identical(by_module(symbolic_ledger(model, "prefill", attention="naive"), flops), full)


@pytest.mark.parametrize("model", MODELS)
def test_decode_flops(model):
    """MLA's absorbed form over a cache of L latents."""
    assert_identical(
        by_module(symbolic_ledger(model, "decode"), flops), decode_flops(dims(model), B, L)
    )


@pytest.mark.parametrize("model", MODELS)
def test_training_flops(model):
    """Backward is twice the forward; the scores that a flash kernel takes again stand apart."""
    priced, d = symbolic_ledger(model, "training"), dims(model)
    forward = forward_flops(d, B, S)
    assert_identical(by_module(priced, flops), forward)
    assert_identical(
        by_module(priced, flops, phase=BACKWARD), {m: 2 * f for m, f in forward.items()}
    )
    again = by_module(priced, lambda cost: sum(cost.recompute_flops.values()), phase=BACKWARD)
    scores = naive_core_score_flops(d, B, S)
    assert_identical(again, {f"model.layers.{n}.self_attn": scores for n in range(d.layers)})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_weight_bytes(model, phase):
    """Every touched weight once; the experts', rounded to bytes, are tested at numbers."""
    decode = phase == "decode"
    read = by_module(symbolic_ledger(model, phase), weights_read)
    routed = [module for module in read if module.endswith("mlp.experts")]
    assert len(routed) == dims(model).layers - dims(model).dense_layers
    for module in routed:
        del read[module]
    assert_identical(read, weight_bytes(dims(model), B if decode else B * S, decode=decode))


@pytest.mark.parametrize("model", MODELS)
def test_cache_bytes(model):
    """Prefill writes C + R elements a token and layer; decode reads L of them and writes one."""
    d = dims(model)
    prefill = symbolic_ledger(model, "prefill").total()
    assert sympy.expand(to_sympy(prefill.write["kv"]) - B * S * kv_bytes_per_token(d)) == 0
    assert "kv" not in prefill.read
    decode = symbolic_ledger(model, "decode").total()
    assert sympy.expand(to_sympy(decode.read["kv"]) - B * L * kv_bytes_per_token(d)) == 0
    assert sympy.expand(to_sympy(decode.write["kv"]) - B * kv_bytes_per_token(d)) == 0


@pytest.mark.parametrize("model", MODELS)
def test_projections_move_their_rows(model):
    """[T, K] in and [T, N] out, 2 bytes each."""
    moved = by_module(symbolic_ledger(model, "prefill"), passing_bytes, kinds=(GEMM,))
    sizes = linears(dims(model))
    assert_identical(moved, {path: B * S * (k + n) * BF16 for path, (k, n) in sizes.items()})


def test_a_difference_of_one_flop_a_token_fails():
    """The check itself: S(S+1)/2 pairs are not S²/2 of them."""
    d = dims(V3)
    pairs = naive_core_flops(d, B, S)
    with pytest.raises(AssertionError):
        assert_identical({"a": symbolic_ledger(V3, "prefill").total().total_flops}, {"a": pairs})
    assert sympy.expand(pairs - B * d.heads * S**2 * (d.qk + d.v)) == B * d.heads * S * (d.qk + d.v)
    assert sympy.Poly(absorbed_core_flops(d, B, L), B, L).total_degree() == 2
