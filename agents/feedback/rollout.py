"""The lines of a step with their rewards: one frozen table that every learner reads.

    rollout = collect(env, student, sampling, prompts, uniforms)
    rollout.tokens, rollout.action_mask, rollout.logprobs      # [B, T]
    rollout.rewards, rollout.group, rollout.valid              # [B]
    rollout.jokes[3], rollout.judgements[3]                    # every number traces back to a text

The critic is called in a separate thread, and on a GPU in a separate stream: passes that do not need its answer (the
reference, the old policy) run meanwhile, and with several environments the next one's lines are generated meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from humor_env.agents.session.processes import sum_over_processes
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Generation, Sampling
from humor_env.agents.student.token_rows import TokenRows
from humor_env.agents.student.transfers import own_stream, send
from humor_env.agents.student.writer import Backend, InProcess
from humor_env.errors import JudgingFailed
from humor_env.types import Joke, Judgement, Prompt


class TextVectorEnv(Protocol):
    """What learners need from an environment. `HumorVectorEnv` implements it; `SteppedEnv` adapts any other vector
    environment whose actions and observations are strings and which keeps `last_jokes` and `last_judgements`.

    `play` judges the texts of some sub-environments and returns which episodes ended. The others are not judged, and no
    new episode starts.
    """

    num_envs: int
    single_action_space: Any
    last_jokes: Sequence[Joke]
    last_judgements: Sequence[Judgement]

    @property
    def observations(self) -> Sequence[str]: ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]: ...

    def play(
        self, indices: Sequence[int], texts: Sequence[str], stop_reasons: Sequence[str | None] | None = None
    ) -> tuple[np.ndarray, list[int]]: ...


class SteppedEnv:
    """Adapts a Gymnasium vector environment of strings to `TextVectorEnv`; every `play` steps all sub-environments."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.num_envs: int = env.num_envs
        self.single_action_space = env.single_action_space
        self.observations: Sequence[str] = ()
        self.last_jokes: Sequence[Joke] = ()
        self.last_judgements: Sequence[Judgement] = ()
        self._texts: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.observations, infos = self.env.reset(seed=seed, options=options)
        self._texts = [""] * self.num_envs
        return self.observations, infos

    def play(
        self, indices: Sequence[int], texts: Sequence[str], stop_reasons: Sequence[str | None] | None = None
    ) -> tuple[np.ndarray, list[int]]:
        for i, text in zip(indices, texts, strict=True):
            self._texts[i] = text
        self.observations, rewards, terminated, truncated, _ = self.env.step(self._texts)
        reasons = stop_reasons or [None] * len(texts)
        jokes = [self.env.last_jokes[i] for i in indices]
        self.last_jokes = [replace(joke, stop_reason=why) for joke, why in zip(jokes, reasons, strict=True)]
        self.last_judgements = [self.env.last_judgements[i] for i in indices]
        return rewards[list(indices)], [i for i in indices if terminated[i] or truncated[i]]


@dataclass(frozen=True)
class Rollout:
    """`[B, T]`: tokens, attention, action_mask, logprobs; `[B]`: the rest. `asked` holds optional `[B, T]` columns,
    "ref_logprobs" and "values", if the learner requested them.

    `following[b]` is the row of the next attempt in the same episode, or -1, on the CPU. `valid` is False where the
    critic failed: such rows have reward 0 and are excluded from learning. `host` holds the rows on the CPU, where
    available.
    """

    tokens: Tensor
    attention: Tensor
    action_mask: Tensor
    logprobs: Tensor
    asked: Mapping[str, Tensor]
    rewards: Tensor
    group: Tensor
    valid: Tensor
    following: Tensor
    jokes: tuple[Joke, ...]
    judgements: tuple[Judgement, ...]
    seconds: dict[str, float]
    host: TokenRows | None = None

    def __post_init__(self) -> None:
        rows, columns = self.tokens.shape
        tables = {n: getattr(self, n) for n in ("attention", "action_mask", "logprobs")} | dict(self.asked)
        for name, tensor in tables.items():
            if tensor.shape != (rows, columns):
                raise ValueError(f"{name} must be [{rows}, {columns}], found {tuple(tensor.shape)}")
        for name in ("rewards", "group", "valid", "following"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} must be [{rows}], found {tuple(getattr(self, name).shape)}")
        if len(self.jokes) != rows or len(self.judgements) != rows:
            raise ValueError(f"{rows} rows need {rows} jokes and judgements")
        host = self.rows.host
        if bool((host.action_mask.bool() & ~host.attention.bool()).any()):
            raise ValueError("the action mask covers padding")
        if rows and bool(host.action_mask[:, 0].any()):
            raise ValueError("column 0 cannot be an action: nothing precedes it")

    def __len__(self) -> int:
        return len(self.jokes)

    @cached_property
    def rows(self) -> TokenRows:
        return TokenRows(self.tokens, self.attention, self.action_mask, self.host)

    @property
    def lengths(self) -> Tensor:
        return self.action_mask.sum(-1)

    @property
    def finished(self) -> Tensor:
        """Whether the student ended the line itself, from the stored stop reason."""
        return send(self.tokens.device, torch.tensor([j.stop_reason == "end" for j in self.jokes]))[0]

    @property
    def mask(self) -> Tensor:
        """The tokens to learn from: the student's own, in judged lines."""
        return self.action_mask * self.valid[:, None]

    @property
    def has_reference(self) -> bool:
        return "ref_logprobs" in self.asked

    @property
    def ref_logprobs(self) -> Tensor:
        return self._asked_for("ref_logprobs", "reference=True")

    @property
    def values(self) -> Tensor:
        return self._asked_for("values", "values=True")

    def _asked_for(self, name: str, how: str) -> Tensor:
        if name not in self.asked:
            raise ValueError(f"this rollout was collected without {name}: request them with {how}")
        return self.asked[name]


def group_envs(env: TextVectorEnv | Sequence[TextVectorEnv]) -> list[TextVectorEnv]:
    envs: list[Any] = list(env) if isinstance(env, (list, tuple)) else [env]
    return [member if hasattr(member, "play") else SteppedEnv(member) for member in envs]


def collect(
    env: TextVectorEnv | Sequence[TextVectorEnv],
    student: Student,
    sampling: Sampling,
    prompts: Sequence[Prompt],
    uniforms: Callable[[int, int], Tensor],
    *,
    values: bool = False,
    old_logprobs: bool = True,
    reference: bool = True,
    micro_batch: int = 64,
    max_failure_share: float = 0.5,
    max_flip_share: float = 1.0,
    backend: Backend | None = None,
) -> Rollout:
    """Play one episode per prompt and score the lines. Equal attempts at equal prompts are siblings, one group.

    `uniforms(attempt, columns)` gives the random numbers for all rows of one attempt. Without `old_logprobs` the
    rollout keeps the log-probabilities and values of sampling, which saves a pass. Raises `JudgingFailed` with the list
    of errors when more than `max_failure_share` of the judgements failed, or more than `max_flip_share` of the verdicts
    behind them change with the order.
    """
    envs = group_envs(env)
    backend = backend or InProcess(student)
    old_logprobs = old_logprobs or not backend.exact
    clock = {"generate": 0.0, "judge_wait": 0.0, "judge": 0.0, "reference": 0.0}
    tables: list[_Attempt] = []
    with ThreadPoolExecutor(max_workers=len(envs), thread_name_prefix="critic") as pool:
        shares = _split(len(prompts), envs)
        for env, share in zip(envs, shares, strict=True):
            env.reset(options={"prompt_ids": [p.id for p in prompts[share]]})
        live = [list(range(env.num_envs)) for env in envs]  # sub-environments whose episode continues
        attempt = 0
        while any(live):
            chance = uniforms(attempt, sampling.max_new_tokens)
            waiting: list[tuple[int, _Attempt, Future[_Judged]]] = []
            for i, env in enumerate(envs):
                if not live[i]:
                    continue
                began = time.perf_counter()
                observed = env.observations
                lines = backend.generate(
                    [observed[k] for k in live[i]], sampling, chance[shares[i]][live[i]], values=values
                )
                clock["generate"] += time.perf_counter() - began
                table = _Attempt(attempt, [shares[i].start + k for k in live[i]], lines)
                waiting.append((i, table, pool.submit(_judge, env, live[i], lines, own_stream(student.device))))
            began = time.perf_counter()
            for _, table, _ in waiting:
                table.score(student, sampling, old_logprobs, reference, micro_batch)
            if student.device.type == "cuda":  # it has only been given the work, and the clock is to count it
                torch.cuda.current_stream(student.device).synchronize()
            clock["reference"] += time.perf_counter() - began
            began = time.perf_counter()
            for i, table, future in waiting:
                judged = future.result()
                clock["judge"] += judged.seconds
                table.judged = judged
                live[i] = [k for k in live[i] if k not in judged.ended]
                tables.append(table)
            clock["judge_wait"] += time.perf_counter() - began
            attempt += 1
    rollout = _assemble(student, tables, prompts, clock)
    check_failures(rollout.judgements, max_failure_share)
    check_flips(rollout.judgements, max_flip_share)
    return rollout


def check_failures(judgements: Sequence[Judgement], max_share: float) -> None:
    """Raise on every process if too many judgements failed over all processes. Every process must call it."""
    counts = [sum(j.failed for j in judgements), len(judgements)]
    bad, total = sum_over_processes(torch.tensor(counts, dtype=torch.float64)).tolist()
    _refuse_failures(judgements, bad, total, max_share)


def check_failures_here(judgements: Sequence[Judgement], max_share: float) -> None:
    """The same for this process's judgements, without an exchange that others would have to join."""
    _refuse_failures(judgements, sum(j.failed for j in judgements), len(judgements), max_share)


def _refuse_failures(judgements: Sequence[Judgement], bad: float, total: float, max_share: float) -> None:
    if total and bad / total > max_share:
        failed = [j for j in judgements if j.failed]
        errors = list(dict.fromkeys(f"{j.critic}: {j.error}" for j in failed))
        error_text = "; ".join(errors[:5]) + (f"; and {len(errors) - 5} more kinds" if len(errors) > 5 else "")
        raise JudgingFailed(
            f"{bad:.0f} of {total:.0f} judgements failed, more than the allowed share of {max_share:.0%}. "
            f"Errors: {error_text}"
        )


FEWEST_ASKED = 6  # with fewer pairs, most may flip by chance


def check_flips(judgements: Sequence[Judgement], max_share: float) -> None:
    """Raise if too many verdicts behind the scores change with the order in which the judge sees the two lines. Critics
    built on a judge report it in the part "flips"."""
    flips_of = [(j, [v for n, v in j.parts.items() if n == "flips" or n.endswith(".flips")]) for j in judgements]
    shares = [(j.critic, max(flips)) for j, flips in flips_of if flips]
    check_flip_share(shares[0][0] if shares else "judge", sum(share for _, share in shares), len(shares), max_share)


def check_flip_share(name: str, flipped: float, pairs: int, max_share: float) -> None:
    """The same from this process's counts: `flipped` verdicts among `pairs` judged in both orders."""
    flips, total = sum_over_processes(torch.tensor([flipped, float(pairs)], dtype=torch.float64)).tolist()
    if total >= FEWEST_ASKED and flips / total > max_share:
        counted = f"{flips:.0f} of {total:.0f}" if flips == round(flips) else f"{flips / total:.0%} of {total:.0f}"
        raise JudgingFailed(
            f"'{name}' has a position bias: {counted} of its verdicts change when the two lines are shown in the other "
            f"order, more than the allowed share of {max_share:.0%}. Use another judge, or set max_flip_share = 1 to "
            "learn from this one anyway."
        )


@dataclass(frozen=True)
class _Judged:
    """The environment's results for some lines, and which episodes they ended."""

    rewards: list[float]
    ended: set[int]
    jokes: list[Joke]
    judgements: list[Judgement]
    seconds: float


@dataclass
class _Attempt:
    """One generation call before it is assembled into the rollout."""

    number: int
    episodes: list[int]
    lines: Generation
    judged: _Judged | None = None
    rows: TokenRows | None = None
    logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None

    def score(
        self, student: Student, sampling: Sampling, old_logprobs: bool, reference: bool, micro_batch: int
    ) -> None:
        self.rows = student.rows(self.lines.prompts, self.lines.responses)
        temperature = sampling.scoring_temperature
        if reference:
            self.ref_logprobs = student.score_in_batches(
                self.rows, adapter=IMITATION, micro_batch=micro_batch, temperature=temperature
            ).logprobs
        if old_logprobs:
            scored = student.score_in_batches(
                self.rows,
                adapter=POLICY,
                micro_batch=micro_batch,
                temperature=temperature,
                values=self.lines.values is not None,
                merge=False,  # as in the update: old and new must agree to the last digit
            )
            self.logprobs, self.values = scored.logprobs, scored.values
        else:
            self.logprobs = self._beside_tokens(self.lines.logprobs)
            self.values = None if self.lines.values is None else self._beside_tokens(self.lines.values)

    def _beside_tokens(self, by_position: Tensor) -> Tensor:
        """From `[N, R]` by response position to `[N, T]` by column."""
        assert self.rows is not None
        mask = self.rows.action_mask.bool()
        [begins] = send(mask.device, torch.tensor([len(p) for p in self.lines.prompts]))
        position = torch.arange(mask.shape[1], device=mask.device) - begins[:, None]
        return by_position.gather(1, position.clamp(0, by_position.shape[1] - 1)) * mask


def _judge(
    env: TextVectorEnv, places: list[int], lines: Generation, stream: contextlib.AbstractContextManager[object]
) -> _Judged:
    """Have the lines of these sub-environments judged, passing on each one's stop reason."""
    began = time.perf_counter()
    longest = getattr(env.single_action_space, "max_length", None)
    with stream:
        rewards, ended = env.play(places, [text[:longest] for text in lines.texts], lines.stop_reasons)
    return _Judged(
        [float(r) for r in rewards],
        set(ended),
        list(env.last_jokes),
        list(env.last_judgements),
        time.perf_counter() - began,
    )


def _split(rows: int, envs: Sequence[TextVectorEnv]) -> list[slice]:
    total = sum(e.num_envs for e in envs)
    if rows != total:
        raise ValueError(f"{rows} prompts for environments of {total} rows")
    parts, start = [], 0
    for env in envs:
        parts.append(slice(start, start + env.num_envs))
        start += env.num_envs
    return parts


def _assemble(
    student: Student,
    tables: list[_Attempt],
    prompts: Sequence[Prompt],
    clock: dict[str, float],
) -> Rollout:
    width = max(t.rows.tokens.shape[1] for t in tables if t.rows is not None)

    def stacked(pieces: Sequence[Tensor | None], fill: float = 0) -> Tensor | None:
        present = [piece for piece in pieces if piece is not None]
        if len(present) < len(pieces):
            return None
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in present])

    def always(pieces: Sequence[Tensor | None], fill: float = 0) -> Tensor:
        table = stacked(pieces, fill)
        assert table is not None
        return table

    device = student.device
    episodes = [episode for table in tables for episode in table.episodes]
    following = torch.full((len(episodes),), -1, dtype=torch.long)
    latest: dict[int, int] = {}
    for row, episode in enumerate(episodes):
        if episode in latest:
            following[latest[episode]] = row
        latest[episode] = row
    answers = [table.judged for table in tables if table.judged is not None]
    judgements = [judgement for answer in answers for judgement in answer.judgements]
    rewards = [reward for answer in answers for reward in answer.rewards]
    tables_asked = {name: stacked([getattr(t, name) for t in tables]) for name in ("ref_logprobs", "values")}
    hosts = [table.rows.host for table in tables if table.rows is not None]
    host = TokenRows(
        always([rows.tokens for rows in hosts], student.pad_token),
        always([rows.attention for rows in hosts]),
        always([rows.action_mask for rows in hosts]),
    )
    on_device = host.to(device)
    # A first attempt's reward is a score, a later one's an improvement: they are not compared.
    siblings = [(prompts[episode].id, table.number) for table in tables for episode in table.episodes]
    groups = {key: i for i, key in enumerate(dict.fromkeys(siblings))}
    [group] = send(device, torch.tensor([groups[key] for key in siblings]))
    [valid] = send(device, torch.tensor([not j.failed for j in judgements], dtype=torch.bool))
    return Rollout(
        tokens=on_device.tokens,
        attention=on_device.attention,
        action_mask=on_device.action_mask,
        logprobs=always([table.logprobs for table in tables]),
        asked={name: table for name, table in tables_asked.items() if table is not None},
        rewards=send(device, torch.tensor(rewards, dtype=torch.float32))[0],
        group=group,
        valid=valid,
        following=following,
        jokes=tuple(joke for answer in answers for joke in answer.jokes),
        judgements=tuple(judgements),
        seconds=clock,
        host=host,
    )
