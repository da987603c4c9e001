"""Expert parallelism: placement, code, all-to-all volumes."""

from __future__ import annotations

import functools
import math

from tracer.errors import UserError
from tracer.parallel import Plan
from tracer.parallel.expert_exchange import combine, dispatch
from tracer.parallel.expert_traffic import Routing
from tracer.parallel.network import NetTime

from .case import Case
from .claim import Answer, Section, holds, wrong
from .experts import copies
from .precision import stage_times

SHARDING = Section("Expert Sharding Strategy")
ALL_TO_ALL = Section("All-to-All Communication")
VOLUME = Section("Communication Volume")
CONFIGURATION = Section("Parallelism Configuration")
LESSON = Section("Lesson 3: Fine-grained Sparsity Enables Load Balancing")
ANALYSER = Section("Reproducing the Analysis")

SEED_PLAN = "pp16 ep256 dp8"
SEED_TOKENS = 4_000_000  # the batch of the seed's sections on volume and efficiency


@SHARDING.claim(515, "- TP = 1", "1", "", exact=True)
@CONFIGURATION.claim(598, "'tensor_parallel': 1", "1", "", exact=True)
def tensor(case: Case) -> Answer:
    """The published plan."""
    return holds(case.plan.tp, "published; since NVLink is cut and TP needs it, says the report")


@SHARDING.claim(516, "- EP = 256 (one expert per 8 GPUs)", "256", "", exact=True)
@CONFIGURATION.claim(600, "'expert_parallel': 256", "256", "", exact=True)
@ANALYSER.claim(720, "self.ep = 256", "256", "", exact=True)
def experts(case: Case) -> Answer:
    """EP of the published plan."""
    return wrong(
        case.plan.ep,
        f"the report has EP over 8 nodes; EP = 256 with {SEED_PLAN!r}: {_illegal(case)}",
    )


def _illegal(case: Case) -> str:
    reasons = Plan.parse(SEED_PLAN).illegal(case.sizes, training=True)
    if not reasons:
        raise UserError(f"plan {SEED_PLAN!r} is legal for this model")
    return "; ".join(reasons)


@SHARDING.claim(517, "- DP = 8 (8-way data parallelism per expert group)", "8", "", exact=True)
@CONFIGURATION.claim(601, "'data_parallel': 8", "8", "", exact=True)
@ANALYSER.claim(721, "self.dp = 8", "8", "", exact=True)
def data(case: Case) -> Answer:
    """DP of the published plan."""
    plan = case.plan
    return wrong(
        plan.dp,
        f"experts take no ranks of their own: {plan.dp} ranks of a stage see "
        f"different tokens, and each expert is held by {plan.dp // plan.ep} of them",
    )


@SHARDING.claim(519, "256/256 = 1 expert shard per layer", "1", "experts a layer", exact=True)
def held(case: Case) -> Answer:
    """Routed experts over EP of the published plan."""
    return wrong(case.sizes.experts // case.plan.ep, "at EP 64")


@ALL_TO_ALL.claim(531, "experts_per_rank = n_experts // world_size", None, "experts a rank")
def per_rank(case: Case) -> Answer:
    """Routed experts over EP; the seed's code divides by the world."""
    return wrong(
        case.sizes.experts // case.plan.ep,
        "256 // 2048 is none, so the loop over local "
        "experts runs nothing; the group is the expert-parallel one, not the world",
        float(case.sizes.experts // case.plan.world),
    )


@functools.cache
def exchange(case: Case, tokens: int) -> tuple[NetTime, NetTime]:
    """Dispatch in FP8 and combine in BF16 of one rank's tokens in a layer."""
    hidden, group = case.model.hidden_size, case.expert_group
    there = dispatch(case.network, tokens, hidden, case.routing, group)
    return there, combine(case.network, tokens, hidden, case.routing, group)


def rank_volume(case: Case) -> float:
    """Bytes through one NIC, one layer's forward, the seed's 4 M tokens a step."""
    return sum(x.volume_inter for x in exchange(case, SEED_TOKENS // case.plan.data_ranks))


def seed_volume(case: Case) -> float:
    """The seed's formula, 2 bytes an element."""
    m, n = case.model, case.plan.world
    share = m.num_experts_per_tok / m.n_routed_experts
    return 2 * (n - 1) / n * SEED_TOKENS * m.hidden_size * share * 2


@VOLUME.claim(569, r"\times \text{top-k}/n_{\text{experts}}", None, "GB a rank, layer")
@VOLUME.claim(573, r"\approx 3.5 \text{ GB per rank per layer}", "3.5", "GB a rank, layer")
@ANALYSER.claim(733, "def expert_alltoall_volume(self, batch_tokens):", None, "GB a rank, layer")
def volume(case: Case) -> Answer:
    """Bytes that one GPU sends through its NIC to dispatch (FP8) and combine (BF16) its tokens."""
    tokens = SEED_TOKENS // case.plan.data_ranks
    return wrong(
        rank_volume(case) / 1e9,
        "top-k / experts is one expert's share of all tokens, not "
        f"a rank's: of 4 M tokens a rank has {tokens:,}, each crosses to "
        f"{copies(case, case.routing):.1f} other nodes and not to 8 ranks, and one way is FP8",
        seed_volume(case) / 1e9,
    )


@VOLUME.claim(576, r"= 210 \text{ GB per rank per step}", "210", "GB a rank, step")
def total_volume(case: Case) -> Answer:
    """The volume above × MoE layers of a stage × 2, as the backward sends it all again."""
    m = case.model
    layers = (m.num_hidden_layers - m.first_k_dense_replace) / case.plan.pp
    per_token = rank_volume(case) / (SEED_TOKENS // case.plan.data_ranks)
    real = per_token * case.step_tokens / case.plan.data_ranks * 2 * layers
    return wrong(
        2 * layers * rank_volume(case) / 1e9,
        "a rank has the layers of its stage, not "
        f"all; and the backward is left out. At V3's batch it is {real / 1e9:.0f} GB",
    )


@VOLUME.claim(
    578,
    "This requires high-bandwidth networking and careful overlap.",
    None,
    "of the kernels' time",
)
def needs_overlap(case: Case) -> Answer:
    """Seconds of dispatch and combine of 4,096 tokens in 4 layers' forward over its kernels'
    seconds.
    """
    times = stage_times(case, "bf16")
    forward = times.by(lambda k, n: k.kernel.phase)["forward"]
    moe = 4
    ratio = moe * sum(x.seconds for x in exchange(case, case.v3.sequence)) / forward
    return holds(
        ratio,
        "of a BF16 forward, on 20 SMs; the faster those are, in "
        "FP8, the more. The report has about 1:1",
    )


@LESSON.claim(682, "- Smaller expert communication", None, "× as much")
def smaller(case: Case) -> Answer:
    """Copies of the model's routing that cross nodes over those of 8 experts, top 2."""
    ratio = copies(case, case.routing) / copies(case, Routing(8, 2))
    return wrong(
        ratio,
        "the seed's own volumes above say 4. Without the limit to 4 nodes it would be more",
    )


@LESSON.claim(681, "- More routing flexibility", None, "× as many sets")
def flexibility(case: Case) -> Answer:
    """Sets of experts that a token can go to, the model's over those of 64 experts, top 2."""
    routing = case.routing
    fine = math.comb(routing.experts, routing.top_k)
    return holds(
        fine / math.comb(routing.experts // 4, routing.top_k // 4),
        "before the limit to groups",
    )


@CONFIGURATION.claim(599, "'pipeline_parallel': 16", "16", "", exact=True)
def stages(case: Case) -> Answer:
    """PP of the published plan."""
    return holds(case.plan.pp)


@CONFIGURATION.claim(604, "1 * 16 * 256 * 8 / 256 = 2048", "2048", "GPUs", exact=True)
def world(case: Case) -> Answer:
    """World of the seed's plan: stages × data-parallel ranks, experts spread over the latter."""
    seed = Plan.parse(SEED_PLAN)
    each = case.plan.pp * seed.ep * seed.dp
    return wrong(
        case.plan.pp * seed.dp,
        f"1 · 16 · 256 · 8 / 256 is that; without the last "
        f"division it is {each:,}. The published plan has 2,048 as 16 · 128. The line is "
        "no Python either, nor is 15M",
    )


@CONFIGURATION.claim(606, "'microbatches': 64", "64", "", exact=True)
def microbatches(case: Case) -> Answer:
    """Published sequences a step over data-parallel ranks, one sequence a micro-batch."""
    return wrong(case.plan.micro_batches, "at the last batch size, with one sequence each")


@CONFIGURATION.claim(607, "'global_batch_tokens': 15M", "15", "M tokens")
def batch(case: Case) -> Answer:
    """Published sequences a step × tokens a sequence."""
    first = case.v3.sequences_first * case.v3.sequence
    return wrong(
        case.step_tokens / 1e6,
        f"15,360 are sequences, of 4,096 tokens (from "
        f"{first / 1e6:.1f} M on); elsewhere the seed has 4 M",
    )


@CONFIGURATION.claim(602, "'context_parallel': 1", "1", "", exact=True)
def context(case: Case) -> Answer:
    """CP of the published plan."""
    return holds(case.plan.cp)
