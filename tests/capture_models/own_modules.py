"""Modules as a person would write them, for `--module`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Embedding, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.embed(ids))
        return out if scale is None else out * scale


def tagger() -> nn.Module:
    """Inputs are given on the command line."""
    return Tagger()


def convolutions() -> tuple[nn.Module, Tensor]:
    """Inputs come with the module."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.zeros(4, 3, 16, 16)


class Output(NamedTuple):
    """An output with a loss of its own."""

    loss: Tensor
    hidden: Tensor


class WithLoss(nn.Module):
    """Its loss depends on half of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Output:
        return Output(self.used(x).sum(), self.unused(x))


def with_loss() -> nn.Module:
    """A module with `.loss`."""
    return WithLoss()


class Router(nn.Module):
    """Four experts in a Python loop over what a router chose."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).topk(1, dim=-1).indices.squeeze(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = torch.where(chosen == index)[0]
            out = out.index_add(0, rows, expert(x[rows]))
        return out


def router() -> nn.Module:
    """Data decides what runs."""
    return Router()


class FromData(nn.Module):
    """Computes from the values of a weight while it is built: not on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(int(torch.ones(4).sum().item()), 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


def from_data() -> nn.Module:
    """Built on its own device."""
    return FromData()


class Raises(nn.Module):
    """Raises in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("shapes do not please me")


def raises() -> nn.Module:
    """A forward that raises."""
    return Raises()


def broken() -> nn.Module:
    """A factory that raises."""
    raise ValueError("no luck today")


def number() -> int:
    """No module."""
    return 3


a_number = 5
instance = Tagger()
