"""Fills a page of the docs with tables and charts of benchmarks, from the result files next to it.

    fill_page(Path("docs/benchmark.md"))              # `humor-env benchmark --tables docs/benchmark.md`

Comments in a page mark the place of a table or a chart; the text between them is replaced. Results are read from
`results/NAME` next to the page, and charts are written there too:

    <!-- benchmark: pocket-learners/scores -->
    <!-- end -->
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from humor_env.experiments.compare.benchmark import Benchmark, load_benchmark
from humor_env.experiments.compare.benchmark_charts import CHARTS, make_chart
from humor_env.experiments.compare.benchmark_tables import make_table

MARK = re.compile(r"(<!-- benchmark: (\S+?)/(\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(page: str, results: Path) -> tuple[str, dict[Path, str]]:
    """The page with its tables, and the charts it shows, by path. Without results, a place stays empty."""
    charts: dict[Path, str] = {}

    @lru_cache
    def load(name: str) -> Benchmark:
        return load_benchmark(results / name)

    def put(match: re.Match[str]) -> str:
        head, name, what, _, end = match.groups()
        if not (results / name).is_dir():
            return head + end
        if what in CHARTS:
            path = results / name / f"{what}.svg"
            charts[path] = make_chart(load(name), what)
            body = f"![{CHARTS[what][0]}]({results.name}/{name}/{what}.svg)"
        else:
            body = make_table(load(name), what)
        return f"{head}\n{body}\n\n{end}"

    return MARK.sub(put, page), charts


def fill_page(page: Path, *, write: bool = True) -> int:
    """Write a page's tables and charts from the result files next to it; return how many changed or, without `write`,
    would change."""
    before = page.read_text(encoding="utf-8")
    after, charts = filled(before, page.parent / "results")
    changed = sum(a != b for a, b in zip(MARK.findall(before), MARK.findall(after), strict=True))
    if not write:
        return changed
    page.write_text(after, encoding="utf-8")
    for path, svg in charts.items():
        path.write_text(svg, encoding="utf-8")
    return changed
