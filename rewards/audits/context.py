"""Does a critic read the prompt? Each line is scored with its own prompt and with others.

    scores = measure_context(critic, jokes)
    scores.share, scores.interval     # 0.50, (0.46, 0.54): chance. The critic ignores the prompt
    scores.lift                       # the mean score with its own prompt minus that with others

A critic that does not read the prompt has a single best line, and a student that learns from it answers every prompt
with that line. No other row of an audit or of the probes detects this: such a critic can agree with people about the
lines for one prompt. `rewards/rated/other_prompt.py` moves a line to another prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from humor_env.errors import CriticContractError
from humor_env.rewards.audits import audit_stats as stats
from humor_env.rewards.audits.report import ContextRow, ContextScores
from humor_env.rewards.rated.other_prompt import under_prompt_of
from humor_env.shared.streams import generator
from humor_env.types import Critic, Joke, critic_name

DRAWS = 4  # other prompts per line
MOST_LINES = 500
# Upper ends of the bins of grades, as shares of the scale: 0.6, 1 and 1.4 for grades from 0 to 3. The last bin is open.
GRADES = (0.2, 1 / 3, 7 / 15, math.inf)


def measure_context(
    critic: Critic,
    jokes: Sequence[Joke],
    *,
    draws: int = DRAWS,
    grades: Sequence[float] = (),
    scale: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> ContextScores | None:
    """Score each joke with its own prompt and with those of `draws` other jokes, all in one call. With `grades`, one
    per joke, the result is also given by grade. None with fewer than two prompts."""
    places = [i for i, joke in enumerate(jokes) if joke.prompt.text.strip()]
    if draws < 1 or len({jokes[i].prompt.text for i in places}) < 2:
        return None
    if len(places) > MOST_LINES:
        places = sorted(generator(seed, "context lines").choice(places, MOST_LINES, replace=False).tolist())
    own = [jokes[i] for i in places]
    others = [_moved(i, own, draws, seed) for i in range(len(own))]
    scores = _scores(critic, [joke for i, joke in enumerate(own) for joke in (joke, *others[i])])
    credits: list[float] = []
    margins: list[float] = []
    of: list[int] = []  # the index of each comparison's line
    for i, joke in enumerate(own):
        mine = scores[_key(joke)]
        for other in others[i]:
            theirs = scores[_key(other)]
            if mine is not None and theirs is not None:
                margins.append(mine - theirs)
                credits.append(1.0 if mine > theirs else 0.5 if mine == theirs else 0.0)
                of.append(i)
    failed = sum(map(len, others)) - len(credits)
    if not credits:
        return ContextScores(0, failed, draws)
    clusters = [own[i].prompt.text for i in of]
    credit, margin = np.array(credits), np.array(margins)
    rows = []
    if len(grades):
        span = scale[1] - scale[0]
        grade = np.array([(grades[places[i]] - scale[0]) / span for i in of])
        low = 0.0
        for high in GRADES:
            inside = (grade >= low - 1e-9) & (grade < high - 1e-9)
            if inside.any():
                bounds = stats.interval(credit[inside], [c for c, ok in zip(clusters, inside, strict=True) if ok], seed)
                rows.append(
                    ContextRow(
                        scale[0] + low * span,
                        None if math.isinf(high) else scale[0] + high * span,
                        len({i for i, ok in zip(of, inside, strict=True) if ok}),
                        float(credit[inside].mean()),
                        bounds,
                        float(margin[inside].mean()),
                    )
                )
            low = high
    return ContextScores(
        len(set(of)),
        failed,
        draws,
        float(credit.mean()),
        stats.interval(credit, clusters, seed),
        float(margin.mean()),
        stats.interval(margin, clusters, seed, lowest=-1.0),
        tuple(rows),
    )


def _moved(i: int, jokes: Sequence[Joke], draws: int, seed: int) -> list[Joke]:
    """The line of joke `i` under the prompts of other jokes."""
    joke = jokes[i]
    used_prompts = {joke.prompt.text}
    moved_jokes: list[Joke] = []
    # By hash of what is asked and answered: the same line meets the same prompts in every audit of the set.
    source = generator(seed, "context", f"{joke.prompt.text}\x1f{joke.text}".encode("utf-8", "surrogatepass").hex())
    for k in source.permutation(len(jokes)):
        other = jokes[k]
        if other.prompt.text in used_prompts:
            continue
        used_prompts.add(other.prompt.text)
        moved = under_prompt_of(joke, other)
        if moved is not None:
            moved_jokes.append(moved)
        if len(moved_jokes) == draws:
            break
    return moved_jokes


def _scores(critic: Critic, jokes: Sequence[Joke]) -> dict[tuple[str, str], float | None]:
    distinct = list({_key(joke): joke for joke in jokes}.values())
    judgements = critic(distinct)
    if len(judgements) != len(distinct):
        raise CriticContractError(
            f"The critic '{critic_name(critic)}' was given {len(distinct)} jokes and returned {len(judgements)} "
            "judgements: it must return one for each, in order."
        )
    return {_key(joke): judgement.score for joke, judgement in zip(distinct, judgements, strict=True)}


def _key(joke: Joke) -> tuple[str, str]:
    return joke.prompt.text, joke.text
