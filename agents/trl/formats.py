"""Our critics, prompts, preferences and teacher lines in the formats of TRL's trainers.

reward = make_trl_reward(critic)                              # async; None for lines that could not be judged
trainer = GRPOTrainer(model, reward_funcs=reward, train_dataset=prompts_dataset(prompts), ...)
trainer = DPOTrainer(model, train_dataset=preferences_dataset(preferences), ...)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from humor_env.agents.feedback.rollout import check_failures, check_flips
from humor_env.agents.student import Student
from humor_env.episodes.episode import judged_with_words
from humor_env.errors import InvalidOption, PromptError
from humor_env.shared.control_tokens import as_text
from humor_env.shared.framing import conversation, framed
from humor_env.types import Critic, Demonstration, Joke, Judgement, Preference, Prompt, critic_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = str | list[dict[str, str]]  # TRL's two forms: plain, or a conversation


class TRLReward(Protocol):
    """What `GRPOTrainer` and `RLOOTrainer` take as a reward function."""

    async def __call__(
        self, *, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]: ...


class PlainReward(Protocol):
    """The same, called without `await`."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]: ...


def make_trl_reward(
    critic: Critic,
    *,
    max_failure_share: float = 0.5,
    max_flip_share: float = 1.0,
    on_jokes: Callable[[int, list[Joke], list[Judgement]], None] | None = None,
    asynchronous: bool = True,
) -> TRLReward | PlainReward:
    """A critic as an async TRL reward function that returns scores, or None where there is none.

    The columns of `prompts_dataset`, if present, give the critic the whole prompt; a line without its required words
    scores 0. The critic runs in a separate thread. If more than `max_failure_share` of a batch fails, the run ends with
    the list of errors. `asynchronous=False` gives a plain function, for OnlineDPOTrainer and others that do not await
    rewards.
    """

    def make_jokes(prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any]) -> list[Joke]:
        return [
            Joke(_prompt_of(prompts[i], {n: v[i] for n, v in columns.items() if isinstance(v, list)}), _line_of(line))
            for i, line in enumerate(completions)
        ]

    def scores(jokes: list[Joke], judgements: list[Judgement], columns: Mapping[str, Any]) -> list[float | None]:
        check_failures(judgements, max_failure_share)
        check_flips(judgements, max_flip_share)
        if on_jokes is not None:
            on_jokes(int(getattr(columns.get("trainer_state"), "global_step", 0)), jokes, judgements)
        return [judgement.score for judgement in judgements]

    async def reward(*, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        jokes = make_jokes(prompts, completions, columns)
        return scores(jokes, await asyncio.to_thread(judged_with_words, critic, jokes), columns)

    def plain_reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        jokes = make_jokes(prompts, completions, columns)
        return scores(jokes, judged_with_words(critic, jokes), columns)

    reward.__name__ = plain_reward.__name__ = critic_name(critic)
    return reward if asynchronous else plain_reward


def _line_of(text: Text) -> str:
    """The line itself; in a conversation, the last message."""
    return (text if isinstance(text, str) else str(text[-1]["content"])).strip()


def _prompt_of(prompt: Text, row: Mapping[str, Any]) -> Prompt:
    text = row.get("text") or _line_of(prompt)
    name = row.get("prompt_id") or hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()
    extra = json.loads(row["extra"]) if row.get("extra") else {}
    return Prompt(name, text, row.get("task") or "paraphrase", row.get("split") or "train", extra)


def prompts_dataset(
    prompts: Sequence[Prompt],
    reader: Student | PreTrainedTokenizerBase | None = None,
    *,
    instruction: str | None = None,
) -> Any:
    """A Hugging Face dataset for TRL's online trainers. `prompt` has the form that the given reader expects: a student,
    or your model's tokenizer, whose chat template makes it a conversation. `instruction` is the system message (or the
    prefix of each prompt, for a model without a chat template); by default a student's own."""
    from datasets import Dataset

    if instruction is None:
        instruction = getattr(reader, "instruction", "")
    tokenizer: Any = getattr(reader, "tokenizer", reader)
    rows = [
        {
            "prompt": _as_prompt(tokenizer, p.text, instruction),
            "text": p.text,
            "prompt_id": p.id,
            "task": p.task,
            "split": p.split,
            "extra": json.dumps(dict(p.extra)),
        }
        for p in prompts
    ]
    if not rows:
        raise PromptError("A dataset of prompts needs at least one prompt.")
    return Dataset.from_list(rows)


def preferences_dataset(preferences: Sequence[Preference], student: Student | None = None) -> Any:
    """A Hugging Face dataset for `DPOTrainer`."""
    from datasets import Dataset

    rows = [
        {
            "prompt": _as_read(student, p.prompt.text),
            "chosen": _as_written(student, p.chosen),
            "rejected": _as_written(student, p.rejected),
            "prompt_id": p.prompt.id,
            "probability": p.probability,
            "source": p.source,
            "chosen_ended": p.chosen_ended,
            "rejected_ended": p.rejected_ended,
        }
        for p in preferences
    ]
    if not rows:
        raise PromptError("A dataset of preferences needs at least one preference.")
    return Dataset.from_list(rows)


def without_added_ends(tokenized: Any, end_tokens: Collection[int]) -> Any:
    """`DPOTrainer.train_dataset`, made from `preferences_dataset`, without the end of lines that were cut off: TRL ends
    every line, which would teach the model to end there. Not for reference log-probabilities computed before."""
    all_ended = all(all(tokenized[f"{side}_ended"]) for side in ("chosen", "rejected"))
    if "ref_chosen_logps" in tokenized.column_names and not all_ended:
        raise InvalidOption(
            "TRL computed the reference's log-probabilities with ends of lines that were cut off: leave "
            "precompute_ref_log_probs out of the options, or give preferences between lines that ended."
        )

    def line_as_written(ids: list[int], ended: bool) -> list[int]:
        places = [i for i, token in enumerate(ids) if token in end_tokens]
        return ids if ended or not places else ids[: places[-1]]

    return tokenized.map(
        lambda row: {
            f"{side}_ids": line_as_written(row[f"{side}_ids"], row[f"{side}_ended"]) for side in ("chosen", "rejected")
        }
    )


def demonstrations_dataset(demonstrations: Sequence[Demonstration], student: Student | None = None) -> Any:
    """A Hugging Face dataset for `SFTTrainer`."""
    from datasets import Dataset

    rows = [
        {"prompt": _as_read(student, d.prompt.text), "completion": _as_written(student, d.text)} for d in demonstrations
    ]
    if not rows:
        raise PromptError("There is nothing to imitate: give at least one demonstration.")
    return Dataset.from_list(rows)


def _is_chat(student: Student | None) -> bool:
    return student is not None and bool(student.tokenizer.chat_template)


def _as_read(student: Student | None, text: str) -> Text:
    """The same text that `Student.encode_prompt` puts before a response."""
    return text if student is None else _as_prompt(student.tokenizer, text, student.instruction)


def _as_prompt(tokenizer: PreTrainedTokenizerBase | None, text: str, instruction: str) -> Text:
    if tokenizer is None:
        return f"{instruction}{text}\n" if instruction else text
    return (
        conversation(tokenizer, text, instruction) if tokenizer.chat_template else framed(tokenizer, text, instruction)
    )


def _as_written(student: Student | None, line: str) -> Text:
    line = line if student is None else as_text(student.tokenizer, line)
    return [{"role": "assistant", "content": line}] if _is_chat(student) else line
