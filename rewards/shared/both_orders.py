"""Judge pairs in both orders, so that a preference for the first line cancels out.

A judge that reads "1" and "2" has a position bias (15 % of a 70B judge's verdicts change with the order). So every pair
is judged as (A, B) and as (B, A), the two probabilities are averaged *before* deciding, and changes of the raw answer
are recorded.

    def ask(pairs):                      # one order: the probability that the first line shown wins
        return [Verdict("mine", 0.8) for first, second in pairs]

    verdicts = both_orders(ask, pairs, "mine")
    flip_rate(verdicts)                  # share of pairs whose raw answer changed with the order
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from humor_env.episodes.verdicts import checked_verdicts
from humor_env.types import Joke, Verdict

Pair = tuple[Joke, Joke]
Ask = Callable[[Sequence[Pair]], list[Verdict]]


def both_orders(ask: Ask, pairs: Sequence[Pair], name: str) -> list[Verdict]:
    """Verdicts on `pairs`, each averaged over both orders.

    `ask` gets both orders of all pairs as one list (so that it can send them at once) and answers for the first joke
    *as shown*. If either order fails, the pair has no verdict: a single order has exactly the bias that this function
    removes.
    """
    answers = checked_verdicts(ask, both_ways(pairs), name)
    return [_average(name, forward, back) for forward, back in zip(answers[::2], answers[1::2], strict=True)]


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair as it is and turned round, one after the other: a budget that ends half-way has bought whole pairs."""
    return [order for first, second in pairs for order in ((first, second), (second, first))]


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
    """The winner of the two as shown: 1 the first, -1 the second, 0 neither."""
    return (probability > 0.5) - (probability < 0.5)


def flip_rate(verdicts: Iterable[Verdict]) -> float | None:
    """The share of verdicts whose raw answer changed with the order; None if none was asked twice."""
    asked_twice = [v.flipped for v in verdicts if v.flipped is not None]
    return sum(asked_twice) / len(asked_twice) if asked_twice else None
