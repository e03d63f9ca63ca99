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

from humor_env.errors import CriticContractError
from humor_env.types import Joke, Judge, Verdict, critic_name

Pair = tuple[Joke, Joke]
Ask = Callable[[Sequence[Pair]], list[Verdict]]


def both_orders(ask: Ask, pairs: Sequence[Pair], name: str) -> list[Verdict]:
    """Verdicts on `pairs`, each averaged over both orders.

    `ask` gets both orders of all pairs as one list (so that it can send them at once) and answers for the first joke
    *as shown*. If either order fails, the pair has no verdict: a single order has exactly the bias that this function
    removes.
    """
    if not pairs:
        return []
    ordered = both_ways(pairs)
    answers = ask(ordered)
    if len(answers) != len(ordered):
        raise CriticContractError(
            f"The judge '{name}' was asked about {len(ordered)} ordered pairs and answered {len(answers)}: "
            "it must return one verdict per pair, in order."
        )
    return [_average(name, forward, back) for forward, back in zip(answers[::2], answers[1::2], strict=True)]


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair as it is and turned round, one after the other: a budget that ends half-way has bought whole pairs."""
    return [order for first, second in pairs for order in ((first, second), (second, first))]


def ask_judge(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """Call a judge and check its contract: one verdict per pair, in order.

    An invalid item among valid ones becomes a failed verdict; if every item is invalid, it is an error.
    """
    name = critic_name(judge)
    verdicts = judge(pairs) if pairs else []
    if len(verdicts) != len(pairs):
        raise CriticContractError(
            f"The judge '{name}' was given {len(pairs)} pairs and returned {len(verdicts)} verdicts: it must return "
            "one per pair, in order."
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
    """The winner of the two as shown: 1 the first, -1 the second, 0 neither."""
    return (probability > 0.5) - (probability < 0.5)


def flip_rate(verdicts: Iterable[Verdict]) -> float | None:
    """The share of verdicts whose raw answer changed with the order; None if none was asked twice."""
    asked_twice = [v.flipped for v in verdicts if v.flipped is not None]
    return sum(asked_twice) / len(asked_twice) if asked_twice else None
