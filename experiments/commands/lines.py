"""The commands for files of lines: `judge` and `rescore` score one, `teach` fills one with a teacher's lines.

    humor-env judge jokes.jsonl --critic rules
    humor-env rescore runs/pocket-quickstart --critic rules
    humor-env teach lines.jsonl --prompts everyday --teacher anthropic:claude-haiku-4-5 --max-cost 2

The work is done in `judge_file.py` and `teach.py`, which are loaded when a command is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from humor_env.experiments.options import (
    AsJson,
    Chunk,
    Critic,
    DryRun,
    Jokes,
    Ledger,
    MaxCalls,
    MaxCost,
    MaxTokens,
    Options,
    Output,
    key_values,
    limits_of,
    say,
)


def add_commands(app: typer.Typer) -> None:
    app.command(
        "judge",
        help="Score a file of jokes with any critic. If stopped, run it again to continue.",
        epilog="Examples: humor-env judge jokes.jsonl --critic pocket · humor-env judge jokes.jsonl --critic scorer "
        "--option client=anthropic --max-cost 2 --dry-run",
    )(_scoring(compare=False))
    app.command(
        "rescore",
        help="Score a finished run's jokes with another critic, and show how far the two agree.",
        epilog="Example: humor-env rescore runs/pocket-quickstart --critic rules",
    )(_scoring(compare=True))
    app.command(
        epilog="Examples: humor-env teach lines.jsonl --teacher anthropic:claude-haiku-4-5 --prompts everyday "
        "--max-cost 2 --dry-run · humor-env teach lines.jsonl --teacher pocket --limit 20"
    )(teach)


def _scoring(compare: bool) -> Callable[..., None]:
    """`judge` and `rescore` take the same options."""

    def command(
        file: Jokes,
        critic: Critic,
        option: Options = None,
        output: Output = None,
        ledger: Ledger = None,
        max_calls: MaxCalls = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        chunk: Chunk = 256,
        dry_run: DryRun = False,
    ) -> None:
        from humor_env.experiments.commands.judge_file import score_file
        from humor_env.experiments.runs.run_folder import jokes_folder

        score_file(
            jokes_folder(file),
            critic,
            options=key_values(option),
            output=output,
            ledger=ledger,
            limits=limits_of(max_calls, max_tokens, max_cost),
            chunk=chunk,
            dry_run=dry_run,
            compare=compare,
        )

    return command


def teach(
    buffer: Annotated[Path, typer.Argument(help="The JSONL file to fill; created if it does not exist.")],
    teacher: Annotated[
        str,
        typer.Option(help="pocket, anthropic:MODEL, openai:MODEL@URL, local:FOLDER, or package.module:name."),
    ] = "pocket",
    prompts: Annotated[str, typer.Option(help="A prompt set, a file, or hf:owner/dataset.")] = "pocket",
    split: Annotated[list[str] | None, typer.Option(help="Only this split; repeatable. Default: all.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines for each prompt.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many prompts, from the first on.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the teacher.")] = None,
    licence: Annotated[str | None, typer.Option(help="The licence to record for the lines.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Where replies are kept. Default: next to the buffer.")] = None,
    max_calls: MaxCalls = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have a teacher write lines into a file. If stopped, run it again: it asks only for lines that are missing."""
    from humor_env.experiments.commands.teach import fill_buffer

    outcome = fill_buffer(
        buffer,
        teacher,
        prompts=prompts,
        splits=split or [],
        n=lines,
        limit=limit,
        options=key_values(option),
        licence=licence,
        ledger=ledger,
        limits=limits_of(max_calls, max_tokens, max_cost),
        dry_run=dry_run,
    )
    say(json.dumps(outcome.data) if as_json else outcome.sentence)
