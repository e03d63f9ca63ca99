"""The words of the pocket world, read from two TOML files and checked.

    lexicon = load_lexicon(folder)          # subjects.toml and witnesses.toml
    lexicon.complaint("slow").adjectives    # ("slow", "sluggish", "unhurried")

Everything is a frozen tuple. All errors in the files are reported at once, each with a fix, so that forty typos do not
take forty runs to find.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, did_you_mean

FILES = ("subjects.toml", "witnesses.toml")
STYLES = ("plain", "conversational")
PHRASE = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*(?: [A-Za-z]+(?:['-][A-Za-z]+)*)*")
_SLOT = re.compile(r"\{([^{}]*)\}")
_TEMPLATE_REST = re.compile(r"[A-Za-z',.?!:; -]*")


@dataclass(frozen=True, slots=True)
class Domain:
    """A corner of life. A witness from a related one is half as far away as one from elsewhere."""

    name: str
    related: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something wrong with a thing: a name and its synonymous adjectives."""

    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def adjectives(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True, slots=True)
class Subject:
    """A thing, place or event, and the complaints that a normal person could make about it."""

    text: str
    domain: str
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness: a noun phrase, and the complaints that it is iconic for, most obvious first."""

    text: str
    domain: str
    traits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reaction:
    """The witness's reaction: a past-tense verb phrase that reveals the complaint."""

    text: str
    implies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """A literal phrasing. "conversational" ones are reserved for out-of-distribution prompts."""

    template: str
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Frame:
    """The shape of a joke around a subject, its complaint, a witness and a reaction."""

    template: str


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All the words. Look-ups by text are built once."""

    domains: tuple[Domain, ...]
    complaints: tuple[Complaint, ...]
    subjects: tuple[Subject, ...]
    witnesses: tuple[Witness, ...]
    reactions: tuple[Reaction, ...]
    literals: tuple[Literal, ...]
    frames: tuple[Frame, ...]
    _complaints: dict[str, Complaint] = field(init=False, repr=False, compare=False, default_factory=dict)
    _subjects: dict[str, Subject] = field(init=False, repr=False, compare=False, default_factory=dict)
    _related: frozenset[tuple[str, str]] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise InvalidOption(f"The pocket lexicon has {len(problems)} problem(s):\n- " + "\n- ".join(problems))
        self._complaints.update({c.name: c for c in self.complaints})
        self._subjects.update({s.text: s for s in self.subjects})
        pairs = {(d.name, other) for d in self.domains for other in d.related}
        object.__setattr__(self, "_related", frozenset(pairs | {(b, a) for a, b in pairs}))

    def complaint(self, name: str) -> Complaint:
        return _look_up(self._complaints, name, "complaint")

    def subject(self, text: str) -> Subject:
        return _look_up(self._subjects, text, "subject")

    def distance(self, domain: str, other: str) -> float:
        """The distance between two domains: 0 the same, 0.5 related, 1 otherwise."""
        if domain == other:
            return 0.0
        return 0.5 if (domain, other) in self._related else 1.0


def load_lexicon(folder: str | Path) -> Lexicon:
    """Read `subjects.toml` and `witnesses.toml` from a folder. Two such files of your own make your own world."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for name in FILES:
        file = Path(folder) / name
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidOption(
                f"A pocket lexicon is the two files {' and '.join(FILES)}; '{name}' was not found."
            ) from None
        except tomllib.TOMLDecodeError as problem:
            raise InvalidOption(f"'{name}' is not valid TOML: {problem}.") from None
        tables.update(content)
    return Lexicon(
        domains=_rows(tables, "domain", Domain),
        complaints=_rows(tables, "complaint", Complaint),
        subjects=_rows(tables, "subject", Subject),
        witnesses=_rows(tables, "witness", Witness),
        reactions=_rows(tables, "reaction", Reaction),
        literals=_rows(tables, "literal", Literal),
        frames=_rows(tables, "frame", Frame),
    )


def _rows(tables: Mapping[str, list[Mapping[str, Any]]], name: str, kind: Any) -> tuple[Any, ...]:
    rows = []
    for number, row in enumerate(tables.get(name, ()), 1):
        try:
            rows.append(kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}))
        except TypeError as problem:
            raise InvalidOption(
                f"[[{name}]] number {number} of the pocket lexicon is invalid: {problem}. Found {dict(row)}."
            ) from None
    if not rows:
        raise InvalidOption(f"The pocket lexicon has no [[{name}]]: at least one is needed.")
    return tuple(rows)


def _look_up(table: Mapping[str, Any], name: str, kind: str) -> Any:
    try:
        return table[name]
    except KeyError:
        raise InvalidOption(f"No {kind} of the pocket world is called '{name}'.{did_you_mean(name, table)}") from None


def _problems(lexicon: Lexicon) -> list[str]:
    """All problems: unreadable sentences, dangling references, ambiguous parses."""
    domains = {d.name for d in lexicon.domains}
    complaints = {c.name for c in lexicon.complaints}
    problems: list[str] = []

    def known(kind: str, where: str, names: Iterable[str], names_known: set[str]) -> None:
        names = tuple(names)
        if len(set(names)) < len(names):
            problems.append(f"{where} lists a {kind} twice: {', '.join(names)}.")
        problems.extend(
            f"{where} names the {kind} '{name}', which is not defined.{did_you_mean(name, names_known)}"
            for name in names
            if name not in names_known
        )

    for domain in lexicon.domains:
        known("domain", f"domain '{domain.name}'", domain.related, domains)
    for subject in lexicon.subjects:
        known("domain", f"subject '{subject.text}'", [subject.domain], domains)
        known("complaint", f"subject '{subject.text}'", subject.complaints, complaints)
    for witness in lexicon.witnesses:
        known("domain", f"witness '{witness.text}'", [witness.domain], domains)
        known("complaint", f"witness '{witness.text}'", witness.traits, complaints)
    for reaction in lexicon.reactions:
        known("complaint", f"reaction '{reaction.text}'", reaction.implies, complaints)

    # A phrase must have one meaning everywhere, or a joke could be read in two ways.
    owners: dict[str, str] = {}
    phrases = [
        *((a, f"complaint '{c.name}'") for c in lexicon.complaints for a in c.adjectives),
        *((s.text, "subjects") for s in lexicon.subjects),
        *((w.text, "witnesses") for w in lexicon.witnesses),
        *((r.text, "reactions") for r in lexicon.reactions),
    ]
    for text, owner in phrases:
        if not PHRASE.fullmatch(text):
            problems.append(
                f"'{text}' of {owner} is not plain words with single spaces (letters, apostrophes, hyphens)."
            )
        key = text.lower()
        if key in owners:
            problems.append(f"'{text}' of {owner} is already in {owners[key]}: a phrase has one meaning.")
        owners[key] = owner

    for literal in lexicon.literals:
        if literal.style not in STYLES:
            problems.append(
                f"literal '{literal.template}' has the style '{literal.style}'; known: {', '.join(STYLES)}."
            )
        problems.extend(_template_problems(literal.template, ("subject", "complaint")))
    for frame in lexicon.frames:
        problems.extend(_template_problems(frame.template, ("subject", "complaint", "witness", "reaction")))
    return problems


def _template_problems(template: str, slots: tuple[str, ...]) -> list[str]:
    problems = []
    names = sorted(name.lower() for name in _SLOT.findall(template))
    if names != sorted(slots):
        expected = ", ".join(f"{{{slot}}}" for slot in slots)
        problems.append(f"template '{template}' needs each of {expected} exactly once.")
    problems.extend(
        f"template '{template}' has the slot {{{name}}}; a slot is written lower-case or with one capital."
        for name in _SLOT.findall(template)
        if name not in (name.lower(), name.capitalize())
    )
    filled = _SLOT.sub("x", template)
    if not _TEMPLATE_REST.fullmatch(filled) or "  " in filled or filled != filled.strip():
        problems.append(f"template '{template}' has a sign other than letters, , . ? ! : ; ' - and single spaces.")
    return problems
