"""Kernels that DeepSeek published rates of, on its own chip."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.kernels import Cached, decode, gemm_fp8
from tracer.machine.kernels.grouped import product

FIGURES = tomllib.loads(Path(__file__).with_name("kernel_figures.toml").read_text())


def errors(found, rows):
    """Predicted over published seconds, less one; the last column is TFLOP/s."""
    published = np.array([2 * np.prod(row[:-1], dtype=float) / row[-1] / 1e12 for row in rows])
    return np.array(found) / published - 1


@pytest.fixture(scope="module")
def h800():
    return calibration_of(load_chip(FIGURES["deepgemm"]["chip"]))


def test_dense_products(h800):
    table = FIGURES["deepgemm"]["dense"]
    alone = h800["gemm_fp8_block"]._replace(launch=0.0)
    rates, power, serial = h800.rates("fp8"), h800["power"], h800["gemm"].serial
    found = [
        gemm_fp8(float(m), float(n), float(k), rates, alone, power, serial, block=True).seconds
        for m, n, k, _ in table["rows"]
    ]
    error = np.abs(errors(found, table["rows"]))
    assert error.mean() < table["mean"]
    assert error.max() < table["most"]


def test_grouped_products(h800):
    table = FIGURES["deepgemm"]["grouped"]
    found = []
    for groups, each, n, k, _ in table["rows"]:
        rows = float(groups * each)
        moved = groups * n * k + rows * k + 2 * rows * n  # FP8 in, BF16 out
        found.append(product(
            rows, float(groups), float(k), float(n), h800.rates("fp8"), h800["grouped"],
            h800["power"], 0.0, moved,
        ).seconds)  # fmt: skip
    error = np.abs(errors(found, table["rows"]))
    assert error.mean() < table["mean"]
    assert error.max() < table["most"]


def test_no_product_is_faster_than_the_best_published_kernel(h800):
    # DeepGEMM's best on an H800 is 1,550 TFLOP/s (README.md, April 2025), whatever the shape.
    alone = h800["gemm_fp8_block"]
    size = 32768.0
    found = gemm_fp8(size, size, size, h800.rates("fp8"), alone, h800["power"],
                     h800["gemm"].serial, block=True).seconds  # fmt: skip
    assert 2 * size**3 / found / 1e12 < 1550


def test_absorbed_decode(h800):
    # 128 sequences of 4,096 keys, 128 heads, 576 and 512 elements: between a tenth below the
    # kernel of February and that of April.
    batch, heads, keys = 128.0, 128.0, 4096.0
    shape = Cached(batch, 1.0, heads, keys, 576.0, 512.0, 2 * batch * keys * 576)
    found = decode(shape, h800.rates("bf16"), h800["mla_decode"]).seconds
    rate = 2 * batch * heads * keys * (576 + 512) / found / 1e12
    figures = FIGURES["flashmla"]
    assert 0.9 * figures["february"] < rate < figures["april"]
