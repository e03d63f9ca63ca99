"""Options that the commands share, how KEY=VALUE is read, and how a critic's options are filled in.

def judge(critic: Critic, option: Options = None, max_cost: MaxCost = None) -> None:
    filled = fill(critics, critic, key_values(option), ledger=path, limits={"max_cost": max_cost}, scope="judge")
    made = critics.make(critic, **filled)
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from humor_env.errors import CriticContractError, HumorEnvError, InvalidOption
from humor_env.shared.json_lines import NOT_JSON
from humor_env.shared.user_path import user_path

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from humor_env.registry import Registry

FAILED, MISTAKE, OVER_BUDGET, STOPPED = 1, 2, 3, 130

# Options in which a critic or a judge names others that it asks, and their kind.
_ASKED = {"judge": "judge", "critic": "critic", "cheap": "judge", "paid": "judge"}
_ASKED_LISTS = {"judges": "judge", "critics": "critic"}

AsJson = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the spec, such as learner.steps=20."),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the critic or judge.")
]
MaxCalls = Annotated[int | None, typer.Option(min=0, help="Stop after this many calls of a language model.")]
MaxTokens = Annotated[int | None, typer.Option(min=0, help="Stop after this many tokens, read and written.")]
MaxCost = Annotated[float | None, typer.Option(min=0, help="Stop after this many US dollars.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and stop.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Jokes = Annotated[Path, typer.Argument(help="A JSONL file of jokes, or the folder of a run or seed.")]
Critic = Annotated[str, typer.Option(help="A registered name or package.module:name.")]
Output = Annotated[Path | None, typer.Option(help="The file to write. Default: FILE.CRITIC.jsonl next to the input.")]
Ledger = Annotated[Path | None, typer.Option(help="Where replies are kept. Default: next to the output.")]
Chunk = Annotated[int, typer.Option(min=1, help="Jokes in each call of the critic.")]
Workers = Annotated[int, typer.Option(min=1, help="Cells that run at the same time.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads of each cell.")]
Launcher = Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")]


def printable(text: str, longest: int | None = None) -> str:
    """Untrusted text, safe to print in a terminal: no control or formatting characters except line breaks. With
    `longest`, a single line cut to that many characters."""
    allowed = "\n" if longest is None else ""
    plain = "".join(c if c.isprintable() or c in allowed else "·" for c in text)
    return plain if longest is None or len(plain) <= longest else plain[: longest - 1] + "…"


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text that may contain words of people, files and services."""
    typer.echo(printable(text), err=err, nl=nl)


def ready_for(file: Path) -> None:
    """Make the folder of a file that a command writes at its end, and tell a mistake before the work is done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise InvalidOption(f"'{file}' is a folder: give the name of a file.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InvalidOption(f"'{file}' cannot be written: give another place.")


def end(sentence: str, code: int) -> None:
    """Exit with a sentence on standard error. All text from people, files and services passes through here."""
    say(sentence, err=True)
    raise typer.Exit(code) from None


def read_override(pair: str, option: str) -> tuple[str, Any]:
    """`key=value`, the value in TOML (5, true, ["a"]), a list or object in JSON, or else a plain text."""
    key, equals, value_text = pair.partition("=")
    if not equals or not key.strip():
        raise InvalidOption(f"{option} {pair}: expected a key and a value, such as {option} key=value.")
    try:
        value = tomllib.loads(f"value = {value_text}")
    except NOT_JSON:
        return key.strip(), _json_or_text(value_text.strip())
    # More than one key: the text contained a line break and was not one TOML value. And no option is a date.
    plain = len(value) == 1 and not isinstance(value["value"], (date, time))
    return key.strip(), value["value"] if plain else value_text.strip()


def _json_or_text(text: str) -> Any:
    """Read a list or an object as error messages show it: `[{"critic": "rules"}]` is not TOML."""
    if text.startswith(("[", "{")):
        with suppress(*NOT_JSON):
            return json.loads(text)
    return text


def key_values(pairs: Sequence[str] | None, option: str = "--option") -> dict[str, Any]:
    """All `KEY=VALUE` of one command; a key may be given once. As in --set, `options.dtype` is `dtype` in the table
    `options`."""
    read: dict[str, Any] = {}
    for pair in pairs or []:
        key, value = read_override(pair, option)
        *outer, last = key.split(".")
        table: Any = read
        for name in outer:
            table = table.setdefault(name, {}) if isinstance(table, dict) else table
        before = table.get(last) if isinstance(table, dict) else table
        if before is not None:
            raise InvalidOption(f"{option} gives '{key}' twice: {before!r} and {value!r}. Give it once.")
        table[last] = value
    return read


def limits_of(max_calls: int | None, max_tokens: int | None, max_cost: float | None) -> dict[str, float]:
    """The limits that were given."""
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_cost": max_cost}
    return {name: value for name, value in limits.items() if value is not None}


def parameters(kind: Registry, name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of the class or `make_` function of that name; none for a ready-made critic."""
    target = kind.resolve(name)
    if not callable(target):
        raise CriticContractError(f"The {kind.kind} '{name}' is a {type(target).__name__}, which is not callable.")
    if not inspect.isclass(target) and not getattr(target, "__name__", "").startswith("make_"):
        return {}
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def fill(
    kind: Registry,
    name: str,
    options: Mapping[str, Any],
    *,
    ledger: str | Path,
    limits: Mapping[str, Any],
    scope: str,
    must_spend: bool = True,
) -> dict[str, Any]:
    """The options, with the ledger and the limits added if accepted and not given, also for every judge and critic that
    it asks. With `must_spend`, limits that nothing enforces raise InvalidOption."""

    def inner(of: Registry, member: str, its_options: Mapping[str, Any]) -> dict[str, Any]:
        return fill(of, member, its_options, ledger=ledger, limits=limits, scope=scope, must_spend=False)

    its_parameters = parameters(kind, name)
    filled = with_members(kind, name, options, inner)
    if "ledger" in its_parameters:
        filled.setdefault("ledger", str(ledger))
    if limits and "budget" in its_parameters:
        filled.setdefault("budget", {**limits, "scope": scope})
    if must_spend and limits and not _has_budget(filled):
        raise InvalidOption(f"'{name}' spends nothing itself, so it takes no limits ({', '.join(limits)}).")
    return filled


def with_members(
    kind: Registry,
    name: str,
    options: Mapping[str, Any],
    change: Callable[[Registry, str, Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The options, with those of each critic and judge that it asks, alone or in a list, replaced by what `change`
    returns. Instances stay as they are."""
    from humor_env.registry import critics, judges

    registries = {"critic": critics, "judge": judges}
    filled, its_parameters = dict(options), parameters(kind, name)
    for what, role in _ASKED.items():
        critic_or_judge = filled.get(what, its_parameters[what].default) if what in its_parameters else None
        if isinstance(critic_or_judge, str) and f"{what}_options" in its_parameters:
            inner = change(registries[role], critic_or_judge, filled.get(f"{what}_options") or {})
            filled |= {f"{what}_options": inner} if inner else {}
    for several, role in _ASKED_LISTS.items():
        members = filled.get(several, its_parameters[several].default) if several in its_parameters else None
        if isinstance(members, Sequence) and not isinstance(members, str):
            filled[several] = [_changed_member(member, role, registries[role], change) for member in members]
    return filled


def _changed_member(member: Any, role: str, registry: Registry, change: Callable[..., dict[str, Any]]) -> Any:
    """One entry of a mix or a jury: a name, a table, or an instance."""
    table = {role: member} if isinstance(member, str) else member
    if not isinstance(table, Mapping) or not isinstance(table.get(role), str):
        return member
    inner = change(registry, table[role], table.get("options") or {})
    return {**table, "options": inner} if inner else member


def env_spec(name: str) -> EnvSpec:
    """Gymnasium's entry for an id or a `module:id`, whose module is imported; an error says what is wrong with it."""
    import gymnasium

    from humor_env.registry import standard_library_module

    module, colon, identity = name.rpartition(":")
    if standard_library_module(module):
        raise InvalidOption(f"There is no environment '{name}': '{module}' is part of Python's standard library.")
    try:
        if colon:
            importlib.import_module(module)
        return gymnasium.spec(identity)
    except ModuleNotFoundError as problem:
        raise InvalidOption(
            f"The environment '{name}' names the module '{problem.name}', which Python cannot find."
        ) from None
    except (gymnasium.error.Error, ValueError) as problem:
        raise InvalidOption(f"There is no environment '{name}': {problem}") from None


def taken_by_env(spec: EnvSpec) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of an environment; None if it takes any."""
    from gymnasium.envs.registration import load_env_creator

    entry = spec.entry_point
    its_parameters = (
        inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry).parameters if entry else {}
    )
    return None if any(p.kind is p.VAR_KEYWORD for p in its_parameters.values()) else its_parameters


@contextmanager
def nothing_written(kind: Registry, name: str, options: Mapping[str, Any], ledger: Path) -> Iterator[dict[str, Any]]:
    """The options of a critic that is made only to estimate what it would ask. No key is needed and nothing is written:
    if there is no ledger yet, none is created."""
    if "ledger" not in parameters(kind, name) or "ledger" in options:
        yield dict(options)
        return
    from humor_env.llm.ledger import Ledger

    with Ledger(ledger if user_path(ledger).is_file() else ":memory:") as before:
        yield {**options, "ledger": before, "options": {**options.get("options", {}), "must_have_key": False}}


def _has_budget(options: Mapping[str, Any]) -> bool:
    """Whether it, or one that it asks, enforces the limits."""
    inside = [inner for key, inner in options.items() if key.endswith("_options")]
    members = [member for key in _ASKED_LISTS for member in options.get(key) or ()]
    inside += [member.get("options") for member in members if isinstance(member, Mapping)]
    return "budget" in options or any(_has_budget(inner) for inner in inside if isinstance(inner, Mapping))


@contextmanager
def ledger_if_used(path: Path) -> Iterator[None]:
    """If the block fails, delete the ledger if the block created it and nothing in it was paid for or reserved."""
    path = user_path(path)
    was_there = path.exists()
    try:
        yield
    except BaseException:
        if not was_there and path.exists() and _is_blank(path):
            for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                part.unlink(missing_ok=True)
        raise


def _is_blank(path: Path) -> bool:
    from humor_env.llm.ledger import Ledger

    try:
        with Ledger(path) as begun:
            return begun.is_blank()
    except HumorEnvError:  # locked, or no ledger: it stays
        return False
