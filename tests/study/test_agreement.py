"""Formulas are held against a trace of numbers before anything is answered from them."""

import pytest
import torch
from torch import nn

import tracer
from tracer.errors import UserError
from tracer.study.agreement import differences


class Looks(nn.Module):
    """Runs another program where its input has no values."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x):
        fake = type(x).__name__ == "FakeTensor"
        return self.second(x) if fake else self.first(x)


def ledgers(model):
    with torch.no_grad(), tracer.trace(model, symbols={"B": 4}) as symbolic:
        model(torch.empty(symbolic.sizes["B"], 8))
    with torch.no_grad(), tracer.trace(model) as concrete:
        model(torch.empty(4, 8))
    return symbolic, concrete


def test_the_same_program_agrees_at_its_point_alone():
    symbolic, concrete = ledgers(nn.Linear(8, 8))
    assert differences(symbolic.ledger(), concrete.ledger(), {"B": 4}) == ""
    # 2 * 5 * 8 * 8 FLOPs are not 2 * 4 * 8 * 8
    assert "640 is not 512" in differences(symbolic.ledger(), concrete.ledger(), {"B": 5})


def test_another_program_is_told():
    symbolic, concrete = ledgers(Looks())
    assert "1,024 is not 512" in differences(symbolic.ledger(), concrete.ledger(), {"B": 4})


def test_a_trace_of_symbols_has_no_seconds_yet():
    symbolic, _ = ledgers(nn.Linear(8, 8))
    with pytest.raises(UserError, match="symbols"):
        symbolic.on("h100_sxm")
