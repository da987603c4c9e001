"""A prefill or a decode instance of a plan: tokens a second, latencies, what fits.

An instance is all GPUs of the plan; its data ranks run `micro_batch` sequences each. With two
micro-batches in flight (arXiv 2412.19437, section 3.4) half of the sequences compute while the
other half is on the wire: two chains on two in-order streams. In decode what stands in front of a
dispatch is cut in two, and one chain is two turns ahead of the other: the five stages of
deepseek-ai/open-infra-index, day 6, in the order that SGLang gives them (`operations_strategy.py`,
`tbo_delta_stages=2`). Not modelled: queueing, chunked prefill, a prefill between decode steps,
prefix caches, speculative decoding, sampling on the host.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracer.hardware import Cluster

from ..capture.records import FORWARD
from ..errors import UserError
from ..parallel.expert_exchange import ep_tpot_limit
from ..parallel.memory import Headroom, largest
from ..parallel.network import Network, network_of
from ..parallel.overlap import Overlap
from ..parallel.plan import Plan
from .block import Block
from .engine import as_served, prompt_notes
from .expert_load import ExpertChoice, rank_load
from .gpu_memory import GpuMemory
from .kernels import Kernels
from .links import EVEN_LOAD, RankLoad
from .passes import COMPUTE, Chain
from .pipeline import two_streams
from .program import Stages, is_reference, stages_of

if TYPE_CHECKING:
    from ..capture.program import Program

PREFILL, DECODE = "prefill", "decode"
_AHEAD = 2  # of the five stages
_LONGEST = 1 << 24  # tokens: nobody asks for more


@dataclass(frozen=True)
class Serving:
    """What is assumed of a server, each a named input.

    Attributes:
        kernels, headroom: see there; `kernels.timing.host` above 0 launches eagerly, 0 is a CUDA
            graph.
        micro_batches: 1, or 2 that hide each other's messages.
        exchange: of tokens and experts; None takes DeepEP's normal kernels for prefill and the
            low-latency ones for decode.
        experts: how tokens choose them, and where they stand.
        weights: "fp8" serves a transformers model with FP8 linears.
        engine: "fused", a reference model's kernels are those of serving engines
            (`Kernels.served`), and of a prompt only the last token has logits; or "traced".
    """

    kernels: Kernels = field(default_factory=Kernels)
    headroom: Headroom = field(default_factory=Headroom)
    micro_batches: int = 1
    exchange: str | None = None
    experts: ExpertChoice = field(default_factory=ExpertChoice)
    weights: str | None = None
    engine: str = "fused"

    def __post_init__(self) -> None:
        if self.micro_batches not in (1, 2):
            raise UserError(f"micro_batches={self.micro_batches}: 1, or 2 that overlap")
        if self.weights not in (None, "fp8"):
            raise UserError(f"weights={self.weights!r}: fp8, or as traced")
        if self.engine not in ("fused", "traced"):
            raise UserError(f"engine={self.engine!r}: choose fused or traced")
        if self.exchange not in (None, "normal", "low_latency", "nccl"):
            raise UserError(f"exchange={self.exchange!r}: choose normal, low_latency or nccl")


@dataclass(frozen=True)
class ServingStep:
    """One prefill of a batch, or one token of every sequence.

    Attributes:
        seconds: of the step, all pipeline stages: TTFT without a queue, or TPOT.
        batch: sequences of a data rank at once; a pipeline has as many batches in flight as stages.
        interval: seconds between two steps of the instance: of its slowest stage.
        compute, communication: of one data rank, all stages, alone.
        exposed: communication that nothing hides.
        host: seconds that the CPU needs for all launches; 0 in a CUDA graph.
        ep_limit: seconds a token that expert parallelism needs at least (decode with experts).
        largest_batch: sequences of a data rank that fit; None if not asked for.
        longest_context: keys of each decoded token that fit with `batch` sequences, whatever
            positions the model has learned; None of a prefill, or if not asked for.
        load: of the expert-parallel rank that all others wait for.
        imbalance: the part of the step that even experts would save.
        reason: why it does not run.
        slowed: seconds that compute takes longer while messages hold SMs.
        hops: seconds between stages.
    """

    model: str
    phase: str
    plan: Plan
    cluster: Cluster
    batch: int
    seq: int
    context: int
    seconds: float
    interval: float
    compute: float
    communication: float
    exposed: float
    host: float
    memory: GpuMemory
    kv: float
    ep_limit: float | None
    largest_batch: int | None
    longest_context: int | None
    load: RankLoad
    imbalance: float = 0.0
    notes: tuple[str, ...] = ()
    reason: str = ""
    slowed: float = 0.0
    hops: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether it fits."""
        return not self.reason

    @property
    def tokens(self) -> int:
        """Tokens of a step, of the whole instance."""
        each = self.seq if self.phase == PREFILL else 1
        return self.batch * self.plan.data_ranks * each

    @property
    def tokens_per_s(self) -> float:
        """Of the instance."""
        return self.tokens / self.interval

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Of one GPU."""
        return self.tokens_per_s / self.plan.world

    def as_dict(self) -> dict[str, Any]:
        """The record, JSON-ready; throughput is None where the plan does not fit."""
        runs, decode = self.feasible, self.phase == DECODE
        return {
            "kind": self.phase, "model": self.model, "cluster": self.cluster.id,
            "plan": str(self.plan), "gpus": self.plan.world, "batch_per_data_rank": self.batch,
            "seq": self.seq, "context": self.context, "feasible": runs, "reason": self.reason,
            "ttft_s": self.seconds if runs and not decode else None,
            "tpot_s": self.seconds if runs and decode else None,
            "compute_s": self.compute, "communication_s": self.communication,
            "exposed_s": self.exposed, "slowed_s": self.slowed, "hops_s": self.hops,
            "host_s": self.host,
            "tokens_per_s": self.tokens_per_s if runs else None,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu if runs else None,
            "ep_limit_s": self.ep_limit, "largest_batch": self.largest_batch,
            "longest_context": self.longest_context,
            "kv_bytes": self.kv, "expert_skew": self.load.rows,
            "experts_read": self.load.read, "imbalance_s": self.imbalance,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "notes": list(self.notes),
        }  # fmt: skip


def predict_serving(
    program: Program, plan: Plan, cluster: Cluster | str, phase: str, *, batch: int,
    seq: int = 4096, context: int = 4096, assume: Serving | None = None, solve: bool = False,
) -> ServingStep:  # fmt: skip
    """Price one step of a serving instance.

    Args:
        program: the model.
        plan: how the instance is cut; `micro_batch` and `micro_batches` follow from `batch`.
        cluster: where.
        phase: "prefill" (`batch` prompts of `seq` tokens a data rank) or "decode" (one token of
            each of `batch` sequences a data rank, `context` keys).
        batch: sequences of a data rank.
        seq: of a prompt.
        context: keys of a decoded token, its own included.
        assume: what the price rests on.
        solve: also look for the largest batch that fits, and in decode for the longest context.

    Raises:
        UserError: a plan that cannot run; says why.
    """
    assume = assume or Serving()
    if phase not in (PREFILL, DECODE):
        raise UserError(f"phase {phase!r}: choose prefill or decode")
    if batch < 1 or batch % assume.micro_batches:
        raise UserError(
            f"batch={batch}: a data rank needs at least {assume.micro_batches}, in "
            f"{assume.micro_batches} equal micro-batches"
        )
    network = network_of(cluster)
    cluster = network.cluster
    plan = replace(
        plan, micro_batch=batch // assume.micro_batches, micro_batches=assume.micro_batches,
        schedule="1f1b", recompute="none", zero=0, chunks=1, moments="fp32",
    )  # fmt: skip
    assume = served(assume, program, phase)
    program = as_served(program, assume.engine)
    tokens = seq if phase == PREFILL else 1
    if plan.world > cluster.largest:
        raise UserError(
            f"plan {plan}: {plan.world:,} GPUs; {cluster.name} ({cluster.id}) goes up to "
            f"{cluster.largest:,}"
        )

    def stages_with(plan: Plan, load: RankLoad, context: int = context) -> Stages:
        return stages_for(program, plan, network, phase, assume, seq, context, load)

    def fullest(stages: Stages) -> GpuMemory:
        return max(memories(stages, assume, cluster), key=lambda m: m.total)

    if reasons := stages_with(plan, EVEN_LOAD).illegal(plan):
        raise UserError(f"plan {plan}: {'; '.join(reasons)}")
    load = rank_load(program, plan, network, tokens, assume.experts)
    stages = stages_with(plan, load)
    blocks = stages.blocks()
    spans = [span(b, assume, phase) for b in blocks]
    seconds, imbalance = sum(s[0] for s in spans), 0.0
    if load != EVEN_LOAD:
        even = stages_with(plan, EVEN_LOAD).blocks()
        imbalance = seconds - sum(span(b, assume, phase)[0] for b in even)
    hop = _hops(blocks, plan, network)
    memory = fullest(stages)
    host = sum(s[3] for s in spans)
    compute = sum(b.passes.seconds(FORWARD) for b in blocks) * assume.micro_batches
    slowed = sum(s[2] for s in spans) - compute if assume.micro_batches == 2 else 0.0
    kv = max(b.kv for b in blocks) * _in_flight(blocks, assume)
    step = ServingStep(
        program.name, phase, plan, cluster, batch, seq, context,
        seconds + hop, max(s[0] for s in spans),
        compute,
        sum(sum(b.passes.messages(FORWARD).values()) for b in blocks) * assume.micro_batches,
        sum(s[1] for s in spans), host, memory, kv,
        _ep_limit(program, plan, cluster) if phase == DECODE else None, None, None, load, imbalance,
        tuple(dict.fromkeys([*assume.kernels.notes(cluster.chip), *network.notes(), *stages.notes(),
                             *assume.experts.notes(load), *prompt_notes(program, phase),
                             _streams(assume, phase)])),
        "" if memory.fits else (
            f"does not fit: {memory.total / 1e9:,.1f} GB (weights {memory.weights / 1e9:.1f}, KV "
            f"{kv / 1e9:.1f}) and a reserve of {memory.reserve / 1e9:.1f} GB in "
            f"{memory.capacity / 1e9:.4g} GB"
        ),
        slowed if slowed > 1e-9 * compute else 0.0, hop,
    )  # fmt: skip
    if not solve:
        return step

    unit = plan.tp if plan.cuts_tokens and tokens // plan.cp % plan.tp else 1

    def of_batch(number: int) -> GpuMemory:
        return fullest(stages_with(replace(plan, micro_batch=number * unit), load))

    def of_context(number: int) -> GpuMemory:  # of 1 there is no cache to look at
        return fullest(stages_with(plan, load, max(number, 2)))

    longest = largest(of_context, most=_LONGEST) if phase == DECODE else None
    batch = largest(of_batch, most=1 << 16) * unit * assume.micro_batches
    return replace(step, largest_batch=batch, longest_context=longest)


def served(assume: Serving, program: Program, phase: str) -> Serving:
    """With the exchange and the kernels that the phase runs."""
    exchange = assume.exchange or ("low_latency" if phase == DECODE else "normal")
    kernels = assume.kernels
    if assume.engine == "fused" and is_reference(program):
        kernels = replace(kernels, served=exchange)
    return replace(assume, kernels=kernels, exchange=exchange)


def stages_for(
    program: Program, plan: Plan, network: Network, phase: str, assume: Serving, seq: int,
    context: int, load: RankLoad,
) -> Stages:  # fmt: skip
    """The stages that a server runs; `assume` as `served` has it."""
    return stages_of(
        program, plan, network, assume.kernels, phase=phase, seq=seq, context=context,
        exchange=assume.exchange or "normal", load=load, weights=assume.weights,
    )  # fmt: skip


def _streams(assume: Serving, phase: str) -> str:
    if assume.micro_batches == 1:
        return "messages are exposed: one micro-batch"
    how = "in turns, or in five stages where that is quicker" if phase == DECODE else "in turns"
    return f"two micro-batches, one computes while the other is on the wire: {how}"


def span(block: Block, assume: Serving, phase: str) -> tuple[float, float, float, float]:
    """Seconds, exposed communication, compute and host seconds of one stage, as it runs."""
    passes = block.passes
    host = assume.kernels.timing.host * passes.launches * assume.micro_batches
    if assume.micro_batches == 2:
        both = _two(passes.forward, phase)
        return max(both.total, host), both.exposed, both.compute, host
    messages = sum(passes.messages(FORWARD).values())
    compute = passes.seconds(FORWARD)
    return max(compute + messages, host), messages, compute, host


def _two(chain: Chain, phase: str) -> Overlap:
    """Two micro-batches on two streams; decode may split what is in front of a dispatch in two."""
    plain = two_streams(chain, chain)
    if phase != DECODE or {s.axis for s in chain} != {COMPUTE, "ep"}:
        return plain
    halves, messages = [], 0
    for here, behind in itertools.pairwise([*chain, chain[-1]]):
        dispatched = here.axis == COMPUTE and behind.axis == "ep" and messages % 2 == 0
        half = here._replace(seconds=here.seconds / 2, slowed=here.slowed / 2)
        halves += [half, half] if dispatched else [here]
        messages += here.axis == "ep"
    staged = two_streams(tuple(halves), tuple(halves), _AHEAD)
    return min(plain, staged, key=lambda run: run.total)


def _hops(blocks: list[Block], plan: Plan, network: Network) -> float:
    from ..parallel.groups import strided

    if plan.pp == 1:
        return 0.0
    group = strided(2, plan.ranks_per_stage, network.cluster)
    return sum(float(network.send(b.passes.hop, group).seconds) for b in blocks[:-1])


def memories(stages: Stages, assume: Serving, cluster: Cluster) -> list[GpuMemory]:
    """By stage; caches stand under activations, of as many batches as the pipeline has stages."""
    capacity, buffers = float(cluster.chip.memory_given), stages.buffers()
    blocks = stages.blocks()
    in_flight = _in_flight(blocks, assume)
    return [
        GpuMemory(
            b.weights, 0.0, 0.0, b.kv * in_flight, b.working * assume.micro_batches,
            max(assume.headroom.reserve * capacity, buffers), capacity, buffers,
        )
        for b in blocks
    ]  # fmt: skip


def _in_flight(blocks: list[Block], assume: Serving) -> int:
    """Micro-batches whose caches a rank holds: each stage of a busy pipeline has a batch."""
    return assume.micro_batches * len(blocks)


def _ep_limit(program: Program, plan: Plan, cluster: Cluster) -> float | None:
    """The all-to-all bound of arXiv 2505.09343, 2.3.2, with this plan's tokens and group."""
    config = getattr(program, "config", None)
    if plan.ep == 1 or not hasattr(config, "is_moe"):  # transformers exchanges other messages
        return None
    assert config is not None
    ranks = 1 if plan.attention_dp else plan.tp
    tokens = plan.micro_batch * plan.micro_batches / ranks / 2  # two micro-batches take turns
    far = plan.ep > cluster.domain
    leaving = 1 - (cluster.domain if far else 1) / plan.ep  # copies of a token that take that link
    layers = sum(config.is_moe(i) for i in range(config.num_hidden_layers))
    return ep_tpot_limit(
        cluster.nic_bandwidth if far else cluster.link_bandwidth, tokens=tokens,
        hidden=config.hidden_size, copies=config.num_experts_per_tok * leaving, layers=layers,
    )  # fmt: skip
