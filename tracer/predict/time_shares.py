"""Where the seconds of a training step go: by kind of slot, by cause, and by stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..capture.records import BACKWARD, FORWARD
from .pipeline import Timed


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step, mean over the ranks of the pipeline. The first four add up to the step.

    Attributes:
        compute: kernels, with what they take longer while communication holds SMs.
        communication: messages that nothing hides, those of the end of a step included.
        bubble: waiting for other stages.
        optimizer: its kernels, and weights rounded to FP8.
        imbalance: the part of the step that even experts would save.
    """

    compute: float
    communication: float
    bubble: float
    optimizer: float
    imbalance: float


class Shares:
    """The slots of a whole schedule, counted."""

    def __init__(self, timed: Timed) -> None:
        self.timed = timed
        # Of every rank by (kind, stage, stage of the backward).
        self.counts = [
            Counter((a.kind, a.stage, a.backward[0] if a.backward else -1) for a in mine)
            for mine in timed.schedule.actions
        ]

    def _seconds(self, kind: str, stage: int, back: int) -> float:
        timed = self.timed
        if kind == "F&B":
            return float(timed.durations.overlap(stage, back))
        parts = {"F": timed.forward, "I": timed.input, "W": timed.weight}
        if kind == "B":
            return timed.input[stage] + timed.weight[stage]
        return parts[kind][stage]

    def slots(self) -> dict[str, float]:
        """Seconds by kind, mean over ranks; weight gradients of a B count under W."""
        total: dict[str, float] = {}
        for mine in self.counts:
            for (kind, stage, back), n in mine.items():
                if kind == "B":
                    for part in ("I", "W"):
                        total[part] = total.get(part, 0.0) + n * self._seconds(part, stage, -1)
                else:
                    total[kind] = total.get(kind, 0.0) + n * self._seconds(kind, stage, back)
        return {kind: seconds / len(self.counts) for kind, seconds in total.items()}

    def breakdown(self, ends: tuple[float, float, float], imbalance: float) -> Breakdown:
        """Means over ranks; `ends` as `DataRanks.ends` has them, `imbalance` as in `Breakdown`."""
        timed, exposed = self.timed, 0.0
        ranks = timed.schedule.ranks
        for mine in self.counts:
            for (kind, stage, back), n in mine.items():
                if kind == "F&B" and (stage, back) in timed.pairs:
                    exposed += n * timed.pairs[stage, back].exposed
                    continue
                if kind in ("F", "F&B"):
                    exposed += n * timed.exposed(timed.blocks[stage], FORWARD)
                if kind in ("B", "I", "F&B"):
                    at = back if kind == "F&B" else stage
                    exposed += n * timed.exposed(timed.blocks[at], BACKWARD)
        busy = sum(timed.pipeline.busy) / ranks
        bubble = sum(timed.pipeline.bubble) / ranks
        exposed /= ranks
        return Breakdown(
            busy - exposed, exposed + ends[0] + sum(timed.pipeline.sending) / ranks, bubble,
            ends[1] + ends[2], imbalance,
        )  # fmt: skip

    def stage_rows(self) -> tuple[dict[str, float], ...]:
        """Seconds of one micro-batch by stage, messages and compute apart."""
        rows, data = [], self.timed.data
        for b in self.timed.blocks:
            p = b.passes
            rows.append({
                "forward": p.seconds(FORWARD), "input_gradient": p.seconds(BACKWARD, weight=False),
                "weight_gradient": p.seconds(BACKWARD, weight=True),
                "forward_messages": sum(p.messages(FORWARD).values()),
                "backward_messages": sum(p.messages(BACKWARD).values()),
                "optimizer": data.optimizer(b), "reduction": data.reduction(b),
            })  # fmt: skip
        return tuple(rows)
