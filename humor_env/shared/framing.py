"""Framing of a prompt for a model that writes or reads lines: by its chat template if it has one, else as plain text.

ids = prompt_tokens(tokenizer, "The meeting was slow.", "Be funny.", is_seq2seq=False)
ids = tokenizer([framed(tokenizer, text) for text in texts], add_special_tokens=not tokenizer.chat_template)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from humor_env.errors import StudentError
from humor_env.shared.control_tokens import as_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, str]  # a chat message: its role and content


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, observation: str, instruction: str, *, is_seq2seq: bool
) -> list[int]:
    """The tokens before the response: the chat template if there is one, else the text and a newline.

    Control tokens in the observation are read as plain text; the instruction is trusted and may contain them.
    """
    if is_seq2seq:
        ids = tokenizer(f"{instruction}{as_text(tokenizer, observation)}")["input_ids"]
    else:
        text = framed(tokenizer, observation, instruction)
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return [int(i) for i in ids]


def framed(tokenizer: PreTrainedTokenizerBase, observation: str, instruction: str = "") -> str:
    """The text before the response, for a model that continues its prompt. A chat template writes the special tokens
    itself, so the tokenizer must not add any."""
    observation = as_text(tokenizer, observation)
    if tokenizer.chat_template:
        return _in_chat_form(tokenizer, observation, instruction)[1]
    return f"{instruction}{observation}\n"


def conversation(tokenizer: PreTrainedTokenizerBase, observation: str, instruction: str = "") -> list[Turn]:
    """The turns whose text `framed` gives, for a trainer that applies the chat template itself."""
    return _in_chat_form(tokenizer, as_text(tokenizer, observation), instruction)[0]


def _in_chat_form(tokenizer: PreTrainedTokenizerBase, observation: str, instruction: str) -> tuple[list[Turn], str]:
    """A conversation, and its text by the chat template. Some templates refuse a system turn (Gemma 2, Mistral 7B):
    for these the instruction starts the user turn."""
    system, user = {"role": "system", "content": instruction}, {"role": "user", "content": observation}
    if not instruction:
        return [user], _templated(tokenizer, [user], observation)
    try:
        text = _templated(tokenizer, [system, user], observation)
    except StudentError:
        text = ""
    if instruction.strip() in text:  # others drop it silently
        return [system, user], text
    whole = {"role": "user", "content": f"{instruction}\n\n{observation}"}
    return [whole], _templated(tokenizer, [whole], observation)


def _templated(tokenizer: PreTrainedTokenizerBase, messages: list[Turn], observation: str) -> str:
    from jinja2 import TemplateError

    try:
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as problem:
        raise StudentError(
            f"The chat template refuses a prompt ({problem}). Give another tokenizer.chat_template, or "
            "None for plain text."
        ) from None
    if observation.strip() not in text:
        raise StudentError(
            f"The chat template does not show the prompt as it is: {observation[:60]!r} became "
            f"{text[:80]!r}. Give another tokenizer.chat_template, or None for plain text."
        )
    return text
