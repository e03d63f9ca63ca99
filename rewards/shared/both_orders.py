"""Asking a judge of pairs in both orders, so that a preference for the first line cancels out.

A judge that reads "1" and "2" prefers a place as well as a joke (15 % of verdicts of a 70B judge change with the
order). So every pair is asked as (A, B) and as (B, A), the two probabilities are averaged *before* anything is
decided, and how often the raw answer changed is kept.

    def ask(pairs):                      # one order: how sure is the judge that the first one shown wins?
        return [Verdict("mine", 0.8) for first, second in pairs]

    verdicts = both_orders(ask, pairs, "mine")
    flip_rate(verdicts)                  # share of pairs whose raw answer changed with the order
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from humor_env.errors import CriticContractError
from humor_env.types import Joke, Judge, Verdict, critic_name

Pair = tuple[Joke, Joke]
Ask = Callable[[Sequence[Pair]], list[Verdict]]


def both_orders(ask: Ask, pairs: Sequence[Pair], name: str) -> list[Verdict]:
    """Verdicts on `pairs`, each averaged over both orders.

    `ask` gets both orders of all pairs as one list (so that it can send them at once) and answers for the first joke
    *as shown*. Where either order failed, the pair has no verdict: half an answer is exactly the bias that this
    function is here to remove.
    """
    if not pairs:
        return []
    ordered = [*pairs, *((second, first) for first, second in pairs)]
    answers = ask(ordered)
    if len(answers) != len(ordered):
        raise CriticContractError(
            f"The judge '{name}' was asked about {len(ordered)} ordered pairs and answered {len(answers)}: "
            "it must return one verdict for each, in order."
        )
    half = len(pairs)
    return [_average(name, forward, back) for forward, back in zip(answers[:half], answers[half:], strict=True)]


def ask_judge(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """Ask a judge and hold it to its contract: one verdict for each pair, in order.

    An odd answer among sound ones becomes a verdict that failed; where every answer is odd, it is an error.
    """
    name = critic_name(judge)
    verdicts = judge(pairs) if pairs else []
    if len(verdicts) != len(pairs):
        raise CriticContractError(
            f"The judge '{name}' was given {len(pairs)} pairs and returned {len(verdicts)} verdicts: it must return "
            "one for each, in order."
        )
    checked = [verdict if isinstance(verdict, Verdict) else _odd(name, verdict) for verdict in verdicts]
    if pairs and not any(isinstance(verdict, Verdict) for verdict in verdicts):
        raise CriticContractError(checked[0].error or "")
    return checked


def _odd(name: str, answer: object) -> Verdict:
    return Verdict(
        name,
        None,
        error=f"The judge '{name}' must return humor_env.Verdict objects, found a {type(answer).__name__}.",
    )


def _average(name: str, forward: Verdict, back: Verdict) -> Verdict:
    usage = forward.usage + back.usage
    if forward.probability is None or back.probability is None:
        errors = dict.fromkeys(v.error for v in (forward, back) if v.error is not None)
        return Verdict(name, None, error="; ".join(errors), usage=usage)
    return Verdict(
        name,
        # Not (p + (1 - q)) / 2: this form is exactly 0.5 when both orders got the same answer.
        0.5 + (forward.probability - back.probability) / 2,
        tie=(forward.tie + back.tie) / 2,
        reason=forward.reason or back.reason,
        flipped=_side(forward.probability) != -_side(back.probability),
        usage=usage,
    )


def _side(probability: float) -> int:
    """Which of the two shown wins: 1 the first, -1 the second, 0 neither."""
    return (probability > 0.5) - (probability < 0.5)


def flip_rate(verdicts: Iterable[Verdict]) -> float | None:
    """The share of verdicts whose raw answer changed with the order; None where none was asked twice."""
    asked_twice = [v.flipped for v in verdicts if v.flipped is not None]
    return sum(asked_twice) / len(asked_twice) if asked_twice else None
