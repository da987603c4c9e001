"""What a simulation needs to know of the stages: seconds by kind, transfers, bytes held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from ...errors import UserError
from .schedule import Schedule


@dataclass(frozen=True)
class Durations:
    """Seconds of one micro-batch, a tuple entry for every stage.

    backward: the whole one where it runs in one slot; the sum of both gradients if not given.
    overlapped: seconds of an F&B slot by (stage of the forward, stage of the backward); `pairs` of
    a schedule says which it has. None: nothing is gained, F and B take the sum of their seconds.
    transfer: [stages-1] seconds to send the activations of stage s to stage s+1, gradient_transfer
    those of its gradient back, the same if not given. Stages on one rank send nothing.
    blocking: False, a transfer runs beside the sender's next slots and delays only the one that
    waits for it (hidden as far as it can be); True, the sender does nothing else meanwhile.
    Receiving never blocks, and links are not shared: transfers that meet on a wire do not slow
    each other down.
    """

    forward: Sequence[float]
    input_gradient: Sequence[float]
    weight_gradient: Sequence[float]
    backward: Sequence[float] = ()
    overlapped: Mapping[tuple[int, int], float] | None = None
    transfer: Sequence[float] = ()
    gradient_transfer: Sequence[float] = ()
    blocking: bool = False
    stages: int = field(init=False)

    def __post_init__(self) -> None:
        stages = len(self.forward)
        self._set("stages", stages)
        both = zip(self.input_gradient, self.weight_gradient, strict=False)
        self._set("backward", self.backward or tuple(i + w for i, w in both))
        self._set("transfer", self.transfer or (0.0,) * max(0, stages - 1))
        self._set("gradient_transfer", self.gradient_transfer or self.transfer)
        for f in fields(self):
            if f.name in ("overlapped", "blocking", "stages"):
                continue
            given = tuple(getattr(self, f.name))
            self._set(f.name, given)
            want = stages - 1 if "transfer" in f.name else stages
            if len(given) != want:
                raise UserError(f"{f.name}: {len(given)} values for {stages} stages, not {want}")
            _check_seconds(f.name, given)
        if self.overlapped is not None:
            _check_seconds("overlapped", tuple(self.overlapped.values()))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def even(cls, stages: int, forward: float, input_gradient: float, weight_gradient: float, *,
             backward: float | None = None, overlapped: float | None = None,
             transfer: float = 0.0, blocking: bool = False) -> Durations:  # fmt: skip
        """The same for every stage, every pair of stages and every hop."""
        pairs = None
        if overlapped is not None:
            pairs = {(f, b): overlapped for f in range(stages) for b in range(stages)}
        return cls(
            (forward,) * stages, (input_gradient,) * stages, (weight_gradient,) * stages,
            () if backward is None else (backward,) * stages, pairs,
            (transfer,) * max(0, stages - 1), (), blocking,
        )  # fmt: skip

    def overlap(self, forward: int, backward: int) -> float:
        """Seconds of an F&B slot of these two stages."""
        if self.overlapped is None:
            return float(self.forward[forward] + self.backward[backward])
        try:
            return self.overlapped[forward, backward]
        except KeyError:
            raise UserError(
                f"overlapped: no seconds for the forward of stage {forward} with the backward of "
                f"stage {backward}; the schedule's pairs are what it needs"
            ) from None

    def check(self, schedule: Schedule) -> None:
        """UserError unless there is an entry for every stage of `schedule`."""
        if self.stages != schedule.stages:
            raise UserError(
                f"{schedule} has {schedule.stages} stages, durations are given for {self.stages}"
            )


@dataclass(frozen=True)
class Held:
    """Bytes that a rank holds for one micro-batch, an entry for every stage.

    activations: from the start of its forward to the end of its backward. until_weight: the part of
    them that the weight gradient needs: held after I, to the end of W.
    """

    activations: Sequence[float]
    until_weight: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.activations) != len(self.until_weight):
            raise UserError(
                f"held: activations of {len(self.activations)} stages, but the part until the "
                f"weight gradient of {len(self.until_weight)}"
            )
        for stage, (whole, part) in enumerate(
            zip(self.activations, self.until_weight, strict=True)
        ):
            if not 0 <= part <= whole or not isfinite(whole):
                raise UserError(
                    f"held: stage {stage} keeps {part} of {whole} bytes until its weight gradient; "
                    "it must be a part of them"
                )

    def check(self, schedule: Schedule) -> None:
        """UserError unless there is an entry for every stage of `schedule`."""
        if len(self.activations) != schedule.stages:
            raise UserError(
                f"{schedule} has {schedule.stages} stages, bytes are given for "
                f"{len(self.activations)}"
            )


def _check_seconds(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        if not (isfinite(value) and value >= 0):
            raise UserError(f"{name}: {value} seconds; durations are finite and not negative")
