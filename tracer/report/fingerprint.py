"""What kind of model it is, told from the shapes and ops of its trace, never from its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..capture.records import FORWARD, Op, TensorRef, Trace
from ..cost.roles import storage_roles
from ..cost.work import ATTENTION
from ..machine.shapes import attention_operands
from ..predict import Step
from .categories import ATTENTION as ATTENTION_PART
from .categories import Categories
from .facts import detailed, routing, steps_of, tied
from .summary import Study
from .text import plural, size

_ACTIVATIONS = {
    "silu": "SiLU", "gelu": "GELU", "relu": "ReLU", "relu6": "ReLU6", "hardswish": "hardswish",
    "mish": "mish", "elu": "ELU", "leaky_relu": "leaky ReLU", "softplus": "softplus",
}  # fmt: skip


def fingerprint(study: Study) -> list[tuple[str, str]]:
    """(property, value) of what the trace shows; a property that does not apply is left out."""
    step = _forward_step(study)
    trace = step.trace
    found: list[tuple[str, str]] = [("top module", trace.calls[0].kind)]
    layers = _layers(trace)
    if layers:
        found.append(("repeated layers", layers))
    found += _attention(study, step)
    for name, value in (
        ("cache of a sequence", _kept(study)),
        ("position encoding", _positions(trace)),
        ("normalisation", _norms(trace)),
        ("activation", _activations(trace)),
        ("recurrence", _recurrence(trace)),
        ("convolutions", _convolutions(trace)),
    ):
        if value:
            found.append((name, value))
    experts, top_k = routing(study)
    if experts:
        chosen = f", {top_k} chosen by a token" if top_k else ""
        found.append(("mixture of experts", f"{experts} routed experts{chosen}"))
    shared = tied(trace)
    if shared is not None:
        found.append(("tied embedding and head", "yes" if shared else "no"))
    return found


def _forward_step(study: Study) -> Step:
    """A step whose forward is the whole model over many tokens."""
    steps = steps_of(study, detailed(study))
    order = {"prefill": 0, "forward": 1, "training": 2, "decode": 3}
    return min(steps, key=lambda s: order.get(s.workload.phase, 4))


def _forward(trace: Trace) -> Iterable[Op]:
    return (op for op in trace.ops if op.phase == FORWARD)


def _layers(trace: Trace) -> str:
    """How many of which class, outermost lists only."""
    counts: Counter[str] = Counter()
    folds = {fold.module: fold.layers for fold in trace.folds}
    for call in trace.calls[1:]:
        names = call.module.split(".")
        if call.nth == 0 and names[-1].isdigit() and not any(n.isdigit() for n in names[:-1]):
            counts[call.kind] += folds.get(call.module, 1)
    return ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common(4))


def _first_attention(step: Step) -> tuple[tuple[int, ...], ...] | None:
    """[B, H, S, D] of query, key and value of the first fused attention, or None."""
    kernels = (k for k in step.ledger.kernels if k.kind == ATTENTION and k.phase == FORWARD)
    first = next(kernels, None)
    return None if first is None else attention_operands(step.trace.ops[first.parts[0].op])


def _attention(study: Study, step: Step) -> list[tuple[str, str]]:
    operands = _first_attention(step)
    if operands is None:
        return []
    query, _, value = operands
    heads, size, value_size = query[1], query[3], value[3]
    sizes = f"{size}" if size == value_size else f"{size} for queries and keys, {value_size} values"
    found = [("attention heads", f"{plural(heads, 'query head')} of size {sizes}")]
    elements = _cached(study)
    if elements:
        full = heads * (size + value_size)
        kind = _cache_kind(elements, full, heads)
        found.append(("KV cache of a layer", f"{elements:,} elements a token of {full:,} ({kind})"))
    return found


def _kept(study: Study) -> str:
    """What a sequence keeps, where that is not what all of its tokens wrote."""
    step = next((s for s in steps_of(study) if s.workload.phase == "decode"), None)
    if step is None:
        return ""
    length = step.workload.context
    kept, whole = step.memory.kv / step.workload.batch, study.inventory.kv_bytes_per_token * length
    held = f"a sequence of {length:,} tokens keeps {size(kept)}"
    if kept and not whole:  # no prompt was traced, or nothing grows with it
        return held
    if kept > whole * 1.01:
        more = "a state, windows or an encoder's keys"
        return f"{held}, of which {size(kept - whole)} do not grow with them ({more})"
    if not kept or kept >= whole * 0.99:
        return ""
    return f"{held} of the {size(whole)} that all layers write for them (windows)"


def _cached(study: Study) -> int:
    """Elements that the first attention with a cache keeps of a token; 0 if none shows it."""
    step = next((s for s in steps_of(study) if s.workload.phase == "decode"), None)
    if step is None:
        return 0
    trace = step.trace
    roles, known = storage_roles(trace), Categories(trace)
    largest: dict[str, dict[int, TensorRef]] = {}  # by module and storage
    for op in trace.ops:
        for ref in op.inputs():
            place = trace.module_of(op)  # a state space keeps a state, which is no cache of tokens
            if (
                roles[ref.storage] == "kv"
                and len(ref.shape) >= 3
                and known.of(place) == ATTENTION_PART
            ):
                mine = largest.setdefault(place, {})
                if ref.storage not in mine or ref.numel > mine[ref.storage].numel:
                    mine[ref.storage] = ref
    for refs in largest.values():
        # [B, S, D] or [B, H, S, D]: the longest of the middle is the length, unless a window or a
        # short context makes it a number of heads.
        lengths = [max(ref.shape[1:-1]) for ref in refs.values()]
        if all(length >= step.workload.context for length in lengths):
            pairs = zip(refs.values(), lengths, strict=True)
            return sum(ref.numel // (ref.shape[0] * length) for ref, length in pairs)
    return 0


def _cache_kind(elements: int, full: int, heads: int) -> str:
    if elements >= full:
        return "a key and a value for every head"
    groups, rest = divmod(elements * heads, full)
    if rest or heads % groups:
        return "a compressed latent"
    if groups == 1:
        return "one key and value for all heads, or a latent of that size"
    return f"{groups} key-value heads, {heads // groups} queries share each"


def _positions(trace: Trace) -> str:
    names = {op.overload_packet for op in _forward(trace)}
    if {"aten.cos", "aten.sin"} <= names:
        if _multiplied(trace, "aten.cos"):
            return "rotary (sines and cosines, multiplied in)"
        return "sines and cosines of a position or a time, multiplied with nothing"
    learned = [p for p in trace.parameters if "position" in p.name.lower() and not p.buffer]
    return f"learned ({learned[0].name})" if learned else ""


def _multiplied(trace: Trace, name: str) -> bool:
    """Whether some result of `name` gets multiplied, element by element, with another tensor."""
    derived: set[int] = set()
    for op in _forward(trace):
        base = op.overload_packet.rpartition(".")[2]
        inputs = {ref.storage for ref in op.inputs()}
        mine = inputs & derived
        if mine and base in ("mul", "mul_") and inputs - derived:
            return True
        if op.overload_packet == name or (mine and base in _CARRIES):
            derived |= {ref.storage for ref in op.outputs}
    return False


# What hands a tensor on, if need be beside others or scaled by a number.
_CARRIES = ("_to_copy", "clone", "cat", "stack", "mul", "index", "index_select", "expand", "repeat")


def _norms(trace: Trace) -> str:
    counts: Counter[str] = Counter()
    by_call: dict[int, set[str]] = {}
    for op in _forward(trace):
        by_call.setdefault(op.call, set()).add(op.overload_packet.rpartition(".")[2])
    for number, names in by_call.items():
        if "native_layer_norm" in names or "layer_norm" in names:
            counts["LayerNorm"] += 1
        elif names & {"native_batch_norm", "_native_batch_norm_legit_functional", "batch_norm",
                      "cudnn_batch_norm", "_native_batch_norm_legit_no_training",
                      "_batch_norm_with_update_functional"}:  # fmt: skip
            counts["BatchNorm"] += 1
        elif "native_group_norm" in names:
            counts["GroupNorm"] += 1
        elif "_fused_rms_norm" in names or "rms_norm" in names or (
            {"rsqrt", "mean"} <= names and number
        ):  # fmt: skip
            counts["RMSNorm"] += 1
    return ", ".join(name for name, _ in counts.most_common(2))


def _activations(trace: Trace) -> str:
    known = Categories(trace)
    counts: Counter[str] = Counter()
    for op in _forward(trace):
        base = op.overload_packet.rpartition(".")[2].rstrip("_")
        if base in _ACTIVATIONS:
            gated = known.of(trace.module_of(op)) != "attention"
            counts[_ACTIVATIONS[base]] += op.times * gated
    return ", ".join(name for name, count in counts.most_common(2) if count)


def _recurrence(trace: Trace) -> str:
    names = {op.overload_packet.rpartition(".")[2] for op in _forward(trace)}
    return ", ".join(sorted(n.upper() for n in ("lstm", "gru", "rnn_tanh") if n in names))


def _convolutions(trace: Trace) -> str:
    count = sum(
        op.times for op in _forward(trace) if "convolution" in op.overload_packet.split(".")[1]
    )
    return f"{count:,} in a forward" if count else ""


# Keys of a config that decide shapes or costs, in this order; what a model does not have is absent.
_TELLING = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "moe_intermediate_size", "n_routed_experts",
    "num_local_experts", "num_experts", "n_shared_experts", "num_experts_per_tok",
    "first_k_dense_replace", "moe_layer_freq", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "scoring_func", "n_group", "topk_group", "vocab_size",
    "max_position_embeddings", "sliding_window", "rope_theta", "hidden_act",
    "tie_word_embeddings", "num_nextn_predict_layers", "image_size", "patch_size", "num_labels",
    "num_channels", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
)  # fmt: skip


def config_rows(config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The telling keys of a config that are plain values."""
    if not config:
        return []
    return [
        (key, str(config[key]))
        for key in _TELLING
        if isinstance(config.get(key), str | int | float | bool)
    ]
