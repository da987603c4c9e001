"""What a step's time may be: the constants' spreads and the model's own misfit, to first order.

A constant is one number for every kernel, so its error is common to all that use it. What the form
misses is taken as independent from one shape to the next, and common to all layers of a shape. The
constants describe the best measured software; the next best is slower, which only widens upwards.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .calibration import FOREIGN, Calibration
from .kernels import FAMILIES
from .model import Plan, evaluate, families_of, group_seconds

P90 = 1.2816  # standard deviations from the median to P10 and P90 of a normal distribution

# A chip of another generation than the constants': shares differ by about this much between
# generations (0.64 to 0.87 in the same fits), latencies and the misfit by as much.
FOREIGN_SPREAD = 0.15


class Driver(NamedTuple):
    """One cause of uncertainty: the step's seconds at its P10 and at its P90."""

    name: str
    low: float
    high: float

    @property
    def swing(self) -> float:
        """Seconds between the two."""
        return abs(self.high - self.low)


def drivers(plan: Plan, cal: Calibration, offset: float) -> list[Driver]:
    """Every cause, largest swing first; `offset` are seconds that no constant touches."""
    now = evaluate(plan, cal).seconds
    step = float(now @ plan.launches) + offset
    wide = FOREIGN_SPREAD if cal.status() == FOREIGN else 0.0
    found = []
    for family, spreads in cal.spreads.items():
        groups = [g for g in plan.groups if family in families_of(g)]
        if not groups:
            continue
        for name, own in spreads.items():
            spread = max(own, wide) if own else 0.0
            if spread:
                value = getattr(cal[family], name)
                moved = cal.with_value(family, name, value * np.exp(P90 * spread))
                delta = 0.0
                for group in groups:
                    index = list(group.kernels)
                    then = group_seconds(group, moved, plan.conditions).seconds
                    then = np.maximum(then, plan.floor[index])
                    delta += float((then - now[index]) @ plan.launches[index])
                found.append(Driver(f"{family}.{name}", *sorted((step - delta, step + delta))))
    for family in FAMILIES:
        mine = [g for g in plan.groups if families_of(g)[0] == family]
        index = [i for g in mine for i in g.kernels]
        if not index:
            continue
        form = max(cal.misfit.get(family, 0.0), wide)
        # Kernels that nobody measured are as far from the form as another chip's.
        forms = [form if g.measured else max(form, FOREIGN_SPREAD) for g in mine for _ in g.kernels]
        seconds = now[index] * plan.launches[index]
        # What a formula gets wrong it gets wrong for all kernels of one shape alike; those have
        # the same seconds a launch.
        _, shape = np.unique(
            np.round(np.log(np.maximum(now[index], 1e-12)), 9), return_inverse=True
        )
        misfit = np.bincount(shape, seconds * np.array(forms))
        delta = P90 * float(np.sqrt((misfit**2).sum()))
        found.append(Driver(f"{family}: form", step - delta, step + delta))
        slower = float(seconds.sum()) * cal.backend.get(family, 0.0)
        found.append(Driver(f"{family}: backend", step, step + slower))
    return sorted((d for d in found if d.swing > 0), key=lambda d: -d.swing)


def interval(causes: list[Driver], step: float) -> tuple[float, float]:
    """P10 and P90 of the step from independent causes; a ratio, so that no time is negative."""
    if not step:
        return 0.0, 0.0
    below = float(np.sqrt(sum((1 - d.low / step) ** 2 for d in causes)))
    above = float(np.sqrt(sum((d.high / step - 1) ** 2 for d in causes)))
    return step * float(np.exp(-below)), step * float(np.exp(above))
