"""The cards of the built-in critics, and the look-up of a run's critic cards.

    built_in_cards()                                   # computed again, as `humor-env card --all` does
    find_card("rules", {})                             # the card in this package
    card_warnings([Entry("pocket", {}, gate=False)])   # the warnings of `humor-env train`

A card is searched in the files and folders that the user names, then in the critic's own `folder` (card.json), then in
the folder `cards` of the working directory, then in this package. A critic that uses a judge has its judge's card,
unless its own was made with that judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from humor_env.registry import Registry, critics, judges
from humor_env.rewards.audits.report import AuditReport, Kind
from humor_env.rewards.cards.card import Card, file_stem, make_card
from humor_env.shared.user_path import user_path

JUDGE = "judge-"  # prefix of judges' cards, because a critic may have the same name

COMMAND = "humor-env card --all --out docs/cards --store rewards/cards"
COMMAND_OF_MODELS = COMMAND + " --models"
_PAID = (
    "It asks a language model, which needs a key or a served model and may cost money, so `--all` leaves it out. Its "
    "numbers depend on the model. For yours: {command}"
)
_SHOWN = "Made with the line that the student was shown for each prompt (the one in the probe 'teacher copied')."


@dataclass(frozen=True, slots=True)
class Setting:
    """How a built-in critic or judge is tested."""

    critic: str
    kind: Kind = "critic"
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("pocket", "everyday")
    setting: str = ""
    limits: tuple[str, ...] = ()
    not_called: str | None = None
    is_model: bool = False  # its scores differ slightly between machines, so stored results are kept

    @property
    def name(self) -> str:
        return self.critic if self.kind == "critic" else JUDGE + self.critic


_POCKET_ONLY = (
    "It reads only sentences of the pocket world, so it cannot be compared with people's ratings of other texts.",
)
_GATED = [{"critic": "rules", "gate": 0.5, "options": {"teacher": "shown"}}, {"critic": "pocket", "weight": 1}]
_BY_A_MODEL = "Its scores come from a model and differ slightly between machines."
_GRADED = (
    "It learned from grades that a large language model gave, for sentences of one dry kind; no person was asked.",
    "Other prompts are foreign to it: audit it on yours.",
)
_UNTRAINED = (
    "Untrained models of 2 to 9 billion parameters agreed with people on 50 to 57 % of pairs (HumorLoRA repository, "
    "2026): audit yours."
)
_KEY = "--option client=anthropic:claude-haiku-4-5 --option ledger=verdicts.sqlite --prompts everyday --out cards"

_NAMED_IN_A_WARNING = 3  # known hacks named in a warning; the card names all

_NAMED = (
    Setting(
        "rules",
        options={"teacher": "shown"},
        setting=_SHOWN,
        limits=("It checks form, not wit: use it as a gate before another critic.",),
    ),
    Setting(
        "diversity",
        options={"archive": "shown"},
        setting=_SHOWN,
        limits=("Nonsense is new, too: do not use it as the only reward.",),
    ),
    Setting("pocket", prompts=("pocket",), limits=_POCKET_ONLY),
    Setting("mix", options={"critics": _GATED}, prompts=("pocket",), setting=_SHOWN, limits=_POCKET_ONLY),
    Setting(
        "win-tie", options={"teacher": "shown", "judge": "pocket"}, prompts=("pocket",), setting=_SHOWN,
        limits=(*_POCKET_ONLY, "With another judge the results differ: see the judges' cards."),
    ),
    Setting(
        "tournament", options={"judge": "pocket"}, prompts=("pocket",),
        setting="All texts for one prompt compete with each other.",
        limits=(*_POCKET_ONLY, "A score compares siblings of one call and says nothing across calls."),
    ),
    Setting("everyday", prompts=("everyday",), setting=_BY_A_MODEL, limits=_GRADED, is_model=True),
    Setting(
        "everyday-judge", prompts=("everyday",), setting=_BY_A_MODEL, is_model=True,
        limits=(*_GRADED, "Use it to evaluate students that learned from `everyday`, not to train them."),
    ),
    Setting(
        "everyday-judge", "judge", prompts=("everyday",), setting=_SHOWN + " " + _BY_A_MODEL, limits=_GRADED,
        is_model=True,
    ),
    Setting(
        "fill-in",
        not_called="It needs another critic, and prompts with a word in [brackets]. Around yours: humor-env card "
        "fill-in --option critic=reward-model --option critic_options.folder=FOLDER --prompts FILE --out cards",
        limits=("It checks that a line is a word for the place. The rest is the judgement of the critic inside it.",),
    ),
    Setting(
        "lift", options={"critic": "pocket", "prompts": "shown"}, prompts=("pocket",),
        setting="The critic 'pocket' with the line's own prompt and with four others.",
        limits=(
            *_POCKET_ONLY, "With another critic the results differ.",
            "A line that is worthless with every prompt gets 0.5: use it behind gates and beside the critic inside it.",
        ),
    ),
    Setting(
        "fit",
        not_called="It reads every line with a language model, which takes minutes to hours here. With yours: "
        "humor-env card fit --option model=smollm2 --prompts everyday --out cards",
        limits=(
            "It knows nothing of humor, and a line that repeats its prompt fits best: use it behind gates and beside a "
            "critic with taste.",
        ),
    ),
    Setting(
        "novelty",
        setting="Tried with an empty memory, so every line was new.",
        limits=(
            "Whatever a student has not written yet is new, nonsense too: do not use it as the only reward.",
            "Its scores late in a run depend on what the student wrote; that was not tested here.",
        ),
    ),
    Setting(
        "scorer", not_called=_PAID.format(command=f"humor-env card scorer {_KEY}"),
        limits=(_UNTRAINED,),
    ),
    Setting(
        "reward-model",
        not_called="It needs your trained weights. With them: humor-env card reward-model --option "
        "folder=FOLDER --prompts everyday --out cards",
        limits=("Results for one folder of weights say nothing about another.",),
    ),
    Setting("pocket", "judge", prompts=("pocket",), setting=_SHOWN, limits=_POCKET_ONLY),
    Setting(
        "pocket-crowd", "judge", prompts=("pocket",), setting=_SHOWN,
        limits=(*_POCKET_ONLY, "It errs by design, as often as a 70 B model did."),
    ),
    Setting(
        "jury", "judge", {"judges": ["pocket", "pocket-crowd"]}, ("pocket",),
        setting="A jury of the judges 'pocket' and 'pocket-crowd'. " + _SHOWN, limits=_POCKET_ONLY,
    ),
    Setting(
        "reward-model", "judge",
        not_called="It needs your trained weights. With them: humor-env card reward-model --judge --option "
        "folder=FOLDER --prompts everyday --out cards",
        limits=("Results for one folder of weights say nothing about another.",),
    ),
    Setting(
        "cheap-first", "judge",
        not_called="It needs your trained weights, and another judge for the pairs they are unsure of: humor-env card "
        "cheap-first --option 'cheap_options={folder=\"FOLDER\"}' --option paid=multiple-choice --prompts everyday "
        "--out cards",
        limits=("It makes the cheap model's errors where that model is sure, and the other judge's elsewhere.",),
    ),
    Setting(
        "multiple-choice", "judge",
        not_called=_PAID.format(command=f"humor-env card multiple-choice --judge {_KEY}"),
        limits=(_UNTRAINED,),
    ),
)  # fmt: skip


def _with_all_names(explained: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Add the missing built-in names, made with their defaults and tested on all prompts."""
    own_names = {setting.name for setting in explained}
    kinds: tuple[tuple[Registry, Kind], ...] = ((critics, "critic"), (judges, "judge"))
    others = [
        Setting(e.name, kind) for names, kind in kinds for e in names.entries().values() if e.origin == "built in"
    ]
    return explained + tuple(setting for setting in others if setting.name not in own_names)


SETTINGS = _with_all_names(_NAMED)


def built_in_card(setting: Setting, audits: Sequence[AuditReport] = (), *, models: bool = False) -> Card:
    """Compute the card of one setting; a model is called again only with `models`."""
    old = stored_card(setting.name) if setting.is_model and not models else None
    return make_card(
        setting.critic,
        kind=setting.kind,
        name=setting.name,
        options=setting.options,
        prompts=setting.prompts,
        audits=audits,
        setting=setting.setting,
        limits=setting.limits,
        command=COMMAND_OF_MODELS if setting.is_model else COMMAND,
        not_called=setting.not_called,
        tried=old.tried if old and old.tried else None,
    )


def built_in_cards(
    audits: Sequence[AuditReport] = (), names: Sequence[str] | None = None, *, models: bool = False
) -> list[Card]:
    """All built-in cards. Audits need data that this package does not have, so those of the last cards are kept unless
    `audits` has one of the same critic and set."""
    cards = []
    for setting in SETTINGS:
        if names is not None and setting.name not in names:
            continue
        new = [a for a in audits if (a.critic, a.kind) == (setting.critic, setting.kind)]
        old = stored_card(setting.name)
        kept_audits = [a for a in (old.audits if old else ()) if a.set not in {b.set for b in new}]
        audits_of_it = sorted([*kept_audits, *new], key=lambda a: a.set)
        cards.append(built_in_card(setting, audits_of_it, models=models))
    return cards


def stored_card(name: str) -> Card | None:
    """The card of that name in this package, or None."""
    place = files("humor_env.rewards").joinpath("cards", f"{file_stem(name)}.json")
    if not place.is_file():
        return None
    with as_file(place) as path:
        return Card.load(path)


@dataclass(frozen=True, slots=True)
class Entry:
    """A critic in a run; a gate only stops lines and does not add to the score."""

    critic: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gate: bool = False


def find_card(critic: str, options: Mapping[str, Any], places: Sequence[Path] = ()) -> Card | None:
    """The card that applies to this critic with these options, or None."""
    judge = options.get("judge")
    names = [critic]
    around = options.get("critic")
    is_other = (
        around is not None
        and (own_card := stored_card(critic)) is not None
        and own_card.options.get("critic") != around
    )
    if isinstance(judge, str):
        own_card = stored_card(critic)
        names = [critic] if own_card is not None and own_card.options.get("judge") == judge else [JUDGE + judge]
    for name in names:
        for place in places:
            file = place / f"{file_stem(name)}.json" if place.is_dir() else place
            if file.is_file():
                card = Card.load(file)
                if card.name in (name, critic):
                    return card
    folder = options.get("folder")
    if isinstance(folder, str):
        for file in (user_path(folder) / "card.json", user_path(folder) / f"{file_stem(critic)}.json"):
            if file.is_file():
                return Card.load(file)
    for name in names:
        beside = Path("cards") / f"{file_stem(name)}.json"
        if beside.is_file():
            return Card.load(beside)
    if is_other:
        return None  # this package's card was made with another inner critic
    return next((stored for name in names if (stored := stored_card(name)) is not None), None)


def card_warnings(entries: Sequence[Entry], places: Sequence[Path] = ()) -> list[str]:
    """A sentence for each critic in the score that has no card, an untried one, or a failing one.

    What the run's gates stop, by their own cards, does not count against the critics after them.
    """
    warnings = []
    stopped = _held_by([entry for entry in entries if entry.gate], places)
    for entry in entries:
        if entry.gate:
            continue
        card = find_card(entry.critic, entry.options, places)
        how = f"humor-env card {entry.critic} --out cards"
        if card is None:
            warnings.append(
                f"The critic '{entry.critic}' has no card: it was not tested on known hacks or compared with "
                f"people's ratings. To make one: {how}"
            )
        elif card.verdict == "not tried":
            warnings.append(
                f"The critic '{entry.critic}' has a card that says it was not tried: it may reward known hacks, and "
                f"it may not agree with people. To try yours: {how}, with its options; then humor-env audit."
            )
        else:
            faults = without(card, stopped).faults(most=_NAMED_IN_A_WARNING)
            if faults:
                warnings.append(f"The critic '{entry.critic}' fails its card. {' '.join(faults)}")
    return warnings


def _held_by(gates: Sequence[Entry], places: Sequence[Path]) -> frozenset[str]:
    """The probes and kinds of hostile text that one of the gates stops on every tested set."""
    held: set[str] = set()
    for gate in gates:
        card = find_card(gate.critic, gate.options, places)
        if card is None or not card.tried:
            continue
        tests = [
            {r.probe: r.held for r in t.probes.rows} | {r.kind: r.held for r in t.injection.rows} for t in card.tried
        ]
        names = {name for rows in tests for name in rows if all(r.get(name) is not False for r in tests)}
        # Only a gate that knows the teacher's lines can stop a copy.
        held |= names if gate.options.get("teacher") else names - {"teacher copied"}
    return frozenset(held)


def without(card: Card, stopped: frozenset[str]) -> Card:
    """The card without the rows that a gate before the critic stops."""
    tried = tuple(
        replace(
            t,
            probes=replace(
                t.probes, rows=tuple(r for r in t.probes.rows if r.kind == "control" or r.probe not in stopped)
            ),
            injection=replace(t.injection, rows=tuple(r for r in t.injection.rows if r.kind not in stopped)),
        )
        for t in card.tried
    )
    return replace(card, tried=tried)
