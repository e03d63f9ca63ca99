"""Several critics as one: gates first, then a weighted mean. The mix is itself a critic, described by plain data.

    critic = MixCritic([
        {"critic": "rules", "gate": 0.5},                      # below 0.5 the joke scores 0, without further calls
        {"critic": "scorer", "weight": 3, "options": {"client": "anthropic"}},
        {"critic": "diversity", "weight": 1, "required": False},
    ])

The score is the weighted mean of the critics' scores. A failed gate makes it 0, and the joke does not go to the critics
after it, so cheap gates first save money. If a required critic fails, the mix fails (unless an earlier gate decided);
if another one fails, its weight is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption, did_you_mean
from humor_env.registry import critics as registered
from humor_env.shared.plain_numbers import is_number
from humor_env.types import NO_USAGE, Critic, Joke, Judgement, Usage, critic_name

_KEYS = ("critic", "name", "weight", "gate", "required", "options")
DEFAULT: tuple[Mapping[str, Any], ...] = ({"critic": "rules", "gate": 0.5}, {"critic": "pocket", "weight": 1.0})


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    critic: Critic
    weight: float
    gate: float | None
    required: bool


class MixCritic:
    """`critics` is a list of tables: `critic` (a name or a live one), `options` for it, `weight` (default 1, or 0 for
    a gate), `gate` (the least score that passes), `required` (default true), `name` (for parts; else the critic's)."""

    name = "mix"

    def __init__(self, critics: Sequence[Mapping[str, Any] | str] = DEFAULT) -> None:
        if isinstance(critics, (str, Mapping)) or not critics:
            raise InvalidOption(
                f'critics must be a list such as [{{"critic": "rules", "gate": 0.5}}, ...], found {critics!r}.'
            )
        self.members: list[_Member] = []
        for entry in critics:
            self.members.append(_member({"critic": entry} if isinstance(entry, str) else entry, self.members))
        self._total = sum(m.weight for m in self.members)
        if self._total <= 0:
            raise InvalidOption("A mix needs at least one critic with a weight above 0; a gate alone has weight 0.")

    @property
    def inner_critics(self) -> list[Critic]:
        """The member critics, some of which may have a memory."""
        return [member.critic for member in self.members]

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        per_joke: list[dict[str, Judgement]] = [{} for _ in jokes]
        stopped: dict[int, _Member] = {}
        for member in self.members:
            places = [i for i in range(len(jokes)) if i not in stopped]
            if not places:
                break
            judgements = checked_reply(member.critic, member.name, [jokes[i] for i in places])
            for i, judgement in zip(places, judgements, strict=True):
                per_joke[i][member.name] = judgement
                if member.gate is not None and judgement.score is not None and judgement.score < member.gate:
                    stopped[i] = member
        return [self._mixed(each, stopped.get(i)) for i, each in enumerate(per_joke)]

    def close(self) -> None:
        close_all(self.inner_critics)

    def _mixed(self, judgements: Mapping[str, Judgement], stopped_by: _Member | None) -> Judgement:
        parts: dict[str, float] = {}
        usage: Usage = NO_USAGE
        for name, judgement in judgements.items():
            usage = usage + judgement.usage
            if judgement.score is not None:
                parts[name] = judgement.score
                parts |= {f"{name}.{part}": value for part, value in judgement.parts.items()}
        if stopped_by is not None:
            judgement = judgements[stopped_by.name]
            reason = f"stopped by {stopped_by.name} ({judgement.score:.2f} < {stopped_by.gate:g}): {judgement.reason}"
            return Judgement(self.name, 0.0, parts, reason, usage=usage)
        failed = [m.name for m in self.members if judgements[m.name].failed]
        weight = sum(m.weight for m in self.members if m.name not in failed)
        if any(m.required and m.name in failed for m in self.members) or weight <= 0:
            error = "; ".join(f"{name}: {judgements[name].error}" for name in failed)
            return Judgement(self.name, None, parts, error=error, usage=usage)
        total = sum(m.weight * cast(float, judgements[m.name].score) for m in self.members if m.name not in failed)
        reasons = [
            f"{m.name}: {judgements[m.name].reason}" for m in self.members if judgements[m.name].reason and m.weight
        ]
        reasons += [f"{name} could not judge ({judgements[name].error})" for name in failed]
        return Judgement(self.name, min(1.0, max(0.0, total / weight)), parts, "; ".join(reasons), usage=usage)


def _member(entry: Mapping[str, Any], before: Sequence[_Member]) -> _Member:
    for key in entry:
        if key not in _KEYS:
            raise InvalidOption(
                f"A critic in a mix has no '{key}'.{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}."
            )
    if "critic" not in entry:
        raise InvalidOption(f"Each entry of a mix must name its critic, found {dict(entry)!r}.")
    gate, required = entry.get("gate"), entry.get("required", True)
    weight = entry.get("weight", 1.0 if gate is None else 0.0)
    if not (is_number(weight, least=0) and weight < float("inf")):
        raise InvalidOption(f"A weight in a mix must be a number of at least 0, found {weight!r}.")
    if gate is not None and not (is_number(gate, above=0) and gate <= 1):
        raise InvalidOption(
            f"A gate in a mix (the least score that passes) must be above 0 and at most 1, found {gate!r}."
        )
    if not isinstance(required, bool):
        raise InvalidOption(f"required in a mix must be true or false, found {required!r}.")
    critic = registered.make(entry["critic"], **dict(entry.get("options") or {}))
    name = str(entry.get("name") or critic_name(critic))
    if any(m.name == name for m in before):
        if "name" in entry:
            raise InvalidOption(f"Two critics of a mix are called '{name}': give each its own name.")
        names = {m.name for m in before}
        name = next(f"{name}-{i}" for i in count(2) if f"{name}-{i}" not in names)
    return _Member(name, cast(Critic, critic), float(weight), None if gate is None else float(gate), required)
