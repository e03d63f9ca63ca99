"""What a benchmark would take, told before it begins."""

from __future__ import annotations

import pytest
from test_benchmark import LEARNERS, text

from humor_env.errors import HumorEnvError
from humor_env.experiments.compare.benchmark_costs import forecast_benchmark
from humor_env.experiments.compare.benchmark_spec import parse_benchmark
from humor_env.experiments.runs.costs import in_words
from humor_env.prompts import load_prompts


def test_a_dry_run_prints_calls_tokens_dollars_and_time(monkeypatch):
    """It printed the names of its cells. Of one seed, by hand: six held-out prompts, four dev prompts measured twice.

    Learning: PPO has 48 lines scored and DPO 8 pairs judged (six candidates each). Measuring: of the warm start's three
    systems 18 lines by the critic and 18 pairs by the judge; of each learner 6 and 6, and 8 dev lines. In both orders.
    """
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: 0.5 * threads)
    judge = 'judge = "multiple-choice"\noptions = { client = "anthropic:claude-haiku-4-5" }'
    learners = LEARNERS[LEARNERS.index('[[learners]]\nname = "ppo"') :]
    changes = {
        'judge = "pocket-crowd"': judge,
        "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
        'critic = "pocket"': 'critic = "rules"',
        "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        "seeds = [0]": "seeds = [0, 1]",
    }
    bench = parse_benchmark(text(learners=learners, **changes))
    said, lacking = forecast_benchmark(bench, workers=2, threads=1)
    assert lacking == []
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if "| crowd |" in line]
    assert [row[:4] for row in table] == [
        ["measuring", "crowd", str(2 * (36 + 2 * (12 + 8))), str(2 * 2 * (36 + 2 * (12 + 8)))],
        ["learning", "crowd", str(2 * (48 + 8)), str(2 * 2 * (48 + 8))],
    ]
    assert float(table[1][6]) > 0 and "2 seeds: at most about $" in said
    assert "6 cells; the learners write about 192 lines" in said
    taught = len(load_prompts("everyday").split("train"))
    seconds = 0.5 * (0.75 * taught + 2 * 6 + 2 * (2 * 48 + 6 + 8))  # of two seeds, by two workers
    assert f"with 2 workers, that takes roughly {in_words(seconds)}" in said


def test_a_dry_run_counts_several_lines_and_the_noise_floor(monkeypatch):
    """By hand: of the warm start's four systems 4 x 6 prompts x 2 lines by the critic and by the judge, and 12 pairs of
    the imitation's own lines; of best-of-2 12 lines and 12 pairs, which it chooses among 24."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: None)
    changes = {
        'judge = "pocket-crowd"': 'judge = "multiple-choice"\noptions = { client = "anthropic:claude-haiku-4-5" }',
        "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
        'critic = "pocket"': 'critic = "rules"',
        "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        "limit = 6\n": "limit = 6\nlines = 2\n",
        "seeds = [0]": "seeds = [0]\nnoise_floor = true",
    }
    learners = LEARNERS[: LEARNERS.index('[[learners]]\nname = "ppo"')]
    said, _ = forecast_benchmark(parse_benchmark(text(learners=learners, **changes)), workers=1, threads=1)
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if "| crowd |" in line]
    assert [row[:3] for row in table] == [
        ["measuring", "crowd", str(48 + 48 + 12 + 12 + 12)],
        ["learning", "crowd", str(2 * 6 * 2)],
    ]


def test_a_dry_run_counts_the_teachers_lines_that_a_critic_is_compared_by(monkeypatch):
    """Of one seed, by hand: PPO's 48 lines are scored. Measuring: 3 systems of 6 lines, each scored and compared (two
    lines to score); of PPO 6, and 8 dev lines, the same."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: None)
    options = 'critic_options = { client = "anthropic:claude-haiku-4-5" }'
    changes = {
        'judge = "pocket-crowd"': 'critic = "scorer"',
        "critic_options = { max_lines = 1 }": options,
        "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
        "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
    }
    ppo = LEARNERS.index('[[learners]]\nname = "ppo"')
    learners = LEARNERS[ppo : LEARNERS.find("[[learners]]", ppo + 1)]
    said, _ = forecast_benchmark(parse_benchmark(text(learners=learners, **changes)), workers=1, threads=1)
    counts = [line.split("|")[3].strip() for line in said.splitlines() if "| crowd |" in line]
    assert counts == [str(3 * (18 + 6 + 8)), "48"]


def test_a_dry_run_counts_the_other_prompts_of_the_held_out_critic(monkeypatch):
    """They were left out. With two others, 2 x (3 systems + best-of-2) x 6 lines more."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: None)

    def questions(others: int) -> int:
        client = 'options = { client = "anthropic:claude-haiku-4-5" }'
        changes = {
            'held_out = { critic = "pocket" }': f'held_out = {{ critic = "scorer", {client}, others = {others} }}',
            "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
            "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        }
        learners = LEARNERS[: LEARNERS.index('[[learners]]\nname = "ppo"')]
        said, _ = forecast_benchmark(parse_benchmark(text(learners=learners, **changes)), workers=1, threads=1)
        [row] = [line for line in said.splitlines() if line.startswith("| held out |")]
        return int(row.split("|")[3].replace(",", ""))

    assert questions(2) - questions(0) == 2 * (3 + 1) * 6


def test_a_dry_run_finds_what_would_stop_a_cell():
    judge = 'judge = "multiple-choice"\noptions = { client = "local:/nope" }'
    bench = parse_benchmark(text(**{'judge = "pocket-crowd"': judge}))
    with pytest.raises(HumorEnvError, match="There is no folder '/nope'"):
        forecast_benchmark(bench, workers=1, threads=1)
