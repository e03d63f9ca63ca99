"""The pocket language without its jokes: what the bundled students are pretrained on.

    corpus = Corpus(load_lexicon(), pairs=[("the meeting", "slow")])
    corpus.block(seed=0, index=0)[0]     # Line("paraphrase", "The meeting was slow.", "I found the meeting sluggish.")

A student must know the words and facts of this world (glaciers are slow; what is overtaken was slow), or it would have
to learn spelling first. It must not be funny yet, or nothing would be left to learn. So no sentence has both a witness
and a reaction, no joke frame is used, and only neutral people react; any two phrases can meet only in a list to repeat,
without order or subject. Lines are dialogues: a person's source and the student's target. Blocks are drawn by (seed,
name, index): the same on every machine, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from humor_env.errors import InvalidOption
from humor_env.pocket.lexicon import FILES, Lexicon, Reaction, Witness
from humor_env.pocket.splits import noun
from humor_env.shared.streams import generator

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Line:
    """One exchange. `kind` names what it teaches; see `Corpus.shares`."""

    kind: str
    source: str
    target: str


# Chatty phrasings, for sources only. The lexicon's own conversational phrasings stay unseen (they are the
# out-of-distribution prompts); these teach that small talk around a complaint changes nothing.
CHATTY = (
    "Honestly, {subject} was {complaint}, you know.",
    "So, {subject} was {complaint}, I guess.",
    "Well, {subject} was pretty {complaint}, sorry to say.",
    "Can you believe how {complaint} {subject} was?",
    "Hey, guess what, {subject} was {complaint} again.",
    "Okay, but why was {subject} {complaint}?",
    "Did you hear that {subject} was totally {complaint}?",
    "I mean, {subject} was kind of {complaint}, right?",
    "Yeah, {subject} was {complaint}, if you were wondering.",
    "Oh no, {subject}. It was just so {complaint}.",
    "Do not tell anyone, but {subject} was {complaint}.",
    "Anyway, I need to say that {subject} was {complaint}.",
    "Going by what happened, {subject} was {complaint}.",
    "I call {subject} {complaint}, seriously.",
)

PEOPLE = ("people", "someone", "everyone", "somebody", "we", "they", "the neighbors", "my friends", "a visitor")

# Wordings are number-neutral ("may be", "call … slow"), because a witness may be "glaciers" or "a tortoise".
WITNESS_ASKED = (
    "Name something {complaint}.",
    "Give me an example of something {complaint}.",
    "Think of something {complaint}.",
    "What comes to mind when people say {complaint}?",
    "What is known to be {complaint}?",
)
WITNESS_AFTER = ("What else?", "What else is like that?", "Name another such thing.")
WITNESS_ANSWERED = (
    "{Witness} can be {complaint}.",
    "{Witness} will always be {complaint}.",
    "Everyone calls {witness} {complaint}.",
    "For something {complaint}, think of {witness}.",
    "It is well known that {witness} can be {complaint}.",
    "When people say {complaint}, they think of {witness}.",
    "Something {complaint}, such as {witness}.",
)
TRAIT_ASKED = (
    "What do people say of {witness}?",
    "Tell me a fact about {witness}.",
    "How would you describe {witness}?",
    "{Witness}?",
    "Say something with the word {noun}.",
    "Use {noun} in a sentence.",
)
REACTION_ASKED = (
    "It was {complaint}. What happened?",
    "What happened because it was {complaint}?",
    "What did people do when it was {complaint}?",
    "Tell me about something {complaint}.",
)
REACTION_AFTER = ("What happened?", "So what did people do?", "And then?")
REACTION_ANSWERED = (
    "{Person} {reaction} because it was {complaint}.",
    "Because it was {complaint}, {person} {reaction}.",
    "It was {complaint}, and {person} {reaction}.",
    "It was {complaint}. {Person} {reaction}.",
    "As it was {complaint}, {person} {reaction}.",
)
CAUSE_ASKED = (
    "{Person} {reaction}. What was it like?",
    "{Person} {reaction}. Why?",
    "What does it mean that {person} {reaction}?",
    "How was it when {person} {reaction}?",
)
CAUSE_ANSWERED = (
    "It was {complaint}.",
    "Because it was {complaint}.",
    "When {person} {reaction}, it was {complaint}.",
    "{Person} {reaction} because it was {complaint}.",
    "If {person} {reaction}, then it was {complaint}.",
)
SUBJECT_ASKED = (
    "Tell me about {subject}.",
    "Say something plain about {subject}.",
    "What about {subject}?",
    "Write something about {subject}.",
)
PERMITS_ASKED = (
    "What can be said of {subject}?",
    "What do people complain about when they talk of {subject}?",
    "How can {subject} be?",
)
PERMITS_ANSWERED = (
    "{Subject} can be {list}.",
    "People may find {subject} {list}.",
    "Sometimes {subject} is {list}.",
)
PLACE_ASKED = ("Where does one meet {thing}?", "What kind of thing is {thing}?", "{Thing}: where from?")
PLACE_ANSWERED = (
    "{Thing}: that is the world of {domain}.",
    "One meets {thing} in the world of {domain}.",
    "The world of {domain} includes {thing}.",
)
REPEAT_ASKED = ("Repeat: {phrase}", "Say: {phrase}", "Spell: {phrase}")
MEANING_ASKED = ("What does {other} mean?", "Another word for {other}, please.", "Explain {other}.")
MEANING_ANSWERED = (
    "{Other} means {complaint}.",
    "It means {complaint}.",
    "What is {other} is {complaint}.",
    "Something {other} is {complaint}.",
)


def capitalised(text: str) -> str:
    """The text with its first letter upper-case, the rest as it was."""
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str], last: str = "or") -> str:
    """ "slow, dull or long"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


class Corpus:
    """An endless, deterministic supply of `Line`s.

    `pairs` are the (subject, complaint) pairs that may occur: give those of the training prompts, so that the pairs of
    other splits stay unseen. No line contains a sentence of `unread` (dev and test prompts). `shares` sets how often
    each kind of line is drawn.
    """

    shares = {
        "paraphrase": 0.33,  # a literal sentence, said in another plain way
        "witness": 0.23,  # what something is known for
        "reaction": 0.26,  # what a reaction reveals about its cause
        "repeat": 0.06,  # repeating a phrase: its spelling, also of phrases that only jokes use
        "permits": 0.05,  # which complaints a subject permits
        "place": 0.04,  # which corner of life a thing belongs to
        "meaning": 0.03,  # synonyms
    }

    def __init__(
        self, lexicon: Lexicon, pairs: Sequence[tuple[str, str]], unread: frozenset[str] = frozenset()
    ) -> None:
        if not pairs:
            raise InvalidOption("A corpus needs at least one (subject, complaint) pair, found none.")
        self.lexicon = lexicon
        self.pairs = sorted(set(pairs))
        self.unread = unread
        self.words = {c.name: c.adjectives for c in lexicon.complaints}
        self.plain = [t.template for t in lexicon.literals if t.style == "plain"]
        self.permits: dict[str, list[str]] = {}
        for subject, complaint in self.pairs:
            self.permits.setdefault(subject, []).append(complaint)
        self.subjects = sorted(self.permits)
        self.by_trait: dict[str, list[Witness]] = {name: [] for name in self.words}
        for witness in lexicon.witnesses:
            for trait in witness.traits:
                self.by_trait[trait].append(witness)
        self.by_cause: dict[str, list[Reaction]] = {name: [] for name in self.words}
        for reaction in lexicon.reactions:
            for cause in reaction.implies:
                self.by_cause[cause].append(reaction)
        self.traits = [name for name, witnesses in self.by_trait.items() if witnesses]
        self.causes = [name for name, reactions in self.by_cause.items() if reactions]
        self.subjects_with: dict[str, list[str]] = {name: [] for name in self.words}
        for subject, complaint in self.pairs:
            self.subjects_with[complaint].append(subject)
        witness_texts = {w.text for w in lexicon.witnesses}
        self.people = [p for p in PEOPLE if p not in witness_texts]
        self.domain = {s.text: s.domain for s in lexicon.subjects if s.text in self.permits}
        self.domain |= {w.text: w.domain for w in lexicon.witnesses}
        self.things = sorted(self.domain)
        self.pieces = sorted({p.strip(" ,.;:?") for f in lexicon.frames for p in _pieces(f.template)} - {""})
        self.phrases = sorted({p.strip() for p in spellings(lexicon)})
        self._makers: list[Callable[[np.random.Generator], tuple[str, str]]] = [
            getattr(self, f"_{kind}") for kind in self.shares
        ]

    def block(self, seed: int, index: int, size: int = 4096, name: str = "pocket-corpus") -> list[Line]:
        """`size` lines, the same for the same arguments on every machine."""
        rng = generator(seed, name, index)
        kinds = list(self.shares)
        draws = rng.choice(len(kinds), size=size, p=np.array(list(self.shares.values())))
        return [Line(kinds[k], *self._makers[k](rng)) for k in draws]

    def _word(self, rng: np.random.Generator, complaint: str) -> str:
        return _pick(rng, self.words[complaint])

    def _literal(self, rng: np.random.Generator, subject: str, word: str, other_than: str = "") -> str:
        """A plain sentence, never one of `unread`."""
        while True:
            sentence = _say(_pick(rng, self.plain), subject, word)
            if sentence != other_than and sentence not in self.unread:
                return sentence

    def _paraphrase(self, rng: np.random.Generator) -> tuple[str, str]:
        subject, complaint = _pick(rng, self.pairs)
        word = self._word(rng, complaint)
        chatty = rng.random() < 0.2
        source = _say(_pick(rng, CHATTY), subject, word) if chatty else self._literal(rng, subject, word)
        # Half of the time the word is kept (copied), otherwise swapped for a synonym (understood).
        adjective = word if rng.random() < 0.5 else self._word(rng, complaint)
        return source, self._literal(rng, subject, adjective, other_than=source)

    def _asked(self, rng: np.random.Generator, complaint: str, questions: Sequence[str], after: str) -> str:
        """A question with the slot filled, or, half of the time, `after` a literal sentence of that complaint.

        So a complaint occurs in every phrasing and about every subject, not only in questions about itself.
        """
        word = self._word(rng, complaint)
        if rng.random() < 0.5 and self.subjects_with[complaint]:
            return f"{self._literal(rng, _pick(rng, self.subjects_with[complaint]), word)} {after}"
        return _pick(rng, questions).replace("{complaint}", word)

    def _witness(self, rng: np.random.Generator) -> tuple[str, str]:
        if rng.random() < 0.6:
            complaint = _pick(rng, self.traits)
            witness = _some(rng, [w.text for w in self.by_trait[complaint]])
            source = self._asked(rng, complaint, WITNESS_ASKED, _pick(rng, WITNESS_AFTER))
        else:
            chosen = _pick(rng, self.lexicon.witnesses)
            witness, complaint = chosen.text, _pick(rng, chosen.traits)
            source = _pick(rng, TRAIT_ASKED).format(witness=witness, Witness=capitalised(witness), noun=noun(witness))
        slots = {"witness": witness, "Witness": capitalised(witness), "complaint": self._word(rng, complaint)}
        return source, _pick(rng, WITNESS_ANSWERED).format(**slots)

    def _reaction(self, rng: np.random.Generator) -> tuple[str, str]:
        person = _pick(rng, self.people)
        slots = {"person": person, "Person": capitalised(person)}
        if rng.random() < 0.6:
            complaint = _pick(rng, self.causes)
            slots["reaction"] = _some(rng, [r.text for r in self.by_cause[complaint]])
            source = self._asked(rng, complaint, REACTION_ASKED, _pick(rng, REACTION_AFTER))
            answer = _pick(rng, REACTION_ANSWERED)
        else:
            reaction = _pick(rng, self.lexicon.reactions)
            complaint, slots["reaction"] = _pick(rng, reaction.implies), reaction.text
            source, answer = _pick(rng, CAUSE_ASKED), _pick(rng, CAUSE_ANSWERED)
        slots["complaint"] = self._word(rng, complaint)
        return source.format(**slots), answer.format(**slots)

    def _permits(self, rng: np.random.Generator) -> tuple[str, str]:
        subject = _pick(rng, self.subjects)
        complaints = self.permits[subject]
        if rng.random() < 0.4:
            sentence = self._literal(rng, subject, self._word(rng, _pick(rng, complaints)))
            return _pick(rng, SUBJECT_ASKED).format(subject=subject), sentence
        order = rng.permutation(len(complaints))[: int(rng.integers(1, 4))]
        slots = {
            "subject": subject,
            "Subject": capitalised(subject),
            "list": listed([self._word(rng, complaints[i]) for i in order]),
        }
        return _pick(rng, PERMITS_ASKED).format(**slots), _pick(rng, PERMITS_ANSWERED).format(**slots)

    def _repeat(self, rng: np.random.Generator) -> tuple[str, str]:
        # Several, without order or subject: words, not a joke. Otherwise the words used only in joke frames would have
        # random embeddings, which an adapter on frozen weights can hardly correct.
        count = int(rng.integers(1, 5))
        phrase = " / ".join(_pick(rng, self.phrases if rng.random() < 0.4 else self.pieces) for _ in range(count))
        return _pick(rng, REPEAT_ASKED).format(phrase=phrase), phrase

    def _place(self, rng: np.random.Generator) -> tuple[str, str]:
        thing = _pick(rng, self.things)
        slots = {"thing": thing, "Thing": capitalised(thing), "domain": self.domain[thing]}
        return _pick(rng, PLACE_ASKED).format(**slots), _pick(rng, PLACE_ANSWERED).format(**slots)

    def _meaning(self, rng: np.random.Generator) -> tuple[str, str]:
        complaint = _pick(rng, list(self.words))
        first, second = rng.permutation(len(self.words[complaint]))[:2]
        other, word = self.words[complaint][first], self.words[complaint][second]
        slots = {"other": other, "Other": capitalised(other), "complaint": word}
        return _pick(rng, MEANING_ASKED).format(**slots), _pick(rng, MEANING_ANSWERED).format(**slots)


def _some(rng: np.random.Generator, phrases: Sequence[str]) -> str:
    """One to three of the phrases: the more facts per line, the sooner they are learned."""
    count = min(int(rng.integers(1, 4)), len(phrases))
    return listed([phrases[i] for i in rng.permutation(len(phrases))[:count]], "and")


def _say(template: str, subject: str, word: str) -> str:
    return template.format(subject=subject, Subject=capitalised(subject), complaint=word)


def spellings(lexicon: Lexicon) -> Iterator[str]:
    """Every phrase of the joke language by itself, to train a tokenizer on; contains no joke."""
    for text in [w.text for w in lexicon.witnesses] + [s.text for s in lexicon.subjects]:
        yield from (f" {text}", capitalised(text))
    for text in [r.text for r in lexicon.reactions] + [a for c in lexicon.complaints for a in c.adjectives]:
        yield f" {text}"
    for template in [f.template for f in lexicon.frames] + [t.template for t in lexicon.literals]:
        yield from _pieces(template)


def _pieces(template: str) -> list[str]:
    """The constant parts of a template, between its slots."""
    for slot in ("Subject", "subject", "complaint", "Witness", "witness", "reaction"):
        template = template.replace(f" {{{slot}}}", "\n").replace(f"{{{slot}}}", "\n")
    return [piece for piece in template.split("\n") if piece]


def fingerprint(folder: str | Path) -> str:
    """A hash of the lexicon files: weights with a different one were trained on other words."""
    digest = hashlib.sha256()
    for name in FILES:
        # Line endings are ignored: a checkout on another system may have changed them.
        digest.update((Path(folder) / name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _pick(rng: np.random.Generator, options: Sequence[Item]) -> Item:
    return options[int(rng.integers(len(options)))]
