"""Commands for other people's tools: push and pull, to and from the Hub; serve, for trainers; export.

humor-env push runs/pocket-quickstart owner/name --dry-run
humor-env pull owner/name student
humor-env serve --critic pocket --port 8000
humor-env export runs/pocket-quickstart lines.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from humor_env.experiments.options import AsJson, Options, key_values, say


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command(
        epilog="Examples: humor-env push runs/pocket-quickstart owner/name --dry-run · humor-env push lines.jsonl "
        "owner/lines"
    )(push)
    app.command(epilog="Examples: humor-env serve · humor-env serve --critic scorer --option client=anthropic --web")(
        serve
    )
    app.command(
        epilog="Examples: humor-env export runs/a lines.jsonl · humor-env export runs/a humor/lines-v0 --as minari"
    )(export)
    app.command(epilog="Example: humor-env pull owner/name student && humor-env evaluate student")(pull)


def push(
    what: Annotated[Path, typer.Argument(help="The folder of a run or seed, or a JSONL file of lines.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    merged: Annotated[bool, typer.Option("--merged", help="Also upload the model with the adapter merged in.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List every file and byte, and upload nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a student, or a file of lines, to the Hub with a card. It lists every file first."""
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
            say("Nothing was uploaded." if address is None else f"Pushed to {address}")


def pull(
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write: new or empty.")],
    dataset: Annotated[bool, typer.Option("--dataset", help="The repository is a dataset.")] = False,
) -> None:
    """Download a student or lines from the Hub: weights and texts, never code."""
    from humor_env.experiments.sharing import hub

    _show(hub.pull(repo, folder, dataset=dataset))


def serve(
    critic: Annotated[str, typer.Option(help="A registered name or package.module:name.")] = "pocket",
    option: Options = None,
    prompts: Annotated[str, typer.Option(help="A set, a file, or hf:owner/dataset.")] = "pocket",
    split: Annotated[str, typer.Option(help="The split of the prompts, unless a reset names another.")] = "train",
    attempts: Annotated[int, typer.Option(min=1, help="Lines in an episode.")] = 1,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest line that is accepted, in characters.")] = 1000,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions at the same time.")] = 64,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 is reachable from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    web: Annotated[bool, typer.Option("--web", help="Also serve OpenEnv's page for trying it by hand: /web.")] = False,
) -> None:
    """Serve the environment to trainers that use the OpenEnv protocol. Needs the extra openenv."""
    import os

    os.environ["ENABLE_WEB_INTERFACE"] = "true" if web else "false"
    from humor_env.episodes.episode import Task
    from humor_env.experiments.sharing.openenv import make_app

    task = Task(
        prompts,
        critic,
        split=split,
        attempts=attempts,
        max_chars=max_chars,
        critic_options=key_values(option),
    )
    application = make_app(task, sessions=sessions)
    import uvicorn

    alone = host in ("127.0.0.1", "::1", "localhost")
    reach = "this machine only" if alone else "EVERYBODY who can reach this machine, without a login"
    typer.echo(f"Serving {prompts} judged by {critic} on {host} port {port}, for {reach}. Stop with Ctrl-C.", err=True)
    uvicorn.run(application, host=host, port=port, log_level="warning")


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run or seed.")],
    out: Annotated[Path, typer.Argument(help="The file or folder to write; for minari a name such as humor/lines-v0.")],
    form: Annotated[str, typer.Option("--as", help="jsonl, dataset (Hugging Face) or minari.")] = "jsonl",
    stage: Annotated[str | None, typer.Option(help="Lines of an evaluation: base, imitation, ppo, …")] = None,
) -> None:
    """Write a run's lines and their judgements as JSONL, a Hugging Face dataset or a Minari dataset."""
    from humor_env.experiments.sharing.export import export as write

    typer.echo(f"{write(run, out, form=form, stage=stage)} lines written to {out}")


def _show(files: Sequence[tuple[str, int]]) -> None:
    for name, size in files:
        say(f"{size:>12,}  {name}")
    typer.echo(f"{sum(size for _, size in files):>12,}  in total, {len(files)} files")
