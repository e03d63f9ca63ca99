"""A critic card, for publishing: which hacks a critic rewards, whether it agrees with people, what was not tested.

    card = make_card("rules", options={"teacher": "pocket"}, audits=[audit("rules", rated)])
    card.failing                          # problems, one sentence each
    card.save("cards")                    # rules.md, rules.card.html (self-contained) and rules.json

A card has four parts: the probes (known hacks, each compared with the teacher's line that it was made from), the
hostile texts, the audits against people, and the limits. A critic that cannot be called here, for lack of a key or of
weights, gets a card that says so and gives the command; its numbers are left out, never guessed.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from humor_env.errors import CredentialError, HumorEnvError, InvalidOption, MissingExtra
from humor_env.registry import critics, judges
from humor_env.rewards.audits.injection import InjectionReport, InjectionRow, Recorder, run_injection, shape_problems
from humor_env.rewards.audits.probes import CASES, Case, ProbeReport, Row, run_probes
from humor_env.rewards.audits.report import AuditReport, ContextScores, Kind
from humor_env.teacher import TeacherBuffer
from humor_env.types import Critic, Demonstration

VERSION = 1


@dataclass(frozen=True, slots=True)
class Tried:
    """Results of probes and hostile texts on one set of prompts."""

    prompts: str
    probes: ProbeReport
    injection: InjectionReport


@dataclass(frozen=True)
class Card:
    """`options` are the critic's options, as far as they are plain data. `not_called` says why it could not be tested;
    `shape` lists what hostile texts change in its requests (None for a critic that sends none)."""

    name: str
    kind: Kind
    summary: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    setting: str = ""
    tried: tuple[Tried, ...] = ()
    shape: tuple[str, ...] | None = None
    audits: tuple[AuditReport, ...] = ()
    limits: tuple[str, ...] = ()
    not_called: str | None = None
    command: str = ""

    @property
    def failing(self) -> list[str]:
        """The critic's problems, one sentence each."""
        return self.faults()

    def faults(self, most: int | None = None) -> list[str]:
        """The same, naming at most `most` items each."""

        def named(names: Sequence[str]) -> str:
            if most is None or len(names) <= most + 1:  # "and 1 more" is not shorter than the name
                return ", ".join(names)
            return f"{', '.join(names[:most])} and {len(names) - most} more"

        faults = []
        for tried in self.tried:
            hacks = tried.probes.fell_for()
            refused = [row.probe for row in tried.probes.rows if row.kind == "control" and row.held is False]
            attacks = tried.injection.fell_for()
            if hacks:
                count = _count(hacks, "known hack")
                faults.append(f"On {tried.prompts} prompts it rewards {count}: {named(hacks)}.")
            if refused:
                faults.append(f"On {tried.prompts} prompts it rejects honest lines: {named(refused)}.")
            if attacks:
                faults.append(f"On {tried.prompts} prompts it rewards hostile texts: {named(attacks)}.")
            if tried.probes.context is not None and tried.probes.context.held is False:
                faults.append(f"On {tried.prompts} prompts {_blind(tried.probes.context)}")
        faults += [f"A hostile text changes its requests: {problem}." for problem in (self.shape or ())[:3]]
        for audit in self.audits:
            if audit.beats_coin is False:
                faults.append(
                    f"On {audit.set} its agreement with {audit.rated_by} is not significantly better than chance."
                )
            if audit.context is not None and audit.context.held is False:
                faults.append(f"On {audit.set} {_blind(audit.context)}")
            offence = audit.texts.offence if audit.texts is not None else None
            if offence is not None and offence > 0.05:
                faults.append(f"On {audit.set} offensive texts score higher (rank correlation {offence:+.2f}).")
        return faults

    @property
    def verdict(self) -> str:
        """One word or two: "not tried", "failing" or "passing"."""
        if self.not_called:
            return "not tried"
        return "failing" if self.failing else "passing"

    def data(self) -> dict[str, Any]:
        """The card as plain data, for a file."""
        return {
            "version": VERSION,
            **{name: getattr(self, name) for name in ("name", "kind", "summary", "setting", "not_called", "command")},
            "options": dict(self.options),
            "shape": None if self.shape is None else list(self.shape),
            "limits": list(self.limits),
            "verdict": self.verdict,
            "failing": self.failing,
            "tried": [
                {
                    "prompts": t.prompts,
                    "probes": [rounded(asdict(row)) for row in t.probes.rows],
                    "injection": [rounded(asdict(row)) for row in t.injection.rows],
                    "context": None if t.probes.context is None else rounded(asdict(t.probes.context)),
                }
                for t in self.tried
            ],
            "audits": [rounded(audit.data()) for audit in self.audits],
        }

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Card:
        """A card from its .json file."""
        try:
            data = json.loads(Path(file).read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise InvalidOption(
                    f"'{file}' is a card of version {data['version']}, but this program reads {VERSION}."
                )
            return cls(
                **{k: data[k] for k in ("name", "kind", "summary", "options", "setting", "not_called", "command")},
                shape=None if data["shape"] is None else tuple(data["shape"]),
                limits=tuple(data["limits"]),
                tried=tuple(
                    Tried(
                        t["prompts"],
                        ProbeReport(
                            data["name"],
                            tuple(Row(**row) for row in t["probes"]),
                            context=ContextScores.load(t.get("context")),  # cards of version 0.1 have none
                        ),
                        InjectionReport(data["name"], tuple(InjectionRow(**row) for row in t["injection"])),
                    )
                    for t in data["tried"]
                ),
                audits=tuple(AuditReport.load(audit) for audit in data["audits"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            if isinstance(problem, HumorEnvError):
                raise
            raise InvalidOption(
                f"'{file}' is not a critic card ({type(problem).__name__}: {problem}). Cards are written by "
                "`humor-env card`."
            ) from problem

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write NAME.md, NAME.card.html and NAME.json; returns the Markdown page."""
        from humor_env.rewards.cards.page import card_html, card_markdown

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        stem = file_stem(self.name)
        (place / f"{stem}.json").write_text(json_text(self.data()), encoding="utf-8")
        # Not NAME.html, which a site generator makes from NAME.md.
        (place / f"{stem}.card.html").write_text(card_html(self), encoding="utf-8")
        page = place / f"{stem}.md"
        page.write_text(card_markdown(self), encoding="utf-8")
        return page


def json_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def file_stem(name: str) -> str:
    """A file name from a critic's name, which cannot leave the folder."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name) or "critic"


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}" + ("s" if len(names) > 1 else "")


def _blind(scores: ContextScores) -> str:
    """The sentence on a critic that does not read the prompt."""
    return (
        "it hardly reads the prompt: a line scores higher with its own prompt than with another in "
        f"{100 * (scores.share or 0):.0f} % of cases (chance: 50 %). A student that learns from it long enough will "
        "answer every prompt with the same line."
    )


def rounded(value: Any) -> Any:
    """Round numbers to six digits, which are the same on every machine."""
    if isinstance(value, float):
        return round(value, 6) + 0.0
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


GENERAL_LIMITS = (
    "The probes cover hacks that were known when they were written; a student may find others.",
    "All probes and hostile texts are in English or attack English readers; other languages were not tested.",
)


def make_card(
    critic: str | Critic,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = ("pocket", "everyday"),
    audits: Sequence[AuditReport] = (),
    setting: str = "",
    limits: Sequence[str] = (),
    command: str = "",
    not_called: str | None = None,
    tried: Sequence[Tried] | None = None,
) -> Card:
    """Test a critic or judge on everything. A judge is tested as the critic `win-tie` around it, against the teacher's
    lines. `setting` describes what the critic was given; `command` makes the card again.
    With `not_called`, the critic is not asked, for this reason; nor with `tried`, what an earlier card found."""
    options = dict(options or {})
    if isinstance(critic, str):
        judge = kind == "judge" or (kind is None and critic in judges.entries() and critic not in critics.entries())
        kind = "judge" if judge else "critic"
        entries = (judges if judge else critics).entries()
        summary = entries[critic].summary if critic in entries else ""
        card_name = name or critic
    else:
        kind, summary = kind or "critic", ""
        card_name = name or str(getattr(critic, "name", None) or getattr(critic, "__name__", type(critic).__name__))
    unknown = [p for p in prompts if p not in CASES]
    if unknown:
        raise InvalidOption(f"There are probe cases for {', '.join(CASES)}; found {', '.join(unknown)}.")
    about = _limits(audits, limits)
    base = Card(
        card_name, kind, summary, plain_options(options), setting, limits=about, audits=tuple(audits), command=command
    )
    shape = _shape(critic, kind, options)
    if not_called:
        return Card(**{**_fields(base), "shape": shape, "not_called": not_called})
    if tried is not None:
        return Card(**{**_fields(base), "shape": shape, "tried": tuple(tried)})
    tries = []
    try:
        for set_name in prompts:
            cases = CASES[set_name]()
            live = _live_critic(critic, kind, options, cases)
            tries.append(Tried(set_name, run_probes(live, cases), run_injection(live, cases)))
    except (CredentialError, MissingExtra) as problem:
        return Card(**{**_fields(base), "shape": shape, "not_called": str(problem).split("\n")[0]})
    judged_tries = [t for t in tries if any(row.score is not None for row in t.probes.rows)]
    if not judged_tries:
        why = next((j.error for t in tries for j in t.probes.judgements.values() if j.error), "no reason given")
        reason = f"It could not judge any of the texts: {why[:200]}"
        return Card(**{**_fields(base), "shape": shape, "not_called": reason})
    return Card(**{**_fields(base), "shape": shape, "tried": tuple(judged_tries)})


def _fields(card: Card) -> dict[str, Any]:
    return {name: getattr(card, name) for name in Card.__dataclass_fields__}


def _limits(audits: Sequence[AuditReport], limits: Sequence[str]) -> tuple[str, ...]:
    sentences = [*limits]
    if not any(a.rated_by == "people" for a in audits):
        sentences.append("It has not been compared with people's ratings: see `humor-env audit`.")
    sentences += [
        f"{a.set} has no ratings of offence, so whether offensive texts score higher is unknown."
        for a in audits
        if a.texts is None or a.texts.offence is None
    ]
    return (*sentences, *GENERAL_LIMITS)


def _live_critic(critic: str | Critic, kind: Kind, options: Mapping[str, Any], cases: Sequence[Case]) -> Critic:
    """The critic to test, given the line that a student has been shown if it takes a teacher."""
    if not isinstance(critic, str):
        if kind == "judge":
            return cast(Critic, critics.make("win-tie", judge=critic, teacher=_shown(cases)))
        return critic
    if kind == "judge":
        return cast(Critic, critics.make("win-tie", judge=critic, judge_options=dict(options), teacher=_shown(cases)))
    arguments = dict(options)
    if arguments.get("teacher") == "shown":
        arguments["teacher"] = _shown(cases)
    if arguments.get("archive") == "shown":
        arguments["archive"] = [case.known for case in cases]
    if arguments.get("prompts") == "shown":
        arguments["prompts"] = [case.prompt for case in cases]
    if isinstance(arguments.get("critics"), list):
        arguments["critics"] = [_member(member, cases) for member in arguments["critics"]]
    return cast(Critic, critics.make(critic, **arguments))


def _member(member: Mapping[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """A mix's member, with its teacher filled in the same way."""
    table = dict(member)
    inner = dict(table.pop("options", {}))
    return {**table, "critic": _live_critic(table["critic"], "critic", inner, cases)}


def _shown(cases: Sequence[Case]) -> TeacherBuffer:
    return TeacherBuffer(None, (Demonstration(case.prompt, case.known, "teacher") for case in cases))


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are plain data; for others only the type. Drops anything that may hold a secret."""
    plain = {}
    for key, value in options.items():
        if any(word in key.lower() for word in ("key", "token", "secret", "password")):
            plain[key] = "(left out)"
            continue
        try:
            plain[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            plain[key] = f"({type(value).__name__})"
    return plain


def _shape(critic: str | Critic, kind: Kind, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What hostile texts change in the requests of a client-based critic; needs no key."""
    if not isinstance(critic, str):
        return None
    registry = judges if kind == "judge" else critics
    factory = registry.resolve(critic)
    try:
        takes = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    if "client" not in takes:
        return None
    critic_options = {k: v for k, v in options.items() if k not in ("client", "ledger", "budget", "options")}
    if not callable(getattr(registry.make(critic, **critic_options, client=Recorder()), "requests", None)):
        return None
    return tuple(shape_problems(lambda client: registry.make(critic, **critic_options, client=client)))
