"""Commands that compare: learners (benchmark), our results with a paper's (reproduce) and runs (report).

humor-env benchmark pocket-learners --workers 2
humor-env reproduce small-but-funny --scale pocket --seeds 3
humor-env report runs/pocket-quickstart
humor-env report runs/new --against runs/old
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from humor_env.experiments.options import (
    FAILED,
    MISTAKE,
    AsJson,
    DryRun,
    Launcher,
    Set,
    Threads,
    Workers,
    end,
    ready_for,
    say,
)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command(
        epilog="Examples: humor-env benchmark pocket-learners --out runs/learners · humor-env benchmark mine.toml "
        "--set 'seeds=[0]' · humor-env benchmark runs/learners --collect · "
        "humor-env benchmark --tables docs/benchmark.md"
    )(benchmark)
    app.command(
        epilog="Examples: humor-env reproduce small-but-funny --scale pocket --seeds 3 · humor-env reproduce "
        "small-but-funny --scale paper --dry-run · humor-env reproduce small-but-funny --scale small --set "
        "critic.options.client=local:Qwen/Qwen2.5-7B-Instruct"
    )(reproduce)
    app.command(
        epilog="Examples: humor-env report runs/pocket-quickstart · humor-env report runs/ppo --against runs/grpo · "
        "humor-env report runs/ppo runs/grpo runs/dpo --out all.html"
    )(report)
    app.command(epilog="Examples: humor-env gallery --count 5 · humor-env gallery --out gallery.md")(gallery)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs (or of single seeds), side by side.")],
    against: Annotated[
        Path | None,
        typer.Option(help="Another run: show the difference from it with its interval, and what differs in the specs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page to write. Default: report.html in the run's folder.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw the result of one run as an SVG file.")] = None,
) -> None:
    """Make one HTML page of a run, or of several side by side: curves, intervals, health, likely hacks, every joke."""
    from humor_env.experiments.reports.report import default_path, write_picture, write_report

    typer.echo(f"report: {write_report(runs, out or default_path(runs, against), against)}")
    if picture is not None:
        typer.echo(f"picture: {write_picture(runs, picture)}")


def gallery(
    count: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses the prompts and lines.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A Markdown file to write. Default: print.")] = None,
) -> None:
    """Show lines of the pocket world: the same sentences by the base model, the teacher and a perfect student."""
    from humor_env.experiments.pocket.gallery import gallery as make_page

    if out is not None:
        ready_for(out)
    page = make_page(count, seed)
    if out is None:
        say(page)
    else:
        out.write_text(page, encoding="utf-8")
        typer.echo(f"Written to {out}")


def reproduce(
    paper: Annotated[str, typer.Argument(help="Which paper: small-but-funny.")],
    scale: Annotated[str, typer.Option(help="pocket, small, paper, or a TOML file in the same format.")] = "pocket",
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0 to n - 1.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write. Default: runs/PAPER-SCALE.")] = None,
    set_: Set = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells that run at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads of each cell.")] = None,
    launcher: Launcher = "local",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a paper's whole protocol, and show each of its tables beside ours. If stopped, run it again to continue."""
    from humor_env.experiments.reproduction.spec import load_scale

    changes = list(set_ or [])
    changes += [f"{name}={value}" for name, value in (("workers", workers), ("threads", threads)) if value is not None]
    spec = load_scale(scale, changes)
    count = seeds or spec.seeds
    from humor_env.experiments.reproduction.reproduce import check_paper
    from humor_env.experiments.reproduction.reproduce import reproduce as run_protocol

    check_paper(paper)
    if dry_run:
        from humor_env.experiments.reproduction.estimate import as_text, estimate

        forecast = estimate(spec, count)
        say(json.dumps(forecast) if as_json else as_text(forecast))
        return
    folder = out or Path("runs") / f"{paper}-{spec.name}"
    reproduction = run_protocol(
        spec, folder, seeds=range(count), launcher=launcher, say=lambda line: say(line, err=True)
    )
    say(json.dumps(reproduction.tables) if as_json else reproduction.text, nl=as_json)
    if not as_json:
        typer.echo(f"Written to {folder}")
    if reproduction.failed:
        failures = "; ".join(f"{name}: {why}" for name, why in list(reproduction.failed.items())[:3])
        end(f"{len(reproduction.failed)} cells failed ({failures}). Run the same command to try them again.", FAILED)


def benchmark(
    spec: Annotated[str | None, typer.Argument(help="A TOML file, a benchmark's folder, or a bundled name.")] = None,
    set_: Set = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=FILE", help="A file that the benchmark asks for; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write. Default: runs/NAME.")] = None,
    workers: Workers = 2,
    threads: Threads = 1,
    launcher: Launcher = "local",
    collect: Annotated[
        bool, typer.Option("--collect", help="Only write the files from the cells done so far.")
    ] = False,
    publish: Annotated[Path | None, typer.Option(help="Copy the small result files to this folder.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Only fill the tables of this page from result files.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Compare learners on one budget, by a critic that none learned from. If stopped, run it again to continue."""
    if tables is not None:
        from humor_env.experiments.compare.benchmark_pages import fill_page

        changed = fill_page(tables, write=not dry_run)
        outcome = "would be written" if dry_run else "written"
        typer.echo(f"{tables}: {changed} tables {outcome}" if changed else f"{tables}: all tables are up to date")
        return
    if spec is None:
        end("Which benchmark? Give a TOML file, a folder or a bundled name, or --tables PAGE.", MISTAKE)
        return
    from humor_env.experiments.compare import benchmark as engine
    from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec

    its_own = Path(spec) if Path(spec).is_dir() else None
    folder = out or its_own
    flags = [name for name, value in (("--set", set_), ("--data", data), ("--dry-run", dry_run)) if value]
    if collect and flags:
        end(f"--collect runs nothing and has the settings of the benchmark's folder: leave out {flags[0]}.", MISTAKE)
    if collect or (publish is not None and its_own is not None and folder == its_own and not flags):
        bench = engine.collect(folder or Path("runs") / load_benchmark_spec(spec).name)
    else:
        loaded = load_benchmark_spec(spec, set_ or []).with_files(data or [])
        folder = folder or Path("runs") / loaded.name
        if dry_run:
            from humor_env.experiments.compare.benchmark_costs import forecast_benchmark

            forecast, lacking = forecast_benchmark(loaded, workers=workers, threads=threads)
            say(forecast, err=True)
            for sentence in lacking:
                say(f"warning: {sentence}", err=True)
            say(f"The cells, each with the seed{'s' * (len(loaded.seeds) > 1)} {', '.join(map(str, loaded.seeds))}:")
            for name in dict.fromkeys(cell.name.rpartition("/")[0] for cell in loaded.cells(folder)):
                say(f"  {name}")
            return
        bench = engine.run_benchmark(
            loaded,
            folder,
            workers=workers,
            threads=threads,
            launcher=launcher,
            say=lambda line: say(line, err=True),
        )
    page = bench.folder / engine.PAGE
    typer.echo(f"Written to {page}" if page.is_file() else f"'{bench.folder}' has its results without cells: only read")
    if publish is not None and bench.rows:
        engine.publish(bench, publish)
        typer.echo(f"Published in {publish}")
    if bench.failures:
        name, why = next(iter(bench.failures.items()))
        end(
            f"{len(bench.failures)} of {bench.record['cells']} cells have no result, such as {name}: {why}. The same "
            "command tries them again.",
            FAILED,
        )
