"""What is being done now, on a terminal's standard error; nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Say(Protocol):
    """Takes what is being done; with `total`, also how much of it is done."""

    def __call__(self, message: str, done: float = 0, total: float | None = None) -> None: ...


def quiet(message: str, done: float = 0, total: float | None = None) -> None:
    """Says nothing."""


@contextlib.contextmanager
def progress() -> Iterator[Say]:
    """A line with a spinner, and with a bar and the time that is left once a total is known.

    The line goes when the block ends, however it ends. A pipe or a file gets nothing.
    """
    if not sys.stderr.isatty():
        yield quiet
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    class Left(TimeRemainingColumn):
        def render(self, task):  # type: ignore[no-untyped-def]
            return super().render(task) if task.total else ""

    class Bar(BarColumn):
        def render(self, task):  # type: ignore[no-untyped-def]
            return super().render(task) if task.total else ""

    columns = (SpinnerColumn(), TextColumn("{task.description}"), Bar(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=None)

        def say(message: str, done: float = 0, total: float | None = None) -> None:
            shown.update(task, description=message, completed=done, total=total)

        yield say
