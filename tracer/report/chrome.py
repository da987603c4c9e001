"""The *predicted* timeline in Chrome's trace format: Perfetto and chrome://tracing open it."""

from __future__ import annotations

from typing import Any

from ..cost.timeline import timeline
from ..machine import Times
from ..parallel.schedules import Timeline

_PROCESS = 0


def chrome_trace(times: Times) -> dict[str, Any]:
    """Kernels as slices on one stream, memory by role as counters, microseconds.

    A kernel of a folded layer is one slice as long as all its launches together.
    """
    trace = times.ledger.trace
    live = timeline(trace, times.ledger.materialised).by_role
    events: list[dict[str, Any]] = [
        _meta("process_name", f"predicted on {times.chip.name}", 0),
        _meta("thread_name", "stream 0", 0),
    ]
    clock = 0.0
    for timed in times.kernels:
        kernel = timed.kernel
        duration = timed.total * 1e6
        events.append(
            {
                "ph": "X",
                "cat": kernel.phase,
                "name": kernel.name,
                "pid": _PROCESS,
                "tid": 0,
                "ts": clock,
                "dur": duration,
                "args": {
                    "module": kernel.module,
                    "bound": timed.bound,
                    "launches": kernel.launches,
                    "flops": kernel.cost.total_flops,
                    "bytes": kernel.cost.total_bytes,
                    "flop_per_byte": kernel.cost.intensity,
                },
            }
        )
        clock += duration
        after = max(part.op for part in kernel.parts) + 1
        events.append(
            {
                "ph": "C",
                "name": "memory",
                "pid": _PROCESS,
                "ts": clock,
                "args": {role: values[after] for role, values in live.items()},
            }
        )
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"kind": "prediction", "chip": times.chip.id, **trace.header},
    }


def pipeline_trace(timeline: Timeline) -> dict[str, Any]:
    """One thread a rank, one slice a slot (two nested ones for an overlapped F&B), microseconds."""
    schedule = timeline.schedule
    events = [_meta("process_name", f"predicted {schedule}", 0)]
    for rank in range(schedule.ranks):
        events.append(_meta("thread_name", f"rank {rank}", rank))
        for slot in timeline.of_rank(rank):
            for part in slot.action.parts:
                events.append(
                    {
                        "ph": "X",
                        "cat": slot.action.kind,
                        "name": f"{part.kind} {part.microbatch}",
                        "pid": _PROCESS,
                        "tid": rank,
                        "ts": slot.start * 1e6,
                        "dur": (slot.end - slot.start) * 1e6,
                        "args": part._asdict(),
                    }
                )
    step = timeline.step
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "kind": "prediction",
            "schedule": schedule.name,
            "step_s": step.seconds,
            "bubble_share": step.bubble_share,
        },
    }


def _meta(name: str, value: str, thread: int) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": _PROCESS, "tid": thread, "args": {"name": value}}
