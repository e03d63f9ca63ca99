"""The family of our exceptions. Each message says what was found, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HumorEnvError(Exception):
    """The root of the family: `except HumorEnvError` catches every mistake that this package explains."""


class UnknownName(HumorEnvError, LookupError):
    """A name that nothing is registered under."""


class InvalidOption(HumorEnvError, ValueError):
    """An argument or a setting outside what is allowed."""


class InvalidRenderMode(InvalidOption, TypeError):
    """A render mode that an environment does not have.

    Also a TypeError, since Stable-Baselines3 asks every environment for "rgb_array" first and takes only a TypeError
    for "it has none".
    """


class InvalidAction(HumorEnvError, ValueError):
    """An action that is not in the action space. The environment's state is unchanged."""


class ResetNeeded(HumorEnvError, RuntimeError):
    """`step` before `reset`, or after the end of an episode."""


class PromptError(HumorEnvError, ValueError):
    """A prompt file that cannot be read, an empty prompt set, an unknown prompt id."""


class RatingsError(HumorEnvError, ValueError):
    """A file of human ratings that cannot be read as what it is said to be."""


class CriticContractError(HumorEnvError, TypeError):
    """A critic or judge broke its contract: wrong length, wrong type, a score outside [0, 1]."""


class ScoreError(CriticContractError, ValueError):
    """A judgement or verdict whose number is not in [0, 1], or that has both a number and an error, or neither."""


class JudgingFailed(HumorEnvError, RuntimeError):
    """More judgements failed than the configured share allows."""


class BudgetExceeded(HumorEnvError, RuntimeError):
    """A spending limit was reached. Nothing beyond it was spent."""


class CredentialError(HumorEnvError, RuntimeError):
    """No key, or a key that the service refuses."""


class StudentError(HumorEnvError, ValueError):
    """A student model that cannot do what is asked of it."""


class TrainingStopped(HumorEnvError, RuntimeError):
    """Learning cannot go on (not-a-number, runaway KL); the last good checkpoint is named."""


class CheckpointError(HumorEnvError, RuntimeError):
    """A checkpoint that is damaged, of another run, or cannot be written."""


class MissingExtra(HumorEnvError, ImportError):
    """An optional dependency is not installed."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or nothing where no known name is near."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, value: str, known: Iterable[str], remedy: str = "") -> UnknownName:
    names = sorted(known)
    return UnknownName(
        f"No {kind} is called '{value}'.{did_you_mean(value, names)} Known: {', '.join(names) or 'none'}."
        + (f" {remedy}" if remedy else "")
    )
