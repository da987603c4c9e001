"""Chances of a single token, by integration instead of sampling: no group limit, any weights.

Drawing k of E without replacement by weight is a race: expert e arrives at a time that is
exponential with rate w_e, and the first k to arrive are chosen. At a fixed time arrivals are
independent, so what has happened by then is a product over experts, a polynomial in z that counts
arrivals; the chances are integrals of it over time. The integrands die out on both sides of a
logarithmic time axis, where the trapezoid rule converges faster than any power of its step.

Shapes: E experts, k chosen, Q points in time, X sets of experts (ranks, nodes).
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .routing import RoutingLaw

Floats = NDArray[np.float64]

_STEP = 0.2  # of the logarithm of time; half of it changes chances by less than 1e-13


def inclusion(weight: Floats, top_k: int) -> Floats:
    """[E] chance that a token chooses each expert; sums to k."""
    return _inclusion(tuple(weight.tolist()), top_k).copy()


@lru_cache(maxsize=64)
def _inclusion(weights: tuple[float, ...], top_k: int) -> Floats:
    weight = np.array(weights)
    if weight.min() == weight.max():
        return np.full(len(weight), top_k / len(weight))
    times, measure = _times(weight)
    here = np.exp(-weight[:, None] * times)  # [E, Q] not arrived yet
    # before[e], after[e]: [Q, k] chances of 0..k-1 arrivals among the experts before e, after e.
    before = _running(here, top_k)
    after = _running(here[::-1], top_k)[::-1]
    at_most = np.cumsum(after, axis=2)[..., ::-1]  # at most k-1-a after e, beside a before it
    few = (before * at_most).sum(axis=2)
    chance: Floats = (weight[:, None] * here * few) @ measure
    return chance


def missed(weight: Floats, top_k: int, share: Floats) -> Floats:
    """[X] chance that a token sends nothing to a set.

    share: [E, X] chance that a token that chooses expert e goes to its copy in set x. Equal weights
    and whole experts have a closed form: C(E - E_x, k) / C(E, k).
    """
    experts = len(weight)
    if weight.min() == weight.max() and np.isin(share, (0.0, 1.0)).all():
        inside = share.sum(axis=0).astype(int)
        ways = [comb(experts - int(n), top_k) / comb(experts, top_k) for n in inside]
        return np.array(ways)
    if weight.min() == weight.max():  # which experts a set has does not matter, only how many
        share = np.sort(share, axis=0)
    share, which = np.unique(share, axis=1, return_inverse=True)
    times, measure = _times(weight)
    chance = np.zeros(share.shape[1])
    for part in np.array_split(np.arange(share.shape[1]), -(-share.shape[1] // 32)):
        chance[part] = _missed(weight, top_k, share[:, part], times) @ measure
    return np.clip(chance, 0.0, 1.0)[which]


def _missed(weight: Floats, top_k: int, share: Floats, times: Floats) -> Floats:
    """[X, Q] density of the time at which the k-th arrives, with nobody in the set before or then.

    stay: [X, Q, k] chance of 0..k-1 arrivals, none in the set. next_: the same with one more of
    them arriving right now, outside of the set, over the time it takes: its derivative.
    """
    stay = np.zeros((share.shape[1], len(times), top_k))
    stay[..., 0] = 1.0
    next_ = np.zeros_like(stay)
    for rate, inside in zip(weight, share, strict=True):
        absent = np.exp(-rate * times)[None, :, None]
        outside = (1.0 - inside)[:, None, None]
        arrived = outside * (1.0 - absent)
        now = rate * outside * absent
        next_ = next_ * absent + now * stay + arrived * _shift(next_)
        stay = stay * absent + arrived * _shift(stay)
    return next_[..., -1]


def _shift(poly: Floats) -> Floats:
    """Times z."""
    shifted = np.zeros_like(poly)
    shifted[..., 1:] = poly[..., :-1]
    return shifted


def _running(here: Floats, top_k: int) -> Floats:
    """[E, Q, k] chances of 0..k-1 arrivals among the experts before each."""
    chances = np.zeros((*here.shape, top_k))
    now = np.zeros((here.shape[1], top_k))
    now[:, 0] = 1.0
    for e, absent in enumerate(here):
        chances[e] = now
        now = now * absent[:, None] + (1.0 - absent)[:, None] * _shift(now)
    return chances


def _times(weight: Floats) -> tuple[Floats, Floats]:
    """[Q] times and the measure of each, from before anybody arrives to after everybody has."""
    positive = weight[weight > 0]
    low, high = np.log(1e-16 / weight.sum()), np.log(50.0 / positive.min())
    logarithm = np.arange(low, high, _STEP)
    times = np.exp(logarithm)
    return times, times * _STEP


def fit_weights(share: Floats, top_k: int) -> Floats:
    """[E] weights that lead to these chances, largest 1. Experts that are never chosen get 0.

    Multiplies each weight by the ratio of -log(1 - chance), wanted over found, until they agree:
    were the race stopped at a fixed time instead of at the k-th, one such step would be exact.

    Raises:
        UserError: chances that no weights come near (some experts in practically every token).
    """
    mine = np.flatnonzero(share > 0)
    weight = np.zeros(len(share))
    if len(mine) == top_k:
        weight[mine] = 1.0
        return weight
    wanted = np.minimum(share[mine], 1 - 1e-9)
    found = wanted / wanted.max()
    for _ in range(200):
        chance = np.minimum(inclusion(found, top_k), 1 - 1e-12)
        off = float(np.abs(chance - wanted).max())
        if off < 1e-9:
            break
        found = found * np.log1p(-wanted) / np.log1p(-chance)
        found /= found.max()
    if off > 1e-6:
        raise UserError(
            "recorded: no weights lead to these loads; the heaviest expert is chosen by "
            f"{wanted.max():.2%} of the tokens"
        )
    weight[mine] = found
    return weight


def chances(routing: RoutingLaw) -> Floats | None:
    """[E] chance that a token chooses each expert, where it is known without sampling."""
    if routing.shares is not None:
        return np.array(routing.shares)
    if routing.limited and not routing.even:
        return None
    return inclusion(np.array(routing.weights), routing.top_k)
