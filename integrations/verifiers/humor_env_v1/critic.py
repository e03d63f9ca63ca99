"""Critics of humor_env in verifiers: what a trace's last reply scores.

    vf-eval gsm8k-v1 --env.taskset.task.judges '[{"id": "humor-env-v1", "critic": "rules", "weight": 0.2}]'

All rollouts of a process share one critic, and what is waiting when it is free is judged in one call. A judgement that
failed is raised: verifiers then leaves the reward unset (None) and says so in the trace.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import verifiers.v1 as vf
from pydantic import Field, model_validator
from verifiers.v1.judge import judge_question

from humor_env.episodes import episode
from humor_env.errors import HumorEnvError
from humor_env.experiments.sharing.shared_critic import SharedCritic
from humor_env.types import Joke, Judgement, Prompt

MAX_CHARS = 100_000
_STOPS = {"stop": "end", "length": "length"}


class JudgementFailed(HumorEnvError):
    """The critic gave no score. A number in its place would say that the line was bad."""


def shared_critic(
    critic: str, options: Mapping[str, Any], prompts: str | None = None, split: str = "train"
) -> SharedCritic:
    """The one critic of these options in this process, beside the prompts that it is asked about."""
    return _made(critic, json.dumps(dict(options), sort_keys=True), prompts, split)


@cache
def _made(critic: str, options: str, prompts: str | None, split: str) -> SharedCritic:
    # Another taskset's questions are not known beforehand: one prompt stands for them.
    known = prompts if prompts is not None else ["What another taskset asks."]
    world = episode.Task(known, critic, split=split, critic_options=json.loads(options), max_chars=MAX_CHARS)
    return SharedCritic(world)


async def score(shared: SharedCritic, prompt: Prompt, trace: vf.Trace, name: str) -> float:
    """The last reply's score; what the critic said of it and what it cost go to the trace."""
    stop = _STOPS.get(str(trace.calls[-1].finish_reason)) if trace.calls else None
    judgement = await asyncio.wrap_future(shared.judge(Joke(prompt, trace.last_reply, "student", stop)))
    _record(judgement, trace, name)
    if judgement.score is None:
        raise JudgementFailed(f"The critic '{judgement.critic}' gave no score: {judgement.error}")
    return judgement.score


def _record(judgement: Judgement, trace: vf.Trace, name: str) -> None:
    usage = judgement.usage
    if usage.calls:
        fresh = usage.input_tokens - usage.cached_tokens  # verifiers counts cached tokens apart
        trace.extra_usage.append(
            vf.Usage(
                prompt_tokens=fresh,
                completion_tokens=usage.output_tokens,
                cached_input_tokens=usage.cached_tokens,
                cost=usage.cost,
            )
        )
    said = {"critic": judgement.critic, "reason": judgement.reason, "error": judgement.error}
    trace.info.setdefault("judgements", {})[name] = said
    trace.record_metrics({f"{name}/{part}": value for part, value in judgement.parts.items()})


class CriticJudgeConfig(vf.JudgeConfig):
    """A critic has a client of its own, in its options: of what all judges have, `name` and `weight` count here."""

    critic: str = "rules"
    critic_options: dict[str, Any] = Field(default_factory=dict)
    question_field: str = ""
    """The task's field with the sentence that was to be made funny; empty: the prompt."""

    @model_validator(mode="after")
    def name_after_critic(self) -> CriticJudgeConfig:
        self.name = self.name or self.critic
        return self


class CriticJudge(vf.Judge[float, CriticJudgeConfig]):
    """A critic for any taskset's last reply."""

    async def score(self, task: vf.TaskData, trace: vf.Trace) -> float:
        shared = shared_critic(self.config.critic, self.config.critic_options)
        prompt = Prompt(task.id or task.name or str(task.idx), judge_question(task, self.config.question_field))
        return await score(shared, prompt, trace, self.reward_name)
