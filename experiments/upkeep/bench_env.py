"""How fast the environments are, as ratios measured in one run on one machine.

    make bench
    python -m humor_env.experiments.upkeep.bench_env --steps 20000

Critics cost no time here (one ready-made judgement) unless a row says otherwise, since the environments are measured.
Each number is the best of several turns, to exclude the effect of other processes.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

import humor_env
from humor_env.tokens import TokensEnv, TokensVectorEnv
from humor_env.types import Joke, Judgement

JUDGEMENT = Judgement("free", 0.5, {"form": 1.0, "meaning": 0.5, "resolution": 0.5, "incongruity": 0.5}, "fine")
LINE = "The meeting was so slow that glaciers overtook it."
TURNS = 5


def free(jokes: Sequence[Joke]) -> list[Judgement]:
    return [JUDGEMENT] * len(jokes)


def best(run: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per step: the best of several turns. `run` plays and returns the number of steps."""
    seconds = []
    for _ in range(TURNS):
        began = clock()
        steps = run()
        seconds.append((clock() - began) / steps)
    return min(seconds)


def single(env: Any, actions: list[Any]) -> float:
    env.reset(seed=0)

    def run() -> int:
        step, reset = env.step, env.reset
        for action in actions:
            if step(action)[2]:
                reset()
        return len(actions)

    return best(run)


def batched(envs: Any, actions: Sequence[Any] | np.ndarray, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per step of one sub-environment."""
    envs.reset(seed=0)

    def run() -> int:
        for action in actions:
            envs.step(action)
        return len(actions) * envs.num_envs

    return best(run, clock)


def slow_critic_step(num_envs: int, wait: float) -> float:
    """Seconds of one vector step when every critic call takes `wait`."""

    def slow(jokes: Sequence[Joke]) -> list[Judgement]:
        time.sleep(wait)
        return free(jokes)

    envs = gymnasium.make_vec("humor_env/Paraphrase-v0", num_envs=num_envs, critic=slow)
    return batched(envs, [(LINE,) * num_envs] * 2) * num_envs


def resident() -> float:
    """The process's resident memory now, in MB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def memory_growth(steps: int, chance: np.random.Generator) -> tuple[int, float]:
    """(env-steps, growth in MB) of text and token vectors together, after a tenth of that as warm-up."""
    texts = gymnasium.make_vec("humor_env/Paraphrase-v0", num_envs=64, critic=free)
    tokens = gymnasium.make_vec("humor_env/Tokens-v0", num_envs=256, critic=free)
    size = tokens.unwrapped.table.size  # type: ignore[attr-defined]

    def play(share: int) -> int:
        steps_played = 0
        while steps_played < share:
            texts.step((LINE,) * 64)
            tokens.step(chance.integers(0, size, size=256))
            steps_played += 64 + 256
        return steps_played

    texts.reset(seed=0)
    tokens.reset(seed=0)
    play(steps // 10)
    before = resident()
    steps_played = play(steps)
    return steps_played, resident() - before


def measure(steps: int, memory_steps: int) -> list[tuple[str, str, str, str]]:
    """Rows: quantity, measured, target, verdict."""
    chance = np.random.default_rng(0)
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, measured: str, target: str = "", holds: bool | None = None) -> None:
        rows.append((what, measured, target, "" if holds is None else "yes" if holds else "NO"))

    env = gymnasium.make("humor_env/Tokens-v0", critic=free)
    raw = env.unwrapped
    assert isinstance(raw, TokensEnv)
    token_actions = chance.integers(0, raw.table.size, size=steps).tolist()
    cart = single(gymnasium.make("CartPole-v1").unwrapped, chance.integers(0, 2, size=steps).tolist())
    token = single(raw, token_actions)
    token_made = single(env, token_actions)
    row("CartPole, raw: steps/s", f"{1 / cart:,.0f}")
    row("Tokens-v0, raw: steps/s", f"{1 / token:,.0f}")
    row("Tokens-v0 / CartPole", f"{cart / token:.2f}", "≥ 0.5", cart / token >= 0.5)

    size = raw.table.size
    one_env, many = TokensVectorEnv(critic=free, num_envs=1), TokensVectorEnv(critic=free, num_envs=256)
    vector_one = batched(one_env, chance.integers(0, size, size=(max(steps // 4, 100), 1)))
    vector_many = batched(many, chance.integers(0, size, size=(max(steps // 256, 100), 256)))
    sync = gymnasium.make_vec(
        "humor_env/Tokens-v0",
        num_envs=256,
        critic=free,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": "SameStep"},
    )
    sync_many = batched(sync, tuple(chance.integers(0, size, size=(max(steps // 2560, 20), 256))))
    row("Tokens vector of 256: env-steps/s", f"{1 / vector_many:,.0f}")
    gain = vector_one / vector_many
    row("… / Tokens vector of 1", f"{gain:.1f}", "≥ 10", gain >= 10)
    row("… / Tokens-v0 as made", f"{token_made / vector_many:.1f}")
    row("… / Tokens-v0, raw", f"{token / vector_many:.1f}")
    row("… / SyncVectorEnv of 256", f"{sync_many / vector_many:.1f}")

    # The environment's own cost is measured in processor time, which is the same on a busy machine.
    text, revise = (
        batched(
            gymnasium.make_vec(f"humor_env/{name}", num_envs=256, critic=free), [(LINE,) * 256] * 40, time.process_time
        )
        for name in ("Paraphrase-v0", "Revise-v0")
    )
    row("Paraphrase vector of 256: processor time per env-step", f"{text * 1e6:.1f} µs", "< 20 µs", text < 20e-6)
    row("Revise vector of 256: processor time per env-step", f"{revise * 1e6:.1f} µs", "< 20 µs", revise < 20e-6)
    pocket = batched(gymnasium.make_vec("humor_env/Paraphrase-v0", num_envs=256), [(LINE,) * 256] * 8)
    row("Paraphrase vector of 256 with the pocket critic: env-steps/s", f"{1 / pocket:,.0f}")
    slow = slow_critic_step(64, 0.05)
    row("step of 64 with a critic of 50 ms", f"{slow * 1e3:.1f} ms", "≈ 50 ms", slow < 0.06)

    steps_played, growth = memory_growth(memory_steps, chance)
    row(f"memory growth over {steps_played:,} env-steps", f"{growth:.1f} MB", "< 2 MB", growth < 2.0)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the environments' speed.")
    parser.add_argument("--steps", type=int, default=50_000, help="steps per turn of a single environment")
    parser.add_argument("--memory-steps", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    table = Table(title=f"humor_env {humor_env.__version__}: environments", title_justify="left")
    for heading in ("what", "measured", "wanted", "holds"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    rows = measure(options.steps, options.memory_steps)
    for cells in rows:
        table.add_row(*cells)
    Console(width=118).print(table)
    return int(any(verdict == "NO" for *_, verdict in rows))


if __name__ == "__main__":
    sys.exit(main())
