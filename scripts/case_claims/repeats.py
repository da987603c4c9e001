"""Claims that come again: inputs of the analyser and of the exercises, answered as before."""

from __future__ import annotations

from . import (
    attention,
    efficiency,
    exercises_attention,
    exercises_cluster,
    exercises_experts,
    exercises_precision,
    expert_parallel,
    experts,
    precision,
    specification,
)
from .case import Case
from .claim import Answer, Section, wrong

OPENING = Section("Case Study: DeepSeek-V3")
PLACEMENT = Section("Expert Parallelism")
SHARDING = Section("Expert Sharding Strategy")
VOLUME = Section("Communication Volume")
ANALYSER = Section("Reproducing the Analysis")
ONE, TWO, THREE = exercises_attention.ONE, exercises_experts.TWO, exercises_precision.THREE
FIVE, SIX = exercises_cluster.FIVE, exercises_cluster.SIX

OPENING.claim(17, "dramatically reducing KV cache memory", None, "GB a sequence")(
    attention.long_context
)
PLACEMENT.claim(508, "2,048 GPUs", "2,048", "", exact=True)(specification.gpus)
SHARDING.claim(513, "2048 GPUs organized as:", "2048", "", exact=True)(specification.gpus)
VOLUME.claim(571, r"$B \times S = 4M$ tokens", "4", "M tokens a step")(efficiency.step_tokens)
VOLUME.claim(575, "For 60 layers:", "60", "", exact=True)(attention.layers)

ANALYSER.claim(700, "self.total_params = 671e9", "671", "B")(specification.parameters)
ANALYSER.claim(701, "self.active_params = 37e9", "37", "B")(specification.active)
ANALYSER.claim(703, "self.d_model = 7168", "7168", "", exact=True)(attention.hidden)
ANALYSER.claim(704, "self.n_experts = 256", "256", "", exact=True)(experts.routed)
ANALYSER.claim(705, "self.n_shared = 1", "1", "", exact=True)(experts.shared)
ANALYSER.claim(706, "self.top_k = 8", "8", "", exact=True)(experts.per_token)
ANALYSER.claim(709, "self.d_latent = 512", "512", "", exact=True)(attention.latent_size)
ANALYSER.claim(710, "self.d_rope = 64", "64", "", exact=True)(attention.rotary_size)
ANALYSER.claim(713, "self.gpus = 2048", "2048", "", exact=True)(specification.gpus)
ANALYSER.claim(714, "self.gpu_memory = 80", "80", "GB")(efficiency.memory)
ANALYSER.claim(716, "self.network_bw = 50e9", "50", "GB/s")(efficiency.nic)
ANALYSER.claim(719, "self.pp = 16", "16", "", exact=True)(expert_parallel.stages)
ANALYSER.claim(769, "mfu = 0.25  # Estimated", None, "% MFU")(efficiency.utilisation)

ONE.claim(827, "$d_c = 512$", "512", "", exact=True)(attention.latent_size)
ONE.claim(829, "$n_h = 128$", "128", "", exact=True)(attention.heads)
ONE.claim(857, r"- MHA: $S \times 32768 \times L$ bytes", "32768", "B a token, layer")(
    exercises_attention.standard
)
ONE.claim(858, r"- MLA: $S \times 1024 \times L$ bytes", "1024", "B a token, layer")(
    exercises_attention.latent
)
ONE.claim(860, "L=60 layers", "60", "", exact=True)(attention.layers)
TWO.claim(908, "load is spread thinner, so absolute max is lower", None, "% lower")(
    exercises_experts.lower_peak
)
THREE.claim(925, "Representable range: ~±448", "448", "", exact=True)(precision.narrow_range)
THREE.claim(957, r"| $3.2 \times 10^{-5}$ |", "3.2", "e-5")(exercises_precision.step)
FIVE.claim(1084, "256 nodes", "256", "", exact=True)(efficiency.nodes)
FIVE.claim(1141, "# 8 replicas per expert", "8", "copies", exact=True)(exercises_cluster.replicas)
FIVE.claim(1173, "- 256 nodes total", "256", "", exact=True)(efficiency.nodes)
SIX.claim(1200, "Activated parameters: 37B per forward pass", "37", "B")(specification.active)
SIX.claim(1201, "Training tokens: 14.8T", "14.8", "T")(specification.tokens)
SIX.claim(1230, "50% MFU", "50", "% MFU")(efficiency.utilisation)


@ONE.claim(830, r"Hidden dimension: $H = n_h \times d_h = 16384$", "16384", "", exact=True)
def hidden_of_heads(case: Case) -> Answer:
    """Columns of the traced q_a_proj."""
    return wrong(case.shapes("q_a_proj.weight")[1], "that is the width of all heads together")


@FIVE.claim(1118, "experts_per_node = num_experts // num_nodes  # 256/256 = 1", "1", "", exact=True)
def per_node(case: Case) -> Answer:
    """Routed experts over nodes of the plan's expert-parallel group."""
    return wrong(
        case.sizes.experts // case.expert_group.domains, "a layer's experts are on 8 nodes, not 256"
    )
