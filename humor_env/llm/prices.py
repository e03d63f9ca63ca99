"""Model prices, from prices.toml or your own table.

price_of("claude-haiku-4-5").cost(input_tokens=1000, output_tokens=50)      # 0.00125 dollars
price_of("some-new-model")                                                  # None: unknown, which is not free
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf

from humor_env.errors import InvalidOption

CACHE_READ, CACHE_WRITE, CACHE_WRITE_HOUR, BATCH = 0.1, 1.25, 2.0, 0.5


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(
        self,
        input_tokens: int,
        output_tokens: int,
        cache_read: int = 0,
        cache_write: int = 0,
        cache_write_hour: int = 0,
        batch: bool = False,
    ) -> float:
        """Dollars. `input_tokens` are those outside the prompt cache."""
        read_in = input_tokens + CACHE_READ * cache_read
        written = CACHE_WRITE * cache_write + CACHE_WRITE_HOUR * cache_write_hour
        dollars = (self.input * (read_in + written) + self.output * output_tokens) / 1e6
        return dollars * BATCH if batch else dollars

    def at_most(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a call can cost: all input written to the one-hour cache."""
        return self.cost(0, output_tokens, cache_write_hour=input_tokens)


@cache
def _table() -> dict[str, dict[str, float]]:
    return tomllib.loads((files("humor_env.llm") / "prices.toml").read_text(encoding="utf-8"))


def price_of(model: str, prices: Mapping[str, Mapping[str, float]] | None = None) -> Price | None:
    """The price of a model: from `prices` first, then from prices.toml; None if it is in neither."""
    if prices is not None and not isinstance(prices, Mapping):
        raise InvalidOption(
            f"prices must be a table of models, such as {{my-model = {{input = 1.0, output = 5.0}}}}; found {prices!r}."
        )
    table = prices if prices and model in prices else _table()
    if model not in table:
        return None
    row = table[model]
    try:
        return Price(_dollars(row["input"]), _dollars(row["output"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InvalidOption(
            f"The price of '{model}' is {row!r}; expected {{input = ..., output = ...}} in dollars per million."
        ) from None


def _dollars(value: float) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 <= number < inf:  # a price below 0 would give money back
        raise ValueError
    return number
