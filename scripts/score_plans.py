"""Priced plans beside published and measured steps; `--write` puts the tables into docs/plans.md.

    python scripts/score_plans.py --data DIR [--write docs/plans.md]

DIR has `training_steps.csv` and `serving_tpot.csv` (the folder of `tracer.validate --data`); rows
that need them are left out where it is absent. DeepSeek's figures are restated here with
their sources. No constant was fitted to any of these rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tracer.capture.program import Program, load_program
from tracer.parallel.memory import Headroom
from tracer.parallel.plan import Plan
from tracer.predict.money import Money
from tracer.predict.serving import Serving, ServingStep, predict_serving
from tracer.predict.training import Assumptions, TrainingStep, predict_training

H100_BYTES = 81_559 * 2**20  # what nvidia-smi reports of an "80 GB" H100
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_8B = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32}  # fmt: skip
LLAMA_70B = {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A figure: what was published or measured, what comes out here, and how near it should be."""

    what: str
    published: float
    predicted: float
    unit: str
    within: float | None  # share; None: for orientation

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1

    def cells(self) -> list[str]:
        """A line of the table."""
        aim = "-" if self.within is None else f"{self.within:.0%}"
        if self.within is not None and abs(self.error) > self.within:
            aim += " MISSED"
        return [self.what, f"{self.published:,.4g}", f"{self.predicted:,.4g}", self.unit,
                f"{self.error:+.1%}", aim]  # fmt: skip


@cache
def llama(sizes: str) -> Program:
    """A Llama 3.1 by size, from its published config."""
    config = {"8b": LLAMA_8B, "70b": LLAMA_70B}[sizes]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"llama-3.1-{sizes}.json"
        path.write_text(json.dumps(config))
        return load_program(str(path))


@cache
def deepseek() -> Program:
    """DeepSeek-V3 in FP8."""
    return load_program("deepseek-ai/DeepSeek-V3", dtype="fp8")


@cache
def deepseek_training() -> TrainingStep:
    """ArXiv 2412.19437, section 3: PP16, EP64 over 8 nodes, ZeRO-1, no TP, DualPipe."""
    plan = Plan.parse(
        "pp=16 ep=64 dp=128 zero=1 micro_batches=120 schedule=dualpipe recompute=latent "
        "moments=bf16"
    )
    assume = Assumptions(gradients="fp32", kept="fp8", headroom=Headroom(0.03))
    return predict_training(
        deepseek(), plan, "h800_ib", seq=4096, assume=assume, money=Money(2.0, 14.8e12)
    )


def deepseek_rows() -> list[Row]:
    """ArXiv 2505.09343, table 4 (MPFT), and arXiv 2412.19437, table 1."""
    step = deepseek_training()
    slots = step.slots
    bubble = sum(step.pipeline.bubble) / len(step.pipeline.bubble)
    end = slots["data"] + slots["optimizer"]
    rest = 1.13 + 2.06 + 1.99 + 0.48 + 13.95 + 0.29
    assert abs(rest - 19.926) < 0.05  # the published split adds up
    hours = step.money.hours(step.tokens_per_s, step.plan.world) or 0.0
    dollars = step.money.dollars(step.tokens_per_s, step.plan.world) or 0.0
    return [
        Row("step", 19.926, step.seconds, "s", 0.15),
        Row("1F", 1.13, slots["F"], "s", 0.2),
        Row("bubble", 2.06, bubble, "s", 0.2),
        Row("1B (input gradient)", 1.99, slots["I"], "s", 0.2),
        Row("1W (weight gradient)", 0.48, slots["W"], "s", 0.2),
        Row("1F1B (F&B)", 13.95, slots["F&B"], "s", 0.2),
        Row("optimizer, with gradients and parameters exchanged", 0.29, end, "s", 0.2),
        Row("MFU, causal", 38.94, 100 * step.mfu, "% of BF16", 0.15),
        Row("MFU, not causal", 43.73, 100 * step.mfu_full, "% of BF16", 0.15),
        Row("GPU hours for 1e12 tokens", 180e3, step.gpu_hours_per_trillion, "h", 0.15),
        Row("GPU hours of 14.8e12 tokens", 2664e3, hours, "h", 0.15),
        Row("dollars of 14.8e12 tokens at 2 USD", 5.328e6, dollars, "USD", 0.15),
    ]


@cache
def llama_training(gradients: str) -> TrainingStep:
    """Llama-3.1-8B on 8 H100: TP1 PP1 CP2, 128 sequences of 8,192 tokens."""
    plan = Plan.parse("dp=4 cp=2 zero=1 micro_batches=32")
    assume = Assumptions(headroom=Headroom(0.03), gradients=gradients, capacity=H100_BYTES)
    return predict_training(llama("8b"), plan, "h100_ib", seq=8192, assume=assume)


def llama_training_rows(data: Path) -> list[Row]:
    """The two releases of one benchmark; neither says in which type gradients are summed."""
    found = []
    with (data / "training_steps.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["model"], row["dtype"], row["num_gpus"]) == ("llama3.1-8b", "bf16", "8"):
                tag = row["source"].split("tag ")[1].split()[0]
                found += [
                    Row(
                        f"{tag}, gradients in {name}", float(row["step_time_s"]),
                        llama_training(kind).seconds, "s", 0.1,
                    )
                    for kind, name in (("parameter", "BF16"), ("fp32", "FP32"))
                ]  # fmt: skip
    return found


@cache
def llama_decode(tp: int, batch: int, isl: int, osl: int) -> ServingStep:
    """Llama-3.1-70B with FP8 linears on H200, a CUDA graph, half of the output generated."""
    return predict_serving(
        llama("70b"), Plan(tp=tp), "h200_ib", "decode", batch=batch, context=isl + osl // 2,
        assume=Serving(weights="fp8", headroom=Headroom(0.05)),
    )  # fmt: skip


def llama_decode_rows(data: Path) -> list[Row]:
    """TPOT of vLLM; D12 of the cases are the rows of four requests."""
    found = []
    with (data / "serving_tpot.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row["backend"], row["isl"], row["osl"])
            batch, tp = int(float(row["conc"])), int(float(row["tp_size"]))
            if key != ("vllm", "1024", "1024"):
                continue
            step = llama_decode(tp, batch, 1024, 1024)
            found.append(Row(
                f"Llama-3.1-70B FP8, TP{tp}, {batch} requests, vLLM", float(row["silicon_tpot_ms"]),
                1e3 * step.seconds, "ms", 0.15 if batch == 4 else None,
            ))  # fmt: skip
    return found


@cache
def deepseek_serving() -> dict[str, ServingStep]:
    """The units of arXiv 2412.19437, section 3.4, and those that DeepSeek's service later ran."""
    two = Serving(micro_batches=2)

    def step(text: str, phase: str, batch: int, tokens: int) -> ServingStep:
        return predict_serving(
            deepseek(), Plan.parse(text), "h800_ib", phase, batch=batch, seq=tokens,
            context=tokens, assume=two,
        )  # fmt: skip

    return {
        "prefill, 32 GPUs, TP4+SP DP8 EP32": step(
            "tp=4 sp dp=8 ep=32 redundant=32", "prefill", 4, 4096
        ),
        "prefill, 32 GPUs, DP32 EP32": step("dp=32 ep=32 redundant=32", "prefill", 4, 4096),
        "decode, 320 GPUs, TP4 DP80 EP320": step(
            "tp=4 sp dp=80 ep=320 redundant=64", "decode", 128, 4989
        ),
        "decode, 144 GPUs, DP144 EP144": step("dp=144 ep=144 redundant=32", "decode", 128, 4989),
    }


def serving_table() -> str:
    """No marks: published rates are averages of a day's service."""
    rows = []
    for name, step in deepseek_serving().items():
        rows.append([
            name, step.batch, f"{1e3 * step.seconds:,.1f}", f"{1e3 * step.exposed:,.1f}",
            f"{8 * step.tokens_per_s_per_gpu / 1e3:,.1f}", f"{step.memory.total / 1e9:.0f}",
            "yes" if step.feasible else "NO",
        ])  # fmt: skip
    head = ["unit", "sequences a data rank", "step ms", "exposed ms", "k tokens/s a node", "GB",
            "fits"]  # fmt: skip
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    head = ["figure", "published", "predicted", "unit", "error", "within"]
    return tabulate([r.cells() for r in rows], head, tablefmt="github", disable_numparse=True)


def page(data: Path | None) -> str:
    """docs/plans.md."""
    prose = (Path(__file__).parent / "plans_page.md").read_text()
    measured = data is not None and (data / "training_steps.csv").exists()
    step = deepseek_training()
    parts: dict[str, Any] = {
        "deepseek": table(deepseek_rows()),
        "deepseek_memory": f"{step.memory.total / 1e9:.1f} GB: {step.memory}",
        "deepseek_notes": "\n".join(f"* {note}" for note in step.notes),
        "llama_training": table(llama_training_rows(data)) if measured and data else "(no data)",
        "llama_decode": table(llama_decode_rows(data)) if measured and data else "(no data)",
        "serving": serving_table(),
    }
    for name, text in parts.items():
        prose = prose.replace("{" + name + "}", text)
    return prose


def main() -> int:
    """Print, or write, the page."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--data", type=Path, help="folder of measured rows")
    p.add_argument("--write", type=Path, metavar="FILE", help="docs/plans.md")
    options = p.parse_args()
    text = page(options.data)
    if options.write:
        options.write.write_text(text)
        print(f"wrote {options.write}", file=sys.stderr)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
