"""Train a cheap critic on a paid judge's verdicts, from the ledger or newly asked.

    sets = from_ledger("verdicts.sqlite")                   # no calls, no cost
    train(TrainCriticConfig(model="..."), sets, "runs/cheap")
    judges.make("cheap-first", cheap="reward-model", cheap_options={"folder": "runs/cheap"}, paid="multiple-choice")

A judge's two answers to a pair, one per order, become one comparison, averaged as by the judge itself; a scorer's parts
become a rating by its weights. A measurement in the pocket world, where verdicts are free:

    python -m humor_env.rewards.trained.distil --pairs 2400 --seeds 3
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import TypeVar

from humor_env.errors import InvalidOption, unknown_name
from humor_env.llm.ledger import Ledger, Stored
from humor_env.rewards.multiple_choice import FIRST, SECOND, TIE
from humor_env.rewards.scorer import MOST, QUESTIONS, WEIGHTS
from humor_env.rewards.shared.both_orders import Pair
from humor_env.rewards.trained.critic_data import Comparison, CriticSet, Rating, split
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Judge, Prompt, critic_name

PAIRS, SCORES = "multiple-choice ", "scorer "

Item = TypeVar("Item", Comparison, Rating)


def from_ledger(
    ledger: str | Path | Ledger,
    client: str | None = None,
    weights: Mapping[str, float] | None = None,
    instructions: str | None = None,
) -> list[CriticSet]:
    """The verdicts of one client as training data: a set of comparisons, a set of ratings, or both.

    `client` selects the client if the ledger has several; `weights` are the scorer's. `instructions` selects among a
    client's verdicts by different templates or rubrics: any part of their text that the others lack.
    """
    if not isinstance(ledger, Ledger) and not user_path(ledger).is_file():
        raise InvalidOption(f"There is no ledger '{ledger}'. Give the file that a judge used as its ledger.")
    opened = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    try:
        pairs, scores = list(opened.stored(PAIRS)), list(opened.stored(SCORES))
    finally:
        if opened is not ledger:
            opened.close()
    clients = sorted({item.client for item in (*pairs, *scores)})
    if not clients:
        raise InvalidOption(
            f"The ledger '{opened.path}' has no verdicts of multiple-choice or scorer. Judge some jokes first."
        )
    if client is None:
        if len(clients) > 1:
            raise InvalidOption(f"The ledger '{opened.path}' has verdicts of {', '.join(clients)}: name one of them.")
        client = clients[0]
    if client not in clients:
        raise unknown_name("client in this ledger", client, clients)
    compared = {text: _comparisons(items) for text, items in _by_instructions(pairs, client).items()}
    rated = {text: _ratings(items, weights) for text, items in _by_instructions(scores, client).items()}
    sets = [
        CriticSet(f"{PAIRS.strip()} of {client}", (), _of_one(compared, instructions, PAIRS.strip(), client)),
        CriticSet(f"{SCORES.strip()} of {client}", _of_one(rated, instructions, SCORES.strip(), client)),
    ]
    filled = [each for each in sets if len(each)]
    if instructions is not None and not filled:
        raise InvalidOption(
            f"No verdicts of {client} in the ledger '{opened.path}' have {instructions!r} in their instructions. "
            f"There are: {_told_apart({**compared, **rated})}."
        )
    return filled


def _by_instructions(stored: Sequence[Stored], client: str) -> dict[str, list[Stored]]:
    """A client's verdicts by what it was told: another template or rubric makes it another judge."""
    judges: dict[str, list[Stored]] = {}
    for item in stored:
        if item.client == client:
            text = item.instructions
            if item.purpose.startswith(SCORES) and "answer" in (item.reply.data or {}):
                # A scorer that is asked part by part is one judge with several questions.
                for question in QUESTIONS.values():
                    text = text.replace(question, "…")
            judges.setdefault(text, []).append(item)
    return judges


def _of_one(
    by_instructions: Mapping[str, tuple[Item, ...]], instructions: str | None, what: str, client: str
) -> tuple[Item, ...]:
    known = {text: items for text, items in by_instructions.items() if items}
    chosen = [items for text, items in known.items() if instructions is None or instructions in text]
    if len(chosen) > 1 and instructions is not None and instructions in known:
        chosen = [known[instructions]]
    if len(chosen) > 1:
        raise InvalidOption(
            f"The verdicts of {what} by {client} follow {len(known)} different instructions, which must not be mixed: "
            f"{_told_apart(known)}. Choose with instructions (--instructions): words that only one of them has."
        )
    return chosen[0] if chosen else ()


def _told_apart(known: Mapping[str, Sequence[object]]) -> str:
    """Each of these instructions by its first line that no other has."""
    lines = {text: [line.strip() for line in text.splitlines() if line.strip()] for text in known}
    descriptions = []
    for text, items in known.items():
        others = {line for other, own in lines.items() if other != text for line in own}
        line = next((line for line in lines[text] if line not in others), (lines[text] or [""])[0])
        descriptions.append(f"“{shorten(line, 80, placeholder='…')}” ({len(items)})")
    return ", ".join(descriptions)


def _joke(data: Mapping[str, str], text: str) -> Joke:
    # The ledger keeps what the judge saw, which has no prompt id.
    id = hashlib.sha256(data["input"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Joke(Prompt(id if data["input"].strip() else "", data["input"], task=data["task"]), text, author="ledger")


def _comparisons(stored: Sequence[Stored]) -> tuple[Comparison, ...]:
    """One comparison per pair judged in both orders; the others are left out, as by the judge."""
    by_place: dict[tuple[str, str, str, str], list[float]] = {}
    for item in stored:
        place = (item.data["task"], item.data["input"], item.data[FIRST], item.data[SECOND])
        shares = item.reply.probabilities or {str((item.reply.data or {}).get("answer")): 1.0}
        by_place.setdefault(place, []).append(min(1.0, shares.get(FIRST, 0.0) + shares.get(TIE, 0.0) / 2))
    comparisons = []
    for (task, prompt, a, b), answers in by_place.items():
        back = by_place.get((task, prompt, b, a))
        if a < b and back is not None:
            data = {"task": task, "input": prompt}
            comparisons.append(Comparison(_joke(data, a), _joke(data, b), 0.5 + (fmean(answers) - fmean(back)) / 2))
    return tuple(comparisons)


def _ratings(stored: Sequence[Stored], weights: Mapping[str, float] | None) -> tuple[Rating, ...]:
    """One rating per joke for which every weighted part is known."""
    weighted = {part: weight for part, weight in (weights or WEIGHTS).items() if weight > 0}
    parts: dict[tuple[str, str, str], dict[str, float]] = {}
    for item in stored:
        place = (item.data["task"], item.data["input"], item.data["line"])
        parts.setdefault(place, {}).update(_parts(item))
    total = sum(weighted.values())
    return tuple(
        Rating(
            _joke({"task": task, "input": prompt}, line),
            sum(weight * shares[part] for part, weight in weighted.items()) / total,
        )
        for (task, prompt, line), shares in parts.items()
        if all(part in shares for part in weighted)
    )


def _parts(item: Stored) -> dict[str, float]:
    """The parts of one reply: all, or the one whose question is in the instructions."""
    data = item.reply.data or {}
    if "answer" not in data:
        return {part: value / MOST for part, value in data.items() if part != "reason"}
    part_names = [part for part, question in QUESTIONS.items() if question in item.instructions]
    shares = item.reply.probabilities or {str(data["answer"]): 1.0}
    return {part: sum(int(symbol) * p for symbol, p in shares.items()) / MOST for part in part_names}


def ask(judge: Judge, pairs: Sequence[Pair], name: str | None = None) -> CriticSet:
    """A judge's verdicts on these pairs as comparisons; failed pairs are left out."""
    verdicts = judge(pairs)
    return CriticSet(
        name or critic_name(judge),
        (),
        tuple(
            Comparison(a, b, verdict.probability)
            for (a, b), verdict in zip(pairs, verdicts, strict=True)
            if verdict.probability is not None
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """In the pocket world, train a small model on the crowd judge's verdicts, then ask the crowd only if the model is
    unsure; print the savings, and how often the answer is the crowd's."""
    from humor_env import pocket
    from humor_env.rewards.cheap_first import gate_table, render
    from humor_env.rewards.pocket import CrowdJudge, PocketJudge, calibration_pairs
    from humor_env.rewards.reward_model import RewardModelJudge
    from humor_env.rewards.trained.train_critic import TrainCriticConfig, train

    parser = argparse.ArgumentParser(prog="python -m humor_env.rewards.trained.distil", description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=2400, help="pairs that the crowd judge is asked about")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    cheap: list[float] = []
    paid: list[float] = []
    exact: list[float] = []
    for seed in range(options.seeds):
        critic_set = ask(CrowdJudge(seed=seed), calibration_pairs(options.pairs, seed))
        [train_set], [dev_set] = split([critic_set], 0.25, seed)
        with tempfile.TemporaryDirectory() as folder:
            config = TrainCriticConfig(
                model=pocket.path("causal"), form="pair", epochs=options.epochs, lr=1e-3, seed=seed, max_length=64
            )
            train(config, [train_set], folder)
            pairs = [(item.a, item.b) for item in dev_set.comparisons]
            cheap += [verdict.probability or 0.0 for verdict in RewardModelJudge(folder)(pairs)]
        paid += [item.probability for item in dev_set.comparisons]
        exact += [verdict.probability or 0.0 for verdict in PocketJudge()(pairs)]
    print(f"{len(paid)} pairs on prompts that the cheap judge did not learn from, {options.seeds} seeds")
    print(render(gate_table(cheap, paid, exact), "the crowd", "the exact judge"))


if __name__ == "__main__":
    main()
