"""What would make a plan fit that does not: inputs that trade seconds for memory, fewer sequences,
more GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracer.hardware import Cluster

from ..errors import UserError
from ..parallel.plan import Plan
from ..predict.data_ranks import MOMENTS
from ..predict.training import Assumptions, GpuMemory, training_memory
from .plans import parameters_of

if TYPE_CHECKING:
    from ..capture.program import Program
    from ..predict.serving import Serving, ServingStep


@dataclass(frozen=True)
class Remedy:
    """Other inputs, as options of the command, and what a GPU would then hold."""

    options: str
    memory: GpuMemory


def remedies(
    program: Program, plan: Plan, cluster: Cluster | str, *, seq: int = 4096,
    assume: Assumptions | None = None,
) -> list[Remedy]:  # fmt: skip
    """Memory of `plan` with more computed again, activations in FP8, or moments in BF16.

    Memory only. Those come first that change least; ones that the model cannot have are left out.
    """
    assume = assume or Assumptions()
    ways = [(f"--recompute {r}", replace(plan, recompute=r), assume)
            for r in ("selective", "full")]  # fmt: skip
    latent = replace(plan, recompute="latent")
    ways.append(("--recompute latent --kept fp8", latent, replace(assume, kept="fp8")))
    ways = [way for way in ways if (way[1], way[2]) != (plan, assume)]
    if plan.moments == "fp32":
        ways = [("--moments bf16", replace(plan, moments="bf16"), assume), *ways, *(
            (f"{options} --moments bf16", replace(other, moments="bf16"), inputs)
            for options, other, inputs in ways
        )]  # fmt: skip
    found = []
    for options, other, inputs in ways:
        try:
            memory = training_memory(program, other, cluster, seq=seq, assume=inputs)
        except UserError:  # a model or a cut that has no such thing
            continue
        found.append(Remedy(options, memory))
    return found


def advice(found: list[Remedy]) -> str:
    """One line: the inputs that make it fit, or how near the best of them comes."""
    if not found:
        return "no other --recompute, --kept or --moments is known for this plan"
    fitting: list[str] = []
    for remedy in found:
        # What fits without a change of moments does so with one.
        if remedy.memory.fits and not any(remedy.options.startswith(o) for o in fitting):
            fitting.append(remedy.options)
    if fitting:
        return f"would fit with {', or '.join(fitting)}"
    best = min(found, key=lambda remedy: remedy.memory.total)
    return (
        f"does not fit with {best.options} either, the best of --recompute, --kept and --moments: "
        f"{best.memory.total / 1e9:,.1f} GB; take more GPUs, --pp, --ep or --zero"
    )


def serving_advice(program: Program, step: ServingStep, assume: Serving) -> str:
    """What of a server that does not fit would: sequences, or keys; else the fewest GPUs that have
    the room for its weights, held once, a byte an element in FP8 and two in BF16.
    """
    m = step.memory
    if step.largest_batch:
        keys = f", or keys up to {step.longest_context:,}" if step.longest_context else ""
        return f"what fits: up to {step.largest_batch:,} sequences of a data rank{keys}"
    alone = m.weights + m.reserve > m.capacity
    each = 1.0 if "fp8" in (program.dtype, assume.weights) else 2.0
    held = each * sum(parameters_of(program, step.plan))
    return (
        (f"weights alone are {m.weights / 1e9:,.1f} GB a GPU" if alone else "not one sequence fits")
        + ": cut them over more GPUs with --tp, --ep or --pp; weights held once are "
        f"{held / 1e9:,.0f} GB: at least {math.ceil(held / (m.capacity - m.reserve)):,} of these "
        "GPUs"
    )


def fewest(
    program: Program, plan: Plan, memory: GpuMemory, assume: Assumptions
) -> tuple[float, int]:
    """Bytes of a model's weights, gradients and optimizer, and GPUs that have the room for them.

    Held once by all GPUs together, as under ZeRO 3 (2 bytes an element, 2 or 4, and AdamW's master
    copy and two moments): activations and copies come on top, so that no plan does with fewer.

    Args:
        program: the model.
        plan: of its moments' type, and whether it trains an MTP module.
        memory: of any plan on the GPUs, for their capacity and what stays free.
        assume: of the type of gradients.
    """
    each = 2.0 + assume.gradient_bytes + 4.0 + 2 * MOMENTS[plan.moments]
    states = each * sum(parameters_of(program, plan))
    return states, math.ceil(states / (memory.capacity - memory.reserve))
