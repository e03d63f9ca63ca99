"""The commands about critics: `audit` (does it agree with people?), `probes` (which hacks does it reward?), `card` (a
page with both) and `train-critic`.

    humor-env audit --critic rules --data humicroedit --file task-2_dev.csv
    humor-env probes --critic rules --prompts everyday
    humor-env card rules --out cards

Each loads what it needs when it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from humor_env.experiments.options import (
    AsJson,
    MaxCalls,
    MaxCost,
    MaxTokens,
    Options,
    Seed,
    fill,
    key_values,
    ledger_if_used,
    limits_of,
    printable,
    ready_for,
    say,
)

if TYPE_CHECKING:
    from humor_env.experiments.specs.spec import Spec
    from humor_env.rewards.audits.report import AuditReport, Kind
    from humor_env.rewards.cards.card import Card

LedgerHere = Annotated[Path | None, typer.Option("--ledger", help="Where replies of a language model are kept.")]
IsJudge = Annotated[bool, typer.Option("--judge", help="Use the judge of that name, if there is also a critic.")]


def add_commands(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: humor-env audit --critic rules --data humicroedit --file task-2_dev.csv · humor-env audit "
        "--critic multiple-choice --option client=anthropic:claude-haiku-4-5 --data pairs --file votes.csv --limit 300 "
        "--max-cost 2 · humor-env audit --list"
    )(audit)
    app.command(
        epilog="Examples: humor-env probes --markdown · humor-env probes --critic scorer --option client=anthropic "
        "--prompts everyday --max-cost 2"
    )(probes)
    app.command(
        epilog="Examples: humor-env card rules --out cards · humor-env card scorer --option client=anthropic --prompts "
        "everyday --audit scorer.json --out cards · humor-env card --all --out docs/cards"
    )(card)
    app.command(
        "train-critic",
        epilog="Examples: humor-env train-critic runs/critic --data humicroedit=task-1_train.csv --data "
        "funlines=task-1_train_funlines.csv · humor-env train-critic runs/cheap --ledger verdicts.sqlite --model "
        "Qwen/Qwen3-0.6B --set lora_rank=16",
    )(train_critic)


def audit(
    critic: Annotated[str | None, typer.Option(help="A critic's or judge's name, or package.module:name.")] = None,
    data: Annotated[str | None, typer.Option(help="The rated set; --list shows all.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="Its file as published; repeatable. A bundled set has none.")
    ] = None,
    option: Options = None,
    data_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the set's loader, such as ranks.")
    ] = None,
    judge: IsJudge = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many pairs and texts, drawn at random.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ask in one order only: half the price.")] = False,
    surprisal: Annotated[
        str, typer.Option(help="The surprisal row: unigram, pocket:causal, a Hugging Face model, or none.")
    ] = "unigram",
    context: Annotated[
        int,
        typer.Option(
            min=0, help="Score each line with this many other prompts too, to see if the critic reads the prompt."
        ),
    ] = 4,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option(min=0, help="Show this many confident mistakes. They may be offensive.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A .json or .md file for the results, or a folder for the whole card.")
    ] = None,
    ledger: LedgerHere = None,
    max_calls: MaxCalls = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    list_sets: Annotated[bool, typer.Option("--list", help="List the sets that can be read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well a critic agrees with people on a human-rated set, compared with simple baselines."""
    from humor_env.errors import InvalidOption
    from humor_env.registry import critics, judges
    from humor_env.rewards.audits.audit import audit as measure
    from humor_env.rewards.rated.rated_sets import BUNDLED, load_rated, rated_sets

    if list_sets:
        rows = {name: entry.summary for name, entry in sorted(rated_sets.entries().items())}
        say(json.dumps(rows) if as_json else "\n".join(f"{name:<16} {what}" for name, what in rows.items()))
        return
    if critic is None or data is None or not (file or data in BUNDLED):
        raise InvalidOption(
            "An audit needs --critic NAME, --data SET and --file PATH. `humor-env audit --list` names the sets: get "
            f"the file from its publisher. Bundled, without --file: {', '.join(BUNDLED)}."
        )
    rated = load_rated(data, file or (), **key_values(data_option, "--data-option"))
    limits = limits_of(max_calls, max_tokens, max_cost)
    options = key_values(option, "--option")
    kind = _kind(critic, judge)
    if out is not None:
        ready_for(out if out.suffix in _FILES else out / "card")
    scope = _audit_scope(data, file or (), options)
    filled = _filled(critic, kind, options, ledger or _default_ledger(out, critic), limits, scope)
    report = measure(
        (judges if kind == "judge" else critics).make(critic, **filled),
        rated,
        kind=kind,
        limit=limit,
        both_orders=not once,
        surprisal=None if surprisal == "none" else surprisal,
        examples=examples,
        context=context,
        seed=seed,
    )
    report = _named(report, critic, options)
    if out is not None:
        _write(out, report, filled)
    if as_json:
        typer.echo(json.dumps(report.data()))
        return
    say(report.markdown(), nl=False)
    for number, example in enumerate(report.examples, 1):
        typer.echo(f"\n{number}. asked      {printable(example.asked, 1000)}")
        typer.echo(f"   people     {printable(example.preferred, 1000)}")
        typer.echo(f"   {kind:<10} {printable(example.named, 1000)}   (by {example.margin:.2f})")


def probes(
    critic: Annotated[
        str | None, typer.Option(help="A registered name or package.module:name. Default: all documented ones.")
    ] = None,
    option: Options = None,
    prompts: Annotated[str, typer.Option(help="pocket or everyday.")] = "pocket",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole table as Markdown.")] = False,
    ledger: LedgerHere = None,
    max_calls: MaxCalls = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
) -> None:
    """Try critics on known hacks: lines that score without being funny."""
    from humor_env.errors import InvalidOption, unknown_name
    from humor_env.registry import critics
    from humor_env.rewards.audits.probes import (
        CASES,
        compare_markdown,
        documented_critics,
        run_probes,
    )

    if prompts not in CASES:
        raise unknown_name("set of probe cases", prompts, CASES)
    cases, limits = CASES[prompts](), limits_of(max_calls, max_tokens, max_cost)
    if critic is None:
        if option or limits:
            raise InvalidOption("--option and the limits apply to one critic. Give --critic NAME.")
        reports = [replace(run_probes(live, cases), critic=name) for name, live in documented_critics(cases, prompts)]
        say(compare_markdown(reports) if markdown else "\n".join(r.summary() for r in reports))
        return
    place = ledger or _default_ledger(None, critic)
    filled = fill(critics, critic, key_values(option), ledger=place, limits=limits, scope=f"probes {prompts}")
    with ledger_if_used(place):
        report = run_probes(critics.make(critic, **filled), cases)
    say(report.markdown() if markdown else report.summary())


def card(
    critic: Annotated[str | None, typer.Argument(help="A critic's or judge's name, or package.module:name.")] = None,
    option: Options = None,
    judge: IsJudge = False,
    prompts: Annotated[list[str] | None, typer.Option(help="Probe cases: pocket, everyday; both by default.")] = None,
    audit_file: Annotated[
        list[Path] | None, typer.Option("--audit", help="Results written by `humor-env audit --out FILE.json`.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="The cards of all built-in critics and judges.")] = False,
    models: Annotated[
        bool, typer.Option("--models", help="With --all: try bundled models again. Otherwise their results are kept.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder for NAME.md, .card.html and .json. Default: print.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="With --all: a separate folder for the .json files.")] = None,
    ledger: LedgerHere = None,
    max_calls: MaxCalls = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    as_json: AsJson = False,
) -> None:
    """Make a critic's card: which hacks it rewards, whether it agrees with people, what is not known."""
    from humor_env.errors import InvalidOption
    from humor_env.rewards.cards.built_in import built_in_cards
    from humor_env.rewards.cards.card import make_card
    from humor_env.rewards.cards.page import card_markdown

    audits = [_read_audit(path) for path in audit_file or []]
    if out is not None:
        ready_for(out / "card")
    if all_:
        if critic is not None or out is None:
            raise InvalidOption("--all takes no name, and needs --out FOLDER.")
        cards = built_in_cards(audits, models=models)
        for new_card in cards:
            _save(new_card, out, store)
        _index(cards, out)
        typer.echo(json.dumps([c.data() for c in cards]) if as_json else f"{len(cards)} cards written to {out}")
        return
    if critic is None:
        raise InvalidOption("Which critic? humor-env card NAME, or --all for the built-in ones.")
    options = key_values(option, "--option")
    limits = limits_of(max_calls, max_tokens, max_cost)
    kind = _kind(critic, judge)
    filled = _filled(critic, kind, options, ledger or _default_ledger(out, critic), limits, "card")
    command = " ".join(
        ["humor-env card", critic, *(["--judge"] if judge else []), *(f"--option {o}" for o in option or [])]
    )
    new_card = make_card(
        critic,
        kind=kind,
        options=filled,
        prompts=tuple(prompts or ("pocket", "everyday")),
        audits=[a for a in audits if a.critic == critic],
        command=_without_secrets(command),
    )
    if out is not None:
        typer.echo(str(new_card.save(out)), err=as_json)
    if as_json:
        typer.echo(json.dumps(new_card.data()))
    elif out is None:
        say(card_markdown(new_card), nl=False)


def warn_of_critics(spec: Spec, places: Sequence[Path]) -> None:
    """Warn before a run of the critics in its score that have no card, or one that fails."""
    from humor_env.rewards.cards.built_in import Entry, card_warnings

    entries = [Entry(c.critic, c.options, gate=c.gate is not None and c.weight is None) for c in spec.critic]
    for sentence in card_warnings(entries, places):
        say(f"warning: {sentence}", err=True)


def _save(new_card: Card, out: Path, store: Path | None) -> None:
    from humor_env.rewards.cards.card import file_stem

    new_card.save(out)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        name = f"{file_stem(new_card.name)}.json"
        (out / name).replace(store / name)


_FILES = (".json", ".md")  # suffixes of files for an audit's figures; any other place is a folder for the card
FREE = "It rewards none of the known hacks and hostile texts that it was tried on."


def _index(cards: Sequence[Card], out: Path) -> None:
    """Write the page that lists the cards; its last column gives the reason for each verdict."""
    from humor_env.rewards.audits.page import Table, markdown_table
    from humor_env.rewards.cards.built_in import COMMAND
    from humor_env.rewards.cards.card import file_stem

    rows = tuple(
        (f"[{c.name}]({file_stem(c.name)}.md)", c.summary, c.verdict, " ".join(c.failing) or c.not_called or FREE)
        for c in cards
    )
    table = markdown_table(Table("", ("card", "what it is", "verdict", "why"), rows, "llll"))
    about = (
        "What each built-in critic and judge rewards that it should not. A failing card is a warning: put gates in "
        'front of the critic, and monitor the run. "Not tried" means that it was not called, for the reason given.'
    )
    text = f"# Critic cards\n\n{about}\n\n{table}\n\nTo regenerate all of them:\n\n    {COMMAND}\n"
    (out / "index.md").write_text(text, encoding="utf-8")


def _kind(name: str, judge: bool) -> Kind:
    from humor_env.registry import critics, judges

    return "judge" if judge or (name in judges.entries() and name not in critics.entries()) else "critic"


def _filled(
    name: str, kind: Kind, options: Mapping[str, Any], ledger: Path, limits: Mapping[str, Any], scope: str
) -> dict[str, Any]:
    from humor_env.registry import critics, judges

    return fill(judges if kind == "judge" else critics, name, options, ledger=ledger, limits=limits, scope=scope)


def _audit_scope(data: str, files: Sequence[Path], options: Mapping[str, Any]) -> str:
    """The account of an audit's spending: another set, file or model is another audit."""
    client = options.get("client")
    # Hashed, because an address may contain a password, and people share ledgers.
    model = [] if client is None else [hashlib.sha256(str(client).encode()).hexdigest()[:12]]
    return " ".join(["audit", data, *(file.name for file in files), *model])


def _default_ledger(out: Path | None, name: str) -> Path:
    from humor_env.rewards.cards.card import file_stem

    stem = f"{file_stem(name)}.ledger.sqlite"
    if out is None:
        return Path(stem)
    return (out.parent if out.suffix in (*_FILES, ".html") else out) / stem


def _named(report: AuditReport, critic: str, options: Mapping[str, Any]) -> AuditReport:
    """The report under the name and the options that the user gave."""
    from dataclasses import replace

    from humor_env.rewards.cards.card import plain_options

    return replace(report, critic=critic, options=plain_options(options))


def _write(out: Path, report: AuditReport, options: Mapping[str, Any]) -> None:
    from humor_env.rewards.cards.card import json_text, make_card, rounded

    if out.suffix == ".json":
        out.write_text(json_text(rounded(report.data())), encoding="utf-8")
    elif out.suffix == ".md":
        out.write_text(report.markdown(), encoding="utf-8")
    else:
        new_card = make_card(report.critic, kind=report.kind, options=options, audits=[report])
        typer.echo(str(new_card.save(out)), err=True)


def _read_audit(path: Path) -> AuditReport:
    from humor_env.errors import InvalidOption
    from humor_env.rewards.audits.report import AuditReport

    try:
        return AuditReport.load(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as problem:
        raise InvalidOption(
            f"'{path}' holds no audit ({type(problem).__name__}: {problem}). Write one: humor-env audit … --out {path}"
        ) from problem


def _without_secrets(command: str) -> str:
    import re

    return re.sub(r"(?i)(\S*(?:key|token|secret|password)\S*?=)\S+", r"\1…", command)


def train_critic(
    out: Annotated[Path, typer.Argument(help="The critic's folder: new or empty.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SET=FILE", help="A human-rated set and its file; repeatable."),
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Learn from a paid judge's verdicts in this ledger.")] = None,
    client: Annotated[str | None, typer.Option(help="Whose verdicts to use, if the ledger holds several.")] = None,
    instructions: Annotated[
        str | None, typer.Option(help="Words of the template or rubric whose verdicts to use, if there are several.")
    ] = None,
    model: Annotated[str, typer.Option(help="minilm, a folder, a Hugging Face name, or package.module:name.")] = (
        "minilm"
    ),
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data, for each member.")] = 2.0,
    members: Annotated[int, typer.Option(min=1, help="Models in the ensemble; their scores are averaged.")] = 1,
    seed: Seed = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting: lr=5e-5, lora_rank=16 …")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a critic on people's ratings or a paid judge's verdicts. Ctrl-C saves what it has learned so far."""
    from humor_env.experiments.commands.train_critic import run

    settings = {"model": model, "epochs": epochs, "members": members, "seed": seed, **key_values(set_, "--set")}
    run(out, data or [], ledger, client, instructions, settings, as_json)
