"""The command line `humor-env`: all commands in one place; heavy imports happen only in the commands that need them.

    humor-env --help
    humor-env train pocket-quickstart --set learner.steps=20

Exit codes: 0 done; 1 the run failed or a check found something; 2 a mistake in the request; 3 a spending limit
was reached; 130 stopped with Ctrl-C. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from humor_env.errors import BudgetExceeded, HumorEnvError
from humor_env.experiments.commands.arena import add_commands as add_arena_commands
from humor_env.experiments.commands.check import add_commands as add_check_commands
from humor_env.experiments.commands.compare import add_commands as add_compare_commands
from humor_env.experiments.commands.critics import add_commands as add_critic_commands
from humor_env.experiments.commands.lines import add_commands as add_line_commands
from humor_env.experiments.commands.sharing import add_commands as add_sharing_commands
from humor_env.experiments.options import (
    FAILED,
    MISTAKE,
    OVER_BUDGET,
    STOPPED,
    AsJson,
    Options,
    Seed,
    Set,
    end,
    key_values,
    printable,
    say,
)
from humor_env.shared.precision import CPU_FULL, memory_is_full

if TYPE_CHECKING:
    from humor_env.experiments.runs.run import SeedResult

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
# Errors that can occur even if the request was correct.
_FAILURES = ("JudgingFailed", "TrainingStopped", "CheckpointError", "CriticContractError", "HubError")


def _spare_busy_cores() -> None:
    """Have OpenMP's threads sleep soon when they wait for each other. By default they spin, and if another program uses
    one of the cores, a training step takes ten to a hundred times as long. Only read before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "300")


def _quiet_libraries() -> None:
    """Hide the notices of libraries, and progress bars where nobody sees them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if "transformers" in sys.modules:  # it has already read the setting
            from transformers.utils import logging

            logging.disable_progress_bar()


class Commands(TyperGroup):
    """Turns errors that users can cause into a sentence and an exit code. Our own bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        _spare_busy_cores()
        _quiet_libraries()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            end("Stopped.", STOPPED)
        except BudgetExceeded as problem:
            end(
                f"{problem} What was paid for is kept: run the same command with a higher limit to continue.",
                OVER_BUDGET,
            )
        except HumorEnvError as problem:
            end(str(problem), FAILED if type(problem).__name__ in _FAILURES else MISTAKE)
        except FileNotFoundError as problem:
            end(f"There is no file or folder '{problem.filename}'.", MISTAKE)
        except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as problem:
            end(f"'{problem.filename}' cannot be used: {problem.strerror}.", MISTAKE)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output is gone; Python would report it again at exit
            raise typer.Exit(FAILED) from None
        except OSError as problem:
            if problem.errno not in _DISK_ERRORS:
                raise
            _end_for_the_disk(problem)
        except RuntimeError as problem:
            if not memory_is_full(problem):
                raise
            _end_for_the_memory(problem)
        except Exception as problem:
            # Compared by name: typer has its own copy of click, which it does not export.
            if type(problem).__name__ == "NoSuchOption":
                _point_to_set(problem)
            # safetensors has no errors of the system, only their text.
            number = re.search(r"\(os error (\d+)\)$", str(problem))
            if type(problem).__name__ == "SafetensorError" and number and int(number[1]) in _DISK_ERRORS:
                _end_for_the_disk(OSError(int(number[1]), os.strerror(int(number[1]))))
            raise


def _end_for_the_memory(problem: RuntimeError) -> None:
    whose = "The" if CPU_FULL in str(problem) else "The GPU's"
    end(
        f"{whose} memory is full. If it was in an update, lower learner.micro_batch or teacher.imitation.micro_batch: "
        'the step stays the same, and "auto" takes what fits. If it was while lines were written, raise env.groups, '
        "which divides the lines written at once, or lower learner.batch_size. "
        'student.dtype = "bfloat16" helps with both. '
        "`humor-env doctor --spec SPEC` says how much a step needs.",
        FAILED,
    )


def _end_for_the_disk(problem: OSError) -> None:
    where = f" ('{problem.filename}')" if problem.filename else ""
    end(
        f"Cannot write to the disk{where}: {problem.strerror}. Free some space, or choose another folder with --out. A "
        "run that had started continues with --resume.",
        FAILED,
    )


def _point_to_set(problem: Any) -> None:
    """Point to --set if a setting of the learner was given as an option."""
    name = problem.option_name.lstrip("-").replace("-", "_")
    if problem.ctx is not None and problem.ctx.info_name == "train" and not problem.possibilities:
        problem.message += f". Settings of a spec are changed with --set, for example --set learner.{name}=…"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Typer's own tracebacks would print local variables, which may include a key.
    pretty_exceptions_enable=False,
    help="""Train small language models to be funny: a student writes, a critic scores, the student learns.

[bold]First steps[/bold]

  humor-env demo                         a small student learns, in a few minutes

  humor-env train pocket-quickstart      run one of the bundled specs

  humor-env play                         write or judge lines yourself

  humor-env doctor                       what this machine can do""",
)


@app.callback(invoke_without_command=True)
def _begin(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from humor_env import __version__

        typer.echo(__version__)
        raise typer.Exit


# Training and measuring


@app.command(
    epilog="Examples: humor-env train pocket-quickstart · humor-env train mine.toml --set learner.lr=1e-5 --out runs/a "
    "· humor-env train runs/a/spec.toml (repeats the run) · humor-env train runs/a --resume"
)
def train(
    spec: Annotated[str, typer.Argument(help="A TOML file, a run's folder, or the name of a bundled spec.")],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the spec, print it with all defaults and what it costs, and stop.")
    ] = False,
    card: Annotated[list[Path] | None, typer.Option(help="A critic card (.json), or a folder of them.")] = None,
    track: Annotated[list[str] | None, typer.Option(help="Also report to trackio, tensorboard or wandb.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a student as a spec says, and evaluate it on held-out prompts. Ctrl-C finishes the step and saves."""
    from humor_env.experiments.runs.run import join_processes, run, same_folder
    from humor_env.experiments.specs.spec import load_spec

    join_processes()
    tracking = [f"tracking.with={json.dumps(track)}"] if track else []
    loaded = load_spec(spec, [*(set_ or []), *tracking])
    if dry_run:
        from humor_env.experiments.runs import costs
        from humor_env.experiments.runs.ingredients import check_named

        check_named(loaded)
        lacking = costs.check_without_paying(loaded)
        typer.echo(printable(costs.forecast(loaded)), err=True)
        for sentence in lacking:
            typer.echo(f"warning: {printable(sentence)}", err=True)
        typer.echo(json.dumps(loaded.model_dump(mode="json")) if as_json else loaded.to_toml(), nl=as_json)
        return
    from humor_env.agents.session.processes import is_main_process
    from humor_env.experiments.runs.run_folder import claimed_folder
    from humor_env.experiments.runs.screen import make_screen

    with contextlib.ExitStack() as stack:
        folder = same_folder(lambda: stack.enter_context(claimed_folder(loaded, spec, out, resume)))
        if is_main_process() and not resume:
            from humor_env.experiments.commands.critics import warn_of_critics

            typer.echo(f"Run '{printable(loaded.name)}', written to {printable(str(folder))}", err=True)
            warn_of_critics(loaded, card or [])
        try:
            results = run(loaded, folder, resume=resume, screen=make_screen())
        except KeyboardInterrupt:
            end(f"Stopped. To continue: humor-env train {folder} --resume", STOPPED)
            return
    if not is_main_process():
        return
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "seeds": [r.record() for r in results]}))
    else:
        _show_results(results, folder)
    if results[-1].stopped:
        end(f"Stopped after step {results[-1].steps or 0}. To continue: humor-env train {folder} --resume", STOPPED)


def _show_results(results: Sequence[SeedResult], folder: Path) -> None:
    from rich.table import Table

    stages = list(dict.fromkeys(name for result in results for name in result.stages))
    table = Table("seed", title="held-out score, with its 95 % interval over prompts", title_justify="left")
    for name in stages:
        table.add_column(_plain(name))
    for result in results:
        table.add_row(str(result.seed), *(_interval(result.stages.get(name, {})) for name in stages))
    _print(table)
    typer.echo(f"Written to {folder}")


def _interval(numbers: Any) -> str:
    score, low, high = (numbers.get(key) for key in ("score", "low", "high"))
    if score is None:
        return "–"
    return f"{score:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


@app.command(
    epilog="Examples: humor-env evaluate runs/pocket-quickstart · humor-env evaluate pocket:causal --adapter base "
    "--critic pocket --json · humor-env evaluate runs/a --critic scorer --option client=anthropic --limit 50"
)
def evaluate(
    student: Annotated[str, typer.Argument(help="A run's or student's folder, pocket:NAME, or a Hugging Face model.")],
    critic: Annotated[
        str | None, typer.Option(help="The name of a critic. Default: the run's own, else pocket.")
    ] = None,
    option: Options = None,
    prompts: Annotated[
        str | None, typer.Option(help="A set, a file or hf:owner/dataset. Default: the run's own.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the prompts. Default: the run's own, else test.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many prompts.")] = None,
    lines: Annotated[
        int | None, typer.Option(min=1, help="Lines written for each prompt. Default: the run's own, else 1.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="policy, imitation or base.")] = "policy",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest line, in tokens. Default: the run's own, else 48.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature. Default: the run's own, else 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed. Default: the run's own, else 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write each line and its judgement here, as JSON lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a student on held-out prompts, with the run's own critic and prompts or with others."""
    from humor_env.experiments.runs.measure_student import measure_student

    numbers = measure_student(
        student,
        critic=critic,
        options=key_values(option),
        prompts=prompts,
        split=split,
        limit=limit,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        lines=lines,
        out=out,
    )
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        _show_numbers(
            f"{student} ({adapter}) by {numbers['critic']} on {numbers['split']} of {numbers['prompts']}", numbers
        )


def _show_numbers(title: str, numbers: Any) -> None:
    from rich.table import Table

    table = Table("what", "value", title=_plain(title), title_justify="left")
    for name, value in numbers.items():
        cell = "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        table.add_row(_plain(name), _plain(cell))
    _print(table)


add_line_commands(app)


# Listing and playing


def _listing(kind: str) -> Any:
    def command(as_json: AsJson = False) -> None:
        from humor_env.experiments.commands.listings import rows

        entries = rows(kind)
        if as_json:
            typer.echo(json.dumps(entries))
            return
        width = max((len(row["name"]) for row in entries), default=0)
        for row in entries:
            origin = "" if row["origin"] == "built in" else f"  ({row['origin']})"
            say(f"{row['name']:<{width}}  {row['summary']}{origin}")

    return command


for _kind, _what in (
    ("critics", "List the critics: they score jokes."),
    ("judges", "List the judges: they say which of two jokes is better."),
    ("envs", "List the environments, by Gymnasium id."),
    ("learners", "List the learning algorithms."),
    ("prompts", "List the prompt sets."),
    ("specs", "List the bundled specs for `humor-env train`."),
    ("students", "List the students, with size and licence."),
):
    app.command(_kind, help=_what)(_listing(_kind))


@app.command(
    epilog="Examples: humor-env play · humor-env play --as critic --rounds 10 · humor-env play --prompts everyday"
)
def play(
    as_: Annotated[
        str, typer.Option("--as", help="student: you write. critic: you choose the better line. rater: you rate.")
    ] = ("student"),
    rounds: Annotated[int, typer.Option(min=1, help="Sentences to play.")] = 5,
    prompts: Annotated[
        str, typer.Option(help="pocket: an exact judge, which knows some words. everyday: any words, a small critic.")
    ] = "pocket",
    seed: Seed = 0,
) -> None:
    """Be the student or the critic yourself, in the terminal: in the pocket world, or in real English."""
    from humor_env.experiments.pocket.play import play as begin

    begin(as_, rounds, seed, prompts=prompts)


@app.command()
def doctor(
    spec: Annotated[str | None, typer.Option(help="Estimate the memory that a step of this spec takes.")] = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine has: versions, devices, fastest precision, keys, disk; and what will be slow."""
    from humor_env.experiments.commands.doctor import examine, memory_of, show

    needed = [] if spec is None else memory_of(spec, set_ or [])
    facts = examine() | ({"a_step_takes": needed} if needed else {})
    typer.echo(json.dumps(facts)) if as_json else show(facts)


# Commands with options of their own


_PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def demo(ctx: typer.Context) -> None:
    """Train a small student in a few minutes. `humor-env demo --help` lists the options."""
    from humor_env.experiments.pocket import demo as demonstration

    sys.argv[0] = "humor-env demo"
    demonstration.main(list(ctx.args))


@app.command("pretrain-pocket", context_settings=_PASS_ON)
def pretrain_pocket(ctx: typer.Context) -> None:
    """Rebuild a bundled pocket student from its lexicon. `humor-env pretrain-pocket --help` lists the options."""
    from humor_env.experiments.pocket import pretrain as pretraining

    sys.argv[0] = "humor-env pretrain-pocket"
    pretraining.main(list(ctx.args))


def _plain(name: str) -> Any:
    """A name chosen by somebody else, as a table cell: no markup and no terminal control characters."""
    from rich.text import Text

    return Text(printable(name))


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console()
    # Not a terminal: do not guess a width, which would cut names.
    (console if console.is_terminal else Console(width=160)).print(what)


add_arena_commands(app)
add_check_commands(app)
add_compare_commands(app)
add_critic_commands(app)
add_sharing_commands(app)


def main() -> None:
    app(prog_name="humor-env")


if __name__ == "__main__":
    main()
