"""The choices that two honest people may make differently, each a named input with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..algebra import distinct
from ..errors import UserError

CAUSAL = ("pairs", "full")
ROUTING = ("uniform", "all", "same")
TRACED, FP8 = "traced", "fp8"
KV = (TRACED, FP8)


@dataclass(frozen=True, slots=True)
class Conventions:
    """How FLOPs and bytes are counted.

    Attributes:
        causal: "pairs" counts the S(S+1)/2 pairs that a causal kernel computes, "full" all S².
        routing: which experts a grouped matmul reads. "uniform": the expected number of distinct
            ones, E(1-(1-k/E)^T); "all": every expert; "same": as few as the pairs can share, k.
        weight_residency: weight bytes are divided by this; above 1 a step reads less than every
            touched weight once, which only a cache across steps can do.
        activation_fusion: bytes of activations and temporaries are multiplied by this, for fusion
            beyond what the trace's dataflow shows; 1 takes the dataflow as it is.
        kv: "traced" leaves KV caches in their type, "fp8" holds them in FP8, see `caches`.
    """

    causal: str = "pairs"
    routing: str = "uniform"
    weight_residency: float = 1.0
    activation_fusion: float = 1.0
    kv: str = TRACED

    def __post_init__(self) -> None:
        for name, allowed in (("causal", CAUSAL), ("routing", ROUTING), ("kv", KV)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r}: choose one of {list(allowed)}")
        for name in ("weight_residency", "activation_fusion"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)}: give a positive number")

    def notes(self, causal: bool = True, experts: bool = True) -> list[str]:
        """One line for each choice in force, with a warning where it leaves physics behind.

        Without `causal` attention or `experts` in the model, those choices bear on nothing.
        """
        pairs = "S(S+1)/2 pairs" if self.causal == "pairs" else "all S^2 pairs"
        lines = ["1 multiply-add = 2 FLOPs; vector work is counted apart; GB = 1e9 bytes"]
        if causal:
            lines.append(f"causal attention counts {pairs} (causal={self.causal})")
        if experts:
            lines.append(f"experts read: {_ROUTING_NOTES[self.routing]} (routing={self.routing})")
        if self.weight_residency != 1:
            line = f"weight bytes divided by weight_residency={self.weight_residency:g}"
            if self.weight_residency > 1:
                line += " - BELOW the compulsory one read of every touched weight"
            lines.append(line)
        if self.activation_fusion != 1:
            lines.append(
                f"activation bytes times activation_fusion={self.activation_fusion:g}"
                " - an assumption on top of the fusion that the dataflow shows"
            )
        if self.kv == FP8:
            lines.append("KV caches in FP8 with an FP32 scale for 128 elements (kv=fp8)")
        return lines

    @classmethod
    def names(cls) -> list[str]:
        """The names that `--assume` accepts."""
        return [item.name for item in fields(cls)]


_ROUTING_NOTES = {
    "uniform": "expected distinct ones, E(1-(1-k/E)^T)",
    "all": "every expert, whatever the batch",
    "same": "only top-k of them, all tokens routed alike",
}


def distinct_experts(law: str, experts: int, top_k: int, tokens: int) -> float:
    """How many experts at least one of `tokens` chooses when each takes `top_k` of `experts`.

    "uniform": every expert is chosen by a token with probability k/E, so one is missed by all
    T tokens with probability (1-k/E)^T.
    """
    if law == "all":
        return float(experts)
    if law == "same":
        return float(min(top_k, experts))
    found: float = distinct(experts, top_k, tokens)
    return found
