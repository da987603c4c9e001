"""Nests the ops of each thread, and gives every kernel its op and every op its module.

A GPU kernel belongs to the innermost op that launched it: by the `External id` that both carry,
else by the launch with its correlation id and the op that was open on that thread then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from .records import MeasuredKernel, MeasuredOp, Profile

Launches = Mapping[int, tuple[object, float, int | None]]


def linked(
    path: str, ops: list[MeasuredOp], kernels: list[MeasuredKernel], launches: Launches,
    notes: tuple[str, ...],
) -> Profile:  # fmt: skip
    """Nest the ops of each thread, give every kernel its op and every op its module."""
    roots: list[MeasuredOp] = []
    threads: dict[object, list[MeasuredOp]] = {}
    for op in ops:
        threads.setdefault(op.thread, []).append(op)
    for members in threads.values():
        stack: list[MeasuredOp] = []
        for op in sorted(members, key=lambda op: (op.start, -op.end)):
            while stack and stack[-1].end <= op.start:
                stack.pop()
            if stack:
                op.parent = stack[-1]
                stack[-1].children.append(op)
            else:
                roots.append(op)
            stack.append(op)
    by_id: dict[int | None, MeasuredOp] = {}
    by_id |= {op.external: op for op in ops if op.external is not None}
    opened = _Opened(roots)
    kernels.sort(key=lambda kernel: kernel.start)
    for kernel in kernels:
        found = by_id.get(kernel.external)
        launch = launches.get(kernel.correlation) if kernel.correlation is not None else None
        if found is None and launch is not None:
            thread, start, external = launch
            found = by_id.get(external) or opened.at(thread, start)
        kernel.op = found
        if found is not None:
            found.kernels.append(kernel)
    roots.sort(key=lambda op: op.start)
    return Profile(path, tuple(roots), tuple(kernels), _modules(ops), notes)


class _Opened:
    """Which op was open on a thread at a time."""

    def __init__(self, roots: list[MeasuredOp]) -> None:
        self._roots: dict[object, list[MeasuredOp]] = {}
        for op in roots:
            self._roots.setdefault(op.thread, []).append(op)

    def at(self, thread: object, time: float) -> MeasuredOp | None:
        level, found = self._roots.get(thread, []), None
        while level:
            place = bisect_right(level, time, key=lambda op: op.start) - 1
            if place < 0 or level[place].end < time:
                break
            if not level[place].is_module:
                found = level[place]
            level = level[place].children
        return found


def _modules(ops: list[MeasuredOp]) -> dict[MeasuredOp, str]:
    """The open `nn.Module` frames; a backward op has those of its forward, by sequence number."""
    own: dict[MeasuredOp, str] = {}
    forward: dict[int, str] = {}
    for op in ops:
        frames, at = [], op.parent
        while at is not None:
            if at.is_module:
                frames.append(at.name)
            at = at.parent
        own[op] = ".".join(reversed(frames))
        if own[op] and op.sequence is not None:
            forward[op.sequence] = own[op]
    for op in ops:
        at = op
        while at is not None and not own[op]:
            if at.sequence is not None:
                own[op] = forward.get(at.sequence, "")
            at = at.parent
    return own
