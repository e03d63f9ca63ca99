"""Call a judge of pairs and check its reply, as `episode.checked_reply` does for a critic.

verdicts = checked_verdicts(judge, [(first, second), ...])      # one per pair, in order
"""

from __future__ import annotations

from collections.abc import Sequence

from humor_env.errors import CriticContractError
from humor_env.types import Joke, Judge, Verdict, critic_name


def checked_verdicts(judge: Judge, pairs: Sequence[tuple[Joke, Joke]], name: str = "") -> list[Verdict]:
    """A judge's verdicts; it is not called without pairs. An invalid item among valid ones becomes a failed verdict;
    if every item is invalid, it is an error."""
    if not pairs:
        return []
    name = name or critic_name(judge)
    if not callable(judge):
        raise CriticContractError(f"The judge '{name}' is a {type(judge).__name__}, which is not callable.")
    reply = judge(pairs)
    if not isinstance(reply, (list, tuple)):
        raise CriticContractError(f"The judge '{name}' must return a list of verdicts, found {type(reply).__name__}.")
    if len(reply) != len(pairs):
        raise CriticContractError(
            f"The judge '{name}' was given {len(pairs)} pairs and returned a list of {len(reply)}: it must return one "
            "verdict per pair, in order."
        )
    if not any(isinstance(verdict, Verdict) for verdict in reply):
        raise CriticContractError(_complaint(name, reply[0]))
    return [v if isinstance(v, Verdict) else Verdict(name, None, error=_complaint(name, v)) for v in reply]


def _complaint(name: str, answer: object) -> str:
    return f"The judge '{name}' must return humor_env.Verdict objects, found a {type(answer).__name__}."
