"""Commands that hand on what a run made: push and pull, to and from the Hub.

humor-env push runs/pocket-quickstart owner/name --dry-run
humor-env pull owner/name student
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from humor_env.experiments.options import AsJson


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this file on the command line."""
    app.command(
        epilog="Examples: humor-env push runs/pocket-quickstart owner/name --dry-run · humor-env push lines.jsonl "
        "owner/lines"
    )(push)
    app.command(epilog="Example: humor-env pull owner/name student && humor-env evaluate student")(pull)


def push(
    what: Annotated[Path, typer.Argument(help="The folder of a run or seed, or a JSONL file of lines.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    merged: Annotated[bool, typer.Option("--merged", help="Also the model with the adapter folded in.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A new repository is private without it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List every file and byte, and upload nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a student, or a file of lines, on the Hub with a card. All that leaves the machine is listed first."""
    from humor_env.experiments.sharing import hub

    with hub.staged(what, repo, merged=merged) as folder:
        files = hub.listing(folder)
        address = None
        if not as_json:
            _show(files)
        if not dry_run:
            address = hub.push(folder, repo, public=public)
        if as_json:
            typer.echo(json.dumps({"repo": repo, "address": address, "files": dict(files)}))
        else:
            typer.echo("Nothing was uploaded." if address is None else f"Pushed to {address}")


def pull(
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="Where to: a folder that is empty or not there.")],
    dataset: Annotated[bool, typer.Option("--dataset", help="It is a dataset.")] = False,
) -> None:
    """Fetch a student or lines from the Hub: weights and texts, never code."""
    from humor_env.experiments.sharing import hub

    _show(hub.pull(repo, folder, dataset=dataset))


def _show(files: Sequence[tuple[str, int]]) -> None:
    for name, size in files:
        typer.echo(f"{size:>12,}  {name}")
    typer.echo(f"{sum(size for _, size in files):>12,}  in all, {len(files)} files")
