"""The tables of a benchmark, from its result files."""

from humor_env.experiments.benchmark import Benchmark


def results_page(bench: "Benchmark") -> str:
    return "soon\n"
