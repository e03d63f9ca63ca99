"""The work of `humor-env train-critic`: read the sets, train, report progress and the result.

run(Path("runs/critic"), ["humicroedit=task-1_train.csv"], None, None, None, {"model": "minilm"}, as_json=False)
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from humor_env.errors import InvalidOption
from humor_env.experiments.options import say
from humor_env.shared.line_file import only_writer

if TYPE_CHECKING:
    from humor_env.rewards.trained.critic_data import CriticSet
    from humor_env.rewards.trained.train_critic import TrainedCritic, TrainProgress

STOPPED = 130


def run(
    out: Path,
    data: Sequence[str],
    ledger: Path | None,
    client: str | None,
    instructions: str | None,
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    with _new_folder(out):
        _quiet()
        from humor_env.rewards.trained.train_critic import config_of, train

        config = config_of(settings)
        sets = _sets(data, ledger, client, instructions)
        out.mkdir(parents=True, exist_ok=True)
        for ratings in sets:
            say(f"{ratings.name}: {len(ratings.ratings)} ratings, {len(ratings.comparisons)} pairs", err=True)
        critic = train(config, sets, out, _Screen())
    say(_as_data(critic) if as_json else _in_words(critic))
    if critic.stopped:
        raise typer.Exit(STOPPED)


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Refuse a folder that is in use or not empty; no other train-critic may write into it during the block."""
    place = out.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"Another train-critic writes into '{out}'. Wait for it, or give another folder."
    with only_writer(place.with_name(place.name + ".lock"), refusal):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InvalidOption(f"'{out}' already exists and is not empty. Give another folder.")
        yield


def _sets(data: Sequence[str], ledger: Path | None, client: str | None, instructions: str | None) -> list[CriticSet]:
    from humor_env.rewards.trained.critic_data import sets_from_files
    from humor_env.rewards.trained.distil import from_ledger

    sets = sets_from_files(data)
    if ledger is not None:
        sets += from_ledger(ledger, client, instructions=instructions)
    if not sets:
        raise InvalidOption(
            "train-critic needs something to learn from: --data SET=FILE (humor-env audit --list names the sets; this "
            "project has loaders but no data), or --ledger FILE."
        )
    return sets


class _Screen:
    """Prints a line for each evaluation on the dev pairs; in a terminal, also the current step."""

    def __call__(self, now: TrainProgress) -> None:
        member = f"member {now.member + 1}/{now.members}, " if now.members > 1 else ""
        text = f"{member}step {now.step}/{now.steps}, loss {now.loss:.3f}, {now.seconds / 60:.1f} min"
        terminal = sys.stderr.isatty()
        if now.dev is not None:
            scores = f"dev pairs {100 * now.dev['pair_accuracy']:.1f} %, log loss {now.dev['loss']:.4f}"
            typer.echo(("\r\033[K" if terminal else "") + f"{text}: {scores}{' (best)' if now.best else ''}", err=True)
        elif terminal:
            typer.echo(f"\r\033[K{text}", nl=False, err=True)


def _as_data(critic: TrainedCritic) -> str:
    return json.dumps(
        {
            "folder": str(critic.folder),
            "dev": critic.dev,
            "calibration": {"scale": critic.calibration.scale, "shift": critic.calibration.shift},
            "steps": critic.steps,
            "seconds": critic.seconds,
            "stopped": critic.stopped,
        }
    )


def _in_words(critic: TrainedCritic) -> str:
    from humor_env.rewards.cheap_first import gate_table, render

    dev = critic.dev
    lines = [
        f"{'Stopped' if critic.stopped else 'Trained'} for {critic.steps} steps, {critic.seconds / 60:.1f} minutes.",
        f"On the {dev['pairs']:.0f} pairs of the prompts that were held out: {100 * dev['pair_accuracy']:.1f} % right; "
        f"calibration error {dev['calibration_error']:.3f} (before: {dev['calibration_error_before']:.3f}).",
    ]
    lines += [
        f"Rank correlation with people, {name.removeprefix('spearman_')}: {value:.3f}"
        for name, value in dev.items()
        if name.startswith("spearman_")
    ]
    lines.append("These prompts decided when to stop, so report results from another file, with the command below.")
    if critic.verdicts:
        cheap, paid = zip(*critic.verdicts, strict=True)
        lines += ["", "As the cheap judge of cheap-first, on these pairs:", "", render(gate_table(cheap, paid)), ""]
    lines.append(
        f"humor-env audit --critic reward-model --option folder={critic.folder} --data humicroedit "
        "--file task-2_dev.csv"
    )
    return "\n".join(lines)


def _quiet() -> None:
    """Hide the notices of libraries, such as that the model's head is new, which is intended."""
    from transformers.utils import logging as notices

    notices.set_verbosity_error()
    notices.disable_progress_bar()
    logging.getLogger("peft").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")
