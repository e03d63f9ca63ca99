"""What a reproduction would cost, before it starts: models, data, samples, calls, tokens and money.

    forecast = estimate(load_scale("paper"), seeds=3)
    print(as_text(forecast))

Calls are counted from the grid of systems: nothing is downloaded or sent. Sentences and lines are assumed to have
`CHARACTERS` characters; input is estimated at 3.5 bytes a token and output at the longest that is allowed, so tokens
and money are upper bounds. Pairs that the length filter drops are counted as judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from humor_env import registry
from humor_env.experiments.reproduction.judges import PARTS
from humor_env.experiments.reproduction.spec import JudgeTable, ScaleSpec
from humor_env.experiments.reproduction.systems import SYSTEMS, System
from humor_env.llm.prices import price_of
from humor_env.llm.protocol import Request
from humor_env.teacher_llm import LanguageModelTeacher
from humor_env.types import Joke, Prompt

CHARACTERS = 100
ORDERS = 2


class _Silent:
    """A client that is never called: only what would be sent to it is counted."""

    name = "nobody"

    def __init__(self, probabilities: bool) -> None:
        self.probabilities = probabilities

    def __call__(self, requests: Sequence[Request], on_reply: Any = None) -> list[Any]:
        raise AssertionError("an estimate asks nothing")

    def close(self) -> None:
        pass


def estimate(spec: ScaleSpec, seeds: int) -> dict[str, Any]:
    """The forecast as plain data: the model of each role, the amount of data, and each role's calls and cost."""
    sizes = _sizes(spec)
    pairs = seeds * sum(_pairs(spec, system, sizes["train"]) for system in SYSTEMS)
    measured = seeds * (1 + spec.writing.sampled) * sum(sizes[split] for system in SYSTEMS for split in system.splits)
    people = seeds * sum(s.people for s in SYSTEMS) * min(sizes["test"], spec.people.prompts or sizes["test"])
    asked_parts = sum(1 for part in PARTS if part != "overall" and getattr(spec.critic, part))
    compared = people * (1 + asked_parts) if spec.people.who else 0
    roles = {
        "teacher": _teacher(spec, sum(sizes.values())),
        "critic": _judge(spec.critic, pairs + measured + compared),
        "outside": _judge(spec.outside, measured),
    }
    costs = [role["dollars"] for role in roles.values()]
    return {
        "scale": spec.name,
        "about": spec.about,
        "seeds": seeds,
        "models": {
            "student": spec.student.model,
            "teacher": spec.teacher.teacher,
            "critic": _model(spec.critic),
            "outside judge": _model(spec.outside),
            "people": spec.people.who or "nobody yet: Tables 1 and 6 are left out, and the pairs to rate are written",
            "cloze critic": spec.cloze.model or "none: its rows of Table 1 are left out",
        },
        "data": {split: _source(spec, split, size) for split, size in sizes.items()},
        "cells": seeds * (len(SYSTEMS) + bool(spec.people.who)) + (spec.teacher.teacher != "pocket"),
        "student": {
            "lines imitated": seeds * _imitated(spec, sizes["train"]),
            "candidates sampled": seeds * sum(_sampled(spec, s, sizes["train"]) for s in SYSTEMS),
            "lines measured": measured,
        },
        "pairs for people": people,
        "roles": roles,
        "dollars": None if any(c is None for c in costs) else round(sum(costs), 2),
        "limit": spec.budget.model_dump(exclude_none=True),
    }


def _sizes(spec: ScaleSpec) -> dict[str, int]:
    if spec.data.train is None:
        return {split: getattr(spec.data, f"pocket_{split}") for split in ("train", "dev", "test", "ood")}
    sources = {split: getattr(spec.data, split) for split in ("train", "dev", "test", "ood")}
    return {split: source.count for split, source in sources.items() if source is not None}


def _source(spec: ScaleSpec, split: str, size: int) -> str:
    source = getattr(spec.data, split)
    if source is None:
        return f"{size} of the pocket world's {split} prompts"
    of = f" of {', '.join(source.splits)}" if source.splits else ""
    return f"{size} sentences from the column '{source.column}'{of} in {source.source}"


def _prompts(spec: ScaleSpec, system: System, train: int) -> int:
    count = train * system.thirds // 3
    return max(1, round(count * spec.feedback.share))


def _rounds(system: System) -> int:
    return 0 if system.kind in ("warm", "ft") else system.rounds


def _pairs(spec: ScaleSpec, system: System, train: int) -> int:
    """The most pairs that are judged. BRIO-DPO also has pairs of the teacher's lines ranked."""
    return _prompts(spec, system, train) * (_rounds(system) + (system.kind == "brio-dpo"))


def _sampled(spec: ScaleSpec, system: System, train: int) -> int:
    rounds = _rounds(system)
    if not rounds:
        return 0
    config = spec.learner_config(system.kind, 0)
    config = config.dpo if system.kind == "brio-dpo" else config
    return _prompts(spec, system, train) * rounds * int(config.pairs.candidates)


def _imitated(spec: ScaleSpec, train: int) -> int:
    epochs = {
        "warm": spec.imitation_config("warm_start", 0).epochs,
        "ft": spec.imitation_config("more_imitation", 0).epochs,
    }
    return sum(train * s.thirds // 3 * spec.teacher.lines * epochs[s.kind] for s in SYSTEMS if s.kind in epochs)


def _model(table: JudgeTable) -> str:
    client = table.options.get("client")
    return f"{table.judge} ({client})" if client else table.judge


def _prompt() -> Prompt:
    return Prompt("p", "x" * CHARACTERS)


def _teacher(spec: ScaleSpec, prompts: int) -> dict[str, Any]:
    if spec.teacher.teacher == "pocket":
        return _nothing(prompts)
    options = {k: v for k, v in spec.teacher.options.items() if k != "options"}
    asker = LanguageModelTeacher(_Silent(False), n=spec.teacher.lines, **options)
    return _cost(spec.teacher.teacher, spec.teacher.options, asker.requests(_prompt()), prompts, prompts)


def _judge(table: JudgeTable, pairs: int) -> dict[str, Any]:
    client = table.options.get("client")
    if not isinstance(client, str):
        return _nothing(pairs)
    options = {k: v for k, v in table.options.items() if k not in ("client", "options", "ledger", "budget")}
    reads = client.startswith("local:") or bool(table.options.get("options", {}).get("probabilities"))
    judge = registry.judges.make(table.judge, client=_Silent(reads), **options)
    lines = [Joke(_prompt(), letter * CHARACTERS) for letter in "ab"]
    return _cost(client, table.options, judge.requests((lines[0], lines[1])), ORDERS * pairs, pairs)


def _nothing(items: int) -> dict[str, Any]:
    return {"items": items, "calls": 0, "tokens read": 0, "tokens written": 0, "dollars": 0.0}


def _cost(
    client: str, options: Mapping[str, Any], requests: Sequence[Request], times: int, items: int
) -> dict[str, Any]:
    calls = len(requests) * times
    read = round(sum(len((r.system + r.user_text).encode()) for r in requests) / 3.5) * times
    written = sum(r.max_tokens for r in requests) * times
    cost: dict[str, Any] = {"items": items, "calls": calls, "tokens read": read, "tokens written": written}
    service, _, address = client.partition(":")
    if service == "local":
        return cost | {"dollars": 0.0}
    model = address.partition("@")[0]
    if service.startswith("anthropic") and not model:
        from humor_env.llm.clients.anthropic import DEFAULT_MODEL

        model = DEFAULT_MODEL
    price = price_of(model, options.get("options", {}).get("prices"))
    batch = service == "anthropic-batch"
    return cost | {"dollars": None if price is None else round(price.cost(read, written, batch=batch), 2)}


def as_text(forecast: Mapping[str, Any]) -> str:
    """The forecast as text."""
    lines = [
        f"Scale '{forecast['scale']}', {forecast['seeds']} seeds, {forecast['cells']} cells. {forecast['about']}",
        "",
        "Models",
    ]
    lines += [f"  {role:<14} {model}" for role, model in forecast["models"].items()]
    lines += ["", "Data", *(f"  {split:<14} {size}" for split, size in forecast["data"].items())]
    lines += ["", "The student's work", *(f"  {what:<20} {count:>12,}" for what, count in forecast["student"].items())]
    lines += [
        "",
        f"Questions, at most (pairs are asked in both orders; people would see {forecast['pairs for people']} pairs)",
    ]
    for role, cost in forecast["roles"].items():
        if not cost["calls"]:
            lines.append(f"  {role:<10} {cost['items']:>10,} items, computed here: no calls")
            continue
        money = "price unknown" if cost["dollars"] is None else f"${cost['dollars']:,.2f}"
        lines.append(
            f"  {role:<10} {cost['items']:>10,} items, {cost['calls']:,} calls, {cost['tokens read']:,} tokens read, "
            f"{cost['tokens written']:,} written, {money}"
        )
    total = forecast["dollars"]
    unknown = "unknown, since a model has no price in prices.toml (not the same as free)"
    lines += ["", f"Money: {unknown if total is None else f'at most about ${total:,.2f}'}."]
    if forecast["limit"]:
        lines.append("Limits: " + ", ".join(f"{k} {v:g}" for k, v in forecast["limit"].items()) + ".")
    return "\n".join(lines)
