"""Measured rows through the time model: the prediction, and the roofline of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tracer.hardware import Chip

from .calibration import Calibration, rates
from .kernels import (
    Cached,
    Prompt,
    collective,
    decode,
    elementwise,
    gemm,
    gemm_fp8,
    layer,
    prefill,
    quantise,
)
from .measured import Array

PRECISIONS = {
    "gemm": "bf16", "gemm_fp8": "fp8", "gemm_fp8_block": "fp8", "attention_prefill": "bf16",
    "mla_prefill": "bf16", "attention_decode": "bf16", "mla_decode": "bf16", "grouped": "fp8",
    "elementwise": "bf16", "collective": "bf16",
}  # fmt: skip

# Head sizes of DeepSeek's MLA: query-key and value in prefill, latent and its value part in decode.
MLA_PREFILL, MLA_DECODE = (192.0, 128.0), (576.0, 512.0)


def predict(family: str, x: Mapping[str, Array], cal: Calibration) -> Array:
    """Seconds of measured rows; `x` are the family's columns (`measured.COLUMNS`)."""
    r = cal.rates(PRECISIONS[family])
    c, power = cal[family], cal["power"]
    seconds: Any
    if family == "gemm":
        seconds = gemm(x["m"], x["n"], x["k"], r, c, power).seconds
    elif family in ("gemm_fp8", "gemm_fp8_block"):
        block = family == "gemm_fp8_block"
        serial = cal["gemm"].serial
        seconds = gemm_fp8(x["m"], x["n"], x["k"], r, c, power, serial, block=block).seconds
        seconds = seconds + quantise(x["m"], x["k"], r, c, block=block)
    elif family in ("attention_prefill", "mla_prefill"):
        seconds = prefill(prompt(x), r, c, power).seconds
    elif family in ("attention_decode", "mla_decode"):
        seconds = decode(cached(x), r, c).seconds
    elif family == "grouped":
        shape = (x["tokens"], x["top_k"], x["experts"], x["hidden"], x["inner"])
        seconds = layer(*shape, r, c, power).seconds
    elif family == "elementwise":
        seconds = elementwise(x["bytes"], x["elements"], x["access"], r, c).seconds
    else:
        seconds = collective(x["bytes"], x["ranks"], x["reduces"], r, c).seconds
    return np.asarray(seconds, dtype=np.float64)


def prompt(x: Mapping[str, Array]) -> Prompt:
    """Columns of a causal prefill; without a head size they are MLA's."""
    keys, heads = x["keys"], x["heads"]
    size, size_v = (x["size"], x["size"]) if "size" in x else MLA_PREFILL
    kv_heads = x.get("kv_heads", heads)
    share = (keys + 1) / (2 * keys)
    return Prompt(x["batch"], heads, kv_heads, keys, keys, size, size_v, share)


def cached(x: Mapping[str, Array]) -> Cached:
    """Columns of a decode of one token a sequence; without a head size they are MLA's."""
    batch, keys = x["batch"], x["keys"]
    if "size" not in x:
        latent, value = MLA_DECODE
        return Cached(batch, 1.0, x["heads"], keys, latent, value, 2 * batch * keys * latent)
    kv_heads, size = x["kv_heads"], x["size"]
    nbytes = 2 * batch * kv_heads * keys * 2 * size
    return Cached(batch, kv_heads, x["heads"] / kv_heads, keys, size, size, nbytes)


def roofline(family: str, x: Mapping[str, Array], chip: Chip) -> tuple[Array, Array]:
    """Compute and memory (or link) seconds of the same rows at the datasheet's peaks."""
    r = rates(chip, PRECISIONS[family])
    zero = np.zeros_like(next(iter(x.values())))
    flops, moved = zero, zero
    if family in ("gemm", "gemm_fp8", "gemm_fp8_block"):
        m, n, k = x["m"], x["n"], x["k"]
        operand = 2 if family == "gemm" else 1
        flops, moved = 2 * m * n * k, operand * (m + n) * k + 2 * m * n
    elif family in ("attention_prefill", "mla_prefill"):
        kv = x.get("kv_heads", x["heads"])
        width = 2 * x["size"] if "size" in x else sum(MLA_PREFILL) + zero
        pairs = x["batch"] * x["heads"] * x["keys"] * (x["keys"] + 1) / 2
        flops, moved = 2 * pairs * width, 2 * x["batch"] * x["keys"] * (x["heads"] + kv) * width
    elif family == "attention_decode":
        width = 2 * x["size"]
        flops = 2 * x["batch"] * x["heads"] * x["keys"] * width
        moved = 2 * x["batch"] * x["kv_heads"] * x["keys"] * width
    elif family == "mla_decode":
        flops = 2 * x["batch"] * x["heads"] * x["keys"] * sum(MLA_DECODE)
        moved = 2 * x["batch"] * x["keys"] * MLA_DECODE[0]
    elif family == "grouped":
        pairs = x["tokens"] * x["top_k"]
        weights = 3 * x["hidden"] * x["inner"]
        flops, moved = 2 * pairs * weights, np.minimum(x["experts"], pairs) * weights
    elif family == "elementwise":
        moved = x["bytes"]
    else:
        n = x["ranks"]
        volume = x["bytes"] * (n - 1) / n * (1 + x["reduces"])
        return zero, np.asarray(volume / r.link)
    return np.asarray(flops / r.matrix), np.asarray(moved / r.memory)
