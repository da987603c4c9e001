"""A pipeline schedule: for every rank the list of what it runs, in order. No time in it.

A *stage* is a slice of the model's layers, numbered along the forward pass; a *rank* is a device of
the pipeline. A rank may hold several stages (interleaved, V shapes), and DualPipe keeps every stage
on two ranks, one for each direction: which of them runs a micro-batch is said by the list in which
its action stands. F and backward of one stage and micro-batch always stand in the same list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .graph import Graph

KINDS = ("F", "B", "I", "W", "F&B")
WORDS = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
    "F&B": "overlapped forward and backward",
}


class Part(NamedTuple):
    """One of F, B, I, W of one micro-batch on one stage."""

    kind: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} of micro-batch {self.microbatch} on stage {self.stage}"


class Action(NamedTuple):
    """One slot of a rank.

    kind: F forward, B full backward, I gradient of the input, W gradient of the weights (I and W
    together are B), or F&B, a forward and a full backward that run overlapped in one slot.
    stage, microbatch: whose; of F&B the forward's. backward: F&B's other (stage, micro-batch).
    """

    kind: str
    stage: int
    microbatch: int
    backward: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it computes: F&B is an F and a B, anything else is itself."""
        if self.backward is None:
            return (Part(self.kind, self.stage, self.microbatch),)
        return Part("F", self.stage, self.microbatch), Part("B", *self.backward)

    def __str__(self) -> str:
        return " with ".join(map(str, self.parts))


@dataclass(frozen=True, eq=False)
class Schedule:
    """Actions of every rank in order.

    name: as in SCHEDULES. stages: number of stages. microbatches: all of a step, both directions.
    stages_of_rank: [ranks] the stages whose parameters each rank holds. actions: [ranks] lists.
    period: so many more micro-batches only repeat a part of every list; 0 if there is no such part.
    """

    name: str
    stages: int
    microbatches: int
    stages_of_rank: tuple[tuple[int, ...], ...]
    actions: tuple[tuple[Action, ...], ...]
    period: int = 0

    @property
    def ranks(self) -> int:
        return len(self.actions)

    @property
    def copies(self) -> float:
        """Ranks that hold a stage's parameters: 2 for DualPipe, else 1."""
        return sum(map(len, self.stages_of_rank)) / self.stages

    @cached_property
    def pairs(self) -> frozenset[tuple[int, int]]:
        """(stage of the forward, stage of the backward) of its F&B slots, for Durations."""
        return frozenset((a.stage, a.backward[0]) for _, a in self if a.backward is not None)

    @cached_property
    def graph(self) -> Graph:
        """Who waits for whom, checked; raises UserError as `check` does."""
        from .graph import compile_graph

        return compile_graph(self)

    def check(self) -> Schedule:
        """Itself, if every rank can run to its end.

        Raises:
            UserError: a micro-batch that is missing or runs twice, a stage on a rank that does not
                hold it, a backward before its forward, or ranks that wait for each other for ever.
        """
        _ = self.graph
        return self

    def __iter__(self) -> Iterator[tuple[int, Action]]:
        """(rank, action), rank by rank."""
        return ((rank, action) for rank, mine in enumerate(self.actions) for action in mine)

    def __str__(self) -> str:
        return f"{self.name}, {self.ranks} ranks, {self.microbatches} micro-batches"
