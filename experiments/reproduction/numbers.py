"""Numbers from results: each quantity has a value for each (seed, item), and its interval is over both.

    results = Results.read(folder)                               # results.jsonl
    estimate(results, [(1.0, Ref("2", "brio", "training")), (-1.0, Ref("2", "ft", "training"))])

A bootstrap draws seeds and, independently, prompts with replacement, 2,000 times; the pairs of a prompt in Table 1 are
drawn together. All quantities on the same items use the same draws. A difference is taken seed by seed and prompt by
prompt: only over the seeds that all its terms have, and the items for which all have a value. If all values are equal,
the rule of three gives the bounds. With few seeds, intervals are too narrow: three seeds say little about a fourth.
Below `FEWEST` prompts there are no bounds (NaN), as in a benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from humor_env.experiments.reproduction.paper import PUBLISHED
from humor_env.rewards.audits.audit_stats import ALIKE, FEWEST, rule_of_three
from humor_env.shared.json_lines import read_lines
from humor_env.shared.streams import generator

RESULTS = "results.jsonl"
RESAMPLES = 2000
Values = np.ndarray


@dataclass(frozen=True)
class Ref:
    """A cell of a table. `way` says how the lines were written."""

    table: str
    row: str
    column: str
    way: str = "beams"

    @property
    def published(self) -> float | None:
        return PUBLISHED.get(self.table, {}).get(self.row, {}).get(self.column)


Terms = Sequence[tuple[float, Ref]]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (NaN if there are too few prompts), and the number of seeds and items behind it."""

    mean: float
    low: float
    high: float
    seeds: int
    items: int


@dataclass(frozen=True)
class Results:
    """The results of the cells, by seed and cell."""

    cells: Mapping[int, Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        cells: dict[int, dict[str, Any]] = {}
        about: dict[str, Any] = {}
        for line in read_lines(folder / RESULTS):
            row = json.loads(line)
            if row["cell"] == "about":
                about = row["result"]
            elif row["seed"] is not None:
                cells.setdefault(row["seed"], {})[row["cell"]] = row["result"]
        return cls(cells, about)

    @property
    def seeds(self) -> list[int]:
        return sorted(self.cells)

    def values(self, ref: Ref) -> dict[int, Values]:
        """The values `[N]` of each seed that has any, NaN where one is missing."""
        rows = {seed: list(self._of_seed(seed, ref)) for seed in self.seeds}
        arrays = {seed: np.array([np.nan if v is None else v for v in row]) for seed, row in rows.items()}
        return {seed: array for seed, array in arrays.items() if np.isfinite(array).any()}

    def prompt_of(self, table: str, count: int) -> NDArray[np.int64]:
        """The number of the prompt of each of a table's `count` items."""
        if table == "1":  # the pairs of one system, then those of the next, each on the same prompts
            for cells in self.cells.values():
                systems = cells.get("people", {}).get("systems", {}).values()
                sizes = [len(values) for parts in systems for values in list(parts.values())[:1]]
                if len(set(sizes)) == 1 and sum(sizes) == count:
                    return np.tile(np.arange(sizes[0]), len(sizes))
        return np.arange(count)

    def _of_seed(self, seed: int, ref: Ref) -> Iterator[float | None]:
        cells = self.cells[seed]
        if ref.table == "1":
            yield from cells.get("people", {}).get("critics", {}).get(ref.row, {}).get(ref.column, [])
        elif ref.table == "6":
            yield from cells.get("people", {}).get("systems", {}).get(ref.row, {}).get(ref.column, [])
        else:
            split = "ood" if ref.table == "3" else "test"
            columns = cells.get(ref.row, {}).get("splits", {}).get(split, {}).get(ref.way, {})
            yield from columns.get(ref.column, [])


def estimate(results: Results, terms: Terms) -> Estimate | None:
    """The sum of `coefficient x mean` over the terms; None if no seed has all of them.

    Agreement on humor and on consistency are over different pairs by definition, those on which people decided the
    question: the difference of the two is one of means. All other quantities on the same items are compared item by
    item, so one that lacks a value in any of them counts in none."""
    of_terms = [results.values(ref) for _, ref in terms]
    seeds = [seed for seed in results.seeds if all(seed in values for values in of_terms)]
    groups: dict[tuple[str, str], Values] = {}  # by items and, in Table 1, column: the sum of terms, [S, N]
    for (coefficient, ref), values in zip(terms, of_terms, strict=True):
        key = (_items(ref), ref.column if ref.table == "1" else "")
        wide = _stacked([values[seed] for seed in seeds])
        groups[key] = coefficient * wide + groups.get(key, 0.0)
    if not seeds or not all(np.isfinite(summed).any() for summed in groups.values()):
        return None
    mean, draws = 0.0, np.zeros(RESAMPLES)
    items, prompts = 0, []
    for (name, _), summed in groups.items():
        prompt_of = results.prompt_of("1" if name == "pairs" else "", summed.shape[1])
        finite = np.isfinite(summed)
        mean += float(np.nanmean(summed))
        draws += _means(name, summed, prompt_of)
        items = max(items, int(finite.sum(axis=1).max()))
        prompts.append(len(set(prompt_of[finite.any(axis=0)].tolist())))
    if min(prompts) < FEWEST:
        low, high = np.nan, np.nan
    elif all(np.nanmax(summed) - np.nanmin(summed) < ALIKE for summed in groups.values()):
        scale = max(abs(c) for c, _ in terms)
        lowest, highest = (sum(pick(0.0, c) for c, _ in terms) / scale for pick in (min, max))
        low, high = (scale * bound for bound in rule_of_three(mean / scale, min(prompts), lowest, highest))
    else:
        low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(seeds), items)


def _items(ref: Ref) -> str:
    return {"1": "pairs", "3": "ood"}.get(ref.table, "test")


def _stacked(rows: Sequence[Values]) -> Values:
    """`[S, N]`, with NaN at the end of shorter rows."""
    wide = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for place, row in enumerate(rows):
        wide[place, : len(row)] = row
    return wide


def _means(name: str, values: Values, prompt_of: NDArray[np.int64]) -> Values:
    """The mean of each resample, over the values that are not missing."""
    by_seed = _weights("seeds", len(values))
    by_item = _weights(f"items/{name}", int(prompt_of.max()) + 1)[:, prompt_of]
    finite = np.isfinite(values)
    total = np.einsum("rn,rn->r", by_seed @ np.where(finite, values, 0.0), by_item)
    count = np.einsum("rn,rn->r", by_seed @ finite.astype(float), by_item)
    # A resample without any value gets the mean of all values.
    return np.where(count > 0, total / np.maximum(count, 1e-12), float(np.nanmean(values)))


@lru_cache(maxsize=16)
def _weights(name: str, size: int) -> Values:
    """How often each of `size` items is drawn in each resample."""
    draws = generator(0, f"reproduction/{name}", size).integers(size, size=(RESAMPLES, size))
    weights = np.zeros((RESAMPLES, size))
    np.add.at(weights, (np.arange(RESAMPLES)[:, None], draws), 1.0)
    return weights
