"""What to check when a number looks wrong."""

from __future__ import annotations

from ..blocks import Column, Section, Table, Text
from ..facts import item_of, masks, routing
from ..summary import Study

# (symptom, cause, check); `_applies` says for which runs
_CHECKS: tuple[tuple[str, str, str], ...] = (
    ("FLOPs are twice or half of what you expected",
     "Multiply-accumulates counted as one, or causal attention counted over all pairs.",
     "FLOPs here are 2 a multiply-add, of causal attention those of S(S+1)/2 pairs; try "
     "`--assume causal=full`."),
    ("FLOPs are lower than 6 N T for training",
     "N holds parameters that are looked up, or that only some tokens meet.",
     "Compare with the parameters that a token meets; see Appendix A row by row."),
    ("naive has more FLOPs than efficient",
     "Naive attention computes masked pairs too.",
     "Compare the attention rows of both executions in `ops.csv`."),
    ("decode seems too fast",
     "Weights are read once a step.",
     "Look at bytes by role, and compare with the floor in Architectural limits."),
    ("decode of a small batch seems too fast for all these experts",
     "Experts are read only as far as they are hit.",
     "Try `--assume routing=all`."),
    ("decode gets faster per token without end as the batch grows",
     "The memory it would need is not there.",
     "Look at chips at least in the same row: such a throughput is hypothetical."),
    ("a phase is right of the ridge and still waits for memory",
     "The ridge compares sums; kernels do not overlap with one another.",
     "Sort the kernels by time in the page and look at those that wait for memory."),
    ("measured time is longer than P90",
     "Gaps of the host, other kernels (sampling, copies), a lower clock, another backend.",
     "Compare a profile kernel by kernel: `python -m tracer.compare profile.json`; try "
     "`--assume host=5e-6`, `--assume clock=0.9`."),
    ("measured time is shorter than P10",
     "Kernels that do more at once than the dataflow shows, or less work than was traced.",
     "Check that batch, length and precision are those of the run: see What was run."),
    ("memory is larger than measured",
     "Weights, gradients and optimizer state are held throughout; activations are those of "
     "autograd without checkpointing, as the module was written.",
     "Trace a module with checkpointing switched on: recomputed ops then have a pass of their "
     "own."),
    ("memory is smaller than measured",
     "Allocators round up and fragment; communication buffers, workspaces and the context of the "
     "driver are not in a trace.",
     "Leave 5 to 10 % of the chip for them."),
    ("an op is unmodelled",
     "It has no formula: its FLOPs count as 0 and its bytes as inputs plus outputs.",
     "Register one with `@tracer.cost(name)`, or run with `--strict` to be told."),
    ("the chip is uncalibrated",
     "No kernel was measured on it; shares of the peak are another chip's.",
     "Read P10-P90, or measure a few products and fit them (`scripts/calibrate.py`)."),
    ("times of one model differ between two runs of this program",
     "Another version, convention or assumption.",
     "Compare the tables of What was run and of the assumptions: the same trace on the same chip "
     "gives the same seconds on any machine."),
)  # fmt: skip


def _applies(study: Study, symptom: str) -> bool:
    """Whether a reader of this run could meet it."""
    phases = {step.workload.phase for step in study.steps}
    if symptom.startswith("decode"):
        return "decode" in phases and (any(routing(study)) or "experts" not in symptom)
    if symptom.startswith("naive"):
        return masks(study) and len({s.ledger.execution for s in study.steps}) > 1
    if "6 N T" in symptom:
        return "training" in phases and item_of(study) == "token"
    if symptom.startswith("FLOPs are twice"):
        return masks(study)
    return True


def section(study: Study) -> Section:
    """The checklist, written out."""
    return Section(
        "Appendix B: failure modes and a checklist",
        (
            Text(
                "In this order: is it the same workload (What was run), the same convention "
                "(Conventions), is every op modelled (Coverage), does the part that looks wrong "
                "add up (its table, then `ops.csv`), and only then: is the time model wrong."
            ),
            Table(
                "checklist",
                "What looks wrong, why it may be so, and what to do.",
                (
                    Column("symptom", "symptom"),
                    Column("cause", "likely cause"),
                    Column("check", "check"),
                ),
                [row for row in _CHECKS if _applies(study, row[0])],
            ),
        ),
    )
