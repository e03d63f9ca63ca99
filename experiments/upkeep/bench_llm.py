"""How fast language-model judging is: through a real server with latency, and from the ledger.

    python -m humor_env.experiments.upkeep.bench_llm    # its server is tests/fake_messages_server.py

Two targets: with 200 ms per call and 32 calls in flight, at most 1.3 times the ideal time; from the ledger, at
least 5,000 verdicts per second. The exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from humor_env.errors import InvalidOption
from humor_env.rewards.scorer import ScorerCritic
from humor_env.types import Joke, Prompt

MODEL = "claude-haiku-4-5"


@contextlib.contextmanager
def served(server: Path, *arguments: str) -> Iterator[str]:
    """The URL of the test server, which runs during the block."""
    if not server.is_file():
        raise InvalidOption(f"There is no server at '{server}'. Run this from the checkout, or give --server.")
    command = [sys.executable, str(server), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def measure(url: str, ledger: Path, jokes: int, concurrency: int) -> tuple[float, float]:
    """Seconds to judge the jokes through the server, then verdicts per second from the ledger, by a new critic."""

    def critic() -> ScorerCritic:
        return ScorerCritic(f"anthropic:{MODEL}@{url}", ledger=ledger, options={"concurrency": concurrency})

    lines = [
        Joke(Prompt(f"p{n}", f"Meeting {n} was slow."), f"Meeting {n} was so slow that moss grew on it.")
        for n in range(jokes)
    ]
    first = critic()
    first([Joke(lines[0].prompt, f"warm-up {n}") for n in range(concurrency)])  # opens the connections
    start = time.perf_counter()
    judgements = first(lines)
    seconds = time.perf_counter() - start
    first.close()
    second = critic()
    start = time.perf_counter()
    again = second(lines)
    rate = jokes / (time.perf_counter() - start)
    second.close()
    if [j.score for j in judgements] != [j.score for j in again] or any(j.failed for j in judgements):
        raise AssertionError("a replay from the ledger differs from the run")
    return seconds, rate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_llm")
    parser.add_argument("--jokes", type=int, default=1600)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--server", type=Path, default=Path("tests/fake_messages_server.py"))
    options = parser.parse_args(arguments)
    # The server takes any key; the client insists on one.
    os.environ.setdefault("ANTHROPIC_API_KEY", "none-needed")
    with tempfile.TemporaryDirectory() as folder, served(options.server, "--latency", str(options.latency)) as url:
        seconds, rate = measure(url, Path(folder) / "ledger.sqlite", options.jokes, options.concurrency)
    ideal = options.latency * options.jokes / options.concurrency
    print(f"{options.jokes} jokes, {options.latency * 1000:.0f} ms a call, {options.concurrency} in flight")
    print(f"through the server: {seconds:.2f} s, ideal {ideal:.2f} s, ratio {seconds / ideal:.2f} (target 1.3)")
    print(f"from the ledger:    {rate:,.0f} verdicts per second (target 5,000)")
    return int(seconds > 1.3 * ideal or rate < 5000)


if __name__ == "__main__":
    sys.exit(main())
