"""What every claim is worked out for: a model, a cluster, a plan, a run; and what is traced of it.

A claim takes all it needs from its `Case`, so that another model, cluster or run gives other
numbers. What takes seconds is kept.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.program import Program
from tracer.capture.records import Trace
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import Ledger, price
from tracer.hardware import Chip, Cluster, load_cluster
from tracer.models import bundled_config, fp8
from tracer.parallel import Headroom, Plan, RankMemory, Sizes, rank_memory, stage_traces
from tracer.parallel.expert_traffic import Routing
from tracer.parallel.groups import Group, packed
from tracer.parallel.network import Network, network_of
from tracer.parallel.schedules import Durations, PipelineStep, build, simulate
from tracer.predict import take_inventory
from tracer.predict.inventory import Inventory

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "published" / "training_runs.toml"


def published() -> str:
    """The published runs, as the text that a `Case` keeps."""
    return json.dumps(tomllib.loads(RUNS.read_text()))


def deepseek_v3() -> str:
    """The released config, as the text that a `Case` keeps."""
    return json.dumps(bundled_config("deepseek-ai/DeepSeek-V3"))


@dataclass(frozen=True)
class Case:
    """Inputs of all claims.

    Attributes:
        config, runs: JSON texts of the model's config and of `training_runs.toml`.
        cluster: id of the cluster.
        ranks, microbatches: the pipeline of the seed's text; `small` that of its exercise.
        context: tokens of the long sequence.
        draws: elements or tokens where something is drawn, `seed` for all draws.
        formats: the narrow and the wide FP8 format.
    """

    config: str = field(default_factory=deepseek_v3)
    runs: str = field(default_factory=published)
    cluster_id: str = "h800_ib"
    ranks: int = 16
    microbatches: int = 32
    small: tuple[int, int] = (8, 16)
    context: int = 131_072
    seed: int = 0
    formats: tuple[torch.dtype, torch.dtype] = (fp8.E4M3, fp8.E5M2)

    # -- inputs -----------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The config with its keys as attributes."""
        return SimpleNamespace(**json.loads(self.config))

    def run(self, name: str) -> Any:
        """A published run with its keys as attributes."""
        return SimpleNamespace(**json.loads(self.runs)[name])

    @property
    def v3(self) -> Any:
        """The published training run."""
        return self.run("deepseek_v3")

    @property
    def step(self) -> Any:
        """The published training step."""
        return self.run("deepseek_v3_step")

    @property
    def hours(self) -> float:
        """GPU hours of the whole run."""
        v3 = self.v3
        return float(v3.pretraining_hours + v3.context_extension_hours + v3.post_training_hours)

    @property
    def cluster(self) -> Cluster:
        """The cluster."""
        return load_cluster(self.cluster_id)

    @property
    def chip(self) -> Chip:
        """Its chip."""
        return self.cluster.chip

    @property
    def network(self) -> Network:
        """Its network."""
        return network_of(self.cluster_id)

    @property
    def plan(self) -> Plan:
        """The published plan of the run, with the micro-batches of its last batch size."""
        plan = Plan.parse(self.v3.plan)
        each = self.v3.sequences_last // plan.data_ranks
        return Plan.parse(f"{self.v3.plan} micro_batches={each} recompute=full")

    @property
    def sizes(self) -> Sizes:
        """What a plan divides."""
        return Sizes.of(json.loads(self.config))

    @property
    def step_tokens(self) -> int:
        """Tokens of a step at the last batch size."""
        return int(self.v3.sequences_last * self.v3.sequence)

    @property
    def routing(self) -> Routing:
        """The model's router, with its limit to some groups."""
        m = self.model
        return Routing(m.n_routed_experts, m.num_experts_per_tok, m.n_group, m.topk_group)

    @property
    def expert_group(self) -> Group:
        """The expert-parallel group of the plan."""
        return packed(self.plan.ep, self.cluster)

    def generator(self) -> torch.Generator:
        """A fresh one: the same numbers each time."""
        return torch.Generator().manual_seed(self.seed)

    # -- traced -----------------------------------------------------------------------------------

    def program(self, dtype: str = "bf16", **changes: int) -> ReferenceProgram:
        """The model, with some keys of its config changed."""
        return _program(self.config, dtype, tuple(sorted(changes.items())))

    def inventory(self, **changes: int) -> Inventory:
        """Parameters, active ones and cache, of the model so changed."""
        return take_inventory(_prefill(self.program(**changes)), 16)

    def shapes(self, suffix: str) -> tuple[int, ...]:
        """The shape of the first parameter whose name ends so."""
        trace = _prefill(self.program())
        return next(p.shape for p in trace.parameters if p.name.endswith(suffix))

    def elements(self, part: str) -> int:
        """Elements of all parameters with `part` in their name."""
        return sum(p.numel for p in _prefill(self.program()).parameters if part in p.name)

    def training_flops(self, **changes: int) -> float:
        """Traced FLOPs a token of a forward and a backward at the run's sequence length."""
        ledger = _training(self.program(**changes), self.v3.sequence)
        return ledger.total().total_flops / self.v3.sequence

    def dense_flops(self) -> float:
        """The same of the model in which every token goes to every expert: as large and dense."""
        experts = self.model.n_routed_experts
        return self.training_flops(num_experts_per_tok=experts, n_group=1, topk_group=1)

    def cache(self, **changes: int) -> float:
        """Bytes of cache a token and layer."""
        return self.inventory(**changes).kv_bytes_per_token / self.model.num_hidden_layers

    def mha_cache(self) -> float:
        """Bytes of cache a token and layer of standard attention with the same heads."""
        program = _mha(self.config)
        return take_inventory(_prefill(program), 16).kv_bytes_per_token / program.layers

    def attention(self, standard: bool = False) -> tuple[float, float]:
        """FLOPs of one layer's attention for a decoded token: fixed, and for a cached token."""
        program = _mha(self.config) if standard else self.program()
        layers = program.layers if standard else self.model.num_hidden_layers
        return _attention_line(program, layers)

    def memories(self) -> tuple[RankMemory, ...]:
        """A GPU of every kind of stage, the published plan under 1F1B, layers recomputed whole."""
        return _memories(self.program(), self.plan, self.v3.sequence, self.chip.memory_capacity)

    def memory(self) -> RankMemory:
        """The fullest of them."""
        return max(self.memories(), key=lambda memory: memory.total)

    def pipeline(
        self, name: str, size: tuple[int, int] | None = None, **options: Any
    ) -> PipelineStep:
        """A simulated step: F = I = W = 1, and a forward with a backward takes their sum, 3."""
        ranks, microbatches = size or (self.ranks, self.microbatches)
        schedule = build(name, ranks, microbatches)
        seconds = {"forward": 1.0, "input_gradient": 1.0, "weight_gradient": 1.0, **options}
        return simulate(schedule, Durations.even(schedule.stages, **seconds)).step


class _Standard(HuggingFaceProgram):
    """Standard attention with as many heads as the model."""

    layers = 1


@functools.cache
def _program(config: str, dtype: str, changes: tuple[tuple[str, int], ...]) -> ReferenceProgram:
    return ReferenceProgram("model", {**json.loads(config), **dict(changes)}, dtype)


@functools.cache
def _mha(config: str) -> Any:
    from transformers import LlamaConfig

    m: Mapping[str, Any] = json.loads(config)
    heads = m["num_attention_heads"]
    made = LlamaConfig(
        vocab_size=512,
        hidden_size=m["hidden_size"],
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=m["v_head_dim"],
        max_position_embeddings=8192,
    )
    return _Standard("standard attention", made)


@functools.cache
def _prefill(program: Program) -> Trace:
    return record(program, Workload("prefill", 1, 16))


@functools.cache
def _training(program: Program, sequence: int) -> Ledger:
    return price(record(program, Workload("training", 1, sequence, optimizer="none")))


@functools.cache
def _attention_line(program: Program, layers: int) -> tuple[float, float]:
    """Two contexts give the line: what a decoded token costs by itself, and by cached token."""
    short, long = 1024, 4096

    def flops(context: int) -> float:
        ledger = price(record(program, Workload("decode", 1, 1, context)))
        parts = ledger.by(lambda kernel, part: part.module)
        return sum(c.total_flops for path, c in parts.items() if "self_attn" in path) / layers

    slope = (flops(long) - flops(short)) / (long - short)
    return flops(short) - slope * short, slope


@functools.cache
def _memories(
    program: ReferenceProgram, plan: Plan, sequence: int, capacity: float
) -> tuple[RankMemory, ...]:
    found = []
    for trace, stages in stage_traces(program, Workload("training", 1, sequence), plan):
        in_flight = min(plan.pp - stages[0], plan.micro_batches)
        found.append(
            rank_memory(
                price(trace), plan, capacity, in_flight=in_flight, headroom=Headroom(reserve=0.0)
            )
        )
    return tuple(found)
