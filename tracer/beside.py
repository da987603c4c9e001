"""Work in a process of its own, beside what this one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def beside(work: Callable[..., Any], *args: Any) -> Iterator[Callable[[], Any]]:
    """Start `work(*args)` elsewhere; what is yielded waits for its answer.

    `work` is a function of a module, and all that travels can be pickled. Its exception is raised
    here, or RuntimeError if its process ended without a word. Leaving the block ends the process.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe

    def answer() -> Any:
        try:
            value, error = receiver.recv()
        except EOFError:
            raise RuntimeError("the process beside ended early") from None
        if error is not None:
            raise error
        return value

    try:
        yield answer
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _run(sender: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        found: tuple[Any, Any] = (work(*args), None)
    except Exception as error:
        found = (None, error)
    sender.send(found)
    sender.close()
