"""The progress line: on a terminal's standard error alone."""

from __future__ import annotations

import io
import sys

import pytest

from tracer.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_to_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as say:
        say("reading", 1, 2)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_what_is_done_and_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress() as say:
        say("tracing decode")
        say("of many points", 30, 120)
    shown = screen.getvalue()
    assert "of many points" in shown
    assert "━" in shown  # a bar, once a total is known


def test_the_line_goes_when_something_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match="broken"), progress() as say:
        say("half way", 1, 2)
        raise ValueError("broken")
    assert screen.getvalue().endswith(("\x1b[1A\x1b[2K", "\x1b[2K"))  # erases what it had drawn
    assert "\x1b[?25h" in screen.getvalue()  # and the cursor is back
