"""How many lines, pairs and steps an experiment takes in one seed, at most: what its costs and time follow from.

lines_to_learn_from(spec, parts)         # that the critics judge in learning
watched_lines(spec, parts)               # that the monitor has judged
"""

from __future__ import annotations

from typing import Any

from humor_env.experiments.specs.spec import Spec


def lines_to_learn_from(spec: Spec, parts: Any) -> int:
    """The number of lines that the training critics judge in one seed."""
    config = spec.learner_config(spec.seeds[0])
    steps, batch = getattr(config, "steps", None), getattr(config, "batch_size", None)
    if steps and batch:
        return int(steps * batch * (parts.env_options.get("attempts") or 1))
    return int(getattr(config, "n", 0) * tested_lines(spec, parts))


def tested_lines(spec: Spec, parts: Any) -> int:
    """The number of lines that one stage of one seed writes to be measured."""
    return len(parts.eval_prompts) * spec.eval.lines


def dev_lines(spec: Spec, parts: Any) -> int:
    """The number of lines measured during training in one seed."""
    config = spec.learner_config(spec.seeds[0])
    times = sum(
        most_steps(phase, spec, parts) // every
        for phase in _phases(config)
        if (every := getattr(phase, "evaluate_every", 0))
    )
    dev = sum(p.split == "dev" for p in parts.prompts)
    return int(times * min(dev, spec.eval.dev_limit) * spec.eval.dev_lines)


def watched_lines(spec: Spec, parts: Any) -> int:
    """The number of lines that the monitor has judged in one seed, each with its own and with other prompts."""
    monitor = spec.monitor
    if monitor is None:
        return 0
    steps = sum(most_steps(phase, spec, parts) for phase in _phases(spec.learner_config(spec.seeds[0])))
    if not steps:
        return 0
    lines = min(monitor.lines, len(parts.prompts.split(monitor.split)))
    return int((1 + steps // monitor.every) * lines * (1 + monitor.others))


def pairs_to_judge(spec: Spec, parts: Any) -> int:
    """The number of pairs that the judge compares in one seed, if each prompt gives one in each round."""
    phases = _phases(spec.learner_config(spec.seeds[0]))
    return sum(_pairs_a_round(phase, spec, parts) * getattr(phase, "rounds", 1) for phase in phases)


def candidate_lines(spec: Spec, parts: Any) -> int:
    """The number of lines that the student writes in one seed to choose pairs from."""
    if parts.preferences:
        return 0
    own = [c for c in _phases(spec.learner_config(spec.seeds[0])) if getattr(c, "pairs_of", "") != "teacher"]
    each = [(c, getattr(getattr(c, "pairs", None), "candidates", 0)) for c in own if hasattr(c, "rounds")]
    return sum(count * _pairs_a_round(c, spec, parts) * c.rounds for c, count in each)


def most_steps(phase: Any, spec: Spec, parts: Any) -> int:
    """The most optimiser steps that a learner, or one phase of it, takes in one seed: as many as its settings say, or
    all epochs over as many pairs or lessons as there can be."""
    if hasattr(phase, "steps"):
        return int(phase.steps)
    epochs, batch = getattr(phase, "epochs", 0), getattr(phase, "batch_size", 1)
    if hasattr(phase, "rounds"):
        examples = len(parts.preferences) or _pairs_a_round(phase, spec, parts)
    else:
        examples = len(parts.demonstrations)
    return int(epochs * -(-examples // batch))


def _phases(config: Any) -> list[Any]:
    """The settings of each phase of a learner; most have one."""
    return [c for n in ("brio", "dpo") if (c := getattr(config, n, None)) is not None] or [config]


def _pairs_a_round(phase: Any, spec: Spec, parts: Any) -> int:
    """The most pairs of one round. The teacher's lines are paired for all prompts at once."""
    limit = 0 if getattr(phase, "pairs_of", "") == "teacher" else getattr(phase, "prompts_per_round", 0)
    return int(limit or len(parts.prompts.split(spec.env.split)))


def lessons(spec: Spec, parts: Any) -> int:
    """The number of times that a teacher's line is imitated in one seed."""
    from humor_env.agents.sft import SFTConfig

    config: Any = spec.learner_config(spec.seeds[0])
    if not isinstance(config, SFTConfig):
        if not spec.imitates:
            return 0
        config = spec.imitation_config(spec.seeds[0])
    return int(len(parts.demonstrations) * getattr(config, "epochs", 1))
