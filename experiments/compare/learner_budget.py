"""The budget of one learner of a benchmark, and the steps or prompts per round that follow from it.

fit_budget(PPOConfig, {"batch_size": 32}, BudgetTable(samples=640), LearnerTable(name="ppo"))    # 20 steps
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from humor_env.errors import InvalidOption
from humor_env.experiments.specs.learner_settings import Table

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]
Positive = Annotated[int, Field(ge=1)]


class BudgetTable(Table):
    samples: Positive | None = None
    judgements: Positive | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    cost: Annotated[float, Field(gt=0)] | None = None
    evaluations: Positive = 8


class LearnerTable(Table):
    """`budget` is the learner's share of the whole budget; `feedback` the sources it is run with (default: all)."""

    name: Name
    learner: str | None = None
    settings: dict[str, Any] = {}
    feedback: list[str] | None = None
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def registered(self) -> str:
        return self.learner or self.name


def fit_budget(
    config: type,
    settings: Mapping[str, Any],
    budget: BudgetTable,
    learner: LearnerTable,
) -> dict[str, Any]:
    """The settings, with the steps or prompts per round and the evaluations that the budget allows."""
    fitted = dict(settings)
    fields = {f.name: f for f in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)

    def value(name: str) -> Any:
        return fitted[name] if name in fitted else default_of(fields[name])

    samples = None if budget.samples is None else int(budget.samples * learner.budget)
    judgements = None if budget.judgements is None else int(budget.judgements * learner.budget)
    if {"rounds", "prompts_per_round", "pairs"} <= set(fields):
        if "pairs_of" in fields and value("pairs_of") == "teacher":
            return fitted  # the student writes nothing to learn from
        _refuse(fitted, "prompts_per_round", learner)
        rounds = value("rounds")
        candidates = fitted.get("pairs", {}).get("candidates", default_of(fields["pairs"]).candidates)
        most = [samples // (rounds * candidates)] if samples is not None else []
        most += [judgements // rounds] if judgements is not None else []
        if most:
            fitted["prompts_per_round"] = _at_least_one(min(most), learner, f"{rounds} rounds of {candidates} lines")
            # About two thirds of the prompts give a preference.
            steps = value("epochs") * fitted["prompts_per_round"] * 2 // (3 * value("batch_size"))
            fitted.setdefault("evaluate_every", max(1, steps // budget.evaluations))
    elif {"steps", "batch_size"} <= set(fields):
        _refuse(fitted, "steps", learner)
        most = [samples] if samples is not None else []
        most += [judgements] if judgements is not None else []
        if most:
            fitted["steps"] = _at_least_one(
                min(most) // value("batch_size"), learner, f"a step of {value('batch_size')}"
            )
            if "evaluate_every" in fields:
                fitted.setdefault("evaluate_every", max(1, fitted["steps"] // budget.evaluations))
    else:
        for name, hint in hints.items():
            if dataclasses.is_dataclass(hint) and name != "sampling":
                inner = fit_budget(hint, fitted.get(name, {}), budget, learner)  # type: ignore[arg-type]
                if inner:
                    fitted[name] = inner
    return fitted


def default_of(field: Any) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def _refuse(settings: Mapping[str, Any], name: str, learner: LearnerTable) -> None:
    if name in settings:
        raise InvalidOption(
            f"The learner '{learner.name}' sets {name} = {settings[name]}, which follows from [budget]: leave it out, "
            "or give the learner a `budget` share."
        )


def _at_least_one(count: int, learner: LearnerTable, unit: str) -> int:
    if count < 1:
        raise InvalidOption(f"The budget of the learner '{learner.name}' is too small for {unit}: raise [budget].")
    return count
