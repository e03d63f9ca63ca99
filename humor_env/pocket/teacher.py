"""The pocket teacher: it knows what is funny, but repeats itself and makes mistakes, at exactly known rates.

    teacher = PocketTeacher(seed=0)
    teacher.lines(prompt, n=3)                    # the same three lines on every machine
    teacher.demonstrations(world.prompts(), n=3)

Three rates say how it falls short of the best possible line:

- `cliche_rate`: how often a witness, reaction or frame is drawn by Zipf's law (see `habits.py`: the head of that law is
  worn out) and not uniformly from all that fit;
- `wrong_complaint_rate`: how often the punchline is about something else: half of the time entirely, otherwise only
  the witness or only the reaction;
- `lost_meaning_rate`: how often the line is about another subject, or says another complaint.

So an imitator learns the shape of a joke, but also the clichés, and that a punchline need not fit. Every line depends
only on (seed, prompt id, index of the line), not on the order or number of calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TypeVar

from humor_env.errors import InvalidOption, PromptError
from humor_env.pocket import load_world
from humor_env.pocket.habits import Habit
from humor_env.pocket.lexicon import Frame, Reaction, Subject, Witness
from humor_env.pocket.world import PocketWorld
from humor_env.shared.streams import stream_seed
from humor_env.types import Demonstration, Prompt

Thing = TypeVar("Thing")
Item = TypeVar("Item", Witness, Reaction, Frame)
TRIES = 20  # at a line that its prompt does not have yet; then a repetition is accepted


class PocketTeacher:
    """Writes lines for pocket prompts. The rates are probabilities."""

    name = "pocket-teacher"
    licence = "CC-BY-4.0"

    def __init__(
        self,
        seed: int = 0,
        cliche_rate: float = 0.7,
        wrong_complaint_rate: float = 0.25,
        lost_meaning_rate: float = 0.1,
        world: PocketWorld | None = None,
    ) -> None:
        rates = {
            "cliche_rate": cliche_rate,
            "wrong_complaint_rate": wrong_complaint_rate,
            "lost_meaning_rate": lost_meaning_rate,
        }
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise InvalidOption(f"{name} must be a probability between 0 and 1; found {rate!r}.")
        self.seed = seed
        self.cliche_rate = cliche_rate
        self.wrong_complaint_rate = wrong_complaint_rate
        self.lost_meaning_rate = lost_meaning_rate
        self.world = world if world is not None else load_world()
        self._names = tuple(c.name for c in self.world.lexicon.complaints)

    def lines(self, prompt: Prompt, n: int = 3) -> list[str]:
        """`n` lines for a prompt. A larger `n` starts with the same ones."""
        if n < 1:
            raise InvalidOption(f"A teacher writes at least one line; asked for {n}.")
        # Only `random()` is used: of the standard library's generator, only its values are guaranteed not to change.
        draw = Random(stream_seed(self.seed, self.name, prompt.id)).random
        request = self.world.request(prompt)
        if request.subject is None:
            raise PromptError(f"Prompt '{prompt.id}' has no subject that the pocket teacher could write about.")
        name = None if request.complaint is None else request.complaint.name
        lines: list[str] = []
        for _ in range(n):
            for _ in range(TRIES):
                line = self._line(draw, request.subject, name, request.words)
                if line not in lines:
                    break
            lines.append(line)
        return lines

    def demonstrations(self, prompts: Iterable[Prompt], n: int = 3) -> list[Demonstration]:
        """`n` lines for each prompt, in order, with their source and licence."""
        return [
            Demonstration(prompt, line, source=self.name, licence=self.licence)
            for prompt in prompts
            for line in self.lines(prompt, n)
        ]

    def _line(self, draw: Callable[[], float], subject: Subject, name: str | None, words: tuple[str, ...]) -> str:
        habits, lexicon = self.world.habits, self.world.lexicon
        witnesses = self._wanted(subject, words) if words else []
        if name is None:
            # The complaint is free; a required word narrows it to those its witness is iconic for.
            fitting = [c for c in subject.complaints if any(c in w.traits for w in witnesses)]
            name = _pick(draw, fitting or subject.complaints)
        line_subject, line_complaint = subject, name
        if draw() < self.lost_meaning_rate:
            witnesses = []
            if draw() < 0.5:
                others = [s for s in self.world.subjects_with(name) if s is not subject]
                line_subject = _pick(draw, others or [subject])
            else:
                line_complaint = _pick(draw, [other for other in subject.complaints if other != name] or [name])
        about_witness = about_reaction = line_complaint
        if draw() < self.wrong_complaint_rate:
            other = _pick(draw, self._names)
            which = draw()
            if which < 0.75:
                about_witness = other
            if which >= 0.75 or which < 0.5:
                about_reaction = other
        asked_for = [w for w in witnesses if about_witness in w.traits]
        witness = _pick(draw, asked_for) if asked_for else self._draw(draw, habits.witnesses[about_witness])
        reaction = self._draw(draw, habits.reactions[about_reaction])
        frame = self._draw(draw, habits.frames)
        adjective = _pick(draw, lexicon.complaint(line_complaint).adjectives)
        return self.world.grammar.joke(frame, line_subject, adjective, witness, reaction)

    def _draw(self, draw: Callable[[], float], habit: Habit[Item]) -> Item:
        if draw() >= self.cliche_rate:
            return _pick(draw, habit.ranked)
        return habit.ranked[bisect_right(habit.cumulative, int(draw() * habit.cumulative[-1]))]

    def _wanted(self, subject: Subject, words: tuple[str, ...]) -> list[Witness]:
        subject_words = subject.text.split()
        return [w for word in words if word not in subject_words for w in self.world.witnesses_with(word)]


def _pick(draw: Callable[[], float], things: Sequence[Thing]) -> Thing:
    return things[int(draw() * len(things))]
