"""The grammar of the pocket world: from parts to a sentence, and from a sentence back to its parts.

    grammar = Grammar(lexicon)
    line = grammar.joke(frame, subject, "slow", witness, reaction)
    reading = grammar.read(line)     # reading.kind == "joke", reading.witness is witness

Reading is exact: a sentence is a joke or a literal only if writing its parts again gives the same characters (except
for the case of the first letter). Everything else is a fragment: the parts found exactly once, and a form of up to
`FRAGMENT_FORM` that grows with the share of adjacent words that are also adjacent in a real sentence. So a learner gets
credit for coming close, but a text that does not parse never scores like one that does.

For speed, known phrases are in a tree of words, the longest match wins, and the rest between the slots is looked up in
a table of templates: one pass over the words, no regular expression per template, no cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from humor_env.errors import InvalidOption
from humor_env.pocket.lexicon import Complaint, Frame, Lexicon, Literal, Reaction, Subject, Witness

FRAGMENT_FORM = 0.4
LONGEST = 240  # characters; the longest sentence of the world is well below it (tested)

_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|[^ ]")
_SUBJECT, _COMPLAINT, _WITNESS, _REACTION = range(4)
_MARKS = ("<subject>", "<complaint>", "<witness>", "<reaction>")  # no token looks like this: "<" is a token of its own
_EDGE = "<edge>"
_END = ""  # the key of a phrase's end in the tree; no word is empty


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of a text. A part is None if it is missing or occurs more than once.

    `kind` is "joke", "literal", or "fragment" (does not parse); `form` is 1 for the first two.
    """

    kind: str
    form: float
    subject: Subject | None = None
    complaint: Complaint | None = None
    witness: Witness | None = None
    reaction: Reaction | None = None
    frame: Frame | None = None
    trouble: str = ""


class Grammar:
    """The templates and phrases of a lexicon, compiled."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._tree: dict[str, dict] = {}
        for subject in lexicon.subjects:
            self._plant(subject.text, (_SUBJECT, subject))
        for complaint in lexicon.complaints:
            for adjective in complaint.adjectives:
                self._plant(adjective, (_COMPLAINT, (complaint, adjective)))
        for witness in lexicon.witnesses:
            self._plant(witness.text, (_WITNESS, witness))
        for reaction in lexicon.reactions:
            self._plant(reaction.text, (_REACTION, reaction))
        self._templates: dict[tuple[str, ...], Frame | Literal] = {}
        self._neighbours: set[tuple[str, str]] = set()
        for literal in lexicon.literals:
            self._add(literal)
        for frame in lexicon.frames:
            self._add(frame)

    def literal(self, literal: Literal, subject: Subject, adjective: str) -> str:
        return literal.template.format(
            subject=subject.text, Subject=_capital(subject.text), complaint=adjective, Complaint=_capital(adjective)
        )

    def joke(self, frame: Frame, subject: Subject, adjective: str, witness: Witness, reaction: Reaction) -> str:
        return frame.template.format(
            subject=subject.text,
            Subject=_capital(subject.text),
            complaint=adjective,
            Complaint=_capital(adjective),
            witness=witness.text,
            Witness=_capital(witness.text),
            reaction=reaction.text,
            Reaction=_capital(reaction.text),
        )

    def read(self, text: str) -> Reading:
        """The parts of a text. Never fails, whatever the text. Surrounding blanks are ignored."""
        text = text.strip(" \t\r\n")
        if len(text) > LONGEST:
            return Reading("fragment", 0.0, trouble="it is too long")
        if not text.isascii() or not text.isprintable():
            return Reading("fragment", 0.0, trouble="it is not one line of plain letters")
        tokens = _TOKEN.findall(text.lower())
        if not tokens:
            return Reading("fragment", 0.0, trouble="it is empty")
        skeleton, phrases = self._segment(tokens)
        template = self._templates.get(tuple(skeleton))
        if template is not None:
            # The skeleton holds each slot exactly once, so these are complete.
            subject = phrases[_SUBJECT][0]
            complaint, adjective = phrases[_COMPLAINT][0]
            if isinstance(template, Frame):
                witness, reaction = phrases[_WITNESS][0], phrases[_REACTION][0]
                if _same(text, self.joke(template, subject, adjective, witness, reaction)):
                    return Reading("joke", 1.0, subject, complaint, witness, reaction, template)
            elif _same(text, self.literal(template, subject, adjective)):
                return Reading("literal", 1.0, subject, complaint)
        path = [_EDGE, *skeleton, _EDGE]
        neighbours = self._neighbours
        familiar = sum(pair in neighbours for pair in pairwise(path))
        form = FRAGMENT_FORM * familiar / (len(path) - 1)
        subject, complaints, witness, reaction = (items[0] if len(items) == 1 else None for items in phrases)
        trouble = "it is not a whole sentence of this world"
        for items, what in zip(phrases, ("subject", "complaint", "witness", "reaction"), strict=True):
            if len(items) > 1:
                trouble = f"it has more than one {what}"
        return Reading(
            "fragment", form, subject, complaints[0] if complaints else None, witness, reaction, trouble=trouble
        )

    def words(self, text: str) -> list[str]:
        """The lower-case words and punctuation marks of a text, as `read` sees them."""
        return _TOKEN.findall(text.lower())

    def _plant(self, phrase: str, leaf: tuple[int, object]) -> None:
        node = self._tree
        for word in _TOKEN.findall(phrase.lower()):
            node = node.setdefault(word, {})
        node[_END] = leaf  # type: ignore[assignment]

    def _segment(self, tokens: list[str]) -> tuple[list[str], list[list]]:
        """Tokens with each longest known phrase replaced by its mark, and the phrases found, by kind."""
        skeleton: list[str] = []
        phrases: list[list] = [[], [], [], []]
        tree, count, i = self._tree, len(tokens), 0
        while i < count:
            node = tree.get(tokens[i])
            leaf, end, j = None, i + 1, i + 1
            while node is not None:
                hit = node.get(_END)
                if hit is not None:
                    leaf, end = hit, j
                if j == count:
                    break
                node = node.get(tokens[j])
                j += 1
            if leaf is None:
                skeleton.append(tokens[i])
            else:
                kind, item = leaf
                skeleton.append(_MARKS[kind])
                phrases[kind].append(item)
            i = end
        return skeleton, phrases

    def _add(self, template: Frame | Literal) -> None:
        skeleton: list[str] = []
        for n, piece in enumerate(re.split(r"\{(\w+)\}", template.template)):
            if n % 2:
                skeleton.append(f"<{piece.lower()}>")
                continue
            tokens = _TOKEN.findall(piece.lower())
            marked, by_kind = self._segment(tokens)
            if marked != tokens:
                phrases = [str(item) for items in by_kind for item in items]
                raise InvalidOption(
                    f"The template '{template.template}' contains a phrase of the lexicon outside its slots "
                    f"({'; '.join(phrases)}), so a sentence could be read in two ways. Reword the template."
                )
            skeleton += tokens
        key = tuple(skeleton)
        if key in self._templates:
            raise InvalidOption(f"The template '{template.template}' is in the lexicon twice; remove one.")
        self._templates[key] = template
        path = [_EDGE, *skeleton, _EDGE]
        self._neighbours.update(pairwise(path))


def _capital(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


def _same(text: str, sentence: str) -> bool:
    """Whether the texts are equal, except for the case of the first letter."""
    return text == sentence or (text[1:] == sentence[1:] and text[0].lower() == sentence[0].lower())
