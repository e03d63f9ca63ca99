"""The exceptions of this package. Each message says what was found, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HumorEnvError(Exception):
    """Base class: `except HumorEnvError` catches every error that this package explains."""


class UnknownName(HumorEnvError, LookupError):
    """A name that is not registered."""


class InvalidOption(HumorEnvError, ValueError):
    """An argument or setting with a value that is not allowed."""


class InvalidRenderMode(InvalidOption, TypeError):
    """A render mode that an environment does not have.

    Also a TypeError, because Stable-Baselines3 first tries "rgb_array" on every environment and handles only a
    TypeError.
    """


class InvalidAction(HumorEnvError, ValueError):
    """An action that is not in the action space. The environment's state is unchanged."""


class ResetNeeded(HumorEnvError, RuntimeError):
    """`step` before `reset`, or after the end of an episode."""


class PromptError(HumorEnvError, ValueError):
    """A prompt file that cannot be read, an empty prompt set, an unknown prompt id."""


class RatingsError(HumorEnvError, ValueError):
    """A file of human ratings that cannot be read in its stated format."""


class CriticContractError(HumorEnvError, TypeError):
    """A critic or judge broke its contract: wrong length, wrong type, a score outside [0, 1]."""


class ScoreError(CriticContractError, ValueError):
    """A judgement or verdict with a number outside [0, 1], with both a number and an error, or with neither."""


class JudgingFailed(HumorEnvError, RuntimeError):
    """More judgements failed than the configured share allows."""


class BudgetExceeded(HumorEnvError, RuntimeError):
    """A spending limit was reached. Nothing was spent beyond it."""


class CredentialError(HumorEnvError, RuntimeError):
    """No key, or a key that the service refuses."""


class StudentError(HumorEnvError, ValueError):
    """A student model that does not support the requested operation."""


class TrainingStopped(HumorEnvError, RuntimeError):
    """Training cannot continue (NaN, runaway KL); the message names the last good checkpoint."""


class CheckpointError(HumorEnvError, RuntimeError):
    """A checkpoint that is damaged, belongs to another run, or cannot be written."""


class MissingExtra(HumorEnvError, ImportError):
    """An optional dependency is not installed."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or "" if no known name is close."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, value: str, known: Iterable[str], remedy: str = "") -> UnknownName:
    names = sorted(known)
    return UnknownName(
        f"No {kind} is called '{value}'.{did_you_mean(value, names)} Known: {', '.join(names) or 'none'}."
        + (f" {remedy}" if remedy else "")
    )
