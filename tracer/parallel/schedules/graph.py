"""Who waits for whom in a schedule: slots in an order in which they can run, as flat arrays.

Every simulation and every check starts here; it is built once a schedule. A slot waits for the slot
before it on its rank and for at most two others: the forward on the stage before (F), the backward
on the stage after (B, I), or both (F&B).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .schedule import KINDS, Action, Schedule

Ints = NDArray[np.int64]


class Graph(NamedTuple):
    """Slots in a runnable order; -1 stands for none.

    rank, kind (index into KINDS) and stage, microbatch, back_stage, back_microbatch are [slots] as
    in Action. previous: [slots] the slot before it on its rank. waits: [slots, 2] the slots of
    other stages whose results it needs, the forward's first. hop: [slots, 2] the pair of stages
    (the lower one) that this result crosses, -1 where both are on one rank. forward, backward,
    weight: [stages, micro-batches] slots; `backward` is B or I, `weight` B or W. first, place:
    slots of rank r in its own order are place[first[r]:first[r + 1]].
    """

    rank: Ints
    kind: Ints
    stage: Ints
    microbatch: Ints
    back_stage: Ints
    back_microbatch: Ints
    previous: Ints
    waits: Ints
    hop: Ints
    forward: Ints
    backward: Ints
    weight: Ints
    first: Ints
    place: Ints


_KIND = {kind: i for i, kind in enumerate(KINDS)}
F, B, I, W, FB = range(5)  # noqa: E741


def compile_graph(schedule: Schedule) -> Graph:
    """Check `schedule` and lay out its slots; raises UserError as Schedule.check does."""
    flat = [action for mine in schedule.actions for action in mine]
    _check_shape(schedule, flat)
    lengths = [len(mine) for mine in schedule.actions]
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rank = np.repeat(np.arange(schedule.ranks), lengths)
    kind = np.array([_KIND[a.kind] for a in flat], np.int64)
    stage = np.array([a.stage for a in flat], np.int64)
    microbatch = np.array([a.microbatch for a in flat], np.int64)
    back = np.array([a.backward or (-1, -1) for a in flat], np.int64).reshape(-1, 2)
    has_back = (kind == B) | (kind == I)
    back[has_back] = np.stack([stage[has_back], microbatch[has_back]], axis=1)
    both = np.stack([[stage, microbatch], back.T], axis=-1)
    _check_bounds(schedule, flat, rank, *both)

    shape = schedule.stages, schedule.microbatches
    is_f, is_b, is_w = (kind == F) | (kind == FB), back[:, 0] >= 0, kind == W
    whole = (kind == B) | (kind == FB)
    forward = _table(schedule, shape, is_f, stage, microbatch, "forward", flat)
    backward = _table(schedule, shape, is_b, back[:, 0], back[:, 1], "backward", flat)
    w_stage = np.where(is_w, stage, back[:, 0])
    w_microbatch = np.where(is_w, microbatch, back[:, 1])
    weight = _table(schedule, shape, is_w | whole, w_stage, w_microbatch, "weight gradient", flat)
    _check_order(schedule, rank, forward, backward, weight)

    slots = len(flat)
    previous = np.arange(-1, slots - 1)
    previous[first[:-1]] = -1
    waits, hop = np.full((slots, 2), -1), np.full((slots, 2), -1)
    later = is_f & (stage > 0)
    waits[later, 0] = forward[stage[later] - 1, microbatch[later]]
    hop[later, 0] = stage[later] - 1
    earlier = is_b & (back[:, 0] < schedule.stages - 1)
    waits[earlier, 1] = backward[back[earlier, 0] + 1, back[earlier, 1]]
    hop[earlier, 1] = back[earlier, 0]
    # From rank to the same rank nothing is sent.
    hop[(waits >= 0) & (rank[waits] == rank[:, None])] = -1

    order = _runnable(schedule, first, waits)
    number = np.empty(slots + 1, np.int64)
    number[order] = np.arange(slots)
    number[-1] = -1
    return Graph(
        rank[order], kind[order], stage[order], microbatch[order], back[order, 0], back[order, 1],
        number[previous[order]], number[waits[order]], hop[order],
        number[forward], number[backward], number[weight], first, number[:-1],
    )  # fmt: skip


def _check_shape(schedule: Schedule, flat: list[Action]) -> None:
    for action in flat:
        if action.kind not in _KIND or (action.kind == "F&B") != (action.backward is not None):
            raise UserError(
                f"{schedule}: no kind of action {action.kind!r} with backward {action.backward}; "
                f"kinds: {', '.join(KINDS)}, and F&B alone has a backward"
            )
    for rank, mine in enumerate(schedule.actions):
        if not mine:
            raise UserError(f"{schedule}: rank {rank} has nothing to run")


def _check_bounds(schedule: Schedule, flat: list[Action], rank: Ints, stages: Ints,
                  microbatches: Ints) -> None:  # fmt: skip
    """stages, microbatches: [slots, 2] of the forward and the backward, -1 for none."""
    held = np.zeros((schedule.ranks, schedule.stages + 1), bool)
    held[:, -1] = True  # none
    for r, mine in enumerate(schedule.stages_of_rank):
        held[r, list(mine)] = True
    known = (stages >= -1) & (stages < schedule.stages)
    here = known & held[rank[:, None], np.where(known, stages, -1)]
    last = schedule.microbatches - 1
    for fits, why in (
        (here, "but holds stages {held} of {stages}"),
        (microbatches <= last, "beyond the last micro-batch, {last}"),
    ):
        if not fits.all():
            i = int(np.argmin(fits.all(axis=1)))
            text = why.format(
                held=", ".join(map(str, schedule.stages_of_rank[rank[i]])),
                stages=schedule.stages, last=last,
            )  # fmt: skip
            raise UserError(f"{schedule}: rank {rank[i]} runs the {flat[i]}, {text}")


def _table(schedule: Schedule, shape: tuple[int, int], mine: NDArray[np.bool_], stage: Ints,
           microbatch: Ints, word: str, flat: list[Action]) -> Ints:  # fmt: skip
    """[stages, micro-batches] the one slot that runs `word`."""
    where = np.flatnonzero(mine)
    cell = stage[where] * shape[1] + microbatch[where]
    count = np.bincount(cell, minlength=shape[0] * shape[1])
    if (count != 1).any():
        i = int(np.argmax(count != 1))
        times = "never runs" if not count[i] else f"runs {count[i]} times"
        raise UserError(
            f"{schedule}: the {word} of micro-batch {i % shape[1]} on stage {i // shape[1]} {times}"
        )
    table = np.empty(shape[0] * shape[1], np.int64)
    table[cell] = where
    return table.reshape(shape)


def _check_order(schedule: Schedule, rank: Ints, forward: Ints, backward: Ints, weight: Ints
                 ) -> None:  # fmt: skip
    """The parts of one micro-batch on one stage: on one rank, and in order (slots count up)."""
    for before, after, words in (
        (forward, backward, ("backward", "forward")),
        (backward, weight, ("weight gradient", "backward")),
    ):
        # A slot may be both the backward and the weight gradient, but not its own forward.
        wrong = (after < before) | ((after == before) & (words[1] == "forward"))
        for bad, why in ((rank[before] != rank[after], "on another rank than"), (wrong, "before")):
            if bad.any():
                s, m = np.unravel_index(int(np.argmax(bad)), bad.shape)
                raise UserError(
                    f"{schedule}: rank {rank[after[s, m]]} runs the {words[0]} of micro-batch {m} "
                    f"on stage {s} {why} its {words[1]}"
                )


def _runnable(schedule: Schedule, first: Ints, waits: Ints) -> list[int]:
    """Slots in an order in which each comes after all that it waits for."""
    need = waits.tolist()
    done = [False] * (len(need) + 1)
    done[-1] = True  # waiting for nothing
    order: list[int] = []
    at, ends = first[:-1].tolist(), first[1:].tolist()
    moved = True
    while moved:
        moved = False
        for r, end in enumerate(ends):
            i = at[r]
            while i < end and done[need[i][0]] and done[need[i][1]]:
                done[i] = True
                order.append(i)
                i += 1
            moved |= i > at[r]
            at[r] = i
    if len(order) < len(need):
        raise UserError(_deadlock(schedule, first, at, need, done))
    return order


def _deadlock(schedule: Schedule, first: Ints, at: list[int], need: list[list[int]],
              done: list[bool]) -> str:  # fmt: skip
    """The circle of ranks that wait for each other."""
    flat = [action for mine in schedule.actions for action in mine]

    def rank_of(slot: int) -> int:
        return int(np.searchsorted(first, slot, side="right")) - 1

    def blocker(rank: int) -> int:
        return next(slot for slot in need[at[rank]] if not done[slot])

    rank = next(r for r in range(schedule.ranks) if at[r] < first[r + 1])
    seen: list[int] = []
    while rank not in seen:
        seen.append(rank)
        rank = rank_of(blocker(rank))
    circle = seen[seen.index(rank) :]
    told = "; ".join(
        f"rank {r} waits in the {flat[at[r]]} for the {flat[blocker(r)]} of rank "
        f"{rank_of(blocker(r))}"
        for r in circle
    )
    return f"{schedule}: deadlock: {told}"
