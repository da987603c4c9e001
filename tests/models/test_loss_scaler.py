"""Loss scaling, in step with `torch.amp.GradScaler`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.models.fp8 import LossScaler


def parameter():
    return torch.nn.Parameter(torch.tensor([1.0, 2.0]))


@settings(deadline=None, max_examples=50)
@given(
    grads=st.lists(
        st.sampled_from([0.5, -3.0, 1e-3, math.inf, -math.inf, math.nan]), min_size=1, max_size=30
    ),
    interval=st.integers(1, 5),
    scale=st.sampled_from([1.0, 1024.0, 2.0**126]),
)
def test_in_step_with_torch(grads, interval, scale):
    ours, theirs = parameter(), parameter()
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in (ours, theirs)]
    scaler = LossScaler(scale, growth=2.0, backoff=0.25, growth_interval=interval)
    peer = torch.amp.GradScaler(
        "cpu", init_scale=scale, growth_factor=2.0, backoff_factor=0.25, growth_interval=interval
    )
    for grad in grads:
        scaler.scaled((ours * torch.tensor([grad, 1.0])).sum()).backward()
        peer.scale((theirs * torch.tensor([grad, 1.0])).sum()).backward()
        scaler.step(optimizers[0])
        peer.step(optimizers[1])
        scaler.update()
        peer.update()
        assert scaler.scale == peer.get_scale()
        assert torch.equal(ours, theirs)
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_by_hand():
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = LossScaler(8.0, growth_interval=2)

    def step(gradient):
        scaler.scaled(p[0] * gradient).backward()
        taken = scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return taken

    assert step(0.25)
    assert p[0].item() == 0.75  # not 8 times as far
    assert step(0.25)
    assert scaler.scale == 16  # two good steps
    assert not step(math.nan)
    assert (scaler.scale, p[0].item(), scaler.skipped) == (8, 0.5, 1)
    assert step(0.25)
    assert scaler.scale == 8  # the count began anew
    assert step(0.25)
    assert scaler.scale == 16


def test_unscaled_once_for_clipping():
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = LossScaler(4.0)
    scaler.scaled(p.sum()).backward()
    assert not scaler.unscale_(optimizer)
    assert p.grad.tolist() == [1.0, 1.0]
    scaler.step(optimizer)
    assert p.tolist() == [0.0, 1.0]


def test_one_bad_optimizer_of_two():
    good, bad = parameter(), parameter()
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in (good, bad)]
    scaler = LossScaler(4.0)
    scaler.scaled(good.sum() + (bad * math.inf).sum()).backward()
    assert [scaler.step(o) for o in optimizers] == [True, False]
    scaler.update()
    assert scaler.scale == 2.0


def test_a_gradient_that_e5m2_would_lose_survives():
    """Unscaled 1e-6 is below half of E5M2's smallest, 2^-17 = 7.6e-6; times 2^16 it is not."""
    scaler = LossScaler()
    lost = torch.tensor(1e-6).to(torch.float8_e5m2).float()
    kept = scaler.scaled(torch.tensor(1e-6)).to(torch.float8_e5m2).float() / scaler.scale
    assert lost == 0
    assert kept.item() == pytest.approx(1e-6, rel=2**-3)


@pytest.mark.parametrize("bad", [{"scale": 0}, {"growth": 1.0}, {"backoff": 1.0}])
def test_refusals(bad):
    with pytest.raises(ValueError, match="needed are scale > 0"):
        LossScaler(**bad)
