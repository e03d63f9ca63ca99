"""Inspect AI: how funny any model that Inspect can reach is, by any of our critics.

    inspect eval humor_env/humor_paraphrase --model openai/gpt-4o-mini -T prompts=everyday -T critic=rules

Inspect finds the task and the scorer by an entry point; the rest of the package does not import this file. All samples
share one critic, which judges all waiting lines in one call. A failed judgement leaves its sample unscored: Inspect
counts it, and no mean includes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer, stderr
from inspect_ai.solver import TaskState, generate

from humor_env.episodes import episode
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.experiments.sharing import INSTRUCTION
from humor_env.prompts import load_prompts
from humor_env.types import Joke, Judgement

VERSION = 1
"""The task's version, raised when the instruction or the format of the prompt changes: results are then different."""
_STOPS = {"stop": "end", "max_tokens": "length", "model_length": "length"}


@metric(name="mean")
def score_mean() -> Metric:
    """The mean score; NaN, not 0, if no sample has one."""

    def compute(scores: list[SampleScore]) -> float:
        return sum(sample.score.as_float() for sample in scores) / len(scores) if scores else math.nan

    return compute


@metric
def interval() -> Metric:
    """The 95 % interval of the mean over prompts, as in a run's report; NaN for too few prompts."""

    def compute(scores: list[SampleScore]) -> Mapping[str, float | None]:
        low, high = bootstrap_interval([sample.score.as_float() for sample in scores])
        return {"low": low, "high": high}

    return compute


@metric
def judging_cost() -> Metric:
    """Dollars that judging the scored samples cost; NaN if a model's price is not known."""

    def compute(scores: list[SampleScore]) -> float:
        costs = [(sample.score.metadata or {}).get("cost", 0.0) for sample in scores]
        return math.nan if None in costs else float(sum(costs))

    return compute


@scorer(metrics=[score_mean(), stderr(), interval(), judging_cost()])
def critic_scorer(
    critic: str = "rules", critic_options: dict[str, Any] | None = None, prompts: str = "everyday", split: str = "test"
) -> Scorer:
    """One of our critics as a scorer, for samples whose ids are those of this set's prompts."""
    from humor_env.experiments.sharing.shared_critic import SharedCritic

    world = episode.Task(prompts, critic, split=split, critic_options=critic_options, max_chars=100_000)
    shared = SharedCritic(world)

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion.strip()
        stop = _STOPS.get(str(state.output.stop_reason))
        joke = Joke(world.prompts.get(str(state.sample_id)), text, "student", stop)
        return as_score(await anyio.to_thread.run_sync(shared.judge(joke).result), text)

    return score


def as_score(judgement: Judgement, text: str) -> Score:
    """A judgement as Inspect's Score, with its cost."""
    usage = judgement.usage
    # Without calls the cost is 0; None is an unknown price.
    spent = {"cost": usage.cost if usage.calls else 0.0, "calls": usage.calls}
    tokens = usage.input_tokens + usage.output_tokens
    facts: dict[str, Any] = {"critic": judgement.critic, **spent, "tokens": tokens}
    if judgement.score is None:
        return Score.unscored(reason="grader_failed", answer=text, explanation=judgement.error, metadata=facts)
    facts["parts"] = dict(judgement.parts)
    return Score(value=judgement.score, answer=text, explanation=judgement.reason or None, metadata=facts)


@task
def humor_paraphrase(
    prompts: str = "everyday",
    split: str = "test",
    critic: str = "rules",
    critic_options: dict[str, Any] | None = None,
    instruction: str = INSTRUCTION,
) -> Task:
    """Write a funny paraphrase of each sentence of a prompt set's split; a critic scores the lines.

    The version consists of the task's version and the digest of the prompts, so only equal versions can be compared.
    """
    prompt_set = load_prompts(prompts)
    samples = [
        Sample(
            id=prompt.id,
            input=[ChatMessageSystem(content=instruction), ChatMessageUser(content=prompt.text)],
            metadata={"prompt": prompt.text, "task": prompt.task},
        )
        for prompt in prompt_set.split(split)
    ]
    digest = prompt_set.digest(split)
    return Task(
        dataset=MemoryDataset(samples, name=f"{prompt_set.name}/{split}"),
        solver=generate(),
        scorer=critic_scorer(critic, critic_options, prompts, split),
        version=f"{VERSION}-{digest}",
        metadata={"prompts": prompt_set.name, "split": split, "digest": digest, "instruction": instruction},
    )
