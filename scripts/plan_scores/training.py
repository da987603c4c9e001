"""Training steps: DeepSeek-V3 on 2,048 H800, Llama-3.1-8B on 8 H100."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from tracer.machine import Timing
from tracer.parallel.plan import Plan
from tracer.parallel.schedules import Schedule, build
from tracer.predict.money import Money
from tracer.predict.structure import Kernels
from tracer.predict.training import Assumptions, TrainingStep, predict_training

from .rows import Row, deepseek, llama, markdown


@cache
def deepseek_training(
    recompute: str = "latent", casts: str = "one_pass", rows: str = "vector", load: str = "kernel",
    engine: str = "fused", *, mtp: bool = True, split: type[Plan] = Plan,
) -> TrainingStep:  # fmt: skip
    """ArXiv 2412.19437, section 3: PP16, EP64 over 8 nodes, ZeRO-1, no TP, DualPipe; MTP as in 4.2.

    `split`: a `Plan` that splits layers over stages in another way.
    """
    plan = split.parse(
        "pp=16 ep=64 dp=128 zero=1 micro_batches=120 schedule=dualpipe moments=bf16 "
        f"recompute={recompute} mtp={'yes' if mtp else 'no'}"
    )
    assume = deepseek_assumes(recompute, casts, rows, load, engine)
    return predict_training(
        deepseek(), plan, "h800_ib", seq=4096, assume=assume, money=Money(2.0, 14.8e12)
    )


def deepseek_assumes(
    recompute: str = "latent", casts: str = "one_pass", rows: str = "vector", load: str = "kernel",
    engine: str = "fused",
) -> Assumptions:  # fmt: skip
    """What that step rests on."""
    kernels = Kernels(Timing(rows=rows, load=load), casts=casts)
    kept = "fp8" if recompute == "latent" else "trace"
    return Assumptions(kernels=kernels, gradients="fp32", kept=kept, engine=engine)


VARIANTS = (
    ("latent", "one_pass", "vector", "kernel", "fused", True),
    ("latent", "one_pass", "vector", "kernel", "fused", False),
    ("latent", "one_pass", "vector", "sustained", "fused", True),
    ("latent", "one_pass", "vector", "kernel", "traced", True),
    ("selective", "one_pass", "vector", "kernel", "fused", True),
    ("latent", "traced", "vector", "kernel", "fused", True),
    ("latent", "one_pass", "torch", "kernel", "fused", True),
    ("latent", "traced", "torch", "kernel", "traced", True),
)


def deepseek_variants() -> str:
    """The step under other assumptions of its kernels, and without MTP."""
    lines = []
    for *names, mtp in VARIANTS:
        seconds = deepseek_training(*names, mtp=mtp).seconds
        lines.append(["yes" if mtp else "no", *names, *_beside(seconds)])
    head = ["MTP", "recompute", "casts", "rows", "load", "engine", "step s", "error"]
    return markdown(lines, head)


def _beside(seconds: float) -> list[str]:
    """A step, and how far it is off."""
    return [f"{seconds:.2f}", f"{seconds / 19.926 - 1:+.1%}"]


class _OneLayer(Plan):
    """The MTP module counts as one layer where layers are split, its pass through the head not."""

    def layers_of(self, stage: int, layers: int) -> range:
        if not self.mtp:  # a layer that is traced alone
            return super().layers_of(stage, layers)
        each, more = divmod(layers + 1, self.stages)
        start = stage * each + min(stage, more)
        return range(start, start + each + (stage < more))


class _NoLayer(Plan):
    """Layers are split as without the MTP module, which the last stage has on top."""

    def layers_of(self, stage: int, layers: int) -> range:
        if not self.mtp:
            return super().layers_of(stage, layers)
        each, more = divmod(layers, self.stages)
        start = stage * each + min(stage, more)
        last = stage == self.stages - 1
        return range(start, start + each + (stage < more) + last)


def deepseek_splits() -> str:
    """The step with MTP by how the 61 layers are split over the 16 stages."""
    lines = []
    for split, what in ((Plan, "two layers"), (_OneLayer, "one layer"), (_NoLayer, "nothing")):
        step = deepseek_training(split=split)
        last = len(step.plan.layers_of(15, 61)) - 1
        fits = "yes" if step.memory.fits else "no"
        held = f"{step.memory.total / 1e9:.1f}"
        lines.append([what, last, *_beside(step.seconds), held, fits])
    head = ["MTP counts as", "layers beside it", "step s", "error", "fullest GPU, GB", "fits"]
    return markdown(lines, head)


def deepseek_mtp() -> str:
    """Every figure with MTP and without."""
    lines = []
    for with_it, without in zip(deepseek_rows(), deepseek_rows(mtp=False), strict=True):
        found = (f"{row.predicted:,.4g}" for row in (with_it, without))
        errors = (f"{row.error:+.1%}" for row in (with_it, without))
        a, b = zip(found, errors, strict=True)
        lines.append([with_it.what, f"{with_it.published:,.4g}", *a, *b, with_it.unit])
    return markdown(lines, ["figure", "published", "with MTP", "error", "without", "error", "unit"])


@cache
def dualpipe() -> Schedule:
    """The schedule of that step."""
    plan = deepseek_training().plan
    return build(plan.schedule, plan.pp, plan.micro_batches)


def bubble_of(step: TrainingStep) -> float:
    """Seconds that a rank waits for others, the mean over the pipeline."""
    return sum(step.pipeline.bubble) / len(step.pipeline.bubble)


def deepseek_rows(*, mtp: bool = True) -> list[Row]:
    """ArXiv 2505.09343, table 4 (MPFT), and arXiv 2412.19437, table 1.

    MFU counts FLOPs without those of the MTP module, with it or without: the published ones do.
    """
    step = deepseek_training(mtp=mtp)
    slots = step.slots
    bubble = bubble_of(step)
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
        Row("1B and 1W", 1.99 + 0.48, slots["I"] + slots["W"], "s", None),
        Row("1F1B (F&B)", 13.95, slots["F&B"], "s", 0.2),
        Row("optimizer, with gradients and parameters exchanged", 0.29, end, "s", 0.2),
        Row("MFU, causal, FLOPs without MTP's", 38.94, 100 * step.mfu, "% of BF16", 0.15),
        Row("MFU, not causal, FLOPs without MTP's", 43.73, 100 * step.mfu_full, "% of BF16", 0.15),
        Row("GPU hours for 1e12 tokens", 180e3, step.gpu_hours_per_trillion, "h", 0.15),
        Row("GPU hours of 14.8e12 tokens", 2664e3, hours, "h", 0.15),
        Row("dollars of 14.8e12 tokens at 2 USD", 5.328e6, dollars, "USD", 0.15),
    ]


@cache
def llama_training(gradients: str, load: str = "kernel") -> TrainingStep:
    """Llama-3.1-8B on 8 H100: TP1 PP1 CP2, 128 sequences of 8,192 tokens."""
    plan = Plan.parse("dp=4 cp=2 zero=1 micro_batches=32")
    kernels = Kernels(Timing(rows="vector", load=load))
    assume = Assumptions(kernels=kernels, gradients=gradients)
    return predict_training(llama("8b"), plan, "h100_ib", seq=8192, assume=assume)


def llama_training_rows(data: Path) -> list[Row]:
    """Two releases of one benchmark; NeMo sums gradients of BF16 runs in FP32 by default."""
    found = []
    with (data / "training_steps.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["model"], row["dtype"], row["num_gpus"]) == ("llama3.1-8b", "bf16", "8"):
                tag = row["source"].split("tag ")[1].split()[0]
                found += [
                    Row(
                        f"{tag}, gradients in {name}{more}", float(row["step_time_s"]),
                        llama_training(kind, load).seconds, "s", 0.1,
                    )
                    for kind, name in (("parameter", "BF16"), ("fp32", "FP32"))
                    for load, more in (("kernel", ""), ("sustained", ", long load"))
                ]  # fmt: skip
    return found
