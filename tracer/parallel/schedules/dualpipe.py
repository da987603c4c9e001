"""DualPipe and DualPipeV (arXiv 2412.19437, figure 5; deepseek-ai/DualPipe).

DualPipe feeds micro-batches from both ends. Rank r holds stage r for those that come from the left
(even numbers here) and stage PP-1-r for those from the right (odd numbers). DualPipeV is one half
of it folded on itself: PP/2 ranks, rank r holds stages r and PP-1-r, and every micro-batch passes
each rank twice. Both run the same order; only what the two chunks of a rank are called differs.

The published bubble, (PP/2-1)(F&B + B - 3W), is that of the ranks in the middle (where the V turns)
for F = I, W <= I and F&B no shorter than F or B. What these lists take for other ratios is
    max((PP/2-1)(F&B + F - 2W), (PP/2-1)(F&B + I - 2W) - F)
with B = I + W: the published formula counts the hops of the first half as long as an I, but they
are forwards. Ranks off the middle run fewer F&B, compute F + B - F&B longer for each that they run
apart, and are idle for that much less. tests/parallel/test_published_bubbles.py holds all of it.
"""

from __future__ import annotations

from collections import deque

from ...errors import UserError
from .schedule import Action, Schedule


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """Both directions, 2x parameters. `ranks` even, `microbatches` even and at least 2·ranks."""
    if ranks < 2 or ranks % 2:
        raise UserError(f"dualpipe: {ranks} ranks; it needs an even number, two or more")
    if microbatches % 2 or microbatches < 2 * ranks:
        raise UserError(
            f"dualpipe: {microbatches} micro-batches on {ranks} ranks; it needs an even number, "
            f"half for each direction, and at least {2 * ranks} (2 x ranks)"
        )
    actions = []
    for rank in range(ranks):
        near = min(rank, ranks - 1 - rank)
        mirrored = rank >= ranks // 2  # its first chunk serves the micro-batches from the right
        numbers = range(mirrored, microbatches, 2), range(1 - mirrored, microbatches, 2)
        actions.append(_order(ranks // 2, near, numbers))
    held = tuple((rank, ranks - 1 - rank) for rank in range(ranks))
    return Schedule("dualpipe", ranks, microbatches, held, tuple(actions), period=2)


def dualpipev(ranks: int, microbatches: int) -> Schedule:
    """V-shaped: two stages a rank, parameters once. At least 2·ranks (as many as stages)."""
    if ranks < 1 or microbatches < 2 * ranks:
        raise UserError(
            f"dualpipev: {microbatches} micro-batches on {ranks} ranks; it needs at least "
            f"{2 * ranks} (as many as stages)"
        )
    numbers = range(microbatches), range(microbatches)
    actions = tuple(_order(ranks, rank, numbers) for rank in range(ranks))
    held = tuple((rank, 2 * ranks - 1 - rank) for rank in range(ranks))
    return Schedule("dualpipev", 2 * ranks, microbatches, held, actions, period=1)


def _order(half: int, near: int, numbers: tuple[range, range]) -> tuple[Action, ...]:
    """The eight steps of the published code for one rank.

    half: ranks from an end to the turn. near: this one's distance from the end. numbers: the
    micro-batches that go through its two chunks, which are stages near and 2·half-1-near.
    """
    stages, count = (near, 2 * half - 1 - near), len(numbers[0])
    order: list[Action] = []
    waiting: deque[tuple[int, int]] = deque()  # weight gradients that were put off
    forwards, backwards = [0, 0], [0, 0]
    away = half - near - 1

    def next_of(counter: list[int], chunk: int) -> tuple[int, int]:
        counter[chunk] += 1
        return stages[chunk], numbers[chunk][counter[chunk] - 1]

    def forward(chunk: int) -> None:
        order.append(Action("F", *next_of(forwards, chunk)))

    def backward(chunk: int, put_off: bool = False) -> None:
        mine = next_of(backwards, chunk)
        order.append(Action("I" if put_off else "B", *mine))
        if put_off:
            waiting.append(mine)

    def weight() -> None:
        order.append(Action("W", *waiting.popleft()))

    def both(ahead: int, back: int) -> None:
        order.append(Action("F&B", *next_of(forwards, ahead), next_of(backwards, back)))

    for _ in range(2 * away):  # 1: F0
        forward(0)
    for _ in range(near + 1):  # 2: F0 F1
        forward(0)
        forward(1)
    for _ in range(away):  # 3: I1 W1 F1
        backward(1, put_off=True)
        weight()
        forward(1)
    for i in range(count - 2 * half + near + 1):  # 4: F0&B1 F1&B0, the steady state
        if i == 0 and away == 0:  # apart, so that the neighbour gets its input sooner
            forward(0)
            backward(1)
        else:
            both(0, 1)
        both(1, 0)
    for _ in range(away):  # 5: B1 F1&B0
        backward(1)
        both(1, 0)
    # 6: B1 B0, of which the second half put their weight gradients off
    for i in range(2 * (near + 1)):
        backward(1 - i % 2, put_off=i > near)
    for _ in range(away):  # 7: W I0
        weight()
        backward(0, put_off=True)
    for _ in range(near + 1):  # 8: W
        weight()
    return tuple(order)
