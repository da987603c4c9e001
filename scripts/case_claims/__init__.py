"""The second seed, a case study of DeepSeek-V3, claim by claim; see `claim` and `case`."""

from . import (  # noqa: F401 - they register their claims
    attention,
    efficiency,
    exercises_attention,
    exercises_cluster,
    exercises_experts,
    exercises_pipeline,
    exercises_precision,
    expert_parallel,
    experts,
    lessons,
    pipeline,
    precision,
    repeats,
    specification,
)
from .case import Case
from .claim import VERDICTS, Answer, Claim, Row, in_order

__all__ = ["VERDICTS", "Answer", "Case", "Claim", "Row", "in_order", "rows"]


def rows(case: Case | None = None) -> list[Row]:
    """Every claim, in the seed's order, with its answer for `case`."""
    case = case or Case()
    return [Row(claim, claim.measure(case)) for claim in in_order()]
