"""Exercise 3: quantisation error with one scale and with blocks."""

from __future__ import annotations

import functools

import torch

from tracer.models import fp8

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

THREE = Section("Exercise 3: FP8 Quantization Error")
SIGMA = 0.02
WEIGHTS = 10_000_000


@functools.cache
def weights(case: Case) -> torch.Tensor:
    """Ten million normal weights, [M, 128] with M blocks of the exercise."""
    rows = WEIGHTS // 128
    return SIGMA * torch.randn(rows, 128, generator=case.generator())


def sample(case: Case) -> torch.Tensor:
    """A matrix of 1,024 × 1,024 of them, for errors in the norm."""
    return weights(case).flatten()[: 1024 * 1024].view(1024, 1024)


@functools.cache
def error(case: Case, scheme: str, kind: int = 0) -> fp8.Error:
    """What E4M3 loses with one scale ("tensor") or in 1×128 blocks ("tile")."""
    return fp8.error_of(sample(case), scheme, case.formats[kind])  # type: ignore[arg-type]


def rmse(case: Case, scheme: str) -> float:
    """Root mean square of the error."""
    return error(case, scheme).norm * sample(case).double().square().mean().sqrt().item()


@functools.cache
def steps(case: Case, scheme: str) -> float:
    """RMS over the weights of the step between the neighbours of what each became."""
    scaled = fp8.quantize(sample(case), scheme)  # type: ignore[arg-type]
    power = scaled.values.float().abs().clamp(min=2.0**-6).log2().floor()
    each = torch.finfo(fp8.E4M3).eps * power.exp2() * scaled.scale_of_each()
    return each.double().square().mean().sqrt().item()


@THREE.claim(926, "8 discrete levels per power of 2", "8", "", exact=True)
def levels(case: Case) -> Answer:
    """Numbers of the format in [1, 2)."""
    every = torch.arange(256, dtype=torch.uint8).view(case.formats[0]).float()
    return holds(int(((every >= 1) & (every < 2)).sum()))


@THREE.claim(933, r"0.02 \times 5.7 = 0.114", "0.114", "")
def largest(case: Case) -> Answer:
    """Largest of ten million drawn weights."""
    bound = SIGMA * (2 * torch.log(torch.tensor(float(WEIGHTS)))).sqrt().item()
    return assuming(
        weights(case).abs().max().item(),
        "the bound σ√(2 ln N), which the largest of a draw stays below",
        bound,
    )


@THREE.claim(935, r"= 2.54 \times 10^{-4}", "2.54", "e-4")
def scale(case: Case) -> Answer:
    """Scale of the drawn weights (`fp8.quantize`)."""
    bound = SIGMA * (2 * torch.log(torch.tensor(float(WEIGHTS)))).sqrt().item() / 448
    found = fp8.quantize(weights(case), "tensor").scales.item()
    return assuming(1e4 * found, "the bound above", 1e4 * bound)


@THREE.claim(937, r"\Delta = s \times 2^{-3} = 3.2 \times 10^{-5}", "3.2", "e-5")
def step(case: Case) -> Answer:
    """RMS step between neighbours of E4M3 at the drawn weights × their scale."""
    return wrong(
        1e5 * steps(case, "tensor"),
        "that is the step between 1 and 2; scaled weights reach 448, and a float's step grows with "
        "the number",
    )


@THREE.claim(940, r"= 9.2 \times 10^{-6}", "9.2", "e-6")
@THREE.claim(957, r"| $9.2 \times 10^{-6}$ |", "9.2", "e-6")
def rmse_tensor(case: Case) -> Answer:
    """RMS of what E4M3 with one scale loses of the drawn weights (`fp8.error_of`)."""
    return wrong(1e6 * rmse(case, "tensor"), "follows from the step")


@THREE.claim(949, r"\Delta_{block} = 1.73 \times 10^{-5}", "1.73", "e-5")
@THREE.claim(958, r"| $1.7 \times 10^{-5}$ |", "1.7", "e-5")
def step_block(case: Case) -> Answer:
    """RMS step between neighbours of E4M3 at the drawn weights × the scales of their blocks."""
    return wrong(
        1e5 * steps(case, "tile"), "as above: half the scale, and numbers of twice the size"
    )


@THREE.claim(945, r"0.02 \times 3.1 = 0.062", "0.062", "")
@functools.cache
def largest_block(case: Case) -> Answer:
    """Mean largest of the drawn blocks of 128."""
    bound = SIGMA * (2 * torch.log(torch.tensor(128.0))).sqrt().item()
    found = weights(case).abs().amax(1).mean().item()
    return assuming(found, "the bound σ√(2 ln n)", bound) if found < 0.95 * 0.062 else holds(found)


@THREE.claim(947, r"= 1.38 \times 10^{-4}", "1.38", "e-4")
@functools.cache
def scale_block(case: Case) -> Answer:
    """Mean scale of the drawn blocks (`fp8.quantize`)."""
    found = 1e4 * fp8.quantize(weights(case), "tile").scales.mean().item()
    bound = 1e4 * SIGMA * (2 * torch.log(torch.tensor(128.0))).sqrt().item() / 448
    return assuming(found, "the bound above", bound) if found < 0.95 * 1.38 else holds(found)


@THREE.claim(951, r"= 5.0 \times 10^{-6}", "5.0", "e-6")
@THREE.claim(958, r"| $5.0 \times 10^{-6}$ |", "5.0", "e-6")
def rmse_block(case: Case) -> Answer:
    """RMS of what E4M3 in blocks of 128 loses of the drawn weights (`fp8.error_of`)."""
    return wrong(1e6 * rmse(case, "tile"), "as above; hardly less than with one scale")


@THREE.claim(957, "| 0.046% |", "0.046", "%")
def relative_tensor(case: Case) -> Answer:
    """Error in the norm of the drawn weights, one scale (`fp8.error_of`)."""
    return wrong(
        100 * error(case, "tensor").norm,
        "3 mantissa bits: the theory of `fp8.norm_error` "
        f"has {100 * fp8.norm_error(case.formats[0]):.2f} %, whatever the scale",
    )


@THREE.claim(958, "| 0.025% |", "0.025", "%")
def relative_block(case: Case) -> Answer:
    """Error in the norm of the drawn weights, blocks of 128 (`fp8.error_of`)."""
    return wrong(100 * error(case, "tile").norm, "as above")


def outliers(case: Case) -> torch.Tensor:
    """Normal, but one element in 100,000 is 100,000 times larger."""
    x = torch.randn(1024, 1024, generator=case.generator())
    x.view(-1)[torch.randperm(x.numel(), generator=case.generator())[: x.numel() // 100_000]] *= 1e5
    return x


def uneven(case: Case) -> torch.Tensor:
    """Rows of sizes over seven powers of ten, as gradients of tokens are."""
    size = 10.0 ** (7 * torch.rand(1024, 1, generator=case.generator()) - 7)
    return size * torch.randn(1024, 1024, generator=case.generator())


@functools.cache
def by_element(case: Case, name: str) -> float:
    """Error by element with one scale over that in blocks of 128."""
    x = {"outliers": outliers, "uneven": uneven}[name](case)
    one, blocks = (
        fp8.error_of(x, scheme, case.formats[0]).element for scheme in ("tensor", "tile")
    )
    return one / blocks


@THREE.claim(960, r"\text{Per-block scaling reduces quantization error by } 1.8\times", "1.8", "×")
@functools.cache
def gain(case: Case) -> Answer:
    """Error in the norm with one scale over that in blocks of 128, drawn weights
    (`fp8.error_of`).
    """
    x = sample(case)
    fixed = fp8.fixed_point_error(x, "tensor") / fp8.fixed_point_error(x, "tile")
    return wrong(
        error(case, "tensor").norm / error(case, "tile").norm,
        "a float's relative error does not depend on the scale as long as nothing underflows, and "
        "normal weights are far from it. The argument is right for a fixed-point format, INT8 "
        f"gains {fixed:.2f}×. Blocks pay where numbers fall below 2e-6 of the largest: by element "
        f"{by_element(case, 'outliers'):.0f}× with 1 outlier of 1e5 in 100,000, "
        f"{by_element(case, 'uneven'):.0f}× where rows differ by up to 1e7",
    )
