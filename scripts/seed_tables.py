"""The 23 tables of the seed report, and what of ours answers each: a part of `compare_seed.py`.

`shown` is the page that sets both beside each other: `scripts/seed_beside.py` writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import seed_report_rules as rules
import seed_report_traced as traced
from seed_report_traced import anchor

from tracer.predict import take_inventory
from tracer.predict.inventory import Inventory
from tracer.predict.memory import memory
from tracer.report import text


@dataclass(frozen=True)
class Entry:
    """A table of the seed report.

    Attributes:
        section: its number there.
        title: its title there.
        counterpart: what of ours answers it.
        ours: a headline figure of that at the anchor, efficient, or "".
        shown: the page with both.
    """

    section: str
    title: str
    counterpart: str
    ours: Callable[[], str] = str
    shown: str = "seed_tables.md"


def inventory() -> Inventory:
    """Counted from a prefill at the anchor."""
    return take_inventory(traced.ledger(anchor("prefill")).trace, rules.BATCH * rules.LENGTH)


def shares() -> str:
    """Bytes by role of efficient decode."""
    roles = traced.ledger(anchor("decode")).total().bytes_by_role
    whole = sum(roles.values())
    return ", ".join(f"{role} {roles[role] / whole:.1%}" for role in ("weights", "kv", "temporary"))


def total_bytes() -> str:
    """Of the three phases."""
    return by_phase(lambda phase: text.size(traced.ledger(anchor(phase)).total().total_bytes))


def by_phase(what: Callable[[str], str]) -> str:
    """`what` of training, prefill and decode."""
    return ", ".join(f"{phase} {what(phase)}" for phase in rules.PHASES)


def seconds() -> str:
    """Steps."""
    return by_phase(lambda phase: text.seconds(traced.times(anchor(phase)).step))


def intensities() -> str:
    """FLOP/B of decode's lines."""
    lines = traced.lines(anchor("decode"))
    return ", ".join(
        f"{name} {traced.line_intensity(lines[name]):.3g} FLOP/B"
        for name in (rules.ATTENTION, rules.EXPERTS, rules.FFN)
    )


def resident() -> str:
    """Bytes that each phase holds."""
    return by_phase(lambda phase: text.size(memory(traced.ledger(anchor(phase))).total))


def ridge() -> str:
    """FLOP/B where FP8 products are as fast as memory."""
    chip = traced.chip()
    return f"ridge {chip.peak['fp8'] / chip.memory_bandwidth:.1f} FLOP/B in FP8"


def summed() -> str:
    """Parameters."""
    found = inventory()
    return f"{found.parameters:,} (gate biases counted), {found.active_parameters:,} active"


TABLES = (
    Entry("2", "Key Terms and Units", "README, *What the numbers mean*; conventions under results"),
    Entry("4.1", "Model Fingerprint", "header of the command: model, format, parameters"),
    Entry("4.1", "Config", "the model's own config.json; none is typed in"),
    Entry("4.3", "Parameter & Memory Summary", "`Inventory`, second line of the command", summed),
    Entry("4.4", "Module Size Breakdown", "`Session.tree()`: parameters, FLOPs and bytes a module"),
    Entry("5.2", "Notation", "arguments of `Workload`; B, S, L of the command"),
    Entry("5.3", "Execution / Kernel Assumptions",
          "`--exec naive`, `efficient`: which ops run, not factors; `--assume` for factors"),
    Entry("5.4", "Per-Module Formulas", "docs/ops.md: a formula an op; the modules follow"),
    Entry("5.6", "Byte Accounting", "six roles of bytes; gradients and optimizer besides its four"),
    Entry("5.7", "Byte Dominance Test", "shares of roles; `why()` names the largest", shares),
    Entry("5.8", "Mode Byte Decomposition", "`bytes` of each result in report.json", total_bytes),
    Entry("6.2", "Configuration & Assumptions", "conventions and timing notes under every result"),
    Entry("6.2", "Roofline Targets (FP8 Dense)", "`--list-chips`, hardware/chips", ridge),
    Entry("6.6.1", "Regime KPI Matrix", "the command's result table", seconds),
    Entry("6.6.2", "Category Delta Overview", "by module and by op under each result; the lines"
          " above", intensities),
    Entry("6.6.3", "Cross-Mode Summary", "the command's result table"),
    Entry("6.6.4", "Decode Batch Sweep", "`--phase decode --batch B`, a run a batch"),
    Entry("6.6.5", "Prefill Sequence Sweep", "`--phase prefill --seq S`, a run a length"),
    Entry("6.7", "Decode Compute-Bound Exploration", "corrected by hand above (A1 to A4)"),
    Entry("6.8", "Memory Feasibility", "`memory` under each result: peak of the trace's storages,"
          " chips at least", resident),
    Entry("6.9", "Communication Envelope", "hand formula only: one chip has no dispatch"),
    Entry("7", "Sensitivity Analysis", "`sensitivity_grid()` of the rules"),
    Entry("7.1", "Knob Ranking", "`knob_ranking()` of the rules; `Times.tornado()` for constants"),
)  # fmt: skip
