"""The seed report's tables, printed from its rules: every cell as text, as the report has it.

Sizes are in powers of 1024 under the names KB, MB, GB, TB; "TF" is 1e12 FLOPs.
"""

from __future__ import annotations

import math

from seed_report_rules import (
    BANDWIDTH,
    BATCH,
    DECODE,
    EFFICIENT,
    EXECUTIONS,
    HEAD,
    KNEE,
    LENGTH,
    NAIVE,
    NETWORK,
    PEAK,
    PHASES,
    PREFILL,
    TRAINING,
    TRAINING_BYTES,
    TRAINING_FLOPS,
    V3,
    Execution,
    Step,
    decode,
    parameter_count,
    parameters,
    prefill,
)
from seed_report_studies import (
    BATCHES,
    SEQUENCES,
    best_and_worst,
    crossings,
    dispatched,
    knob_ranking,
    resident,
    sensitivity_grid,
)

Table = list[list[str]]

# Name, FLOP/s and bytes/s of "Roofline Targets (FP8 Dense)".
TARGETS = (("H200_SXM_FP8", PEAK, BANDWIDTH), ("B200_SXM_FP8", 4500e12, 8000e9))
LARGEST_PATTERNS = 20


def tables() -> dict[str, Table]:
    """The numeric tables by section; "4.1" is its Config, "6.2 targets" the second of 6.2."""
    return {
        "4.1": config(),
        "4.3": parameter_summary(),
        "4.4": module_sizes(),
        "5.3": executions(),
        "5.7": byte_shares(),
        "5.8": byte_kinds(),
        "6.2": assumptions(),
        "6.2 targets": targets(),
        "6.6.1": kpis(),
        "6.6.2": categories(),
        "6.6.3": cross_mode(),
        "6.6.4": batch_sweep(),
        "6.6.5": sequence_sweep(),
        "6.7": compute_bound(),
        "6.8": memory(),
        "6.9": dispatch(),
        "7": sensitivity(),
        "7.1": ranking(),
    }


def code(text: object) -> str:
    """In back-ticks."""
    return f"`{text}`"


def size(value: float) -> str:
    """1024-based, two decimals."""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1024:
            return f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TB"


def anchor(phase: str, x: Execution) -> Step:
    """B = 8, S = L = 255."""
    return PHASES[phase](BATCH, LENGTH, x)


def config() -> Table:
    """4.1: the sizes that are put in; what no rule uses is quoted."""
    d = V3
    values = {
        "hidden_size": d.hidden, "num_hidden_layers": d.layers, "num_attention_heads": d.heads,
        "num_key_value_heads": d.heads, "intermediate_size": d.dense_width,
        "moe_intermediate_size": d.expert_width, "n_routed_experts": d.experts,
        "n_shared_experts": d.shared, "num_experts_per_tok": d.top_k,
        "first_k_dense_replace": d.dense_layers, "moe_layer_freq": 1, "q_lora_rank": d.q_rank,
        "kv_lora_rank": d.kv_rank, "qk_nope_head_dim": d.nope, "qk_rope_head_dim": d.rope,
        "v_head_dim": d.v, "scoring_func": "sigmoid", "n_group": 8, "topk_group": 4,
        "vocab_size": d.vocab, "max_position_embeddings": SEQUENCES[-1], "dropout": 0.0,
    }  # fmt: skip
    return [[code(name), code(value)] for name, value in values.items()]


def parameter_summary() -> Table:
    """4.3: meta parameters are FP32."""
    count = parameter_count()
    return [
        ["Total parameters", code(f"{count:,}")],
        ["Trainable parameters", code(f"{count:,}")],
        ["Non-trainable parameters", code(0)],
        ["Parameter memory (tensor dtypes)", code(f"{4 * count / 2**20:.2f} MB")],
        ["Parameter memory (assumed, 1-byte params)", code(f"{count / 2**20:.2f} MB")],
    ]


def module_sizes() -> Table:
    """4.4: the twenty largest patterns; a FP32 byte count."""
    whole = parameter_count()
    totals = {pattern: n * each for pattern, (n, each) in parameters().items()}
    rows = []
    for pattern in sorted(totals, key=lambda p: -totals[p])[:LARGEST_PATTERNS]:
        instances, each = parameters()[pattern]
        first = "0" if instances != V3.layers - V3.dense_layers else str(V3.dense_layers)
        if "experts" in pattern:
            first = str(V3.dense_layers)
        example = pattern.replace("*", first, 1).replace("*", "0")
        total = totals[pattern]
        rows.append([
            code(pattern), str(instances), f"{each:,}", f"{total:,}",
            f"{total / whole:.2%}", f"{4 * total / 2**20:.2f}", code(example),
        ])  # fmt: skip
    return rows


def executions() -> Table:
    """5.3."""
    return [
        [
            code(x.name),
            code("flash" if x.flash else "naive"),
            code(f"{x.attention:.2f}/{x.dense:.2f}/{x.moe:.2f}"),
            f"{x.fusion:.2f}",
            f"{x.elementwise:.2f}",
        ]
        for x in EXECUTIONS
    ]


def byte_shares() -> Table:
    """5.7."""
    rows = []
    for phase in PHASES:
        row = [code(phase)]
        for x in EXECUTIONS:
            step = anchor(phase, x)
            whole = step.sum("bytes_hbm")
            row += [f"{step.sum(kind) / whole:.1%}" for kind in ("weights", "kv", "temporary")]
        rows.append(row)
    return rows


def byte_kinds() -> Table:
    """5.8."""
    kinds = ("weights", "activations", "kv", "temporary", "bytes_hbm")
    return [
        [code(phase), *(size(anchor(phase, x).sum(kind)) for x in EXECUTIONS for kind in kinds)]
        for phase in PHASES
    ]


def assumptions() -> Table:
    """6.2, the plot's limits included: two decades around the points, two chips' ceilings."""
    points = [anchor(phase, x).intensity for phase in PHASES for x in EXECUTIONS]
    points += [decode(b, LENGTH, x).intensity for b in BATCHES for x in EXECUTIONS]
    points += [prefill(BATCH, s, x).intensity for s in SEQUENCES for x in EXECUTIONS]
    points += [peak / bandwidth for _, peak, bandwidth in TARGETS]
    low = 10 ** math.floor(math.log10(min(points)) - 2)
    high = 10 ** math.ceil(math.log10(max(points)) + 2)
    bottom = min(BANDWIDTH * low / 1e12, anchor(DECODE, NAIVE).achieved / 1e12) / 3
    top = 1.15 * max(peak for _, peak, _ in TARGETS) / 1e12
    values = {
        "Batch size (`B`)": BATCH,
        "Prefill sequence length (`S`)": LENGTH,
        "Decode KV length (`L`)": LENGTH,
        "Assumed parameter bytes (`W` dtype)": 1,
        "Activation dtype bytes (`A`)": 1,
        "KV-cache dtype bytes (`A_kv`)": 1,
        "Tensor parallel size (`TP`)": 1,
        "Expert parallel size (`EP`)": 1,
        "Routed experts per GPU (`E/EP`)": V3.experts,
        "Training FLOPs multiplier": f"{TRAINING_FLOPS:.1f}",
        "Training bytes multiplier": f"{TRAINING_BYTES:.1f}",
        "Primary roofline target": TARGETS[0][0],
        "Primary peak compute (`P_peak`)": f"{PEAK / 1e12:.1f} TFLOPs",
        "HBM bandwidth (`BW_hbm`)": f"{BANDWIDTH / 1e9:.0f} GB/s",
        "Interconnect bandwidth (`BW_net`)": f"{NETWORK / 1e9:.0f} GB/s",
        "HBM ridge (`OI_knee`)": f"{KNEE:.3f} FLOP/byte",
        "Network ridge (`OI_net`)": f"{PEAK / NETWORK:.3f} FLOP/byte",
        "Decode batch sweep": list(BATCHES),
        "Prefill sequence sweep": list(SEQUENCES),
        "Requested roofline x-limits": None,
        "Requested roofline y-limits": None,
        "Rendered roofline x-limits": f"({low:g}, {high:.0f})",
        "Rendered roofline y-limits": f"({bottom:.3f}, {top:.1f})",
        "Roofline label mode": "minimal",
    }
    rows = [[name, code(value)] for name, value in values.items()]
    rows[3][1] += " (FP8 default)"
    return rows


def targets() -> Table:
    """6.2, the second table."""
    return [
        [code(name), f"{peak / 1e12:.1f}", f"{bandwidth / 1e9:.0f}", f"{peak / bandwidth:.3f}"]
        for name, peak, bandwidth in TARGETS
    ]


def kpis() -> Table:
    """6.6.1."""
    rows = []
    for phase in PHASES:
        for x in EXECUTIONS:
            step = anchor(phase, x)
            rows.append([
                code(phase), code(x.name), f"{step.sum('realizable') / 1e12:.2f} TF",
                size(step.sum("bytes_hbm")), f"{step.intensity:.3e}", f"{step.mfu:.3e}",
                f"{1e3 * step.seconds:.3f}", f"{step.tokens_per_s:.2f}", code(step.regime),
            ])  # fmt: skip
    return rows


def categories() -> Table:
    """6.6.2; one chip, so no network bytes. The head is "other"; names are in order."""
    rows = []
    for phase in PHASES:
        lines = [
            {("other" if name == HEAD else name): line for name, line in step.lines.items()}
            for step in (anchor(phase, x) for x in EXECUTIONS)
        ]
        for name in sorted(lines[0]):
            pair = [line[name] for line in lines]
            naive, efficient = (line.flops / line.bytes_hbm for line in pair)
            rows.append([
                code(phase), code(name), f"{naive:.3e}", f"{efficient:.3e}",
                f"{efficient / naive - 1:.1%}", *(size(line.bytes_hbm) for line in pair),
            ])  # fmt: skip
    return rows


def cross_mode() -> Table:
    """6.6.3."""
    rows = []
    for phase in PHASES:
        pair = [anchor(phase, x) for x in EXECUTIONS]
        rows.append([
            code(phase), *(f"{step.intensity:.3e}" for step in pair),
            *(f"{1e3 * step.seconds:.3f}" for step in pair),
            *(f"{step.tokens_per_s:.2f}" for step in pair),
        ])  # fmt: skip
    return rows


def _sweep(value: int, pair: list[Step]) -> list[str]:
    return [
        str(value),
        *(f"{step.intensity:.3e}" for step in pair),
        *(f"{1e3 * step.seconds:.3f}" for step in pair),
        *(f"{step.achieved / 1e12:.2f}" for step in pair),
    ]


def batch_sweep() -> Table:
    """6.6.4: decode at L = 255."""
    rows = []
    for batch in BATCHES:
        pair = [decode(batch, LENGTH, x) for x in EXECUTIONS]
        rows.append([*_sweep(batch, pair), *(code(step.regime) for step in pair)])
    return rows


def sequence_sweep() -> Table:
    """6.6.5: prefill at B = 8."""
    return [_sweep(seq, [prefill(BATCH, seq, x) for x in EXECUTIONS]) for seq in SEQUENCES]


def compute_bound() -> Table:
    """6.7."""
    return [
        [
            str(row.ep), str(row.context), f"{row.hbm_intensity:.1f}",
            f"{row.network_intensity:.1f}", "" if row.batch is None else str(row.batch),
            row.limiter,
        ]
        for row in crossings()
    ]  # fmt: skip


def memory() -> Table:
    """6.8."""
    return [[name, size(value)] for name, value in resident(BATCH, LENGTH).items()]


def dispatch() -> Table:
    """6.9: one chip has no other to send to, and backward no dispatch of its own."""
    tokens = {TRAINING: BATCH * LENGTH, PREFILL: BATCH * LENGTH, DECODE: BATCH}
    return [[code(p), size(dispatched(n)), size(0), f"{0:.3f}"] for p, n in tokens.items()]


def sensitivity() -> Table:
    """7: three fastest and two slowest points of each execution."""
    return [
        [
            code(name), str(p.kv_bytes), str(p.top_k), f"{p.rank_scale:.2f}",
            f"{p.hidden_scale:.2f}", str(p.context), f"{p.step.intensity:.3e}",
            f"{1e3 * p.step.seconds:.3f}", f"{p.step.mfu:.3e}", code(p.step.regime),
        ]
        for name, points in best_and_worst(sensitivity_grid()).items()
        for p in points
    ]  # fmt: skip


def ranking() -> Table:
    """7.1."""
    return [
        [
            knob.name,
            f"{knob.effect:.1%}",
            code(", ".join(f"{value}:{1e3 * t:.2f}" for value, t in knob.medians.items())),
        ]
        for knob in knob_ranking()
    ]


def worked_example() -> Step:
    """6.6.4's text: efficient decode at B = 128, L = 255."""
    return decode(BATCHES[-1], LENGTH, EFFICIENT)
