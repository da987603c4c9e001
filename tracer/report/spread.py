"""What a model sends when chips share its routed experts: a small envelope, in closed form."""

from __future__ import annotations

from ..algebra.expression import value_at
from ..machine import Timing
from ..machine.symbolic import StepModel
from ..study.closed import EP
from ..study.crossovers import network_seconds
from .records import Message, PlanRow
from .swept import Formulas, regimes_of

SIZES = (1, 8, 32, 64)


def envelope(phase: str, f: Formulas, timing: Timing) -> tuple[list[PlanRow], list[Message]]:
    """The step of one of EP chips that each run the report's batch and share the experts.

    Nothing is hidden or merged: every layer sends its rows to their experts and gets them back.
    """
    if f.closed.experts is None:
        return [], []
    closed = f.closed.over_experts()
    model = StepModel(closed.rows, f.model.chip, timing, closed.scope, closed.network)
    plans, messages = [], []
    for size in (n for n in SIZES if f.closed.experts.count % n == 0):
        point = {**f.point, EP: size}
        a = model.answer(point)
        held = float(value_at(closed.memory.total, point))
        name = f"dp = ep {size}"
        plans.append(PlanRow(
            phase, name, f.model.chip.id, size, float(a.seconds[0]), float(a.ideal_compute[0]),
            float(a.ideal_memory[0]), float(a.network[0]),
            size * int(value_at(closed.tokens, point)), held, held <= model.defaults["capacity"],
            regimes_of(a)[0],
        ))  # fmt: skip
        if size > 1 and closed.network is not None:
            within = size <= (f.model.chip.link_domain or 1)
            where = "in one scale-up domain" if within else "across domains"
            group = f"{size} {f.model.chip.id} {where}"
            messages.append(Message(
                phase, name, "all_to_all", group, int(closed.network.exchanges),
                float(value_at(closed.network.moved, point)),
                float(value_at(network_seconds(closed, model, point), point)), 0.0,
            ))  # fmt: skip
    return plans, messages
