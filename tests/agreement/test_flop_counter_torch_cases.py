"""The cases of torch's own tests of its counter, with the numbers that they expect.

`shared/measured/flop_counter_cases.json` holds them; it lies beside the repository where the
project is developed, and these tests are skipped where it does not.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from flop_counters import count
from torch import Tensor

FILE = Path(__file__).resolve().parents[3] / "shared" / "measured" / "flop_counter_cases.json"
CASES = {c["case"]: c for c in json.loads(FILE.read_text())["cases"]} if FILE.is_file() else {}

pytestmark = pytest.mark.skipif(not CASES, reason=f"{FILE} is not here")


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def three_addmm():
    for bias in ((4, 6), (4, 1), (6,)):
        torch.addmm(ones(*bias), ones(4, 5), ones(5, 6))


def variety():
    torch.mm(ones(4, 5), ones(5, 6))
    torch.addmm(ones(4, 6), ones(4, 5), ones(5, 6))
    torch.matmul(ones(5, 6), ones(6, 7))
    torch.einsum("ab,bc->ac", ones(6, 7), ones(7, 8))
    torch.nn.Linear(9, 10)(ones(8, 9))


def backward():
    """A mm, then a bmm over 7 views of its result; of each product one operand has a gradient."""
    x = torch.mm(leaf(4, 5), ones(5, 6))
    x = x.unsqueeze(0).expand(7, 4, 6)
    torch.bmm(x, ones(7, 6, 7)).sum().backward()


def backward_twice():
    """240 a run: a · aᵀ is 160, and its two gradients are as much each."""
    for _ in range(2):
        x = leaf(4, 5)
        x.mm(x.t()).sum().backward()


class OneForwardTwoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.mm(x, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mm(grad, x) + torch.mm(x, grad)


SIMPLE: dict[str, Callable[[], object]] = {
    "mm": lambda: torch.mm(ones(4, 5), ones(5, 6)),
    "bmm": lambda: torch.bmm(ones(3, 4, 5), ones(3, 5, 6)),
    "baddbmm": lambda: torch.baddbmm(ones(3, 4, 6), ones(3, 4, 5), ones(3, 5, 6)),
    "three addmm with broadcast bias": three_addmm,
    "variety": variety,
    "conv2d": lambda: F.conv2d(ones(2, 3, 6, 6), ones(6, 3, 4, 4), padding=1),
    "conv1d": lambda: F.conv1d(ones(2, 3, 6), ones(6, 3, 4), padding=1),
    "backward": backward,
    "backward_reset": backward_twice,
    "custom autograd.Function": lambda: OneForwardTwoBackward.apply(leaf(5, 5)).sum().backward(),
    "conv_transpose2d fwd": lambda: F.conv_transpose2d(ones(1, 1, 2, 2), ones(1, 1, 2, 2)),
    "conv2d fwd": lambda: F.conv2d(ones(1, 1, 2, 2), ones(1, 1, 1, 1)),
}
TWICE = {
    "conv_transpose2d fwd": lambda: F.conv_transpose2d(leaf(1, 1, 2, 2), leaf(1, 1, 2, 2)),
    "conv2d fwd": lambda: F.conv2d(leaf(1, 1, 2, 2), leaf(1, 1, 1, 1)),
}
CONV_BACKWARD = "conv backward "


def test_every_case_of_the_file_is_run_here():
    conv = {name for name in CASES if name.startswith(CONV_BACKWARD)}
    assert set(CASES) - conv == set(SIMPLE)
    assert len(conv) == 6


@pytest.mark.parametrize("name", SIMPLE)
def test_case(name):
    counts = count(SIMPLE[name])
    assert counts.ours == CASES[name]["expected_flops"]


@pytest.mark.parametrize(("name", "forward"), [("conv_transpose2d fwd", 32), ("conv2d fwd", 8)])
def test_backward_is_twice(name, forward):
    """The notes of the file: 64 and 16."""
    assert CASES[name]["expected_flops"] == forward
    counts = count(lambda: TWICE[name]().sum().backward())
    assert counts.ours == 3 * forward


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(CONV_BACKWARD)])
def test_convolution_backward_is_twice(name, transposed):
    sizes = dict(part.split("=") for part in name.removeprefix(CONV_BACKWARD).split())
    before, after, groups = (int(sizes[key]) for key in ("in", "out", "groups"))
    weight = (before, after // groups) if transposed else (after, before // groups)
    convolve = F.conv_transpose2d if transposed else F.conv2d

    def forward() -> Tensor:
        return convolve(leaf(1, before, 4, 4), leaf(*weight, 2, 2), groups=groups)

    once = count(forward).ours
    # Every weight meets every position once: of a transposed one's input, else of the output.
    assert once == 2 * (16 if transposed else 9) * (before * after // groups) * 4
    assert count(lambda: forward().sum().backward()).ours == 3 * once
