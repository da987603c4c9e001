"""The communication envelope: every kind of message of a step."""

from __future__ import annotations

from ...predict.detail import COMMUNICATION, HOPS
from ...predict.messages import BETWEEN, END, Sent
from ..bars import draw_stacked
from ..blocks import Column, Drawing, Figure, Section, Text, section_of, table_of
from ..palette import MESSAGES
from ..plan_study import PlanStudy
from ..text import seconds


def section(study: PlanStudy) -> Section | None:
    """Absent of a plan that sends nothing."""
    sent = study.detail.sent
    if not sent:
        return None
    parts = study.detail.parts
    exposed = parts[COMMUNICATION] + parts.get(HOPS, 0.0)
    total = sum(s.seconds for s in sent)
    ends = study.step.plan.pp > 1 and any(s.part == END for s in sent)
    bars = [
        (name, {"exposed": sum(s.exposed for s in rows),
                "behind compute": sum(s.hidden for s in rows)})
        for name, rows in _by_axis(sent).items()
    ]  # fmt: skip
    return section_of(
        "Communication envelope",
        Text(
            f"A GPU's messages take {seconds(total)} a step; nothing hides {seconds(exposed)} of "
            f"that, {exposed / study.step.seconds:.1%} of the step."
            + (" What a stage waits for from another counts as bubble, so sends between stages are "
               "not exposed here." if any(s.part == BETWEEN for s in sent) and BETWEEN not in parts
               else "")
            + (" Two ranks hold each stage, one for each direction: its gradients are summed over "
               "both." if study.step.plan.schedule == "dualpipe" and len(study.detail.stages) > 1
               else "")
        ),
        table_of(
            "messages",
            "Messages of a step by kind, as one GPU sends them" + (
                ", those at its end as the rank that takes longest over them" if ends else ""
            ) + ". **bytes** is what it hands to the "
            "collective; **links** and **NIC** what then leaves over the node's links and the "
            "network. Exposed seconds of a group's passes are shared by its messages' time. Counts "
            "and scales that travel with routed rows are no rows here." + study.if_it_fit,
            (
                Column("part", "when"), Column("axis", "group", "code"),
                Column("collective", "collective", "code"), Column("type", "type"),
                Column("ranks", "ranks", "size"), Column("nodes", "nodes", "size"),
                Column("algorithm", "algorithm"), Column("calls", "calls", "times"),
                Column("bytes", "bytes", "B"), Column("links", "links", "B"),
                Column("nic", "NIC", "B"), Column("seconds", "time", "s"),
                Column("exposed", "exposed", "s"), Column("hidden", "hidden", "s"),
            ),
            [_row(s) for s in sent],
            ("all", "", "", "", None, None, "", sum(s.calls for s in sent),
             sum(s.bytes or 0.0 for s in sent), sum(s.links for s in sent),
             sum(s.nic for s in sent), total, sum(s.exposed for s in sent),
             sum(s.hidden for s in sent)),
        ),
        Figure(
            "messages",
            "Messages by group: what compute does not hide lengthens the step." + study.if_it_fit,
            Drawing(draw_stacked, (
                bars, MESSAGES, "time of a step's messages, of one GPU",
                f"{seconds(exposed)} of {seconds(total)} exposed",
            )),
            (8.0, 1.6 + 0.4 * len(bars)),
        ),
    )  # fmt: skip


def _row(s: Sent) -> tuple[object, ...]:
    sizes = (s.calls, s.bytes, s.links, s.nic) if s.bytes is not None else (None,) * 4
    return (
        s.part, s.axis, s.collective, s.dtype or None, s.group.ranks, s.group.domains,
        s.algorithm or None, *sizes, s.seconds, s.exposed, s.hidden,
    )  # fmt: skip


def _by_axis(sent: tuple[Sent, ...]) -> dict[str, list[Sent]]:
    found: dict[str, list[Sent]] = {}
    for s in sent:
        found.setdefault(f"{s.axis}, {s.part}", []).append(s)
    return found
