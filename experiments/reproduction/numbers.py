"""Numbers from results: each quantity has a value for each (seed, item), and its interval is over both.

    results = Results.read(folder)                               # results.jsonl
    estimate(results, [(1.0, Ref("2", "brio", "training")), (-1.0, Ref("2", "ft", "training"))])

A bootstrap draws seeds and, independently, items (prompts, or pairs of Table 1) with replacement, 2,000 times. All
quantities on the same items use the same draws, so that a difference is taken prompt by prompt. With few seeds, such
intervals are too narrow: three seeds say little about a fourth. Below `FEWEST` items there are no bounds (NaN), as in
a benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.experiments.reproduction.paper import PUBLISHED
from humor_env.rewards.audits.audit_stats import FEWEST
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
    """A mean with its 95 % interval (NaN if there are too few items), and the number of seeds and items behind it."""

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

    def values(self, ref: Ref) -> tuple[str, Values] | None:
        """The name of its items, and its `[S, N]` values, NaN where one is missing; None if no seed has any."""
        by_seed = [(seed, list(self._of_seed(seed, ref))) for seed in self.seeds]
        rows = [row for _, row in by_seed if row]
        if not rows or not any(v is not None for row in rows for v in row):
            return None
        wide = np.full((len(rows), max(map(len, rows))), np.nan)
        for place, row in enumerate(rows):
            wide[place, : len(row)] = [np.nan if v is None else v for v in row]
        return self._items(ref), wide

    def _items(self, ref: Ref) -> str:
        return {"1": "pairs", "3": "ood"}.get(ref.table, "test")

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
    """The sum of `coefficient x mean` over the terms; None if one of them was not measured."""
    mean, draws = 0.0, np.zeros(RESAMPLES)
    seeds = items = 0
    enough = True
    for coefficient, ref in terms:
        named_values = results.values(ref)
        if named_values is None:
            return None
        name, values = named_values
        mean += coefficient * float(np.nanmean(values))
        draws += coefficient * _means(name, values)
        finite = np.isfinite(values)
        seeds, items = len(values), max(items, int(finite.sum(axis=1).max()))
        enough = enough and bool(finite.any(axis=0).sum() >= FEWEST)
    low, high = np.quantile(draws, [0.025, 0.975]) if enough else (np.nan, np.nan)
    return Estimate(mean, float(low), float(high), seeds, items)


def _means(name: str, values: Values) -> Values:
    """The mean of each resample, over the values that are not missing."""
    by_seed = _weights("seeds", len(values))
    by_item = _weights(f"items/{name}", values.shape[1])
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
