"""`micro_batch = "auto"`: the largest number that fits in memory, chosen once for a run before its first step.

    chosen = choose(parts, student)              # {"learner.micro_batch": 32, "teacher.imitation.micro_batch": 64}
    parts.spec = with_numbers(parts.spec, chosen)
    memory_sentences(parts, student, free)       # "learner: about 3.1 GB with micro_batch 32; 24.0 GB are there"

A run's record keeps the numbers, and a resumed run reads them from there, since the free memory may have changed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object

from humor_env.agents.session.config import AUTO
from humor_env.agents.session.memory import RowLength, StepMemory, free_memory_of, in_a_sentence, step_memory
from humor_env.agents.session.processes import process_count
from humor_env.agents.sft import SFTConfig
from humor_env.agents.student import Student
from humor_env.agents.student.sampling import Sampling
from humor_env.experiments.runs.ingredients import Ingredients
from humor_env.experiments.specs.spec import Spec

_LONGEST = 16  # texts, those with the most characters, that are tokenized to find the longest
LEARNER, IMITATION = "learner", "teacher.imitation"


@dataclass(frozen=True)
class Expected:
    """The memory of a step of one learner, the `most` rows of an update, and the `micro_batch` that was set."""

    memory: StepMemory
    most: int
    micro_batch: int | str


def choose(parts: Ingredients, student: Student) -> dict[str, int]:
    """A number for each "auto" of the spec, the same in every process."""
    configs = {place: config for place, config in _learners(parts.spec) if config.micro_batch == AUTO}
    if not configs:
        return {}
    free = free_memory_of(student.device)
    chosen = {}
    for place, config in configs.items():
        expected = _expected(config, parts, student)
        chosen[f"{place}.micro_batch"] = expected.memory.micro_batch_that_fits(free, expected.most)
    return {key: min(other[key] for other in gather_object([chosen])) for key in chosen}


def with_numbers(spec: Spec, chosen: Mapping[str, int]) -> Spec:
    """The spec with these settings, named by their dotted keys."""
    data: Any = copy.deepcopy({"learner": spec.learner, "teacher": spec.teacher and spec.teacher.model_dump()})
    for key, number in chosen.items():
        *tables, name = key.split(".")
        table: Any = data
        for part in tables:
            table = table[part]
        table[name] = number
    changes: dict[str, Any] = {"learner": data["learner"]}
    if spec.teacher is not None:
        changes["teacher"] = spec.teacher.model_copy(update={"imitation": data["teacher"]["imitation"]})
    return spec.model_copy(update=changes)


def memory_sentences(parts: Ingredients, student: Student, free: int | None) -> list[str]:
    """A sentence for each learner of the spec; `free` is the free memory before the student was loaded."""
    sentences = []
    for place, config in _learners(parts.spec):
        expected = _expected(config, parts, student)
        number = expected.micro_batch
        if not isinstance(number, int):
            room = None if free is None else free - expected.memory.weights
            number = expected.memory.micro_batch_that_fits(room, expected.most)
        at_once = min(number, expected.most)
        advised = expected.most if student.device.type == "cuda" else 0  # on a CPU more rows at once gain little
        sentences.append(f"{place}: {in_a_sentence(expected.memory, at_once, free, advised)}")
    return sentences


def _learners(spec: Spec) -> Iterator[tuple[str, Any]]:
    """The settings with a `micro_batch` for learning, with the name of their table."""
    if spec.imitates:
        yield IMITATION, spec.imitation_config(spec.seeds[0])
    if spec.learner_name.startswith("trl-"):  # TRL copies the student, and stores logits differently
        return
    yield from _parts_of(LEARNER, spec.learner_config(spec.seeds[0]))


def _parts_of(place: str, config: Any) -> Iterator[tuple[str, Any]]:
    """The settings with a `micro_batch`; a learner made of two others, such as BRIO-DPO, has them only in its parts."""
    if hasattr(config, "micro_batch") and hasattr(config, "batch_size"):
        yield place, config
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts_of(f"{place}.{field.name}", value)


def _expected(config: Any, parts: Ingredients, student: Student) -> Expected:
    pairs = getattr(config, "pairs", None)
    sampling = getattr(config, "sampling", None) or getattr(pairs, "sampling", None)
    share = max(1, config.batch_size // process_count())
    if isinstance(sampling, Sampling):
        written = pairs.micro_batch if pairs is not None else share // parts.spec.env.groups
    else:
        written = 0
    rows = 2 * share if pairs is not None else share // getattr(config, "minibatches", 1)
    memory = step_memory(
        student,
        _row_length(sampling if isinstance(sampling, Sampling) else None, parts, student),
        rows=written,
        full=isinstance(config, SFTConfig) and config.full,
    )
    return Expected(memory, max(1, rows), config.micro_batch)


def _row_length(sampling: Sampling | None, parts: Ingredients, student: Student) -> RowLength:
    """The longest prompt of the split, and the longest line: the student's, the teacher's, or one of given pairs."""
    prompts = [p.text for p in parts.prompts.split(parts.spec.env.split)]
    lines = [d.text for d in parts.demonstrations]
    lines += [line for p in parts.preferences for line in (p.chosen, p.rejected)]
    prompt = max((len(student.encode_prompt(text)) for text in _longest(prompts)), default=1)
    response = max((len(student.encode_response(text)) for text in _longest(lines)), default=1)
    if sampling is not None:
        response = max(response, sampling.max_new_tokens)
        # A later attempt sees the earlier ones.
        prompt += (int(parts.env_options.get("attempts") or 1) - 1) * response
    return RowLength(prompt, response)


def _longest(texts: list[str]) -> list[str]:
    return sorted(set(texts), key=len)[-_LONGEST:]
