"""Calls to the trackers' packages: trackio, TensorBoard, Weights & Biases.

    tracker = TRACKERS["trackio"]()
    id = tracker.begin(names, None)      # or the id that it returned before, to continue the same run
    tracker.metrics("", 1, {"loss": 0.5})
    tracker.end()

They are called directly and not through Accelerate's trackers, which have no tables, traces or groups and cannot
continue a run. `trackers.py` decides what is reported, and when.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from humor_env.llm.ledger import Call
from humor_env.shared.markdown import table_cell

CALL_COLUMNS = ("at", "asks", "model", "asked", "answered", "error", "cost", "input_tokens", "output_tokens")
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class RunNames:
    """What a tracker gets to know about a run: its project, group and name, and its settings."""

    project: str
    group: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    online: bool


class Tracker(Protocol):
    """One tracker's run. Any of these may raise. `id` is what `begin` returned when the run started, None at first."""

    def begin(self, names: RunNames, id: str | None) -> str: ...

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None: ...

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None: ...

    def calls(self, step: int, calls: Sequence[Call]) -> None: ...

    def results(self, numbers: Numbers) -> None: ...

    def end(self) -> None: ...


class Trackio:
    """A local project in trackio's own folder: `trackio show --project PROJECT`."""

    def begin(self, names: RunNames, id: str | None) -> str:
        import trackio

        with contextlib.ExitStack() as stack:
            if not names.online:
                stack.enter_context(_without(os.environ, "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"))
                # It would ask the Hub for the user's name, to save it with the settings.
                stack.enter_context(_replaced(trackio.Run, "_get_username", lambda self: None))
            self.run = trackio.init(
                project=names.project,
                name=names.name,
                group=names.group,
                config=dict(names.config),
                resume="never" if id is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.last = 0
        return str(self.run.id)

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None:
        self.last = step
        self.run.log(dict(numbers), step=step)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        import trackio

        self.run.log({name: trackio.Table(columns=list(columns), data=_cells(columns, rows))}, step=step)

    def calls(self, step: int, calls: Sequence[Call]) -> None:
        import trackio

        traces = [
            trackio.Trace(
                messages=[
                    {"role": "system", "content": call.instructions},
                    {"role": "user", "content": call.asked},
                    {"role": "assistant", "content": call.answered or f"({call.error})"},
                ],
                metadata={
                    "asks": call.purpose,
                    "model": call.client,
                    "at": _clock(call.stored_at),
                    "cost_usd": call.cost,
                    "input_tokens": call.input_tokens,
                    "output_tokens": call.output_tokens,
                    "status": "error" if call.error else "ok",
                },
            )
            for call in calls
        ]
        self.run.log({"judge_calls": traces}, step=step)

    def results(self, numbers: Numbers) -> None:
        self.run.log(dict(numbers), step=self.last)

    def end(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in the seed's folder: `tensorboard --logdir runs`."""

    def begin(self, names: RunNames, id: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(names.folder / "tensorboard"))
        self.last = 0
        if id is None:
            self.writer.add_text("spec", f"```\n{json.dumps(names.config, indent=1)}\n```")
        return "tensorboard"

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None:
        self.last = step
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        head = [" | ".join(columns), " | ".join("---" for _ in columns)]
        body = [" | ".join("" if v is None else table_cell(str(v)) for v in row) for row in _cells(columns, rows)]
        self.writer.add_text(name, "\n".join(f"| {line} |" for line in (*head, *body)), step)

    def calls(self, step: int, calls: Sequence[Call]) -> None:
        self.table("judge_calls", step, CALL_COLUMNS, [_call_row(call) for call in calls])

    def results(self, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, self.last)

    def end(self) -> None:
        self.writer.close()


class WandB:
    """An offline run in the seed's folder, which `wandb sync` uploads on request."""

    def begin(self, names: RunNames, id: str | None) -> str:
        import wandb

        run_id = id or uuid.uuid4().hex[:8]
        names.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=names.project,
            name=names.name,
            group=names.group,
            config=dict(names.config),
            id=run_id,
            resume="allow" if names.online else None,
            mode="online" if names.online else "offline",
            dir=str(names.folder),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
            ),
        )
        # The warm start and the learner both count their steps from 1, but W&B's own step may only increase.
        self.run.define_metric("*", step_metric="step")
        return run_id

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None:
        self.run.log({"step": step, **numbers})

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self.run.log({"step": step, name: wandb.Table(columns=list(columns), data=_cells(columns, rows))})

    def calls(self, step: int, calls: Sequence[Call]) -> None:
        self.table("judge_calls", step, CALL_COLUMNS, [_call_row(call) for call in calls])

    def results(self, numbers: Numbers) -> None:
        self.run.summary.update(dict(numbers))

    def end(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {"trackio": Trackio, "tensorboard": TensorBoard, "wandb": WandB}
EXTRAS = {"trackio": "trackio", "tensorboard": "trackers", "wandb": "wandb"}


def _cells(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[row[column] for column in columns] for row in rows]


def _call_row(call: Call) -> dict[str, Any]:
    return {
        "at": _clock(call.stored_at),
        "asks": call.purpose,
        "model": call.client,
        "asked": call.asked,
        "answered": call.answered,
        "error": call.error,
        "cost": call.cost,
        "input_tokens": call.input_tokens,
        "output_tokens": call.output_tokens,
    }


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@contextlib.contextmanager
def _without(table: Any, *keys: str) -> Iterator[None]:
    removed = {key: table.pop(key) for key in keys if key in table}
    try:
        yield
    finally:
        table.update(removed)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name, None)
    if before is None:  # a version without it
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
