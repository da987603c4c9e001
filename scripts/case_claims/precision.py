"""FP8: formats, scaling, code, peaks and what it gains in time."""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.hardware import load_chip
from tracer.machine import Times, time_ledger
from tracer.models import fp8
from tracer.parallel import rank_trace

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

OPENING = Section("Case Study: DeepSeek-V3")
USES = Section("FP8 Training")
FORMATS = Section("FP8 Formats")
LINEAR = Section("Mixed Precision Strategy")
SCALING = Section("Scaling Strategies")
GRADIENTS = Section("FP8 Gradient Handling")
COMPUTE = Section("Compute Advantage")
LESSON = Section("Lesson 1: Architectural Efficiency Dominates")
TAKEAWAYS = Section("Key Takeaways")


@USES.claim(269, "DeepSeek-V3 extensively uses FP8", None, "% of the FLOPs")
def extensively(case: Case) -> Answer:
    """Share of the traced step's matrix FLOPs, 4 MoE layers, whose operands are FP8."""
    flops = stage_times(case, "fp8").ledger.total().flops
    return holds(
        100 * flops["fp8"] / sum(flops.values()),
        "attention's core and the "
        "gate stay in BF16, as do embedding, head, norms and all that is no product",
    )


def _mantissa(case: Case, which: int) -> Answer:
    return holds(round(-math.log2(torch.finfo(case.formats[which]).eps)))


@FORMATS.claim(277, "| E4M3 | 1 | 4 | 3 |", "3", "mantissa bits", exact=True)
def narrow_bits(case: Case) -> Answer:
    """-log2 of the eps of torch's type."""
    return _mantissa(case, 0)


@FORMATS.claim(278, "| E5M2 | 1 | 5 | 2 |", "2", "mantissa bits", exact=True)
def wide_bits(case: Case) -> Answer:
    """-log2 of the eps of torch's type."""
    return _mantissa(case, 1)


def _largest(case: Case, which: int) -> Answer:
    return holds(torch.finfo(case.formats[which]).max)


@FORMATS.claim(277, "| E4M3 | 1 | 4 | 3 | ±448 |", "448", "", exact=True)
def narrow_range(case: Case) -> Answer:
    """Largest number of torch's type."""
    return _largest(case, 0)


@FORMATS.claim(278, "| E5M2 | 1 | 5 | 2 | ±57344 |", "57344", "", exact=True)
def wide_range(case: Case) -> Answer:
    """Largest number of torch's type."""
    return _largest(case, 1)


def _precision(case: Case, which: int) -> Answer:
    dtype = case.formats[which]
    eps = torch.finfo(dtype).eps
    at_most = eps / 2 / (1 + eps / 2)
    return assuming(
        100 * fp8.rounding_error(dtype),
        "the RMS step error over the smallest number "
        "of a binade; over numbers as they come it is ours, and at most "
        f"{100 * at_most:.1f} %",
        100 * eps / 2 / 3**0.5,
    )


@FORMATS.claim(277, "~3.6% relative", "3.6", "%")
def narrow_precision(case: Case) -> Answer:
    """RMS relative error of an element, mantissas log-uniform (`fp8.rounding_error`)."""
    return _precision(case, 0)


@FORMATS.claim(278, "~7% relative", "7", "%")
def wide_precision(case: Case) -> Answer:
    """RMS relative error of an element, mantissas log-uniform (`fp8.rounding_error`)."""
    return _precision(case, 1)


def _draw(case: Case, rows: int = 1024) -> torch.Tensor:
    return torch.randn(rows, rows, generator=case.generator())


@FORMATS.claim(281, "**E5M2**: Lower precision, larger range → gradients", None, "× the error")
@GRADIENTS.claim(350, "Gradients use E5M2 for larger dynamic range", None, "× the error")
@functools.cache
def gradient_format(case: Case) -> Answer:
    """Error in the norm of a drawn gradient in E5M2 over that in E4M3, both in 1×128 tiles."""
    x = _draw(case)
    narrow, wide = (fp8.error_of(x, "tile", dtype).norm for dtype in case.formats)
    return wrong(
        wide / narrow,
        "true of what was usual before; V3 has E4M3 "
        "everywhere, since scales by tile give the range (`fp8.Recipe().gradient` is "
        f"{fp8.Recipe().gradient})",
    )


class SeedLinear(nn.Module):
    """The seed's `FP8Linear`: weights quantised apart from the forward."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight_fp8: torch.Tensor | None = None
        self.weight = nn.Parameter(torch.ones(rows, columns))

    def quantize_weight(self) -> None:
        """Into E4M3 with one scale."""
        self.scale = self.weight.abs().max() / 448
        self.weight_fp8 = (self.weight / self.scale).to(torch.float8_e4m3fn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] to [M, N]."""
        scale = x.abs().max() / 448
        return torch._scaled_mm(
            (x / scale).to(torch.float8_e4m3fn),
            self.weight_fp8.t(),  # type: ignore[union-attr]
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
        )


@LINEAR.claim(286, "class FP8Linear(nn.Module):")
def linear_trains(case: Case) -> Answer:
    """The seed's layer, restated, forward and backward on the CPU; beside `fp8.MasterLinear`."""
    layer, x = SeedLinear(32, 32), torch.ones(16, 32, requires_grad=True)
    layer.quantize_weight()
    ours = fp8.MasterLinear(32, 32)
    ours(x).sum().backward()
    trained = "has" if ours.weight.grad is not None else "lacks"
    try:
        layer(x).sum().backward()
    except RuntimeError as error:
        return wrong(
            f"RuntimeError: {str(error).splitlines()[0].split(',')[0]}",
            "the product has no derivative, so the layer infers and does not train, and "
            "nothing quantises the master weight again after a step; an autograd "
            f"function with all three products does ({trained} a gradient)",
        )
    return holds("trains", "torch has a derivative")


@LINEAR.claim(301, "self.weight_scale = abs_max / 448", None, "= scale · max / amax", exact=True)
@LINEAR.claim(306, "x_scale = x.abs().max() / 448", None, "= scale · max / amax", exact=True)
@SCALING.claim(327, r"\text{scale} = \frac{\max|x|}", None, "= scale · max / amax", exact=True)
def tensor_scale(case: Case) -> Answer:
    """The scale that `fp8.quantize` gives a drawn tensor × the format's largest over its
    largest.
    """
    x = _draw(case, 64)
    scale = fp8.quantize(x, "tensor").scales.double()
    return holds(round((scale * torch.finfo(fp8.E4M3).max / x.abs().max()).item(), 6), seed=1.0)


@FORMATS.claim(280, "**E4M3**: Higher precision, smaller range → activations, weights")
def operand_format(case: Case) -> Answer:
    """Types of a weight and an activation in the library's recipe of V3, each quantised."""
    recipe, x = fp8.Recipe(), torch.ones(128, 128)
    found = {str(recipe.weight(x).values.dtype), str(recipe.tokens(x).values.dtype)}
    return holds(" and ".join(sorted(found)), "and gradients as well")


@LINEAR.claim(295, "# Master weights in FP32 for optimizer")
def master(case: Case) -> Answer:
    """Type of the weight of `fp8.MasterLinear`."""
    return holds(str(fp8.MasterLinear(4, 4).weight.dtype), "as in V3")


@LINEAR.claim(310, "# Result accumulated in FP16 or FP32", None, "% off")
@functools.cache
def accumulation(case: Case) -> Answer:
    """Largest error over the RMS of 4096-term products of positives, summed as Hopper does."""
    generator = case.generator()
    a, b = (fp8.quantize(torch.rand(8, 4096, generator=generator), "tensor") for _ in range(2))
    want = a.dequantize().double() @ b.dequantize().double().t()
    off = fp8.product(a, b, torch.float32, "hopper").double() - want
    part = fp8.product(a, b, torch.float32, "promoted").double() - want
    size = want.square().mean().sqrt()
    return wrong(
        100 * (off.abs().max() / size).item(),
        "Hopper's FP8 tensor cores keep about "
        "14 bits of a sum; V3 adds to FP32 every 128 products, which leaves "
        f"{100 * (part.abs().max() / size).item():.2g} %",
    )


@SCALING.claim(333, "def block_quantize_fp8(tensor, block_size=128):", None, "scales of a weight")
def block_scales(case: Case) -> Answer:
    """Scales of an expert's weight in 128×128 blocks (`fp8.quantize`); the seed's in 1×128."""
    _, width, hidden = case.shapes("mlp.experts.gate_proj")
    weight = torch.ones(width, hidden)
    tiles = fp8.quantize(weight, "tile").scales.numel()
    blocks = fp8.quantize(weight, "block").scales.numel()
    return assuming(
        float(blocks),
        "activations: theirs are 1×128 tiles along the contraction, "
        "weights have 128×128 blocks, so that the transpose is free",
        float(tiles),
        float(width * hidden // 128),
    )


@GRADIENTS.claim(
    354, "init_scale=65536.0, growth_factor=2.0, backoff=0.5", "65536.0", "", exact=True
)
def loss_scale(case: Case) -> Answer:
    """Defaults of `fp8.LossScaler`, as torch's."""
    found = fp8.LossScaler()
    return holds(found.scale, "the seed's never skips a step on Inf, though; V3 scales no loss")


@GRADIENTS.claim(358, "self.growth_interval = 2000", "2000", "steps", exact=True)
def growth(case: Case) -> Answer:
    """Default of `fp8.LossScaler`."""
    return holds(fp8.LossScaler().growth_interval)


@COMPUTE.claim(383, "FP8 tensor cores provide 2× throughput vs BF16", "2", "×")
def peak_ratio(case: Case) -> Answer:
    """Datasheet peaks of the cluster's chip, dense."""
    peak = case.chip.peak
    return holds(peak["fp8"] / peak["bf16"])


def _peak(chip_id: str, precision: str) -> float:
    return float(load_chip(chip_id).peak[precision]) / 1e12


@COMPUTE.claim(387, "| H100 SXM | 1,979 |", "1,979", "TFLOP/s BF16")
def h100_bf16(case: Case) -> Answer:
    """Datasheet of the H100 SXM."""
    return wrong(_peak("h100_sxm", "bf16"), "with 2:4 sparsity, which no training here uses")


@COMPUTE.claim(387, "| 3,958 |", "3,958", "TFLOP/s FP8")
def h100_fp8(case: Case) -> Answer:
    """Datasheet of the H100 SXM."""
    return wrong(_peak("h100_sxm", "fp8"), "with 2:4 sparsity")


@COMPUTE.claim(388, "| H800 | ~1,600 |", "1,600", "TFLOP/s BF16")
def h800_bf16(case: Case) -> Answer:
    """The cluster's chip: the same die as the H100, with less NVLink and FP64."""
    return wrong(float(case.chip.peak["bf16"]) / 1e12, "neither the dense nor the sparse figure")


@COMPUTE.claim(388, "| ~3,200 |", "3,200", "TFLOP/s FP8")
def h800_fp8(case: Case) -> Answer:
    """The cluster's chip."""
    return wrong(
        float(case.chip.peak["fp8"]) / 1e12,
        "neither the dense nor the sparse figure; every MFU below rests on it",
    )


# -- what FP8 gains in time ------------------------------------------------------------------------

PRODUCTS = ("mm.", "_grouped_mm", "_scaled_mm", "grouped_mm_fp8", "grouped_wgrad_fp8")


@functools.cache
def stage_times(case: Case, dtype: str) -> Times:
    """Forward, backward and recomputation of 4 MoE layers on one GPU of the published plan."""
    work = Workload("training", 1, case.v3.sequence)
    plan, stage = case.plan, 1
    program = case.program(dtype)
    trace = rank_trace(program, work, plan, rank=stage * plan.ranks_per_stage, stage=stage)
    return time_ledger(price(trace), case.chip)


def _seconds(times: Times, words: tuple[str, ...]) -> float:
    ops = times.ledger.trace.ops
    found = times.by(lambda k, n: ops[k.kernel.parts[n].op].name)
    return sum(s for name, s in found.items() if any(f".{word}" in name for word in words))


@functools.cache
def gains(case: Case) -> tuple[float, float, float]:
    """How many times faster FP8 makes the products, the step with its casts, and without them."""
    bf16, fast = stage_times(case, "bf16"), stage_times(case, "fp8")
    plain, quick = _seconds(bf16, PRODUCTS), _seconds(fast, PRODUCTS)
    return plain / quick, bf16.step / fast.step, bf16.step / (bf16.step - plain + quick)


@OPENING.claim(19, "~1.8× compute speedup", "1.8", "×")
@COMPUTE.claim(390, "DeepSeek achieves ~1.8× speedup using FP8", "1.8", "×")
@LESSON.claim(664, "1.8× compute speedup", "1.8", "×")
@TAKEAWAYS.claim(1250, "FP8 provides 1.8× speedup", "1.8", "×")
def speed_up(case: Case) -> Answer:
    """Kernel model over one GPU's traced step, 4 MoE layers of the published plan: BF16
    over FP8.
    """
    products, whole, free = gains(case)
    return wrong(
        free,
        f"the products alone gain {products:.2f}, give or take 8 %, at the rates of DeepSeek's own "
        "kernels. Ours is the step if quantising cost nothing (fused into its neighbours); as "
        f"separate passes over memory it takes nearly all: {whole:.2f}. Attention, gathers and the "
        "optimizer stay as they are",
    )
