"""The table [tracking] of a spec: which trackers a run also reports to, and under which names.

    [tracking]
    with = ["trackio", "tensorboard"]
    project = "jokes"

The key is `with`, a reserved word in Python, so code reads `tracking.trackers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from humor_env.experiments.specs.learner_settings import Table

TrackerName = Literal["trackio", "tensorboard", "wandb"]
Count = Annotated[int, Field(ge=1)]


class _Tracking(Table):
    """`with` names the trackers. Runs are kept under `project` as `group` (default: the spec's name) and `name`
    (default: the run's folder); each seed is a separate run. Every `every` steps, `lines` sample lines and `calls`
    calls of language models are reported. Nothing leaves the machine unless `online = true`."""

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "humor_env"
    name: str | None = None
    group: str | None = None
    every: Count = 10
    lines: Annotated[int, Field(ge=0)] = 8
    calls: Annotated[int, Field(ge=0)] = 8
    online: bool = False

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(self, "with")))


if TYPE_CHECKING:
    TrackingSpec = _Tracking
else:
    _fields: dict[str, Any] = {"with": (list[TrackerName], [])}
    TrackingSpec = create_model("TrackingSpec", __base__=_Tracking, __doc__=_Tracking.__doc__, **_fields)
