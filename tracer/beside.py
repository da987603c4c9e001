"""Work in a process of its own, beside what this one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from .collector import seldom


class Beside:
    """A process that does what it is given, one thing after another, and answers in that order.

    All that travels can be pickled: `work` is a function of a module.
    """

    def __init__(self, link: Connection) -> None:
        self._link = link

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        """Have `work(*args)` done, behind what was started before.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self._link.send((work, args))
        except OSError:
            raise RuntimeError("the process beside ended early") from None

    @property
    def ready(self) -> bool:
        """Whether an answer waits to be taken."""
        return self._link.poll()

    def answer(self) -> Any:
        """What the oldest work gave that was not asked for yet; waits for it.

        Raises:
            Exception: what the work raised.
            RuntimeError: its process ended without a word.
        """
        try:
            value, error = self._link.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process beside ended early") from None
        if error is not None:
            raise error
        return value


@contextmanager
def beside(meanwhile: Callable[[], Any] | None = None) -> Iterator[Beside]:
    """A process beside this one; leaving the block ends it, whatever it is doing.

    `meanwhile` is done there once, as soon as a work is answered and no other waits: imports that
    the next one will need.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, meanwhile), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    try:
        yield Beside(here)
    finally:
        process.terminate()
        process.join()
        here.close()


def _serve(link: Connection, meanwhile: Callable[[], Any] | None) -> None:
    with seldom():
        while True:
            try:
                work, args = link.recv()
            except EOFError:
                return
            try:
                found: tuple[Any, Any] = (work(*args), None)
            except Exception as error:
                found = (None, error)
            link.send(found)
            if meanwhile is not None and not link.poll():
                meanwhile()
                meanwhile = None
