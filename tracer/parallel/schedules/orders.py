"""GPipe, 1F1B, interleaved 1F1B, ZB1P and ZB-V.

Own generators of a few lines each: importing torch's costs more than pricing a hundred plans. The
tests hold them against torch's orders, action by action.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import UserError
from .schedule import Action, Schedule


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards, both in order (arXiv 1811.06965)."""
    _at_least_one(ranks, microbatches)
    return Schedule(
        "gpipe", ranks, microbatches, tuple((rank,) for rank in range(ranks)),
        tuple(
            tuple(Action(kind, rank, i) for kind in "FB" for i in range(microbatches))
            for rank in range(ranks)
        ),
    )  # fmt: skip


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """1F1B (PipeDream-Flush, arXiv 2006.09503): rank r starts PP-1-r forwards ahead."""
    _at_least_one(ranks, microbatches)
    return _alternating("1f1b", ranks, microbatches, 1, 1, split=False)


def interleaved_1f1b(ranks: int, microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Interleaved 1F1B (Megatron-LM, arXiv 2104.04473): rank r holds stages r, r+PP, r+2·PP, ...

    Micro-batches go in rounds of about PP; their number must be a multiple of the rounds, of which
    there are microbatches // PP (as torch has it, which relaxes the paper's multiple of PP).
    """
    _at_least_one(ranks, microbatches)
    return _alternating("interleaved_1f1b", ranks, microbatches, stages_per_rank, 2, split=False)


def zb1p(ranks: int, microbatches: int, stages_per_rank: int = 1) -> Schedule:
    """ZB-H1 (arXiv 2401.10241): 1F1B with B split, rank r keeps r weight gradients for its drain.

    With more stages a rank it is torch's InterleavedZeroBubble.
    """
    _at_least_one(ranks, microbatches)
    return _alternating("zb1p", ranks, microbatches, stages_per_rank, 1, split=True)


def zbv(ranks: int, microbatches: int) -> Schedule:
    """ZB-V (arXiv 2401.10241, section 6): stages r and 2·PP-1-r on rank r, activations as 1F1B's.

    Free of bubbles but for filling the pipeline where F = I = W. It is laid out for 2·PP-1
    micro-batches or more; with fewer, those that do not exist are left out.
    """
    _at_least_one(ranks, microbatches)
    enough = max(2 * ranks - 1, microbatches)
    held = tuple((rank, 2 * ranks - 1 - rank) for rank in range(ranks))
    actions = []
    for rank in range(ranks):
        ahead = ranks - rank
        steps = "F0 " * (2 * ahead - 1) + "F1 F0 " * rank + "F1 I1 W1 " * ahead
        steps += "F0 I0 W0 F1 I1 W1 " * (enough - 2 * ranks + rank + 1)
        steps += "I0 W0 F1 I1 W1 " * (ahead - 1)
        steps += "I0 I1 " * rank + "I0 W0 " * ahead + "W1 " * rank + "W0 " * rank
        actions.append(tuple(_numbered(steps, held[rank], microbatches)))
    return Schedule("zbv", 2 * ranks, microbatches, held, tuple(actions), period=1)


def _numbered(steps: str, held: tuple[int, ...], microbatches: int) -> Iterator[Action]:
    """Steps like "F0 I1" (kind, chunk) with micro-batches in order; beyond the last one nothing."""
    seen = dict.fromkeys(steps.split(), 0)
    for step in steps.split():
        if seen[step] < microbatches:
            yield Action(step[0], held[int(step[1])], seen[step])
        seen[step] += 1


def _alternating(name: str, ranks: int, microbatches: int, stages_per_rank: int, per_hop: int,
                 *, split: bool) -> Schedule:  # fmt: skip
    """Warm up with forwards, then one forward and one backward in turns, then drain.

    per_hop: forwards that a rank starts ahead of its right neighbour. split: B as I and W, with
    W of rank r running r micro-batches later.
    """
    if stages_per_rank < 1:
        raise UserError(f"{name}: {stages_per_rank} stages a rank; it needs at least 1")
    rounds = max(1, microbatches // ranks)
    if stages_per_rank > 1 and microbatches % rounds:
        raise UserError(
            f"{name}: {microbatches} micro-batches over {ranks} ranks make {rounds} rounds of "
            f"unequal size; take a multiple of {rounds}, or of {ranks}"
        )
    per_round = microbatches // rounds
    total = stages_per_rank * microbatches
    actions = []
    for rank in range(ranks):
        held = [rank + chunk * ranks for chunk in range(stages_per_rank)]
        if stages_per_rank == 1:
            forward = [(rank, i) for i in range(microbatches)]
            backward = forward
        else:
            forward = list(_rounds(held, microbatches, per_round))
            backward = list(_rounds(held[::-1], microbatches, per_round))
        warmup = (stages_per_rank - 1) * per_round + per_hop * (ranks - 1 - rank)
        warmup = min(warmup, total)
        order = [Action("F", *forward[i]) for i in range(warmup)]
        for i in range(total):
            if warmup + i < total:
                order.append(Action("F", *forward[warmup + i]))
            order.append(Action("I" if split else "B", *backward[i]))
            if split and i >= rank:
                order.append(Action("W", *backward[i - rank]))
        if split:
            order += [Action("W", *backward[i]) for i in range(max(0, total - rank), total)]
        actions.append(tuple(order))
    held_by = tuple(tuple(range(rank, ranks * stages_per_rank, ranks)) for rank in range(ranks))
    whole_rounds = 0 if microbatches % ranks else ranks
    return Schedule(
        name, ranks * stages_per_rank, microbatches, held_by, tuple(actions),
        period=1 if stages_per_rank == 1 else whole_rounds,
    )  # fmt: skip


def _rounds(held: list[int], microbatches: int, per_round: int) -> Iterator[tuple[int, int]]:
    """(stage, micro-batch): a round of micro-batches through one stage after the other."""
    for first in range(0, microbatches, per_round):
        for stage in held:
            for microbatch in range(first, first + per_round):
                yield stage, microbatch


def _at_least_one(ranks: int, microbatches: int) -> None:
    if ranks < 1 or microbatches < 1:
        raise UserError(
            f"{ranks} ranks, {microbatches} micro-batches: a pipeline needs at least one of each"
        )
