"""The pocket world as one object: its words, its prompts, its exact judge.

    world = load_world()
    prompt = world.prompts()[0]
    world.judge(prompt, world.best(prompt)).score      # 1.0
    world.enumerate_count()                            # distinct jokes that score at least 0.8

All learners use this object; its scores are versioned by `WORLD_VERSION`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from humor_env.errors import InvalidOption, PromptError, did_you_mean
from humor_env.pocket.grammar import Grammar, Reading
from humor_env.pocket.habits import Habits
from humor_env.pocket.judge import (
    WORN_FRAME,
    WORN_REACTION,
    WORN_WITNESS,
    ExactJudge,
    PocketScore,
    Request,
    combine,
)
from humor_env.pocket.lexicon import Complaint, Lexicon, Subject, Witness
from humor_env.pocket.splits import WORLD_VERSION, noun, oneliner_prompts, paraphrase_prompts, shuffled, split_pairs
from humor_env.types import Joke, Prompt

__all__ = ["WORLD_VERSION", "PocketScore", "PocketWorld"]


class PocketWorld:
    """A lexicon and everything derived from it. Prompts are made on first use."""

    version = WORLD_VERSION

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.grammar = Grammar(lexicon)
        self.habits = Habits(lexicon)
        self._judge = ExactJudge(lexicon, self.grammar, self.habits)

    # ---- prompts ----

    def prompts(self, task: str = "paraphrase") -> tuple[Prompt, ...]:
        """All prompts of a task, "paraphrase" or "oneliner", of all splits."""
        if task == "paraphrase":
            return self._paraphrase
        if task == "oneliner":
            return self._oneliner
        raise InvalidOption(
            f"The pocket world has no task '{task}'.{did_you_mean(task, ('paraphrase', 'oneliner'))} "
            "Known: paraphrase, oneliner."
        )

    @cached_property
    def _paraphrase(self) -> tuple[Prompt, ...]:
        return paraphrase_prompts(self.lexicon, self.grammar)

    @cached_property
    def _oneliner(self) -> tuple[Prompt, ...]:
        return oneliner_prompts(self.lexicon, self.habits)

    def request(self, prompt: Prompt) -> Request:
        """What a prompt asks for: from its `extra`, or by parsing its text if it is a literal sentence."""
        extra = prompt.extra
        if "subject" in extra:
            try:
                complaint = extra.get("complaint")
                return Request(
                    self.lexicon.subject(extra["subject"]),
                    None if complaint is None else self.lexicon.complaint(complaint),
                    tuple(extra.get("words", ())),
                    extra.get("kind", "paraphrase"),
                )
            except InvalidOption as problem:
                raise PromptError(f"Prompt '{prompt.id}' is not of the pocket world: {problem}") from None
        reading = self.grammar.read(prompt.text)
        if reading.subject is None or reading.complaint is None:
            raise PromptError(
                f"Prompt '{prompt.id}' is not of the pocket world: it has no extra['subject'], and its text is not a "
                "literal sentence such as 'The meeting was slow.'. Use world.prompts(), or another critic."
            )
        return Request(reading.subject, reading.complaint)

    # ---- judging ----

    def judge(self, prompt: Prompt, text: str) -> PocketScore:
        """The exact score of one text. Raises `PromptError` for a prompt of another world, but never because of the
        text."""
        return self._judge(self.request(prompt), text)

    def judge_many(self, jokes: Sequence[Joke]) -> list[PocketScore]:
        return [self._judge(self.request(joke.prompt), joke.text) for joke in jokes]

    def read(self, text: str) -> Reading:
        """The parts of a text, as the judge sees them."""
        return self.grammar.read(text)

    # ---- what there is ----

    def best(self, prompt: Prompt) -> str:
        """A line with the highest score for this prompt (1.0 with the bundled lexicon), always the same one."""
        request = self.request(prompt)
        subject = request.subject
        assert subject is not None
        names = [request.complaint.name] if request.complaint else list(subject.complaints)
        key = prompt.id + prompt.text
        missing = set(request.words) - set(self.grammar.words(subject.text))
        candidates = []
        for name in names:
            habit = self.habits.witnesses[name]
            for witness in habit.ranked:
                if missing and not missing.issubset(self.grammar.words(witness.text)):
                    continue
                fresh = witness not in habit.worn
                far = self.lexicon.distance(witness.domain, subject.domain)
                candidates.append((0.15 * far + 0.35 * WORN_WITNESS * fresh, name, witness))
        if not candidates:
            raise PromptError(f"No witness of the lexicon fits the prompt '{prompt.text}'.")
        top = max(value for value, _, _ in candidates)
        choices = {f"{key}|{n}|{w.text}": (n, w) for value, n, w in candidates if value == top}
        name, witness = choices[shuffled(choices)[0]]
        reactions = self.habits.reactions[name]
        fresh_reactions = [r for r in reactions.ranked if r not in reactions.worn] or list(reactions.ranked)
        by_text = {f"{key}|{r.text}": r for r in fresh_reactions}
        frames = self.habits.frames
        by_template = {f"{key}|{f.template}": f for f in frames.ranked if f not in frames.worn}
        adjectives = self.lexicon.complaint(name).adjectives
        adjective_of = {f"{key}|{a}": a for a in adjectives}
        return self.grammar.joke(
            by_template[shuffled(by_template)[0]],
            subject,
            adjective_of[shuffled(adjective_of)[0]],
            witness,
            by_text[shuffled(by_text)[0]],
        )

    def enumerate_count(self, threshold: float = 0.8, ideas: bool = False) -> int:
        """Number of distinct jokes that score at least `threshold` for the prompt that they paraphrase.

        Counted exactly, over subject × complaint × adjective × witness × reaction × frame. Sentences parse in one way
        only, so distinct parts are distinct texts. With `ideas`, the same joke in another frame or with a synonym is
        not counted again.
        """
        return sum(self._count(subject, self.lexicon.complaint(n), threshold, ideas) for subject, n in self.pairs())

    def _count(self, subject: Subject, complaint: Complaint, threshold: float, ideas: bool) -> int:
        habits, name = self.habits, complaint.name
        reactions, frames = habits.reactions[name], habits.frames
        worn = len(frames.worn)
        wordings = {False: len(frames.ranked) - worn, True: worn}
        total = 0
        for witness in habits.witnesses[name].ranked:
            far = self.lexicon.distance(witness.domain, subject.domain)
            lost = WORN_WITNESS * habits.is_worn_witness(name, witness)
            for worn_r, count in (
                (True, len(reactions.worn)),
                (False, len(reactions.ranked) - len(reactions.worn)),
            ):
                good = 0
                for worn_f, ways in wordings.items():
                    freshness = round(1.0 - lost - WORN_REACTION * worn_r - WORN_FRAME * worn_f, 6)
                    if combine(1.0, 1.0, 1.0, far, freshness) >= threshold:
                        good += ways * len(complaint.adjectives)
                total += count * (min(good, 1) if ideas else good)
        return total

    def pairs(self) -> list[tuple[Subject, str]]:
        """Every subject with each complaint that it permits."""
        return [(subject, name) for subject in self.lexicon.subjects for name in subject.complaints]

    def held_out_pairs(self) -> list[tuple[Subject, Complaint]]:
        """The pairs that only `ood` prompts have. Exclude them from all training data."""
        return split_pairs(self.lexicon)[1]

    # ---- plain language, for pretraining ----

    def literals(self, subject: Subject | str, complaint: Complaint | str, style: str = "plain") -> tuple[str, ...]:
        """Every literal sentence about a subject and complaint. `ood` prompts use the conversational style."""
        subject = self.lexicon.subject(subject) if isinstance(subject, str) else subject
        complaint = self.lexicon.complaint(complaint) if isinstance(complaint, str) else complaint
        return tuple(
            self.grammar.literal(way, subject, adjective)
            for way in self.lexicon.literals
            if way.style == style
            for adjective in complaint.adjectives
        )

    def trait_facts(self) -> tuple[tuple[str, str], ...]:
        """(witness, complaint) for everything that a witness is iconic for: ("glaciers", "slow")."""
        return tuple((w.text, name) for w in self.lexicon.witnesses for name in w.traits)

    def reaction_facts(self) -> tuple[tuple[str, str], ...]:
        """(reaction, complaint) for everything that a reaction reveals: ("overtook it", "slow")."""
        return tuple((r.text, name) for r in self.lexicon.reactions for name in r.implies)

    def facts(self) -> tuple[str, ...]:
        """The same facts as plain sentences, in words that fit singular and plural alike. None is a joke."""
        return (
            *(f"People say {name} when they think of {text}." for text, name in self.trait_facts()),
            *(f"Somebody {text} because it was {name}." for text, name in self.reaction_facts()),
        )

    def witnesses_with(self, word: str) -> list[Witness]:
        """The witnesses whose noun is `word`, for prompts that require it."""
        return list(self._by_noun.get(word, ()))

    def subjects_with(self, complaint: str) -> Sequence[Subject]:
        """The subjects that permit a complaint."""
        return self._by_complaint.get(complaint, ())

    @cached_property
    def _by_noun(self) -> dict[str, list[Witness]]:
        table: dict[str, list[Witness]] = {}
        for witness in self.lexicon.witnesses:
            table.setdefault(noun(witness.text), []).append(witness)
        return table

    @cached_property
    def _by_complaint(self) -> dict[str, list[Subject]]:
        table: dict[str, list[Subject]] = {}
        for subject, name in self.pairs():
            table.setdefault(name, []).append(subject)
        return table
