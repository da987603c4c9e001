#!/usr/bin/env python
"""What FP8 loses: distribution × scaling × format, and what the sum of a product adds to it.

    python scripts/fp8_error.py              # the tables of docs/fp8.md, a minute
    python scripts/fp8_error.py --size 512   # smaller matrices

First table: relative error of a square matrix that was quantised and brought back, in the norm and
by element (an element that became zero counts 100 %), and the shares that became zero or subnormal.
Second: how many times smaller the error is by 128×128 blocks and by 1×128 tiles than with one
scale, in E4M3 and in an 8-bit integer, whose step does follow the scale. Third: the error of
summing K products as Hopper's tensor cores do, with and without promotion to FP32 every 128;
quantisation is no part of it. "max/rms" is the largest error over the RMS of the exact results,
"max rel." the largest error relative to its own result, unbounded where results pass through zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import torch
from tabulate import tabulate

from tracer.models import fp8
from tracer.models.fp8.scaling import Accumulate, Scheme

FORMATS = {"E4M3": fp8.E4M3, "E5M2": fp8.E5M2}


class Source(NamedTuple):
    """A distribution, seeded: `draw(n, generator)` gives FP32 [n, n]."""

    name: str
    draw: Callable[[int, torch.Generator], torch.Tensor]


def _normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return 0.02 * torch.randn(n, n, generator=generator)


def _student(n: int, generator: torch.Generator) -> torch.Tensor:
    """Student's t with 2 degrees of freedom: a normal over √(an exponential of mean 1)."""
    chi = -torch.rand(n, n, generator=generator).clamp(min=1e-30).log()
    return torch.randn(n, n, generator=generator) / chi.sqrt()


def _outlier_elements(n: int, generator: torch.Generator) -> torch.Tensor:
    """One element in 100,000, and one at least, is 100,000 times larger."""
    x = torch.randn(n, n, generator=generator)
    picked = torch.randperm(n * n, generator=generator)[: max(1, n * n // 100_000)]
    x.view(-1)[picked] *= 1e5
    return x


def _outlier_features(n: int, generator: torch.Generator) -> torch.Tensor:
    """One column in 512, and one at least, is 10,000 times larger: activations of large models."""
    x = torch.randn(n, n, generator=generator)
    x[:, torch.randperm(n, generator=generator)[: max(1, n // 512)]] *= 1e4
    return x


def _uneven_rows(n: int, generator: torch.Generator) -> torch.Tensor:
    """Rows differ by up to 10^7: gradients of tokens that are learnt and of tokens that are not."""
    size = 10.0 ** (7 * torch.rand(n, 1, generator=generator) - 7)
    return torch.randn(n, n, generator=generator) * size


SOURCES = (
    Source("normal 0.02", _normal),
    Source("student t, 2", _student),
    Source("outlier elements", _outlier_elements),
    Source("outlier features", _outlier_features),
    Source("uneven rows", _uneven_rows),
)


class Row(NamedTuple):
    """One line of the first table."""

    source: str
    scheme: str
    format: str
    error: fp8.Error


def rows(size: int, seed: int = 0) -> Iterator[Row]:
    """Every distribution in every scheme and format; `tile ^2` is tiles with UE8M0 scales."""
    for source in SOURCES:
        x = source.draw(size, torch.Generator().manual_seed(seed))
        for name, dtype in FORMATS.items():
            for scheme in get_args(Scheme):
                yield Row(source.name, scheme, name, fp8.error_of(x, scheme, dtype))
            error = fp8.error_of(x, "tile", dtype, power_of_two=True)
            yield Row(source.name, "tile ^2", name, error)


class Gain(NamedTuple):
    """Error with one scale for the tensor over that with a finer scheme."""

    source: str
    scheme: str
    e4m3: float  # in the norm
    e4m3_by_element: float
    int8: float  # in the norm


def gains(size: int, seed: int = 0) -> list[Gain]:
    """What 128×128 blocks and 1×128 tiles gain, by distribution."""
    result = []
    for source in SOURCES:
        x = source.draw(size, torch.Generator().manual_seed(seed))
        one, one_fixed = fp8.error_of(x, "tensor"), fp8.fixed_point_error(x, "tensor")
        for scheme in ("block", "tile"):
            fine = fp8.error_of(x, scheme)
            fixed = one_fixed / fp8.fixed_point_error(x, scheme)
            by_element = one.element / fine.element
            result.append(Gain(source.name, scheme, one.norm / fine.norm, by_element, fixed))
    return result


class SumError(NamedTuple):
    """What a sum of K products lost."""

    inputs: str
    k: int
    accumulate: str
    norm: float
    max_over_rms: float
    max_relative: float
    bias: float


def sums(size: int = 128, ks: tuple[int, ...] = (128, 1024, 4096), seed: int = 0) -> list[SumError]:
    """Products of two random E4M3 matrices [size, K], against FP64."""
    result = []
    for inputs, draw in (("normal", torch.randn), ("uniform 0..1", torch.rand)):
        for k in ks:
            generator = torch.Generator().manual_seed(seed)
            a, b = (fp8.quantize(draw(size, k, generator=generator), "tensor") for _ in range(2))
            want = a.dequantize().double() @ b.dequantize().double().t()
            for accumulate in get_args(Accumulate):
                off = fp8.product(a, b, torch.float32, accumulate).double() - want
                result.append(
                    SumError(
                        inputs, k, accumulate,
                        norm=(off.norm() / want.norm()).item(),
                        max_over_rms=(off.abs().max() / want.square().mean().sqrt()).item(),
                        max_relative=(off / want).abs().max().item(),
                        bias=((off * want.sign()).mean() / want.abs().mean()).item(),
                    )
                )  # fmt: skip
    return result


def _table(body: list, headers: list[str]) -> str:
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def _share(x: float) -> str:
    return "0" if x == 0 else f"{100 * x:.3g} %"


def main() -> None:
    """Print three tables."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--size", type=int, default=2048, help="rows and columns of the matrices")
    size = p.parse_args().size
    for name, dtype in FORMATS.items():
        print(
            f"{name}: expected for a log-uniform mantissa {fp8.norm_error(dtype):.3%} in the norm, "
            f"{fp8.rounding_error(dtype):.3%} by element; zero below {fp8.zero_below(dtype):.2g} "
            "of the largest"
        )
    print()
    body = [[r.source, r.format, r.scheme, *map(_share, r.error)] for r in rows(size)]
    print(_table(body, ["distribution", "format", "scale", *fp8.Error._fields]), end="\n\n")
    body = [[g.source, g.scheme, *(f"{x:.3g}×" for x in g[2:])] for g in gains(size)]
    print(_table(body, ["gain over one scale", "by", "E4M3 norm", "E4M3 element", "INT8 norm"]))
    print()
    body = [[s.inputs, s.k, s.accumulate, *(f"{100 * x:.2g} %" for x in s[3:])] for s in sums()]
    print(_table(body, ["inputs", "K", "sum", "norm", "max/rms", "max rel.", "bias"]))


if __name__ == "__main__":
    main()
