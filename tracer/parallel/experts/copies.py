"""Copies that a token sends, with the groups that DeepSeek-V3's own gate keeps.

It keeps the groups whose two best experts score best, so hardly any kept group goes without a
token: 3.95 of 4 nodes, where groups drawn blindly would have 3.63. Without a group limit the closed
form of `expert_traffic` is exact, and taken.
"""

from __future__ import annotations

import functools

import numpy as np

from ..expert_traffic import Routing, Spread, expected, spread
from ..groups import Group
from .routing import sample, uniform

TOKENS = 65_536  # drawn, with a fixed seed: chances have a standard error of at most 0.002


@functools.cache
def copies_of(routing: Routing, group: Group) -> Spread:
    """Expected copies of a token under uniform routing, all experts alike."""
    # With one expert a group, its two best are not there to rank it by.
    if routing.groups_kept == routing.groups or routing.experts < 2 * routing.groups:
        return spread(routing, group)
    law = uniform(routing.experts, routing.top_k, routing.groups, routing.groups_kept)
    chosen = sample(law, TOKENS)

    def miss(first: int, last: int) -> float:
        inside = np.logical_and(chosen >= first, chosen < last)
        return 1.0 - float(inside.any(axis=1).mean())

    return expected(routing, group, miss)
