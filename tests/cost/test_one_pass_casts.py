"""FP8 casts in one pass, and linears lowered to FP8: bytes and FLOPs by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracer.capture import Capture
from tracer.cost import price
from tracer.cost.lowered import in_fp8, saved_weights
from tracer.cost.onepass import CAST, one_pass
from tracer.models import fp8


def ledger_of(run, *inputs):
    model = nn.Identity()
    with torch.no_grad(), Capture(model) as capture:
        kept = run(*inputs)
        del kept
    return price(capture.trace)


def casts(ledger):
    return [k for k in ledger.kernels if k.name == CAST]


def test_a_cast_by_rows_reads_once_and_writes_values_and_scales():
    x = torch.empty(256, 512, dtype=torch.bfloat16, device="meta")
    plain = ledger_of(fp8.quantize_rows, x)
    lean = one_pass(plain)
    (cast,) = casts(lean)
    # BF16 [256, 512] in; E4M3 [256, 512] and FP32 [256, 4] out.
    assert sum(cast.cost.read.values()) == 2 * 256 * 512
    assert sum(cast.cost.write.values()) >= 256 * 512
    assert sum(cast.cost.write.values()) <= 256 * 512 + 2 * 4 * 256 * 4
    assert lean.total().total_bytes <= plain.total().total_bytes
    assert lean.total().vector_flops == plain.total().vector_flops


def test_what_was_kept_in_fp8_is_rounded_again_without_passing_in_fp32():
    values = torch.empty(256, 512, dtype=fp8.E4M3, device="meta")
    scales = torch.empty(256, 4, dtype=torch.float32, device="meta")

    def again(values, scales):
        return fp8.quantize_columns(fp8.dequantize(values, scales))

    plain = ledger_of(again, values, scales)
    (cast,) = casts(one_pass(plain))
    # Values and scales in, transposed values and scales out: a byte an element each way.
    assert sum(cast.cost.read.values()) == 256 * 512 + 4 * 256 * 4
    assert 256 * 512 <= sum(cast.cost.write.values()) <= 256 * 512 + 2 * 4 * 512 * 2
    assert plain.total().total_bytes > 4 * cast.cost.total_bytes


def test_programs_without_fp8_stay_as_they_are():
    x = torch.empty(64, 64, device="meta")
    plain = ledger_of(lambda x: (x * 2).relu(), x)
    assert one_pass(plain) is plain


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        place = {"bias": False, "dtype": torch.bfloat16, "device": "meta"}
        self.gate, self.up = nn.Linear(256, 512, **place), nn.Linear(256, 512, **place)
        self.lm_head = nn.Linear(512, 1024, **place)

    def forward(self, x):
        return self.lm_head(self.gate(x) * self.up(x))


def test_linears_of_one_input_are_one_fp8_product_and_the_head_stays():
    model = Two()
    x = torch.empty(16, 256, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Capture(model) as capture:
        model(x)
    plain = price(capture.trace)
    lowered = in_fp8(plain)
    flops = lowered.total().flops
    assert flops == {"fp8": 2 * 16 * 256 * 1024, "bf16": 2 * 16 * 512 * 1024}
    products = [k for k in lowered.kernels if k.cost.flops]
    assert len(products) == 2
    # A byte an element of gate and up; the head's two.
    assert lowered.total().read["weights"] == 256 * 1024 + 2 * 512 * 1024
    assert saved_weights(plain) == 256 * 1024
    (cast,) = casts(lowered)
    assert cast.cost.total_bytes == 3 * 16 * 256


@pytest.mark.parametrize("name", ["gate", "up"])
def test_a_linear_may_stay_in_bf16_by_name(name):
    model = Two()
    x = torch.empty(16, 256, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Capture(model) as capture:
        model(x)
    flops = in_fp8(price(capture.trace), keep=("lm_head", name)).total().flops
    assert flops["fp8"] == 2 * 16 * 256 * 512
