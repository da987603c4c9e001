"""Hardware, memory, MFU, losses, cost."""

from __future__ import annotations

import functools

from tracer.parallel.experts import contiguous, expert_load, uniform

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong
from .expert_parallel import SEED_TOKENS, exchange, seed_volume
from .pipeline import loss as bubble_loss
from .precision import stage_times
from .specification import cost, six_n_d

HARDWARE = Section("Hardware Setup")
BUDGET = Section("Memory Budget per GPU")
COMPUTE = Section("Compute Efficiency")
LOST = Section("Where Efficiency Is Lost")
COST = Section("Cost Breakdown")
ANALYSER = Section("Reproducing the Analysis")

SEED_PEAK = 3200e12
SEED_STEP = 0.6


@HARDWARE.claim(588, "| GPUs | 2,048 NVIDIA H800 |", "2,048", "", exact=True)
def gpus(case: Case) -> Answer:
    """The cluster file."""
    return holds(case.cluster.largest)


@HARDWARE.claim(589, "| GPU Memory | 80 GB HBM3 |", "80", "GB")
def memory(case: Case) -> Answer:
    """The chip file."""
    return holds(case.chip.memory_capacity / 1e9)


@HARDWARE.claim(590, "| Network | RoCE v2 (RDMA over Converged Ethernet) |")
def fabric(case: Case) -> Answer:
    """The cluster file."""
    return wrong(case.cluster.fabric, "arXiv 2412.19437 section 3.1: InfiniBand between nodes")


@HARDWARE.claim(591, "400 Gbps (50 GB/s) per GPU", "50", "GB/s")
def nic(case: Case) -> Answer:
    """The cluster file."""
    return holds(case.cluster.nic_bandwidth / 1e9, f"{case.network.nic / 1e9:.1f} are reached")


@HARDWARE.claim(592, "| Nodes | 256 (8 GPUs each) |", "256", "", exact=True)
def nodes(case: Case) -> Answer:
    """GPUs of the cluster over GPUs of a scale-up domain."""
    return holds(case.cluster.largest // case.cluster.domain)


# -- memory ----------------------------------------------------------------------------------------


def _expert_bytes(case: Case) -> float:
    """BF16 bytes of the routed experts on a GPU of the published plan."""
    return 2 * case.elements(".experts.") / case.plan.pp / case.plan.ep


DOUBLE = "DualPipe holds two stages, which makes it about twice that"


@BUDGET.claim(615, "| Expert weights (1/256 of MoE) | ~8 |", "8", "GB")
def expert_weights(case: Case) -> Answer:
    """Elements of routed experts in the trace over PP × EP of the published plan, BF16."""
    whole = 2 * case.elements(".experts.") / 256 / 1e9
    return wrong(
        _expert_bytes(case) / 1e9,
        f"1/256 would be {whole:.1f} GB, but PP cuts layers and EP experts: 1/1024. {DOUBLE}",
    )


@BUDGET.claim(616, "| Shared layers (1/16 of PP) | ~3 |", "3", "GB")
def shared_weights(case: Case) -> Answer:
    """Weights of the traced model less routed experts, BF16, over PP of the published plan."""
    rest = case.inventory().weight_bytes - 2 * case.elements(".experts.")
    return wrong(rest / case.plan.pp / 1e9, f"a sixteenth of what is no expert. {DOUBLE}")


def _of_memory(case: Case, name: str) -> float:
    return float(getattr(case.memory(), name)) / 1e9


@BUDGET.claim(617, "| Optimizer states (sharded) | ~20 |", "20", "GB")
def optimizer(case: Case) -> Answer:
    """Optimizer state of the fullest GPU's sharded trace: FP32 master weights and moments,
    ZeRO-1.
    """
    most = max(memory.optimizer for memory in case.memories()) / 1e9
    return wrong(
        _of_memory(case, "optimizer"),
        "over 128 ranks, and 2 for experts; where a stage "
        f"is all experts {most:.1f}. V3's moments are BF16, a third less",
    )


@BUDGET.claim(618, "| Activations (checkpointed) | ~25 |", "25", "GB")
def activations(case: Case) -> Answer:
    """Saved activations of the fullest GPU's sharded trace, whole layers recomputed, 1F1B in
    flight.
    """
    return wrong(
        _of_memory(case, "activations"),
        "with whole layers recomputed; without, a "
        "micro-batch of 4,096 tokens keeps gigabytes a layer, and V3 recomputes in part",
    )


@BUDGET.claim(619, "| KV cache (MLA compressed) | ~15 |", "15", "GB")
def kv(case: Case) -> Answer:
    """Cache in the sharded trace of a training step."""
    return wrong(
        _of_memory(case, "kv"),
        "training keeps no cache; the seed has no gradients, "
        f"which are {_of_memory(case, 'gradients'):.1f} GB in BF16",
    )


@BUDGET.claim(620, "| Working memory | ~9 |", "9", "GB")
def working(case: Case) -> Answer:
    """Peak of the fullest GPU's sharded trace beside what it saves."""
    return wrong(
        _of_memory(case, "working"),
        "the first stage is the fullest: it has the embedding and most micro-batches in flight",
    )


@BUDGET.claim(621, "| **Total** | ~80 |", "80", "GB")
def total(case: Case) -> Answer:
    """Total of the fullest GPU of the published plan, under 1F1B."""
    return wrong(
        _of_memory(case, "total"),
        "and 80 of 80 GB would not run, as buffers and the allocator need theirs too. DualPipe has "
        "twice the weights, gradients and states, and some more activations",
    )


# -- compute ---------------------------------------------------------------------------------------


@COMPUTE.claim(629, r"\times 4\text{M}", "4", "M tokens a step")
def step_tokens(case: Case) -> Answer:
    """Published sequences a step × tokens a sequence."""
    return wrong(case.step_tokens / 1e6, "fifteen times larger at the last batch size")


@COMPUTE.claim(629, r"= 8.9 \times 10^{17}", "8.9", "e17 FLOP a step")
def step_flops(case: Case) -> Answer:
    """Traced training FLOPs a token × tokens of the published step."""
    same = case.training_flops() * SEED_TOKENS / 1e17
    return wrong(
        case.training_flops() * case.step_tokens / 1e17,
        "the batch; with the seed's 4 M "
        f"tokens {same:.1f}, as 6 N D leaves attention's products out",
    )


@COMPUTE.claim(632, r"= 6.55 \times 10^{18} \text{ FP8 FLOPS}", "6.55", "e18 FLOP/s")
def peak(case: Case) -> Answer:
    """GPUs × the chip's dense FP8 peak."""
    return wrong(case.plan.world * float(case.chip.peak["fp8"]) / 1e18, "the peak, as above")


@COMPUTE.claim(635, "If step time is 0.6 seconds:", "0.6", "s")
def step_seconds(case: Case) -> Answer:
    """4 M tokens at the published tokens a day."""
    return wrong(
        SEED_TOKENS / (case.step.tokens_per_day / 86_400),
        "assumed; the real step has "
        f"{case.step_tokens / 1e6:.1f} M tokens and takes {case.step.step:g} s",
    )


def mfu(case: Case, precision: str = "bf16") -> float:
    """Traced FLOPs of the published step over its published seconds and all peaks.

    The seam for a predicted step: put predicted seconds in place of `case.step.step`.
    """
    flops = case.training_flops() * case.step_tokens
    return flops / case.step.step / case.plan.world / float(case.chip.peak[precision])


@COMPUTE.claim(636, r"\approx 0.23 = 23\%", "23", "% MFU")
def utilisation(case: Case) -> Answer:
    """Traced FLOPs of the published step over published seconds and dense BF16 peaks."""
    return wrong(
        100 * mfu(case),
        f"published: {100 * case.step.mfu_causal:.1f} % (theirs without "
        "the router), of the BF16 peak as is usual. The seed divides an assumed step by a "
        f"peak that is none; of the dense FP8 peak it is {100 * mfu(case, 'fp8'):.1f} %",
    )


@LOST.claim(642, "| Pipeline bubble (DualPipe) | 23% |", "23", "% of the step")
def bubble(case: Case) -> Answer:
    """Published bubble over the published step."""
    plan = case.plan
    share = case.pipeline("dualpipe", (plan.pp, plan.micro_batches)).bubble_share
    return wrong(
        100 * bubble_loss(case),
        f"simulated with {plan.micro_batches} micro-batches and "
        f"equal stages {100 * share:.1f} %; real stages are uneven",
    )


@LOST.claim(643, "| Expert All-to-All | 15% |", "15", "% of the step")
def all_to_all(case: Case) -> Answer:
    """Exchange of a step at 4,096 tokens a micro-batch, forward and backward, over the published
    step.
    """
    plan, m = case.plan, case.model
    layers = (m.num_hidden_layers - m.first_k_dense_replace) / plan.pp
    each = sum(x.seconds for x in exchange(case, case.v3.sequence))
    share = 2 * layers * each * plan.micro_batches / case.step.step
    held = case.cluster.comm_sms / case.chip.sm_count
    return assuming(
        100 * share,
        "the share of SMs that the exchange holds, 20 of 132. In the open "
        "it would take ours of the step; the report says that DualPipe hides it whole",
        100 * held,
    )


@LOST.claim(644, "| Memory bandwidth bound ops | 10% |", "10", "% of the step")
def memory_bound(case: Case) -> Answer:
    """Share of one GPU's traced step, FP8, that waits for memory in the kernel model."""
    share = stage_times(case, "fp8").shares()["memory"]
    plain = stage_times(case, "bf16").shares()["memory"]
    return wrong(
        100 * share,
        "with quantisation as passes of its own, as the reference model has "
        f"it; in BF16 {100 * plain:.0f} %. Fusing is what V3 does against it",
    )


@LOST.claim(645, "| Load imbalance | 5% |", "5", "% of the step")
@functools.cache
def imbalance(case: Case) -> Answer:
    """What the slowest GPU's excess costs, chance alone, uniform routing limited to groups."""
    m, ep = case.model, case.plan.ep
    routing = uniform(m.n_routed_experts, m.num_experts_per_tok, m.n_group, m.topk_group)
    placement = contiguous(m.n_routed_experts, ep, case.cluster.domain)
    load = expert_load(routing, placement, case.v3.sequence * ep, case.seed)
    return wrong(
        100 * (1 - 1 / load.imbalance),
        "the least there can be, when the bias has made all "
        "experts equally likely; what real routing adds is not published",
    )


# -- cost ------------------------------------------------------------------------------------------


@COST.claim(650, r"= \$5.58\text{M}", "5.58", "M USD")
def price(case: Case) -> Answer:
    """Published GPU hours × the published price of one."""
    return holds(cost(case) / 1e6)


def dense_hours(case: Case) -> float:
    """GPU hours of the equally large dense model on as many tokens, at the run's MFU."""
    rate = mfu(case) * float(case.chip.peak["bf16"])
    return case.dense_flops() * case.v3.tokens / rate / 3600


@COST.claim(653, r"\approx 100\text{M hours}", "100", "M hours")
def dense_equivalent(case: Case) -> Answer:
    """Traced FLOPs of the dense model × tokens over the run's FLOP/s."""
    world, found = case.plan.world, case.inventory().parameters
    seconds = six_n_d(found, case.v3.tokens) / (world * SEED_PEAK * 0.3) * world
    return wrong(
        dense_hours(case) / 1e6,
        f"its own inputs give {seconds / 1e9:.0f} G GPU-seconds, "
        f"which are {seconds / 3600e6:.0f} M hours",
    )


@COST.claim(655, "~36× compute efficiency", "36", "×")
def dense_over_active(case: Case) -> Answer:
    """Hours of the dense model at the run's MFU over those of the same run's pre-training FLOPs."""
    rate = mfu(case) * float(case.chip.peak["bf16"])
    ours = case.training_flops() * case.v3.tokens / rate / 3600
    return wrong(
        dense_hours(case) / ours,
        "100 M over 2.788 M, the first of which is wrong; "
        "communication takes nothing off, it is not what makes 36 into 18",
    )


# -- the seed's analyser ---------------------------------------------------------------------------


@ANALYSER.claim(748, "def estimate_step_time(self, batch_tokens):", None, "s")
def analyser_step(case: Case) -> Answer:
    """4 M tokens at the published tokens a day; the seed's from its code."""
    m, world = case.model, case.plan.world
    flops = six_n_d(37e9, SEED_TOKENS)
    seconds = flops / (world * SEED_PEAK) + seed_volume(case) * 60 / 50e9
    seconds /= 1 - (case.plan.pp - 1) / (2 * 64)
    assert m.num_hidden_layers
    return wrong(
        SEED_TOKENS / (case.step.tokens_per_day / 86_400),
        "the code says that, eight "
        f"times the {SEED_STEP} s from which the text has its MFU: all layers' exchange "
        "on one rank, none hidden",
        seconds,
    )


@ANALYSER.claim(763, "def training_cost(self, total_tokens, cost_per_hour=2.0):", None, "M USD")
def analyser_cost(case: Case) -> Answer:
    """Published GPU hours × price; the seed's from its code."""
    seconds = six_n_d(37e9, case.v3.tokens) / (SEED_PEAK * 0.25)
    return wrong(
        cost(case) / 1e6,
        "the code's 25 % of 3,200 TFLOP/s are 800, twice what the run "
        "had; the text has the right cost",
        seconds / 3600 * 2.0 / 1e6,
    )
