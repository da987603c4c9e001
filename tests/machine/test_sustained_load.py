"""Matrix kernels under a long load: what the power controller leaves, whatever their length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracer.capture import Capture
from tracer.cost import price
from tracer.errors import UserError
from tracer.hardware import load_chip
from tracer.machine import Timing, time_ledger
from tracer.machine.calibration import calibration_of

H100 = load_chip("h100_sxm")


def times(size: int, **assumed: str) -> list[float]:
    """Seconds of a square BF16 product and of a sum behind it, on an H100."""
    x, w = (torch.empty(size, size, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with torch.no_grad(), Capture(nn.Identity()) as capture:
        kept = (x @ w).cumsum(0)
        del kept
    found = time_ledger(price(capture.trace), H100, Timing(**assumed)).kernels
    return [k.total for k in found]


def test_short_products_slow_down_by_all_of_the_sag() -> None:
    sag = calibration_of(H100)["power"].sag
    (alone, vector), (loaded, same) = times(4096), times(4096, load="sustained")
    assert same == vector  # no matrix work: no sag
    # 2 x 4096^3 FLOP in about 0.17 ms: alone, about 0.15 of the sag has set in.
    assert loaded / alone == pytest.approx((1 + sag) / (1 + 0.15 * sag), rel=0.01)


def test_long_products_sagged_already() -> None:
    (alone, _), (loaded, _) = times(32768), times(32768, load="sustained")
    assert 1 < loaded / alone < 1.002  # 80 ms, of which the controller's window is 1


def test_the_assumption_is_said_and_checked() -> None:
    assert "matrix kernels at the clock that a long load settles at" in (
        Timing(load="sustained").notes()
    )
    assert Timing().notes() == Timing(load="kernel").notes()
    with pytest.raises(UserError, match="load='hot': choose 'kernel' or 'sustained'"):
        Timing(load="hot")
