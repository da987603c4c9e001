"""The Gantt chart and the Chrome trace of a timeline."""

import json
import re

import pytest

from tracer.errors import UserError
from tracer.parallel.schedules import Durations, build, simulate
from tracer.report.chrome import pipeline_trace
from tracer.report.figures import empty
from tracer.report.gantt import gantt


def timeline(name="dualpipe", blocking=False):
    schedule = build(name, 4, 8)
    durations = Durations.even(
        schedule.stages, 1e-3, 1.2e-3, 0.8e-3, overlapped=2.5e-3, transfer=1e-4, blocking=blocking
    )
    return simulate(schedule, durations)


@pytest.mark.parametrize(
    ("name", "blocking", "labels"),
    [("1f1b", False, {"forward", "backward"}),
     ("1f1b", True, {"forward", "backward", "sending, nothing computed"}),
     ("zb1p", False, {"forward", "input gradient", "weight gradient"}),
     ("dualpipe", False, {f"{kind}{more}" for more in ("", ", rank's further stages") for kind in
                          ("forward", "backward", "input gradient", "weight gradient")})],
)  # fmt: skip
def test_the_chart_says_what_it_shows(tmp_path, monkeypatch, name, blocking, labels):
    kept = []

    def keep(size):
        kept.append(empty(size))
        return kept[-1]

    monkeypatch.setattr("tracer.report.gantt.empty", keep)
    drawn = timeline(name, blocking)
    gantt(drawn, tmp_path / "chart.svg")
    (figure,) = kept
    (axes,) = figure.axes
    assert {text.get_text() for text in figure.legends[0].get_texts()} == labels
    assert axes.get_xlabel() == "time since the start of the step, ms"
    assert axes.get_ylabel() == "pipeline rank"
    assert axes.get_xlim() == pytest.approx((0, drawn.step.seconds * 1e3))
    title = axes.get_title()
    assert title.startswith(f"{name}, 4 ranks, 8 micro-batches: ")
    share = float(re.search(r"([\d.]+)% bubble", title).group(1)) / 100
    assert share == pytest.approx(drawn.step.bubble_share, abs=6e-4)
    # Every bar of the timeline is there: as many as parts and sends, with their lengths in all.
    widths = [path.get_extents().width for bars in axes.collections for path in bars.get_paths()]
    slots = [slot for rank in range(4) for slot in drawn.of_rank(rank)]
    sends = [slot.free - slot.end for slot in slots if slot.free > slot.end]
    lengths = [slot.end - slot.start for slot in slots for _ in slot.action.parts] + sends
    assert len(widths) == len(lengths)
    assert sum(widths) == pytest.approx(sum(lengths) * 1e3)


def test_formats(tmp_path):
    gantt(timeline(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"cannot draw 'a.xyz'; suffixes: .*png"):
        gantt(timeline(), tmp_path / "a.xyz")
    assert not (tmp_path / "a.xyz").exists()


def test_chrome_trace_has_every_part_on_its_rank():
    drawn = timeline()
    trace = json.loads(json.dumps(pipeline_trace(drawn)))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    threads = {e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert threads == {0, 1, 2, 3}
    # 8 micro-batches through 4 stages: a forward and a backward each, a split one counts twice.
    split = sum(slot.action.kind == "W" for rank in range(4) for slot in drawn.of_rank(rank))
    assert split > 0
    assert len(slices) == 8 * 4 * 2 + split
    assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(drawn.step.seconds * 1e6)
    for rank in range(4):
        mine = {(e["ts"], e["dur"]) for e in slices if e["tid"] == rank}  # F&B twice at one place
        assert sum(dur for _, dur in mine) == pytest.approx(drawn.step.busy[rank] * 1e6)
    assert trace["otherData"]["step_s"] == drawn.step.seconds
