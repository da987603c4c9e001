"""Training, module by module: the backward is twice the forward for every product."""

import pytest
from family_traces import (
    MODELS,
    MOONLIGHT,
    V3,
    by_module,
    dims,
    flops,
    ledger,
    passing_bytes,
    program,
    weights_read,
)
from mla_formulas import (
    BF16,
    FP32,
    forward_flops,
    linears,
    naive_core_score_flops,
    norms,
    routed_weight_bytes,
    trainable_tensors,
    weight_bytes,
)

from tracer.capture.records import BACKWARD, FORWARD, OPTIMIZER
from tracer.capture.workload import Workload, record
from tracer.cost import EXECUTIONS, price
from tracer.cost.work import ATTENTION, GEMM, GROUPED_GEMM
from tracer.predict.memory import memory

SHAPES = [(1, 1), (3, 255), (1, 4096)]

every = pytest.mark.parametrize(
    ("model", "batch", "length"), [(m, *shape) for m in MODELS for shape in SHAPES]
)


@every
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_backward_is_twice_the_forward_in_every_module(model, batch, length, execution):
    """Input gradient and weight gradient are a forward each, and four matmuls of attention two."""
    priced = ledger(model, "training", batch, length, execution=execution)
    forward = forward_flops(dims(model), batch, length)
    assert by_module(priced, flops, phase=FORWARD) == forward
    assert by_module(priced, flops, phase=BACKWARD) == {m: 2 * f for m, f in forward.items()}
    assert priced.total().total_flops == 3 * sum(forward.values())


@every
def test_attention_backward_computes_the_scores_again(model, batch, length):
    """A fifth matmul that no published count includes: beside `flops`, in backward only."""
    d = dims(model)

    def again(cost):
        return sum(cost.recompute_flops.values())

    for causal in ("pairs", "full"):
        priced = ledger(model, "training", batch, length, causal=causal)
        scores = naive_core_score_flops(d, batch, length, causal=causal)
        want = {f"model.layers.{layer}.self_attn": scores for layer in range(d.layers)}
        assert by_module(priced, again, phase=BACKWARD) == want
        assert by_module(priced, again, phase=FORWARD) == {}


@every
def test_unfused_attention_keeps_its_scores(model, batch, length):
    """With a score matrix in memory nothing is computed twice, and all pairs are multiplied."""
    priced = ledger(model, "training", batch, length, attention="naive")
    full = forward_flops(dims(model), batch, length, causal="full")
    assert by_module(priced, flops, phase=FORWARD) == full
    assert by_module(priced, flops, phase=BACKWARD) == {m: 2 * f for m, f in full.items()}
    assert priced.total().recompute_flops == {}


@every
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_weights_are_read_once_a_pass(model, batch, length, execution):
    """Forward as in prefill; backward by the input gradients of products and by the norms.

    Neither the embedding, nor the gate's bias, nor the rotary frequencies have an input gradient.
    """
    d, tokens = dims(model), batch * length
    priced = ledger(model, "training", batch, length, execution=execution)
    assert by_module(priced, weights_read, phase=FORWARD) == weight_bytes(d, tokens)
    want = {path: k * n * BF16 for path, (k, n) in linears(d).items()}
    want |= {path: width * BF16 for path, width in norms(d).items()}
    for layer in range(d.dense_layers, d.layers):
        want[f"model.layers.{layer}.mlp.experts"] = routed_weight_bytes(d, tokens)
    assert by_module(priced, weights_read, phase=BACKWARD) == want


@every
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_every_gradient_is_written_once(model, batch, length, execution):
    """BF16 and whole, that of unhit experts included.

    Difference named: the embedding's gradient is zeroed first and the rows of its tokens are added
    to, so they are written twice.
    """
    d, tokens = dims(model), batch * length
    priced = ledger(model, "training", batch, length, execution=execution)
    want = {path: k * n * BF16 for path, (k, n) in linears(d).items()}
    want |= {path: width * BF16 for path, width in norms(d).items()}
    for layer in range(d.dense_layers, d.layers):
        stack = d.experts * d.hidden * d.expert_width * BF16
        want[f"model.layers.{layer}.mlp.experts"] = 3 * stack
    rows = min(tokens, d.vocab)
    want["model.embed_tokens"] = (d.vocab + rows) * d.hidden * BF16
    written = by_module(priced, lambda cost: cost.write.get("gradients", 0), phase=BACKWARD)
    assert written == want
    # Nobody reads a parameter's gradient before the optimizer, which is not part of this trace.
    assert priced.total().read.get("gradients", 0) == 0
    assert priced.total().bytes_by_role["kv"] == 0


@every
def test_projection_gradients_move_their_operands_once(model, batch, length):
    """Weight gradient: x and dy in. Input gradient: dy in, dx out. [T, K] or [T, N] each."""
    d, tokens = dims(model), batch * length
    priced = ledger(model, "training", batch, length)
    sizes = linears(d)
    forward = {path: tokens * (k + n) * BF16 for path, (k, n) in sizes.items()}
    assert by_module(priced, passing_bytes, phase=FORWARD, kinds=(GEMM,)) == forward
    backward = by_module(priced, passing_bytes, phase=BACKWARD, kinds=(GEMM,))
    assert backward == {path: 2 * moved for path, moved in forward.items()}


@every
def test_expert_gradients_move_rows_for_every_choice(model, batch, length):
    """As the projections, over T·k rows; each of the six products reads E offsets of 4 bytes."""
    d, rows = dims(model), batch * length * dims(model).top_k
    priced = ledger(model, "training", batch, length)
    one = 2 * 3 * (rows * (d.hidden + d.expert_width) * BF16 + d.experts * 4)
    want = {f"model.layers.{layer}.mlp.experts": one for layer in range(d.dense_layers, d.layers)}
    assert by_module(priced, passing_bytes, phase=BACKWARD, kinds=(GROUPED_GEMM,)) == want


@every
def test_core_backward_moves_each_operand_once(model, batch, length):
    """In: dO, O, q, k, v and the log-sum-exp. Out: dq, dk, dv. Besides: the two seeds."""
    d = dims(model)
    priced = ledger(model, "training", batch, length)
    rows = batch * length * d.heads
    inward = rows * (2 * d.v + 2 * d.qk + d.v) * BF16 + rows * FP32 + 16
    outward = rows * (2 * d.qk + d.v) * BF16
    want = {f"model.layers.{layer}.self_attn": inward + outward for layer in range(d.layers)}
    assert by_module(priced, passing_bytes, phase=BACKWARD, kinds=(ATTENTION,)) == want


@pytest.mark.parametrize("model", [V3, MOONLIGHT])
def test_adamw_moves_each_of_its_tensors_once(model):
    """Mixed precision: FP32 master and two moments in and out, BF16 gradient in, BF16 weight out.

    16 parameter bytes held and 28 moved for a parameter; besides, a step counter of 4 bytes for
    each tensor. 14 vector FLOPs an element: decay 1, first moment 3, second 1 + 3, root 1,
    corrections 1 + 1, update 3.
    """
    tensors = trainable_tensors(dims(model))
    elements, counters = sum(tensors), 4 * len(tensors)
    work = Workload("training", batch=1, seq=1, optimizer="adamw")
    priced = price(record(program(model), work, fold=False))
    step = priced.total(phase=OPTIMIZER)
    assert step.read["gradients"] == 2 * elements
    assert step.read["optimizer"] == step.write["optimizer"] == 12 * elements + counters
    assert step.write["weights"] == 2 * elements
    assert step.read.get("weights", 0) == step.write.get("gradients", 0) == 0
    assert step.total_flops == 0
    assert step.vector_flops == 14 * elements + len(tensors)
    held = memory(priced)
    d = dims(model)
    buffers = d.rope // 2 + d.experts * d.gate_bias * (d.layers - d.dense_layers)
    assert held.weights == 2 * elements + FP32 * buffers  # rotary frequencies and gate biases
    assert held.gradients == 2 * elements
    assert held.optimizer == 12 * elements + counters
