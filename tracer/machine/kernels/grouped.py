"""Routed experts: only those that got tokens are read, their rows padded to the instruction's.

    t = launch + sqrt(memory^2 + compute^2) + rows

A single grouped product (`product`) is what a trace holds; a layer (`layer`) is what serving
engines run and what is measured: gate and up, activation, down, and the passes that quantise,
permute and combine the rows.
"""

from __future__ import annotations

import numpy as np

from .constants import Grouped, Power
from .gemm import settled
from .rates import Estimate, Num, Rates

ROWS = 16  # an expert's rows are padded to a multiple of it


def padded_rows(rows: Num, active: Num) -> Num:
    """Rows that the matrix units compute, if `rows` spread evenly over `active` experts."""
    return active * np.ceil(rows / active / ROWS) * ROWS


def product(
    rows: Num, active: Num, k: Num, n: Num, rates: Rates, c: Grouped, power: Power, launch: Num,
    moved: Num,
) -> Estimate:  # fmt: skip
    """Seconds of rows [rows,k] times [k,n] of their expert, with `moved` bytes of memory."""
    memory = moved / (rates.memory * c.memory)
    flops = 2 * padded_rows(rows, active) * k * n
    compute = settled(flops / (rates.matrix * c.matrix), power)
    return Estimate(launch + np.sqrt(memory**2 + compute**2), compute, memory, launch)


def layer(
    tokens: Num, top_k: Num, experts: Num, hidden: Num, inner: Num, rates: Rates, c: Grouped,
    power: Power, *, weight: Num = 1.0,
) -> Estimate:  # fmt: skip
    """Seconds of a SwiGLU expert layer; `experts` and `inner` are those on this chip."""
    rows = tokens * top_k
    active = np.minimum(experts, rows)
    moved = weight * active * 3 * hidden * inner + rows * (3 * hidden + 5 * inner)
    memory = moved / (rates.memory * c.memory)
    flops = 2 * padded_rows(rows, active) * 3 * hidden * inner
    compute = settled(flops / (rates.matrix * c.matrix), power)
    passes = rows * hidden / (c.rows * rates.issue)
    seconds = c.launch + np.sqrt(memory**2 + compute**2) + passes
    return Estimate(seconds, compute, memory + passes, c.launch)
