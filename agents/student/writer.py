"""The one entry point to generation: for learners, evaluation, the monitor, pairs, best-of-n and the reproduction.

    jokes = write_jokes(student, prompts, Sampling(max_new_tokens=40), uniforms, author="policy")

Behind it is a backend: `InProcess` is the student itself; `server.Server` is a server that holds the same weights. A
custom backend needs four members: `generate`, `refresh`, `close` and `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from humor_env.agents.student.sampling import Generation, Sampling, sample
from humor_env.agents.student.static_writer import StaticWriter, unsuitable
from humor_env.agents.student.student import POLICY, Student
from humor_env.errors import StudentError
from humor_env.types import Joke, Prompt


class Backend(Protocol):
    """`exact` tells whether `generate` reports the log-probabilities and values of this process's own arithmetic.

    `uniforms` is `[N, T]`, the random number of each row and position. After `refresh` the newest weights are used.
    """

    exact: bool

    def generate(
        self,
        observations: Sequence[str],
        sampling: Sampling,
        uniforms: Tensor,
        *,
        adapter: str | None = POLICY,
        values: bool = False,
    ) -> Generation: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...


class InProcess:
    """The student itself generates, with the adapter merged; `refresh` does nothing.

    On CUDA its steps are captured, if the model allows it (`static_writer`); otherwise `sampling.sample` is used.
    """

    exact = True

    def __init__(self, student: Student) -> None:
        self.student = student

    def generate(
        self,
        observations: Sequence[str],
        sampling: Sampling,
        uniforms: Tensor,
        *,
        adapter: str | None = POLICY,
        values: bool = False,
    ) -> Generation:
        student = self.student
        if student.device.type == "cuda" and not unsuitable(student):
            # Kept on the student: backends are made often, but a table and its graph are expensive.
            student.static_writer = student.static_writer or StaticWriter(student)
            return student.static_writer.generate(observations, sampling, uniforms, adapter=adapter, values=values)
        return sample(student, observations, sampling, uniforms=uniforms, adapter=adapter, values=values)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def write_jokes(
    student: Student,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    uniforms: Tensor,
    *,
    author: str,
    adapter: str | None = POLICY,
    at_once: int = 128,
    backend: Backend | None = None,
) -> list[Joke]:
    """Write one line per prompt (prompts may repeat), with `at_once` rows in memory at a time."""
    backend = backend or InProcess(student)
    jokes: list[Joke] = []
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        chance = uniforms[start : start + at_once]
        lines = backend.generate([p.text for p in part], sampling, chance, adapter=adapter)
        if lines.logprobs.numel() and bool(lines.logprobs.isnan().any()):
            raise StudentError(
                "The student's probabilities are not numbers: a weight is NaN or infinite, or its precision is too "
                'small for its values. Load it with dtype = "float32"; if that does not help, its weights are damaged.'
            )
        jokes += [
            Joke(prompt, text, author, why)
            for prompt, text, why in zip(part, lines.texts, lines.stop_reasons, strict=True)
        ]
    return jokes
