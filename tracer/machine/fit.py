"""Robust least squares for a handful of positive constants, with a test of what they can be.

The parameters are fitted as logarithms (all are positive), the residual is the logarithm of
predicted over measured time under a soft-L1 loss, plus the mean signed error of each size class, so
that no class is systematically early or late. A direction in the constants that the data do not
see is refused by name rather than filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .measured import Array

SCALE = 0.05  # residuals beyond it weigh less: noise of two backends, not of the model
SIZE_CLASSES = ((0.0, 20e-6), (20e-6, 100e-6), (100e-6, np.inf))  # s, as in the accuracy table
ROWS_A_CONSTANT = 3
ALIKE = 2  # rows that miss together
MAX_CONDITION = 300.0  # of the scaled Jacobian
FLAT = 1e-3  # mean change of the log of time by the log of a constant that still counts
_STEP = 1e-5
_ROUNDS = 60
_BIAS_WEIGHT = 1.0


class FitError(UserError):
    """Constants that the rows cannot tell apart, or rows that are too few."""


@dataclass(frozen=True)
class Fit:
    """Fitted constants by name, and their relative standard deviations."""

    values: Mapping[str, float]
    spreads: Mapping[str, float]
    condition: float


def fit(
    model: Callable[[Mapping[str, float]], Array],
    measured: Array,
    start: Mapping[str, float],
    *,
    upper: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `start`'s constants so that `model` gives `measured`, both in seconds.

    Args:
        model: constants -> seconds of every row.
        measured: seconds of every row.
        start: names and first values; all must be above zero.
        upper: largest value of a constant, where it has one (a share is at most 1).

    Raises:
        FitError: fewer than three rows a constant, or constants that are not identifiable.
    """
    names = list(start)
    if len(measured) < ROWS_A_CONSTANT * len(names):
        raise FitError(
            f"{len(measured)} rows cannot fit {len(names)} constants ({', '.join(names)}): "
            f"at least {ROWS_A_CONSTANT * len(names)} are needed"
        )
    limit = np.log([(upper or {}).get(name, np.inf) for name in names])

    def predicted(point: Array) -> Array:
        return model(dict(zip(names, np.exp(point).tolist(), strict=True)))

    first = np.minimum(np.log([start[name] for name in names]), limit)
    best = _minimise(predicted, measured, first, limit)
    jacobian = _jacobian(lambda p: np.log(predicted(p)), best)
    condition = _check(names, jacobian)
    # A robust scale: a row or two that went wrong must not widen every constant.
    miss = 1.4826 * float(np.median(np.abs(np.log(predicted(best) / measured))))
    free = len(measured) / (len(measured) - len(names))
    # Neighbouring shapes miss alike, so that the rows count for fewer independent ones.
    covariance = miss**2 * free * ALIKE * np.linalg.inv(jacobian.T @ jacobian)
    spreads = np.sqrt(np.diag(covariance))
    return Fit(
        dict(zip(names, np.exp(best).tolist(), strict=True)),
        dict(zip(names, spreads.tolist(), strict=True)),
        condition,
    )


def _residuals(seconds: Array, measured: Array) -> Array:
    """Log ratios under the loss, and the mean signed error of each size class."""
    log = np.log(seconds / measured)
    soft = np.sqrt(2 * (np.sqrt(1 + (log / SCALE) ** 2) - 1)) * SCALE * np.sign(log)
    parts = [soft]
    error = np.clip(seconds / measured - 1, -0.5, 0.5)
    for low, high in SIZE_CLASSES:
        inside = (measured >= low) & (measured < high)
        if inside.any():
            bias = _BIAS_WEIGHT * np.sqrt(inside.sum()) * error[inside].mean()
            parts.append(np.array([bias]))
    return np.concatenate(parts)


def _minimise(
    predicted: Callable[[Array], Array], measured: Array, start: Array, limit: Array
) -> Array:
    """Levenberg-Marquardt in the logarithms of the constants."""

    def residuals(point: Array) -> Array:
        return _residuals(predicted(point), measured)

    point, damping = start, 1e-2
    now = residuals(point)
    for _ in range(_ROUNDS):
        jacobian = _jacobian(residuals, point)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ now
        moved = False
        for _ in range(8):
            scale = damping * (np.diag(normal) + 1e-12 * np.trace(normal) + 1e-300)
            step = np.linalg.solve(normal + np.diag(scale), gradient)
            trial = np.minimum(point - np.clip(step, -1, 1), limit)
            then = residuals(trial)
            if then @ then < now @ now:
                moved = bool(now @ now - then @ then > 1e-9 * (now @ now))
                point, now, damping = trial, then, damping / 3
                break
            damping *= 4
        if not moved:
            break
    return point


def _jacobian(function: Callable[[Array], Array], point: Array) -> Array:
    base = function(point)
    columns = []
    for i in range(len(point)):
        moved = point.copy()
        moved[i] -= _STEP  # downwards: an upper limit may be where the point is
        columns.append((base - function(moved)) / _STEP)
    return np.array(columns).T


def _check(names: Sequence[str], jacobian: Array) -> float:
    """The condition number of the log-log Jacobian; refuses flat and confounded directions."""
    size = np.sqrt((jacobian**2).mean(axis=0))
    flat = [name for name, s in zip(names, size, strict=True) if s < FLAT]
    if flat:
        raise FitError(
            f"not identifiable: no row depends on {', '.join(flat)}; "
            "measure shapes that do, or fix it"
        )
    _, singular, directions = np.linalg.svd(jacobian / size, full_matrices=False)
    condition = float(singular[0] / singular[-1]) if singular[-1] else np.inf
    if condition > MAX_CONDITION:
        weakest = directions[-1]
        mixed = [n for n, w in zip(names, weakest, strict=True) if abs(w) > 0.3]
        raise FitError(
            f"not identifiable: the rows see only a combination of {', '.join(mixed)} "
            f"(condition number {condition:.3g} > {MAX_CONDITION:g}); "
            "measure shapes that separate them, or fix one"
        )
    return condition
