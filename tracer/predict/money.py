"""Hours and dollars."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class Money:
    """Price of a GPU hour in USD (None: nobody said) and the tokens of a whole run."""

    price: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("price", "tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name}={value}: give a number above 0")

    def hours(self, tokens_per_s: float, gpus: int) -> float | None:
        """GPU hours of the run."""
        return None if self.tokens is None else self.tokens / tokens_per_s * gpus / 3600

    def dollars(self, tokens_per_s: float, gpus: int) -> float | None:
        """USD of the run; None without a price or a number of tokens."""
        hours = self.hours(tokens_per_s, gpus)
        return None if hours is None or self.price is None else hours * self.price
