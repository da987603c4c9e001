"""Where routed experts stand, which of them tokens choose, and what that loads and sends.

* `RoutingLaw`: the law by which tokens choose experts: `uniform`, `zipf`, `recorded`.
* `Placement`: which rank holds which expert: `round_robin`, `contiguous`, `balanced`,
  `hierarchical`.
* `expert_load(routing, placement, tokens)` -> `ExpertLoad`: rows, imbalance, experts read, traffic;
  `expert_shares(routing)`: the part of tokens that choose each expert.
"""

from __future__ import annotations

from .load import ExpertLoad, expert_load, expert_shares, slowest_rows
from .placement import Placement, balanced, contiguous, hierarchical, round_robin
from .routing import RoutingLaw, recorded, uniform, zipf

__all__ = [
    "ExpertLoad",
    "Placement",
    "RoutingLaw",
    "balanced",
    "contiguous",
    "expert_load",
    "expert_shares",
    "hierarchical",
    "recorded",
    "round_robin",
    "slowest_rows",
    "uniform",
    "zipf",
]
