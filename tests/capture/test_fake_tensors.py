"""FakeTensorMode around or inside of a trace."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

import tracer


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))


def rows(trace):
    return [
        (
            op.name,
            op.phase,
            trace.module_of(op),
            [(r.shape, r.stride, r.dtype) for r in op.inputs()],
        )
        for op in trace.ops
    ]


def run(model, x):
    with tracer.trace(model) as t:
        model(x).sum().backward()
    return t


def test_fake_equals_real_and_meta():
    torch.manual_seed(0)
    real = run(build(), torch.ones(3, 8, requires_grad=True))
    meta = run(build().to("meta"), torch.ones(3, 8, requires_grad=True, device="meta"))
    with FakeTensorMode():
        fake = run(build(), torch.ones(3, 8, requires_grad=True))
    assert rows(fake.trace) == rows(real.trace) == rows(meta.trace)
    assert fake.cost == real.cost == meta.cost
    assert fake.flops == 3 * 2 * 3 * (8 * 16 + 16 * 4)


def test_fake_cuda_tensors_on_a_machine_without_cuda():
    with FakeTensorMode():
        x, w = torch.empty(3, 8, device="cuda"), torch.empty(16, 8, device="cuda")
        with tracer.trace() as t:
            out = nn.functional.linear(x, w)
    assert out.device.type == "cuda"
    assert t.flops == 2 * 3 * 8 * 16


def test_a_fake_mode_entered_inside_of_the_trace_sees_every_op():
    """It answers repeated ops from a cache, without dispatching them: they must not get lost."""
    model = nn.Linear(8, 8)
    with tracer.trace(model) as t, FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.ones(3, 8)
        for _ in range(4):
            x = model(x)
    assert t.flops == 4 * 2 * 3 * 8 * 8


def test_sdpa_on_fake_tensors_is_rerouted():
    with FakeTensorMode():
        q = torch.ones(1, 2, 4, 8, dtype=torch.bfloat16)
        with tracer.trace() as t:
            scaled_dot_product_attention(q, q, q, is_causal=True)
    assert [op.overload_packet for op in t.trace.ops] == [
        "aten._scaled_dot_product_flash_attention"
    ]


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32,) * 2 + (torch.bfloat16,)])
def test_sdpa_under_autocast_has_the_dtype_it_has_without_the_tracer(dtypes):
    """Autocast lists SDPA among the ops that run in half precision; the reroute must keep that."""
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        q, k, v = (torch.ones(1, 2, 4, 8, dtype=dtype) for dtype in dtypes)
        plain = scaled_dot_product_attention(q, k, v)
        with tracer.trace() as t:
            traced = scaled_dot_product_attention(q, k, v)
    assert plain.dtype == torch.bfloat16
    assert traced.dtype == plain.dtype
    assert t.cost.flops == {"bf16": 2 * 2 * 4 * 4 * (8 + 8)}
