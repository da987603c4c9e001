# ruff: noqa: E402 - the rules live with the tests
"""The seed report's 23 tables beside the tables of our report: writes docs/seed_tables.md.

    python scripts/seed_beside.py            # write docs/seed_tables.md
    python scripts/seed_beside.py --check    # fail if it would change

Its numbers come from its rules (tests/analytic/seed_report_*.py), ours from the tables of

    tracer --hf-config deepseek-ai/DeepSeek-V3 --dtype fp8 --batch 8 --seq 255 --context 255
           --chip h200_sxm --chip b200_sxm --out DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "analytic"))

import seed_report_rules as rules
import seed_report_studies as studies
from pages import write_or_check
from seed_tables import TABLES

from tracer.full_report import studied
from tracer.report.blocks import Table, placed
from tracer.report.sections import build
from tracer.report.text import seconds, si, size
from tracer.run import answer, parser

PAGE = ROOT / "docs" / "seed_tables.md"
COMMAND = ("--hf-config", "deepseek-ai/DeepSeek-V3", "--dtype", "fp8", "--batch", "8", "--seq",
           "255", "--context", "255", "--chip", "h200_sxm", "--chip", "b200_sxm")  # fmt: skip
Pair = tuple[str, Any, Any, Callable[[Any], str]]  # what, theirs, ours, how it reads
EXECUTIONS = {x.name: x for x in rules.EXECUTIONS}


class Report:
    """Tables of our report by name, and the section that each stands in."""

    def __init__(self) -> None:
        options = parser().parse_args(COMMAND)
        found = studied(options)._asdict()
        found.pop("remarks")
        study = replace(answer(options, f"tracer {' '.join(COMMAND)}"), **found)
        self.tables: dict[str, Table] = {}
        self.sections: dict[str, str] = {}
        for item in placed(build(study)):
            for block in item.section.blocks:
                if isinstance(block, Table):
                    self.tables[block.name] = block
                    self.sections[block.name] = f"{item.number} {item.section.title}"

    def rows(self, name: str, **where: Any) -> list[dict[str, Any]]:
        """Rows of a table with these values."""
        table = self.tables[name]
        keys = [column.key for column in table.columns]
        found = [dict(zip(keys, row, strict=True)) for row in table.rows]
        return [row for row in found if all(row[k] == v for k, v in where.items())]

    def one(self, name: str, column: str, **where: Any) -> Any:
        """The cell of the one such row."""
        (row,) = self.rows(name, **where)
        return row[column]


def anchor(phase: str, execution: str) -> rules.Step:
    """Its step at B = 8, S = L = 255."""
    return rules.PHASES[phase](rules.BATCH, rules.LENGTH, EXECUTIONS[execution])


def steps() -> Iterator[tuple[str, str, rules.Step]]:
    """Its six steps."""
    for phase in rules.PHASES:
        for execution in EXECUTIONS:
            yield phase, execution, anchor(phase, execution)


def ours(r: Report, column: str, phase: str, execution: str) -> Any:
    """A cell of our results on the H200."""
    return r.one("results", column, chip="h200_sxm", phase=phase, exec=execution)


def parameters(r: Report) -> Iterator[Pair]:
    total = sum(row["parameters"] for row in r.rows("parameters_by_category"))
    yield "parameters", rules.parameter_count(), total, lambda v: f"{v:,}"
    active = r.one("run", "value", what="parameters that a token meets")
    yield "active a token", None, int(str(active).strip("`").replace(",", "")), lambda v: f"{v:,}"


def targets(r: Report) -> Iterator[Pair]:
    for chip, peak, bandwidth in (("h200_sxm", rules.PEAK, rules.BANDWIDTH),
                                  ("b200_sxm", 4500e12, 8000e9)):  # fmt: skip
        mine = r.rows("roofs", chip=chip, precision="fp8")[0]
        yield f"{chip}, FP8", peak, mine["peak"], lambda v: f"{si(v)}FLOP/s"
        yield f"{chip}, memory", bandwidth, mine["bandwidth"], lambda v: f"{si(v)}B/s"
        yield f"{chip}, ridge", peak / bandwidth, mine["ridge"], number


def shares(r: Report) -> Iterator[Pair]:
    for phase in rules.PHASES:
        step = anchor(phase, "efficient")
        for role in ("weights", "activations", "kv", "temporary"):
            mine = r.one("dominance", role, phase=phase)
            yield f"{phase}, {role}", step.sum(role) / step.sum("bytes_hbm"), mine, "{:.1%}".format


def roles(r: Report) -> Iterator[Pair]:
    for phase, execution, step in steps():
        for role in ("weights", "activations", "kv", "temporary"):
            mine = r.one("bytes_by_role", role, phase=phase, exec=execution)
            yield f"{phase}, {execution}, {role}", step.sum(role), mine, size


def kpis(r: Report) -> Iterator[Pair]:
    for phase, execution, step in steps():
        name = f"{phase}, {execution}"
        yield f"{name}, FLOPs", step.sum("flops"), ours(r, "flops", phase, execution), flop
        yield f"{name}, bytes", step.sum("bytes_hbm"), ours(r, "bytes", phase, execution), size
        yield f"{name}, step", step.seconds, ours(r, "step", phase, execution), seconds
        yield f"{name}, regime", step.regime, ours(r, "regime", phase, execution), str


def modes(r: Report) -> Iterator[Pair]:
    for phase, execution, step in steps():
        name = f"{phase}, {execution}"
        mine = ours(r, "intensity", phase, execution)
        yield f"{name}, FLOP/B", step.intensity, mine, number
        mine = ours(r, "tokens_per_s", phase, execution)
        yield f"{name}, tokens/s", step.tokens_per_s, mine, number


_NAMES = {rules.ATTENTION: "attention", rules.EXPERTS: "experts", rules.FFN: "feed-forward",
          rules.HEAD: "head"}  # fmt: skip


def categories(r: Report) -> Iterator[Pair]:
    for phase in rules.PHASES:
        for line, category in _NAMES.items():
            for execution in EXECUTIONS:
                theirs = anchor(phase, execution).lines[line]
                mine = r.one("category_deltas", f"intensity_{execution}", phase=phase,
                             category=category)  # fmt: skip
                name = f"{phase}, {execution}, {category}, FLOP/B"
                yield name, theirs.flops / theirs.bytes_hbm, mine, number


def batches(r: Report) -> Iterator[Pair]:
    for row in r.rows("sweep_decode_batch_h200_sxm", exec="efficient"):
        if row["batch"] in studies.BATCHES:
            step = rules.decode(row["batch"], rules.LENGTH, EXECUTIONS["efficient"])
            yield f"B = {row['batch']}, FLOP/B", step.intensity, row["intensity"], number
            yield f"B = {row['batch']}, step", step.seconds, row["step"], seconds


def lengths(r: Report) -> Iterator[Pair]:
    for row in r.rows("sweep_prefill_seq_h200_sxm", exec="efficient"):
        if row["seq"] in studies.SEQUENCES:
            step = rules.prefill(rules.BATCH, row["seq"], EXECUTIONS["efficient"])
            yield f"S = {row['seq']:,}, FLOP/B", step.intensity, row["intensity"], number
            yield f"S = {row['seq']:,}, step", step.seconds, row["step"], seconds


def limits(r: Report) -> Iterator[Pair]:
    known = {(row["ep"], row["context"]): row for row in r.rows("decode_limits", chip="h200_sxm")}
    for found in studies.crossings():
        mine = known[found.ep, found.context]
        name = f"EP = {found.ep}, L = {found.context:,}"
        yield f"{name}, FLOP/B at most", found.hbm_intensity, mine["intensity"], number
        yield f"{name}, batch a GPU", found.batch or "none", mine["batch"] or "none", str
        yield f"{name}, limiter", found.limiter, mine["limiter"], str


def resident(r: Report) -> Iterator[Pair]:
    theirs = list(studies.resident(rules.BATCH, rules.LENGTH).values())
    training = r.rows("memory", phase="training", exec="efficient")[0]
    decode = r.rows("memory", phase="decode", exec="efficient")[0]
    yield "parameters (training: BF16 here)", theirs[0], training["weights"], size
    yield "KV cache", theirs[1], decode["kv"], size
    yield "gradients", theirs[2], training["gradients"], size
    yield "optimizer and master", theirs[3], training["optimizer"], size
    yield "saved activations", theirs[4], training["activations"], size
    yield "decode, all", theirs[5], decode["total"], size
    yield "training, all", theirs[6], training["total"], size


def dispatch(r: Report) -> Iterator[Pair]:
    for phase, tokens in (("prefill", rules.BATCH * rules.LENGTH), ("decode", rules.BATCH)):
        mine = next(row for row in r.rows("messages", phase=phase) if "64 h200" in row["group"])
        yield f"{phase}, sent (ours: EP 64)", studies.dispatched(tokens), mine["bytes"], size


def grid(r: Report) -> Iterator[Pair]:
    points = [p.step.seconds for p in studies.sensitivity_grid()]
    mine = [row["step"] for row in r.rows("grid_decode_efficient_h200_sxm")]
    yield "fastest decode of the grid", min(points), min(mine), seconds
    yield "slowest", max(points), max(mine), seconds


def ranking(r: Report) -> Iterator[Pair]:
    theirs = studies.knob_ranking()
    mine = r.rows("knobs_decode_efficient_h200_sxm")
    for place in range(max(len(theirs), len(mine))):
        left = theirs[place] if place < len(theirs) else None
        right = mine[place] if place < len(mine) else None
        yield (
            f"{place + 1}.", f"{left.name} {left.effect:+.1%}" if left else "-",
            f"{right['knob']} {right['effect']:+.1%}" if right else "-", str,
        )  # fmt: skip


def flop(value: float) -> str:
    return f"{si(value)}FLOP"


def number(value: float) -> str:
    return f"{value:,.4g}"


class Beside(NamedTuple):
    """One table: names of ours, why they differ, and pairs of numbers."""

    tables: str
    why: str
    pairs: Callable[[Report], Iterator[Pair]] | None = None


# In the order of `TABLES`.
BESIDE = (
    Beside("terms", "The same words, with what each is here; factors that we do not use say why."),
    Beside("fingerprint", "Read off the traced modules instead of typed in."),
    Beside("config", "The model's own config.json, all keys that are plain."),
    Beside("parameters_by_category run", "We count the gates' bias, 256 in each of 58 layers.",
           parameters),
    Beside("modules", "Parameters, bytes and instances by module of the trace; theirs are the "
           "largest weights of the checkpoint's index."),
    Beside("notation", "Ours are arguments of the run and keys of the config."),
    Beside("assumptions fusion", "Theirs are factors on bytes; ours are which ops and kernels run, "
           "so launches and bytes are counted, not scaled."),
    Beside("formulas_prefill formulas_decode formulas derivation_prefill",
           "Theirs are written by hand for five lines; ours come out of a trace with symbols, a "
           "line an op, and the appendix adds them up to the step's FLOPs."),
    Beside("bytes_by_role", "Gradients and optimizer are roles of their own here; theirs are in "
           "none.", roles),
    Beside("dominance", "Shares of all bytes, ours with gradients and optimizer; theirs divide "
           "bytes of weights by residency factors and halve those of activations.", shares),
    Beside("bytes_by_role", "As above, mode by mode; each phase has both executions."),
    Beside("run assumptions workloads", "Our time model has no eta or scalar fraction; what is "
           "assumed is listed with its value."),
    Beside("roofs", "Datasheets: 1,978.9 TFLOP/s of FP8; for the B200's memory see the source in "
           "hardware/chips/b200_sxm.toml.", targets),
    Beside("results waits", "Training: theirs is 3 times the FLOPs and 2 times the bytes of "
           "prefill, without an optimizer step or gradients; ours is traced with AdamW. Seconds "
           "of ours are sums over kernels with launches and measured efficiencies.", kpis),
    Beside("category_deltas", "Their bytes are after residency; ours read every touched weight "
           "once. Naive experts: permutation and casts are ops of their own here.", categories),
    Beside("results", "From the same sums.", modes),
    Beside("sweep_decode_batch_h200_sxm crossings_decode_batch_h200_sxm",
           "They read a half or a quarter of the weights and start no kernels: ours takes longer "
           "throughout, most where a step is short.", batches),
    Beside("sweep_prefill_seq_h200_sxm crossings_prefill_seq_h200_sxm",
           "Their attention has all S^2 pairs, ours S(S+1)/2; activations of ours are what "
           "kernels hand on.", lengths),
    Beside("decode_limits decode_batching", "They divide routed FLOPs by EP and count one layer's "
           "dispatch; rows a GPU do not fall with EP, and every layer sends (docs/seed_report.md, "
           "A1 to A4). Theirs are the first power of two at 0.9 of memory, ours the exact batch "
           "at 1.", limits),
    Beside("memory", "Training weights are BF16 with FP32 master and moments here; activations "
           "are what the trace keeps alive at its peak. GB is 1e9 here and 2^30 there.", resident),
    Beside("messages plans", "Theirs sends all rows of all tokens, one byte an element, on a "
           "single chip; ours sends what leaves a chip of 64, in the bytes of the trace.",
           dispatch),
    Beside("elasticities knobs_decode_efficient_h200_sxm grid_decode_efficient_h200_sxm",
           "Another grid: theirs varies the model (k, width, rank) and the cache's bytes at a "
           "fixed batch, ours the workload and the chip. Structure is swept by "
           "`python -m tracer.sweep` and `scripts/seed_study.py`.", grid),
    Beside("knobs_decode_efficient_h200_sxm", "Effects over different grids do not compare one by "
           "one; batch and bandwidth are not among theirs, and lead ours.", ranking),
)  # fmt: skip


def page() -> str:
    """The whole of docs/seed_tables.md."""
    r = Report()
    lines = [
        "# The seed report's tables, and ours",
        "",
        "Written by `scripts/seed_beside.py`. Left: what the seed report prints, by its rules; "
        "right: what our report of the same model and sizes shows. docs/seed_report.md explains "
        "the differences term by term. Seconds and tokens/s hold for a chip with room for it all.",
        "",
        f"    tracer {' '.join(COMMAND)} --out DIR",
        "",
    ]
    for entry, beside in zip(TABLES, BESIDE, strict=True):
        lines += [f"## {entry.section} {entry.title}", ""]
        where = dict.fromkeys(f"*{r.sections[name]}* (`{name}`)" for name in beside.tables.split())
        lines += [f"Ours: {', '.join(where)}. {beside.why}", ""]
        if beside.pairs is not None:
            rows = [row(*pair) for pair in beside.pairs(r)]
            lines += [tabulate(rows, ["", "seed report", "ours", "ratio"], tablefmt="github",
                               disable_numparse=True), ""]  # fmt: skip
    return "\n".join(lines)


def row(what: str, theirs: Any, mine: Any, show: Callable[[Any], str]) -> list[str]:
    """One line; a ratio where both are numbers."""
    texts = ["-" if value is None else show(value) for value in (theirs, mine)]
    both = all(isinstance(v, int | float) and v for v in (theirs, mine)) and show is not str
    return [what, *texts, f"{mine / theirs:,.3g}" if both else ""]


def main() -> int:
    """Write or compare."""
    return write_or_check(PAGE, page, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
