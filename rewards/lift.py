"""How much better a line scores with its own prompt than with others. One line for all prompts gains nothing.

    critic = LiftCritic("everyday", critic="reward-model", critic_options={"folder": "runs/critic"}, others=4)
    critic([joke])[0].parts          # {"own": 0.71, "others": 0.55, "lift": 0.16}; the score is 0.58

Another critic scores the line with its own prompt and with `others` other prompts. The score is (1 + own - mean of the
others) / 2: 0.5 if the prompt makes no difference, 1 for a line that is perfect here and worthless elsewhere. The other
prompts are chosen by a hash of the joke's own prompt, so scores are reproducible, and siblings (lines for one prompt)
are compared under the same ones.

A line that is bad everywhere also gets 0.5. So use it with its inner critic, behind gates:

    [{"critic": "rules", "gate": 0.5}, {"critic": "reward-model", …}, {"critic": "lift", …}]

Everything is scored in one call, each question once. With a language-model critic each line costs 1 + `others`
questions; a ledger answers repeated ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption
from humor_env.prompts import PromptSet, load_prompts
from humor_env.registry import critics
from humor_env.shared.plain_numbers import whole_number
from humor_env.shared.streams import generator
from humor_env.types import NO_USAGE, Critic, Joke, Judgement, Prompt, critic_name

_Key = tuple[str, str, str, str, str | None]


class LiftCritic:
    """`prompts` is the source of the other prompts: a set's name or file, or prompts; by default, in a run, the run's
    own. `split` restricts it to one split."""

    name = "lift"

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt],
        critic: str | Critic = "pocket",
        critic_options: Mapping[str, Any] | None = None,
        others: int = 4,
        split: str | None = None,
        seed: int = 0,
    ) -> None:
        count = whole_number(others)
        if count is None or count < 1:
            raise InvalidOption(
                f"others is the number of other prompts per line and must be at least 1; found {others!r}."
            )
        prompt_set = load_prompts(prompts)
        # Each text once: the same words under another id would be the line's own prompt.
        pool = {prompt.text: prompt for prompt in (prompt_set if split is None else prompt_set.split(split))}
        self.prompts: Sequence[Prompt] = tuple(pool.values())
        if len(self.prompts) <= count:
            raise InvalidOption(
                f"A line needs {count} other prompts; found {len(self.prompts)} prompts in all. Give more "
                "prompts, or fewer others."
            )
        self.critic = cast(Critic, critics.make(critic, **(critic_options or {})))
        self.others, self.seed = count, seed

    @property
    def inner_critics(self) -> list[Critic]:
        return [self.critic]

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        questions: dict[_Key, Joke] = {}
        rows = []
        for joke in jokes:
            rows.append([joke, *(replace(joke, prompt=prompt) for prompt in self._others(joke.prompt))])
            for question in rows[-1]:
                questions.setdefault(_key(question), question)
        replies = checked_reply(self.critic, critic_name(self.critic), list(questions.values())) if questions else []
        answers = dict(zip(questions, replies, strict=True))
        paid: set[_Key] = set()
        judgements = []
        for row in rows:
            keys = [_key(question) for question in row]
            # A question shared by several lines was asked and paid for once.
            usage = sum((answers[key].usage for key in dict.fromkeys(keys) if key not in paid), NO_USAGE)
            paid.update(keys)
            judgements.append(self._judge([answers[key] for key in keys], usage))
        return judgements

    def _others(self, prompt: Prompt) -> list[Prompt]:
        source = generator(self.seed, "lift", prompt.text.encode("utf-8", "surrogatepass").hex())
        chosen = source.choice(len(self.prompts), self.others + 1, replace=False)  # one more: it may be its own
        return [self.prompts[i] for i in chosen if self.prompts[i].text != prompt.text][: self.others]

    def _judge(self, judgements: Sequence[Judgement], usage: Any) -> Judgement:
        own, others = judgements[0], [other for other in judgements[1:] if other.score is not None]
        if own.score is None or not others:
            first = own if own.score is None else judgements[1]
            return Judgement(self.name, None, error=f"{first.critic}: {first.error}", usage=usage)
        mean = math.fsum(cast(float, other.score) for other in others) / len(others)
        parts = {"own": own.score, "others": mean, "lift": own.score - mean}
        reason = f"{own.score:.2f} with its own prompt, {mean:.2f} with {len(others)} others"
        reason += f"; {own.reason}" if own.reason else ""
        return Judgement(self.name, min(1.0, max(0.0, (1 + own.score - mean) / 2)), parts, reason, usage=usage)

    def close(self) -> None:
        close_all(self.inner_critics)


def _key(joke: Joke) -> _Key:
    return joke.prompt.id, joke.prompt.text, joke.text, joke.author, joke.stop_reason
