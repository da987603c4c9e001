"""Trace = closed form at sizes that nobody chose, and sums that must hold at any size."""

import pytest
from family_traces import by_module, flops, passing_bytes, weights_read
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mla_formulas import Dims, decode_flops, forward_flops, kv_bytes_per_token, weight_bytes

from tracer.capture.records import BACKWARD, FORWARD
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import EFFICIENT, EXECUTIONS, Cost, price

# Reproducible. Slow first examples (imports) are no failures, and a failing one is not shrunk: that
# takes minutes where an example is a trace.
steady = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)


@st.composite
def configs(draw: st.DrawFn) -> dict:
    """Small models of the family, with and without each switch that changes what runs."""
    sizes = st.integers(1, 9)
    groups = draw(st.sampled_from([1, 2, 4]))
    top_k = draw(st.integers(1, 4))
    v3 = draw(st.booleans())
    v2_method = "greedy" if groups == 1 else "group_limited_greedy"
    layers = draw(st.integers(1, 4))
    return {
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "vocab_size": 8 * draw(sizes),
        "hidden_size": 8 * draw(sizes),
        "intermediate_size": 8 * draw(sizes),
        "moe_intermediate_size": 8 * draw(sizes),
        "num_hidden_layers": layers,
        "num_attention_heads": draw(sizes),
        "q_lora_rank": draw(st.none() | sizes.map(lambda n: 8 * n)),
        "kv_lora_rank": 8 * draw(sizes),
        "qk_nope_head_dim": 8 * draw(sizes),
        "qk_rope_head_dim": 2 * draw(sizes),
        "v_head_dim": 8 * draw(sizes),
        # A V3 group is ranked by its two best experts, and two groups must hold k.
        "n_routed_experts": groups * draw(st.integers(4, 8)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "num_experts_per_tok": top_k,
        "n_group": groups,
        "topk_group": min(groups, 2),
        "topk_method": "noaux_tc" if v3 else v2_method,
        "scoring_func": "sigmoid" if v3 else "softmax",
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "moe_layer_freq": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "initializer_range": 0.02,
    }


lengths = st.integers(1, 40)
batches = st.integers(1, 5)


def run(config: dict, phase: str, batch: int, length: int, execution: str = EFFICIENT):
    program = ReferenceProgram("random", config)
    work = Workload(phase, batch=batch, seq=length, context=length, optimizer="none")
    return price(record(program, work, fold=False), execution=execution)


@steady
@given(config=configs(), batch=batches, seq=lengths)
def test_prefill_is_the_closed_form(config, batch, seq):
    d = Dims.of(config)
    priced = run(config, "prefill", batch, seq)
    assert by_module(priced, flops) == forward_flops(d, batch, seq)
    assert by_module(priced, weights_read) == weight_bytes(d, batch * seq)
    assert priced.total().bytes_by_role["kv"] == batch * seq * kv_bytes_per_token(d)


@steady
@given(config=configs(), batch=batches, context=st.integers(2, 40))
def test_decode_is_the_closed_form(config, batch, context):
    d = Dims.of(config)
    priced = run(config, "decode", batch, context)
    assert by_module(priced, flops) == decode_flops(d, batch, context)
    assert by_module(priced, weights_read) == weight_bytes(d, batch, decode=True)
    latents = batch * kv_bytes_per_token(d)
    assert priced.total().read["kv"] == context * latents
    assert priced.total().write["kv"] == latents


@steady
@given(config=configs(), batch=batches, seq=lengths)
def test_training_is_three_forwards(config, batch, seq):
    forward = forward_flops(Dims.of(config), batch, seq)
    priced = run(config, "training", batch, seq)
    assert by_module(priced, flops, phase=FORWARD) == forward
    assert by_module(priced, flops, phase=BACKWARD) == {m: 2 * f for m, f in forward.items()}


@steady
@given(config=configs(), batch=st.integers(2, 6), length=st.integers(2, 40))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_batch_scales_products(phase, config, batch, length):
    """Sequences do not see each other: FLOPs and KV of B are B times those of one."""
    one = run(config, phase, 1, length).total()
    many = run(config, phase, batch, length).total()
    assert many.total_flops == batch * one.total_flops
    assert many.bytes_by_role["kv"] == batch * one.bytes_by_role["kv"]


@steady
@given(config=configs(), batch=batches, length=st.integers(2, 40))
@pytest.mark.parametrize("phase", ["decode", "training"])
def test_parts_sum_to_the_whole(phase, config, batch, length):
    """Every way of cutting a ledger gives back its total, and fusion only takes bytes away."""
    totals = []
    for execution in EXECUTIONS:
        priced = run(config, phase, batch, length, execution)
        total = priced.total()
        for key in (
            lambda kernel, part: part.module,
            lambda kernel, part: part.module.partition(".layers.")[2].partition(".")[0],
            lambda kernel, part: kernel.kind,
            lambda kernel, part: kernel.phase,
        ):
            assert Cost.sum(priced.by(key).values()) == total
        phases = [priced.total(phase=name) for name in (FORWARD, BACKWARD)]
        assert Cost.sum(phases) == total
        totals.append(total)
    naive, efficient = totals
    assert efficient.flops == naive.flops
    assert efficient.vector_flops == naive.vector_flops
    for role, nbytes in efficient.bytes_by_role.items():
        assert nbytes <= naive.bytes_by_role[role], role


@steady
@given(config=configs(), batch=batches, seq=lengths)
def test_fusion_leaves_weights_and_kv_alone(config, batch, seq):
    """They are read and written once already; only what flows can be kept on chip."""
    naive, efficient = (run(config, "prefill", batch, seq, name) for name in EXECUTIONS)
    assert by_module(efficient, weights_read) == by_module(naive, weights_read)
    assert efficient.total().bytes_by_role["kv"] == naive.total().bytes_by_role["kv"]
    assert sum(by_module(efficient, passing_bytes).values()) < sum(
        by_module(naive, passing_bytes).values()
    )
