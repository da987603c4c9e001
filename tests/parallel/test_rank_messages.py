"""What ranks send, against formulas by hand at the size of DeepSeek-V3.

D 7168, Q 1536, C + R 576, V 129,280, 61 layers of which 3 are dense, 256 experts, k 8; BF16 is 2 B.
"""

import pytest
from rank_programs import ledgers, messages, v3

from tracer.capture.workload import Workload
from tracer.parallel import Plan

D, LATENTS, LAYERS, DENSE, MOE = 7168, 1536 + 512 + 64, 61, 3, 58
T = 4096


def ledger(words: str, phase: str, batch: int = 1, seq: int = T, dtype: str = "bf16", place=0):
    work = Workload(phase, batch, seq, seq, "none")
    plan = Plan.parse(f"{words} micro_batch={batch}")
    return ledgers(v3(dtype), work, plan)[place][0]


def test_tp_all_reduces_twice_a_layer():
    """T·D·2 B behind attention and behind the feed-forward, once more behind the embedding; then
    one token's logits are gathered."""  # noqa: D209
    got = messages(ledger("tp8", "prefill"), "tp")
    assert got == {
        "all_reduce": (2 * LAYERS + 1) * T * D * 2,
        "all_gather_into_tensor": 129_280 * 2,
    }


def test_tp_training():
    """Back, in front of what is cut: the compressed of attention, the hidden states of the rest."""
    priced = ledger("tp8", "training")
    forward = (2 * LAYERS + 1) * T * D * 2
    backward = LAYERS * T * LATENTS * 2 + (LAYERS + 1) * T * D * 2
    loss = 3 * T * 4
    assert messages(priced, "tp") == {"all_reduce": forward + backward + loss}
    assert priced.total("backward").messages["tp"] == backward


def test_sequence_parallel_prefill():
    """Per layer: gather the compressed and the hidden states of MLP, scatter both results."""
    got = messages(ledger("tp8 sp", "prefill"), "tp")
    assert got == {
        "all_gather_into_tensor": LAYERS * T * (LATENTS + D) * 2 + T * D * 2 + 129_280 * 2,
        "reduce_scatter_tensor": (2 * LAYERS + 1) * T * D * 2,
    }


def test_sequence_parallel_moves_no_more_than_all_reduces():
    """An all-reduce is a reduce-scatter and an all-gather; attention gathers less than that."""
    plain = messages(ledger("tp8", "training"), "tp")
    cut = messages(ledger("tp8 sp", "training"), "tp")
    scattered, gathered = cut["reduce_scatter_tensor"], cut["all_gather_into_tensor"]
    assert scattered == gathered + 0  # what is gathered in one pass is scattered in the other
    # The loss's three messages and the gates' gradients stay all-reduces.
    loss = 3 * T * 4
    assert scattered == plain["all_reduce"] - loss
    assert cut["all_reduce"] == loss


@pytest.mark.parametrize("ranks", [32, 64])
def test_expert_parallel(ranks):
    """Each of k rows a token out and back, and how many are coming: an INT32 for each expert."""
    got = messages(ledger(f"dp{ranks} ep{ranks}", "prefill"), "ep")
    assert got == {"all_to_all_single": MOE * (2 * T * 8 * D * 2 + 256 * 4)}


def test_expert_parallel_in_fp8():
    """Out: one byte an element and an FP32 scale for 128 of them; back: BF16."""
    got = messages(ledger("dp32 ep32 redundant=32", "prefill", dtype="fp8"), "ep")
    rows = T * 8
    out, back, counts = rows * D + rows * (D // 128) * 4, rows * D * 2, (256 + 32) * 4
    assert got == {"all_to_all_single": MOE * (out + back + counts)}


def test_fp8_training_sends_both_ways_what_prefill_does():
    """The backward of one is the other: results' gradients out in FP8, inputs' back in BF16."""
    priced = ledger("dp64 ep64", "training", dtype="fp8")
    rows = T * 8
    way = MOE * (rows * D + rows * (D // 128) * 4 + rows * D * 2)
    assert priced.total("forward").messages["ep"] == way + MOE * 256 * 4
    assert priced.total("backward").messages["ep"] == way


def test_tokens_that_tp_ranks_share_are_dispatched_once():
    alone = messages(ledger("dp32 ep32", "prefill"), "ep")["all_to_all_single"]
    shared = messages(ledger("tp4 dp8 ep32", "prefill"), "ep")["all_to_all_single"]
    counts = MOE * 256 * 4
    assert 4 * (shared - counts) == alone - counts


def test_pipeline_hands_over_hidden_states():
    work = Workload("training", 1, T, T, "none")
    found = ledgers(v3(), work, Plan.parse("pp16 dp64 ep64"))
    one = T * D * 2
    assert messages(found[0][0], "pp") == {"isend": one, "irecv": one}
    assert messages(found[1][0], "pp") == {"isend": 2 * one, "irecv": 2 * one}
    assert messages(found[-1][0], "pp") == {"isend": one, "irecv": one}
    back = found[1][0].total("backward").messages["pp"]
    assert back == 2 * one  # gradient in from the next stage, out to the one before


def test_context_parallel_gathers_latents():
    """C + R of every token of a sequence a layer, summed over the ranks on the way back."""
    every = LAYERS * 2 * T * (512 + 64) * 2
    priced = ledger("cp4", "training", batch=2)
    assert messages(priced, "cp") == {
        "all_gather_into_tensor": every, "reduce_scatter_tensor": every,
    }  # fmt: skip
    assert priced.total("backward").messages["cp"] == every
    assert messages(ledger("cp4 tp8 sp", "prefill", batch=2), "cp") == {
        "all_gather_into_tensor": every
    }


@pytest.mark.parametrize(("recompute", "times"), [("latent", 1), ("selective", 1), ("full", 2)])
def test_context_parallel_recomputation(recompute, times):
    """Only whole layers that run again gather again."""
    got = messages(ledger(f"cp4 recompute={recompute}", "training"), "cp")
    once = LAYERS * T * (512 + 64) * 2
    assert got == {"all_gather_into_tensor": times * once, "reduce_scatter_tensor": once}


def test_context_parallel_ranks_send_on_what_they_hold():
    """A stage hands over, and its experts exchange, the tokens of its ranks alone."""
    work = Workload("training", 1, T, T, "none")
    found = ledgers(v3(), work, Plan.parse("pp16 cp4 dp16 ep64"))
    assert messages(found[0][0], "pp") == {"isend": T // 4 * D * 2, "irecv": T // 4 * D * 2}
    rows = T // 4 * 8
    got = messages(ledger("cp4 dp8 ep32", "prefill"), "ep")
    assert got == {"all_to_all_single": MOE * (2 * rows * D * 2 + 256 * 4)}


def test_gradients_are_summed_over_context_parallel_ranks():
    """CP ranks see different tokens, so they reduce as so many more data-parallel ranks would."""
    work = Workload("training", 1, T, T, "none")
    size = weights(ledger("tp1", "prefill").trace)
    for words in ("cp8 ep8", "cp4 dp2 ep8", "dp8 ep8"):
        ((priced, _),) = ledgers(v3(), work, Plan.parse(words))
        assert messages(priced, "dp") == {"all_reduce": size["other"]}
        # Every expert is on one of eight ranks, and on no other.
        assert messages(priced, "edp") == {}


def weights(trace) -> dict[str, int]:
    """Bytes of trained parameters of the unsharded model: experts, and the rest."""
    expert = sum(p.nbytes for p in trace.parameters if ".experts." in p.name)
    other = sum(
        p.nbytes for p in trace.parameters
        if ".experts." not in p.name and not p.buffer and "e_score" not in p.name
    )  # fmt: skip
    return {"expert": expert, "other": other}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_zero_by_level(zero):
    """Gradients once over the ranks that share them; parameters as the level says."""
    ranks, ep = 64, 32
    plan = Plan.parse(f"dp{ranks} ep{ep} zero={zero}")
    ((priced, _),) = ledgers(v3(), Workload("training", 1, T, T, "adamw"), plan)
    whole = ledger("tp1", "prefill").trace
    size = weights(whole)
    # Levels 2 and 3 gather layer by layer, and forward and backward are folded.
    for axis, nbytes in (("dp", size["other"]), ("edp", size["expert"] // ep)):
        got = messages(priced, axis)
        if zero == 0:
            assert got == {"all_reduce": nbytes}
            continue
        once = {1: 1, 2: 1, 3: 2}[zero]  # level 3: before the forward and before the backward
        gathered = got.get("all_gather_into_tensor", 0) + got.get("all_gather_into_tensor_out", 0)
        assert got["reduce_scatter_tensor"] == pytest.approx(nbytes, rel=1e-5)  # padding
        forward_only = embedding_and_norm(axis) if zero == 3 else 0
        assert gathered == pytest.approx(once * nbytes - forward_only, rel=1e-5)


def embedding_and_norm(axis: str) -> int:
    """Bytes that no backward asks for again: the embedding's rows are only written."""
    return 129_280 * D * 2 if axis == "dp" else 0


def test_attention_data_parallel():
    """Heads are whole: only the dense layers gather tokens of the group and scatter results."""
    got = messages(ledger("tp8 adp ep8", "prefill"), "tp")
    every = 8 * T * D * 2
    assert got == {
        "all_gather_into_tensor": DENSE * every,
        "reduce_scatter_tensor": DENSE * every,
    }
