"""`humor-env evaluate`: a student of any kind (a run's, a saved one, a plain model), measured by any critic.

measure_student("runs/first", critic="pocket")["score"]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from humor_env import registry
from humor_env.agents.session.log import joke_record
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import CheckpointError, InvalidOption, unknown_name
from humor_env.experiments.runs.evaluate import evaluate
from humor_env.experiments.runs.ingredients import Ingredients, evaluation_sampling, load_student, student_settings
from humor_env.experiments.runs.run_folder import RECORD, read_json, run_of, student_folder, write_text
from humor_env.experiments.specs.spec import StudentSpec, load_spec
from humor_env.prompts import load_prompts
from humor_env.types import critic_name

ADAPTERS = {"policy": POLICY, "imitation": IMITATION, "base": None}


def measure_student(
    student: str,
    *,
    critic: str | None = None,
    options: Mapping[str, Any] | None = None,
    prompts: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    adapter: str = "policy",
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    lines: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """The numbers of one evaluation and its settings; None for a number that does not exist. The defaults are those of
    the run that the student is from, or else the pocket world's. With `out`, each line is written too."""
    if adapter not in ADAPTERS:
        raise unknown_name("adapter", adapter, ADAPTERS)
    if options and critic is None:
        raise InvalidOption(f"--option needs --critic: it sets an option of that critic ({', '.join(options)}).")
    path = Path(student)
    folder = student_folder(path) if path.is_dir() else path
    run = run_of(path) if path.is_dir() else None
    if run is not None and not (folder / "student.json").is_file():
        raise CheckpointError(
            f"The run in '{run}' has saved no student yet: it was stopped. To finish it: humor-env train {run} --resume"
        )
    spec = load_spec(run) if run is not None else None
    if seed is None:
        seed_part = next((part for part in reversed(folder.parts) if part.startswith("seed-")), "")
        seed = int(seed_part[5:]) if seed_part[5:].isdecimal() else 0
    parts = Ingredients(spec, run) if spec is not None and run is not None else None
    try:
        eval_critic = (
            parts.eval_critic
            if parts and critic is None
            else registry.critics.make(critic or "pocket", **(options or {}))
        )
        prompt_set = parts.prompts if parts and prompts is None else load_prompts(prompts or "pocket")
        split = split or (spec.eval.split if spec and prompts is None else "test")
        chosen_prompts = prompt_set.split(split)[: limit or (spec.eval.limit if spec and prompts is None else None)]
        lines = lines or (spec.eval.lines if spec and prompts is None else 1)
        sampling = evaluation_sampling(spec, spec.learner_config(seed)) if spec else Sampling()
        if max_new_tokens is not None:
            sampling = replace(sampling, max_new_tokens=max_new_tokens)
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        settings = StudentSpec(model=str(folder) if path.is_dir() else student)
        if spec is not None and run is not None:
            settings = settings.model_copy(update={"dtype": student_settings(spec, read_json(run / RECORD)).dtype})
        evaluation = evaluate(
            load_student(settings, seed),
            chosen_prompts,
            eval_critic,
            adapter=ADAPTERS[adapter],
            sampling=sampling,
            seed=seed,
            name=adapter,
            lines=lines,
        )
    finally:
        if parts is not None:
            parts.close()
    if out is not None:
        records = [joke_record(0, j, v) for j, v in zip(evaluation.jokes, evaluation.judgements, strict=True)]
        write_text(out, "".join(json.dumps(record) + "\n" for record in records))
    numbers = {k: v if math.isfinite(v) else None for k, v in evaluation.numbers().items()}
    by = {"critic": critic_name(eval_critic), "prompts": prompt_set.name, "split": split}
    return {"count": len(evaluation.jokes), **numbers, **by}
