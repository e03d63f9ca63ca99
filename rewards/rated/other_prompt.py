"""Lines with prompts that they do not answer, to find out whether a critic reads the prompt.

    under_prompt_of(joke, other)          # the line of `joke` with the prompt of `other`; None if not meaningful

An edited headline is moved as an edit: its new words go where the other headline was edited, because the whole edited
headline would reveal its origin.
"""

from __future__ import annotations

from dataclasses import replace

from humor_env.rewards.rated.semeval import HEADLINE_EDIT
from humor_env.types import Joke


def under_prompt_of(joke: Joke, other: Joke) -> Joke | None:
    """The line of `joke` with the prompt of `other`. None if one of two headlines is not an edit, or if moving the edit
    gives the other's own line."""
    text = _edit_moved(joke, other) if joke.prompt.task == HEADLINE_EDIT else joke.text
    return None if text is None else replace(joke, prompt=other.prompt, text=text)


def _edit_moved(joke: Joke, other: Joke) -> str | None:
    """The joke's new words, inserted where the other headline was edited; None if one is not an edit, or if that gives
    the other's own line."""
    mine, theirs = _edit(joke), _edit(other)
    if mine is None or theirs is None:
        return None
    words = other.prompt.text.split()
    start, end = theirs[1]
    text = " ".join([*words[:start], *mine[0], *words[end:]])
    return None if text in (other.text, other.prompt.text) else text


def _edit(joke: Joke) -> tuple[list[str], tuple[int, int]] | None:
    """The words that a line inserts into its prompt, and the range of the prompt's words that they replace."""
    before, after = joke.prompt.text.split(), joke.text.split()
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    same = 0
    while same < min(len(before), len(after)) - start and before[-1 - same] == after[-1 - same]:
        same += 1
    put = after[start : len(after) - same]
    return (put, (start, len(before) - same)) if put and len(put) < len(after) else None
