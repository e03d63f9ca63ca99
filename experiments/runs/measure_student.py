"""`humor-env evaluate`: a student of any kind (a run's, a saved one, a plain model), measured by any critic.

measure_student("runs/first", critic="pocket")["score"]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from humor_env import registry
from humor_env.agents.session.log import joke_record
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import unknown_name
from humor_env.experiments.runs.evaluate import evaluate
from humor_env.experiments.runs.ingredients import load_student
from humor_env.experiments.runs.run_folder import student_folder, write_text
from humor_env.experiments.specs.spec import StudentSpec
from humor_env.prompts import load_prompts

ADAPTERS = {"policy": POLICY, "imitation": IMITATION, "base": None}


def measure_student(
    student: str,
    *,
    critic: str = "pocket",
    options: Mapping[str, Any] | None = None,
    prompts: str = "pocket",
    split: str = "test",
    limit: int | None = None,
    adapter: str = "policy",
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """The numbers of one evaluation; None where there is none to give. With `out` each line is written too."""
    if adapter not in ADAPTERS:
        raise unknown_name("adapter", adapter, ADAPTERS)
    judge = registry.critics.make(critic, **(options or {}))
    asked = load_prompts(prompts).split(split)[:limit]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    path = Path(student)
    model = str(student_folder(path)) if path.is_dir() else student
    found = evaluate(
        load_student(StudentSpec(model=model), seed),
        asked,
        judge,
        adapter=ADAPTERS[adapter],
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature),
        seed=seed,
        name=adapter,
    )
    if out is not None:
        records = [joke_record(0, j, v) for j, v in zip(found.jokes, found.judgements, strict=True)]
        write_text(out, "".join(json.dumps(record) + "\n" for record in records))
    numbers = {k: v if math.isfinite(v) else None for k, v in found.numbers().items()}
    return {"count": len(found.jokes), **numbers}
