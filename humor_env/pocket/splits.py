"""The prompts of the pocket world and how they are split.

Paraphrase prompts are literal sentences. A few subject–complaint pairs, at most one per subject, are held out: they and
the conversational phrasings occur only in `ood`. All other pairs are in `train`; `dev` and `test` have the same pairs
in *sentences* that train does not have.

One-liner prompts ask for a line on a topic, under a headline, or with two words. Their `ood` has held-out pairs
(headlines, words) and its own phrasings. Order and membership come from hashes of the text, so adding a word to
the lexicon moves few prompts, and results do not depend on any library's random numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

from humor_env.pocket.grammar import Grammar
from humor_env.pocket.habits import Habits
from humor_env.pocket.lexicon import Complaint, Lexicon, Subject
from humor_env.types import SPLITS, Prompt

WORLD_VERSION = 0
SIZES = {
    "paraphrase": {"train": 2400, "dev": 200, "test": 300, "ood": 300},
    "oneliner": {"train": 600, "dev": 90, "test": 120, "ood": 120},
}
TOPICS = (
    "Write one line about {subject}.",
    "Tell a joke about {subject}.",
    "Say something funny about {subject}.",
    "Make me laugh about {subject}.",
)
TOPICS_OOD = ("Got anything on {subject}?", "So, {subject}: what can you tell me?")
HEADLINES = ("Headline: {Subject} called {complaint}.", "News: Visitors find {subject} {complaint}.")
HEADLINES_OOD = ("Breaking: {Subject} is {complaint}, they say!",)
WORDS = ("Write one line with the words {first} and {second}.", "Make a joke that uses {first} and {second}.")
WORDS_OOD = ("Can you fit {first} and {second} into one joke?",)
KINDS = ("topic", "headline", "words")
Pair = tuple[Subject, Complaint]


def shuffled(items: Iterable[str]) -> list[str]:
    """Texts in an order that depends only on each text."""
    return sorted(items, key=_hash)


def split_pairs(lexicon: Lexicon) -> tuple[list[Pair], list[Pair]]:
    """All subject–complaint pairs: those seen in training, and those held out. Both in hash order."""
    seen_per_complaint = {c.name: 0 for c in lexicon.complaints}
    for subject in lexicon.subjects:
        for name in subject.complaints:
            seen_per_complaint[name] += 1
    held_out: set[tuple[str, str]] = set()
    most = sum(len(s.complaints) for s in lexicon.subjects) // 10
    for text in shuffled(s.text for s in lexicon.subjects):
        subject = lexicon.subject(text)
        if len(held_out) == most or len(subject.complaints) < 3:
            continue
        name = min(subject.complaints, key=lambda name: _hash(f"{text}|{name}"))
        # A complaint must stay common in training: only the combination is new, not the word.
        if seen_per_complaint[name] > 4:
            held_out.add((text, name))
            seen_per_complaint[name] -= 1
    keys = [(s.text, name) for s in lexicon.subjects for name in s.complaints]
    keys.sort(key=lambda key: _hash("|".join(key)))
    pairs = [(lexicon.subject(text), lexicon.complaint(name), (text, name) in held_out) for text, name in keys]
    return [(s, c) for s, c, out in pairs if not out], [(s, c) for s, c, out in pairs if out]


def paraphrase_prompts(lexicon: Lexicon, grammar: Grammar) -> tuple[Prompt, ...]:
    pairs, held_out = split_pairs(lexicon)
    sentences = {pair: _sentences(lexicon, grammar, pair, "plain") for pair in pairs}
    # dev and test take one sentence each, from different pairs; later sentences go to train, round by round.
    sizes = SIZES["paraphrase"]
    share = min(len(pairs) // 3, sizes["test"]), min(len(pairs) // 4, sizes["dev"])
    drawn: dict[str, list[tuple[Pair, str]]] = {split: [] for split in SPLITS}
    drawn["test"] = [(pair, next(sentences[pair])) for pair in pairs[: share[0]]]
    drawn["dev"] = [(pair, next(sentences[pair])) for pair in pairs[share[0] : sum(share)]]
    drawn["train"] = _round_robin(sentences, sizes["train"])
    drawn["ood"] = _round_robin(
        {pair: _sentences(lexicon, grammar, pair, "conversational") for pair in held_out}, sizes["ood"]
    )
    return tuple(
        Prompt(
            f"pocket-v{WORLD_VERSION}/{split}/{number:04d}",
            text,
            task="paraphrase",
            split=split,
            extra={"subject": subject.text, "complaint": complaint.name},
        )
        for split in SPLITS
        for number, ((subject, complaint), text) in enumerate(drawn[split])
    )


def oneliner_prompts(lexicon: Lexicon, habits: Habits) -> tuple[Prompt, ...]:
    pairs, held_out = split_pairs(lexicon)
    subjects = [lexicon.subject(text) for text in shuffled(s.text for s in lexicon.subjects)]
    pools = [
        [_topic(s, t) for t in TOPICS for s in subjects],
        [_headline(pair, t) for t in HEADLINES for pair in pairs],
        [p for t in WORDS for pair in pairs for p in _two_words(lexicon, habits, pair, t)],
    ]
    pools_ood = [
        [_topic(s, t) for t in TOPICS_OOD for s in subjects],
        [_headline(pair, t) for t in HEADLINES_OOD for pair in held_out],
        [p for t in WORDS_OOD for pair in held_out for p in _two_words(lexicon, habits, pair, t)],
    ]
    drawn: dict[str, list[tuple[str, dict]]] = {split: [] for split in SPLITS}
    for candidates, others in zip(pools, pools_ood, strict=True):
        # A text can occur twice (two witnesses that share their word): the first one keeps it.
        texts = dict(reversed(candidates))
        pool = [(text, texts[text]) for text in shuffled(texts)]
        start = 0
        for split in ("test", "dev", "train"):
            count = min(SIZES["oneliner"][split] // len(KINDS), len(pool) // 4 if split != "train" else len(pool))
            drawn[split] += pool[start : start + count]
            start += count
        new = dict(reversed(others))
        drawn["ood"] += [(text, new[text]) for text in shuffled(new)][: SIZES["oneliner"]["ood"] // len(KINDS)]
    return tuple(
        Prompt(
            f"pocket-oneliner-v{WORLD_VERSION}/{split}/{number:04d}", text, task="oneliner", split=split, extra=extra
        )
        for split in SPLITS
        for number, (text, extra) in enumerate(drawn[split])
    )


def _sentences(lexicon: Lexicon, grammar: Grammar, pair: Pair, style: str) -> Iterator[str]:
    """Every literal sentence of a pair once, lazily, in a scattered order."""
    subject, complaint = pair
    ways = [(way, a) for way in lexicon.literals if way.style == style for a in complaint.adjectives]
    seed = int.from_bytes(_hash(f"{subject.text}|{complaint.name}|{style}"), "big")
    start, step = seed % len(ways), 1 + (seed >> 20) % max(1, len(ways) - 1)
    while math.gcd(step, len(ways)) != 1:  # a step coprime to the length visits every index
        step += 1
    for k in range(len(ways)):
        way, adjective = ways[(start + k * step) % len(ways)]
        yield grammar.literal(way, subject, adjective)


def _round_robin(sources: dict[Pair, Iterator[str]], count: int) -> list[tuple[Pair, str]]:
    drawn: list[tuple[Pair, str]] = []
    live = dict(sources)
    while live and len(drawn) < count:
        for pair in list(live)[: count - len(drawn)]:
            sentence = next(live[pair], None)
            if sentence is None:
                del live[pair]
            else:
                drawn.append((pair, sentence))
    return drawn


def _topic(subject: Subject, template: str) -> tuple[str, dict]:
    return template.format(subject=subject.text), {"kind": "topic", "subject": subject.text, "words": []}


def _headline(pair: Pair, template: str) -> tuple[str, dict]:
    subject, complaint = pair
    text = template.format(
        subject=subject.text, Subject=subject.text[0].upper() + subject.text[1:], complaint=complaint.name
    )
    return text, {"kind": "headline", "subject": subject.text, "complaint": complaint.name, "words": []}


def _two_words(lexicon: Lexicon, habits: Habits, pair: Pair, template: str) -> list[tuple[str, dict]]:
    """At most one prompt: the subject's noun and that of a fresh, far witness, so that a perfect line exists."""
    subject, complaint = pair
    habit = habits.witnesses[complaint.name]
    far = [w for w in habit.ranked if w not in habit.worn and lexicon.distance(w.domain, subject.domain) == 1.0]
    for text in shuffled(w.text for w in far):
        first, second = noun(subject.text), noun(text)
        if first != second:
            extra = {"kind": "words", "subject": subject.text, "words": [first, second]}
            return [(template.format(first=first, second=second), extra)]
    return []


def noun(phrase: str) -> str:
    """The word of a phrase that a prompt requires: its last word that is not tiny."""
    words = phrase.lower().split()
    return next((word for word in reversed(words) if len(word) > 2), words[-1])


def _hash(text: str) -> bytes:
    return hashlib.blake2b(f"pocket-v{WORLD_VERSION}\x1f{text}".encode(), digest_size=8).digest()
