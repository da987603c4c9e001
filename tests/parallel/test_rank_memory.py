"""What a GPU holds: by hand at small size, and what fits."""

import re

import pytest
from rank_programs import small, v3

from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.errors import UserError
from tracer.parallel import Headroom, Plan, plan_memory, rank_memory, stage_traces
from tracer.parallel.memory import RankMemory, largest

GPU = 141e9
NONE = Headroom(reserve=0.0)


def first(words: str, phase="training", batch=1, seq=16, program=None, in_flight=1, **options):
    plan = Plan.parse(f"{words} micro_batch={batch}")
    work = Workload(phase, batch, seq, seq)
    trace = stage_traces(program or small(), work, plan)[0].trace
    return rank_memory(
        price(trace), plan, GPU, in_flight=in_flight, headroom=NONE, **options
    ), trace


def counts(trace) -> tuple[int, int]:
    """Trained elements of the whole model: experts, and the rest."""
    trained = [p for p in trace.parameters if p.trainable]
    experts = sum(p.numel for p in trained if ".experts." in p.name)
    return experts, sum(p.numel for p in trained) - experts


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_by_zero_level(zero, moments):
    """4 ranks, EP 2: everything but experts is on 4, half of the experts on each of 2."""
    _, whole = first("tp1")
    experts, other = counts(whole)
    memory, _ = first(f"dp4 ep2 zero={zero} moments={moments}")
    held = experts // 2 + other
    owned = experts // 4 + other / 4 if zero else held
    biases = 4 * 24 * 4  # the gates' FP32 biases are not trained
    inverse_frequencies = 8 * 4
    weights = 2 * (owned if zero == 3 else held) + biases + inverse_frequencies
    assert memory.weights == pytest.approx(weights, rel=1e-3)  # slices are padded
    assert memory.gradients == pytest.approx(2 * (owned if zero >= 2 else held), rel=1e-3)
    per_element = 4 + 2 * (4 if moments == "fp32" else 2)
    assert memory.optimizer == pytest.approx(per_element * owned, rel=1e-3)


def test_gradients_in_fp32():
    plain, _ = first("dp2 ep2")
    wide, _ = first("dp2 ep2", gradients="fp32")
    assert wide.gradients == 2 * plain.gradients
    with pytest.raises(UserError, match="choose parameter or fp32"):
        first("dp2", gradients="bf8")


def test_full_recomputation_keeps_the_inputs_of_layers():
    """[T, D] BF16 for each of 5 layers, and what is behind the last of them."""
    t, d, v = 32, 64, 96
    memory, trace = first("tp1 recompute=full", batch=2)
    layers = 5 * t * d * 2
    norm_and_head = 3 * t * d * 4 + t * d * 2 + t * v * (4 + 4 + 2)
    assert layers <= memory.activations <= layers + norm_and_head + t * 8 * 4 + 8 * 16 * 4
    assert trace.header["phase"] == "training"


def test_policies_keep_less_and_less():
    none, selective, full = (
        first(f"dp4 ep4 {zero} recompute={policy}", batch=2)[0].activations
        for zero in ("zero=3",)
        for policy in ("none", "selective", "full")
    )
    assert full < selective < none


def test_micro_batches_in_flight_add_up():
    one, _ = first("dp2 ep2")
    three, _ = first("dp2 ep2", in_flight=3)
    assert three.activations == 3 * one.activations
    assert three.weights == one.weights


@pytest.mark.parametrize("words", ["tp1", "tp4", "dp4 ep4"])
def test_latent_cache_is_whole_on_every_tp_rank(words):
    """(C + R) 48 elements of 2 B a token and layer, whoever else caches them."""
    memory, _ = first(words, "decode", batch=4, seq=100)
    assert memory.kv == 4 * 100 * 5 * (32 + 16) * 2


def test_v3_decode_on_320():
    """One expert a GPU, the rest whole: (671.03 - 654.3 + 654.3 / 256) G parameters of 2 B."""
    plan = Plan.parse("dp320 ep320 redundant=64 micro_batch=128")
    memory = plan_memory(v3(), Workload("decode", 128, 1, 4096), plan, GPU)
    experts = 58 * 256 * 3 * 2048 * 7168
    local = 671_026_419_200 - experts + experts // 256
    absorbed_and_bias = 58 * 256 * 4  # biases are FP32: two bytes more, and inverse frequencies
    assert memory.weights == pytest.approx(2 * local, abs=absorbed_and_bias)
    assert memory.kv == 128 * 4096 * 70_272
    assert memory.fits
    assert memory.reserve == round(0.1 * GPU)


def test_the_fullest_stage_counts():
    """1F1B: the first of 4 stages holds 4 micro-batches, or as many as there are."""
    work = Workload("training", 1, 16, 16)
    plan = Plan.parse("pp4 micro_batches=8")
    first_stage = stage_traces(small(), work, plan)[0]
    alone = rank_memory(price(first_stage.trace), plan, GPU, in_flight=4)
    assert plan_memory(small(), work, plan, GPU).activations >= alone.activations
    few = plan_memory(small(), work, Plan.parse("pp4 micro_batches=1"), GPU)
    assert few.activations < alone.activations


def test_headroom():
    with pytest.raises(UserError, match=re.escape("reserve=1.5")):
        Headroom(reserve=1.5)
    memory = RankMemory(1, 2, 3, 4, 5, 6, 10, 31)
    assert memory.total == 21
    assert memory.fits
    assert not RankMemory(1, 2, 3, 4, 5, 6, 10, 30).fits


# -- what fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 7, 100, 12_345, 10**7])
@pytest.mark.parametrize("slope", [1, 3, 1000])
@pytest.mark.parametrize("bend", [0, 1])
def test_largest_against_a_search_one_by_one(limit, slope, bend):
    """Also where memory is not linear; in a handful of looks."""
    looks = []

    def fits(n: int) -> RankMemory:
        looks.append(n)
        used = slope * n + bend * n * n // 1000
        return RankMemory(used, 0, 0, 0, 0, 0, 0, limit)

    found = largest(fits)
    # The definition: it fits, and one more does not.
    assert found == 0 or slope * found + bend * found * found // 1000 <= limit
    assert slope * (found + 1) + bend * (found + 1) ** 2 // 1000 > limit
    assert len(looks) <= (4 if bend == 0 else 40)
