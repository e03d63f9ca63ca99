"""`humor-env check`: whether a critic, a judge, a prompt set, an environment or a learner is sound.

humor-env check critic my_package.critics:Dry
humor-env check prompts mine.csv
humor-env check learner my_package.learners:train
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from humor_env.experiments.options import FAILED, AsJson, Options, key_values, say


def add_commands(app: typer.Typer) -> None:
    check_app = typer.Typer(
        no_args_is_help=True,
        help="Check a critic, judge, prompt set, environment or learner of your own. One finding per line.",
    )
    check_app.command("critic", epilog="Examples: humor-env check critic rules · check critic my_package.critics:Dry")(
        check_critic
    )
    check_app.command("judge", epilog="Examples: humor-env check judge pocket · check judge my_package.judges:Strict")(
        check_judge
    )
    check_app.command("prompts", epilog="Examples: humor-env check prompts everyday · check prompts mine.csv")(
        check_prompts
    )
    check_app.command("env", epilog="Examples: humor-env check env humor_env/Revise-v0 · check env my_package:Mine-v0")(
        check_env
    )
    check_app.command("learner", epilog="Examples: humor-env check learner ppo · check learner my_package:train")(
        check_learner
    )
    app.add_typer(check_app, name="check")


def check_critic(
    name: Annotated[str, typer.Argument(help="A registered name or package.module:name.")],
    option: Options = None,
    prompts: Annotated[str, typer.Option(help="Prompts to try it on.")] = "pocket",
    tolerance: Annotated[float, typer.Option(min=0, help="How far two scores of one joke may differ.")] = 1e-9,
    as_json: AsJson = False,
) -> None:
    """Check a critic: the rules it must follow, and awkward texts."""
    from humor_env import registry
    from humor_env.checks import check_critic as check

    _findings(check(registry.critics.make(name, **key_values(option)), prompts, tolerance=tolerance), as_json)


def check_judge(
    name: Annotated[str, typer.Argument(help="A registered name or package.module:name.")],
    option: Options = None,
    prompts: Annotated[str, typer.Option(help="Prompts to try it on.")] = "pocket",
    tolerance: Annotated[float, typer.Option(min=0, help="How far two verdicts on one pair may differ.")] = 1e-9,
    as_json: AsJson = False,
) -> None:
    """Check a judge: the rules it must follow, both orders, and awkward texts."""
    from humor_env import registry
    from humor_env.checks import check_judge as check

    _findings(check(registry.judges.make(name, **key_values(option)), prompts, tolerance=tolerance), as_json)


def check_prompts(
    what: Annotated[str, typer.Argument(help="A registered set, a file, or hf:owner/dataset.")],
    as_json: AsJson = False,
) -> None:
    """Check a prompt set: ids, splits, texts, and that loading it again gives the same."""
    from humor_env.checks import check_prompts as check

    _findings(check(what), as_json)


def check_env(
    name: Annotated[str, typer.Argument(help="A Gymnasium id, or module:id.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the environment.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an environment with Gymnasium's checks and with ours."""
    from humor_env.checks import check_env as check
    from humor_env.experiments.commands.listings import make_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks report problems themselves
        _findings(check(make_env(name, key_values(option))), as_json)


def check_learner(
    name: Annotated[str, typer.Argument(help="A registered name or package.module:name.")],
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of the learner.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a learner by training it a dozen times for a few steps: weights, seeds, limits, resuming, failures."""
    from humor_env.experiments.checking.learner import check_learner as check

    _findings(check(name, key_values(option)), as_json)


def _findings(findings: Sequence[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"name": f.name, "ok": f.ok, "sentence": f.sentence} for f in findings]))
    else:
        for finding in findings:
            say(str(finding))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)
