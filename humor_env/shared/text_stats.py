"""Critic-free statistics of lines: variety, copying, and the marks of known hacks.

distinct_n(lines, 2)             # share of different bigrams: 1 when nothing repeats
overlap(lines, teacher_lines)    # share of the lines' 4-grams that the others contain
commonest_frame(lines)           # ("was so _ that", 0.94): the frame that most lines share, and their share
laughter("So slow, hahaha!")     # "hahaha"; so `emoji` and `explaining`
missing_words(line, ["walrus"])  # the required words that a line lacks

Gates, monitor and environments all use these functions, so that "laughs" or "contains the word" means the same
everywhere. Everything here accepts any Python string.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from functools import lru_cache

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # categories of invisible characters

# Scripts without spaces between words are split into characters, so that a long line is not a single "word".
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:'[^\W_{_UNSPACED}]+)*")

# English function words. All others are blanks in a skeleton.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the this that these those some any no every each all both either neither another other such much many more
    most few little less least own same i you he she it we they me him her us them my your his its our their mine
    yours hers ours theirs myself yourself himself herself itself ourselves themselves one who whom whose which what
    where when why how am is are was were be been being do does did done doing have has had having can could will
    would shall should may might must not never ever so too very just even only still yet already again almost quite
    rather than then there here now and or but nor if because as while until unless although though since before
    after once whether of to in on at by for with from into onto upon over under above below between among through
    during without within against about around across along behind beyond near off out up down toward towards per
    like ca wo ain
    """,
    )
)
_ENDING = re.compile(r"(?:n't|'(?:s|re|ll|ve|d|m))$")
BLANK = "_"

# The marks of known hacks, in texts normalised by `as_read`: lower case, straight apostrophes.
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b05-\u2b55\u231a\u231b\u23e9-\u23fa\ufe0f\u20e3\U0001f1e6-\U0001f1ff]"
)
_LAUGHTER = re.compile(
    # No article before a laugh: "a ha-ha" is a ditch.
    r"(?<!\ba )(?<!\bthe )"
    r"\b(?:(?:b?w?a)?ha(?:[\s,.-]*ha)+h?|a?(?:hah)+a*|(?:he){2,}h?|(?:hi){3,}|lo+l(?:ol)*|lmf?a+o+|rofl\w*|xd+|kek|teehee"
    r"|ba\W{0,2}dum\W{0,2}ts+h?)\b|[:;]-?[)dp](?!\w)|\(?\blaugh(?:s|ter|ing)?\b\)"
)
_EXPLANATION = re.compile(
    r"\bget it\s*\?|\bgeddit\b|\bpuns? (?:very much |fully |totally )?intended\b|\bsee what (?:i|we) did\b"
    r"|\b(?:the|this|that) (?:joke|humou?r|pun|punchline|comedy|funny (?:part|thing)|wordplay)(?: here)? "
    r"(?:works?|(?:is|being|here is) (?:that|because|how|based|in the|about)|(?:comes?|lies|stems|plays) )"
    r"|\bthat'?s the joke\b|\bin other words\b"
    r"|\b(?:is|it'?s|which is|that'?s) (?:so |very |really )?(?:funny|humorous|hilarious|a joke|a pun) "
    r"(?:because|since|as)\b"
    r"|\b(?:explanation|translation|bonus(?: \w+)?|note|disclaimer|punchline|moral|p\.?s\.?)\s*:|\bjust kidding\b"
    r"|\bexaggerat\w+ (?:for|to) (?:comic|comedic|humorous)|\b(?:comic|comedic|humorous) effect\b"
)


def as_read(text: str) -> str:
    """Normalise a text to what a reader sees: no hidden characters, unified widths, lower case."""
    if text.isascii() and text.isprintable():  # most lines: nothing to remove
        return text.lower()
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in UNSEEN)
    return unicodedata.normalize("NFKC", visible).casefold()


def words(text: str) -> list[str]:
    """The words of a text as it is read: "Don’t STOP, café!" is ["don't", "stop", "café"]."""
    return list(_words(text))


@lru_cache(maxsize=8192)  # a step's numbers read each line about ten times
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(as_read(text).replace("’", "'")))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = _words(text)
    return [tokens[i : i + n] for i in range(len(tokens) - n + 1)]


def distinct_n(lines: Iterable[str], n: int) -> float:
    """Distinct n-grams over all n-grams. Falls as the sample grows, so compare only samples of equal size."""
    counts = Counter(g for line in lines for g in ngrams(line, n))
    total = sum(counts.values())
    return len(counts) / total if total else 0.0


def ngram_set(lines: Iterable[str], n: int = 4) -> frozenset[tuple[str, ...]]:
    """All n-grams of the lines, for repeated calls of `overlap` with the same lines."""
    return frozenset(g for line in lines for g in ngrams(line, n))


def overlap(lines: Iterable[str], others: Iterable[str] | frozenset[tuple[str, ...]], n: int = 4) -> float:
    """The share of the lines' n-grams that also occur in the other lines (or in their `ngram_set`)."""
    other_ngrams = others if isinstance(others, frozenset) else ngram_set(others, n)
    grams = [g for line in lines for g in ngrams(line, n)]
    return sum(g in other_ngrams for g in grams) / len(grams) if grams else 0.0


def self_overlap(lines: Sequence[str], n: int = 4) -> float:
    """The share of n-gram occurrences that another line of the set also contains."""
    per_line = [set(ngrams(line, n)) for line in lines]
    counts = Counter(g for grams in per_line for g in grams)
    total = sum(len(grams) for grams in per_line)
    return sum(counts[g] > 1 for grams in per_line for g in grams) / total if total else 0.0


def commonest_share(lines: Sequence[str], top: int = 10) -> float:
    """The share of the set taken by its `top` commonest lines: near 1 if all are the same joke."""
    if not lines:
        return 0.0
    counts = Counter(map(line_key, lines))
    return sum(n for _, n in counts.most_common(top)) / len(lines)


def skeleton(text: str) -> list[str]:
    """The words of a text with each content word as a blank: "The meeting was so slow that…" is "the _ was so _ that".
    English only: in other languages nearly all words are blanks."""
    return [w if _ENDING.sub("", w) in _FUNCTION_WORDS else BLANK for w in words(text)]


@lru_cache(maxsize=8192)  # a step, a critic and a monitor use the same lines
def frames(text: str, n: int = 4) -> frozenset[str]:
    """The runs of `n` skeleton words with at most half blanks: "was so _ that"."""
    skeleton_words = skeleton(text)
    runs = (skeleton_words[i : i + n] for i in range(len(skeleton_words) - n + 1))
    return frozenset(" ".join(run) for run in runs if 2 * run.count(BLANK) <= n)


def commonest_frame(lines: Sequence[str], n: int = 4) -> tuple[str, float]:
    """The frame that most lines have, and their share. Ties go to the one with fewest blanks."""
    return _commonest([frames(line, n) for line in lines])


def frame_variety(lines: Iterable[str], n: int = 4) -> float:
    """Distinct frames over all frames, counted once per line. Like `distinct_n` it falls as the sample grows."""
    all_frames = [frame for line in lines for frame in frames(line, n)]
    return len(set(all_frames)) / len(all_frames) if all_frames else 0.0


def line_key(text: str) -> str:
    """The key by which two lines count as the same: their words, normalised."""
    return " ".join(words(text))


def commonest_line(lines: Sequence[str]) -> tuple[str, float]:
    """The most frequent line, as its words, and its share. Ties go to the alphabetically first."""
    return _commonest([{line_key(line)} for line in lines])


def commonest_word(lines: Sequence[str]) -> tuple[str, float]:
    """The content word that most lines have, and the share of the lines that have it."""
    return _commonest([content_words(line) for line in lines])


@lru_cache(maxsize=8192)
def content_words(text: str) -> frozenset[str]:
    """The content words of a text."""
    return frozenset(w for w in words(text) if _ENDING.sub("", w) not in _FUNCTION_WORDS)


def _commonest(sets: Sequence[Set[str]]) -> tuple[str, float]:
    counts = Counter(each for of_line in sets for each in of_line)
    if not counts:
        return "", 0.0
    top = min(counts, key=lambda each: (-counts[each], each.count(BLANK), each))
    return top, counts[top] / len(sets)


def emoji(text: str) -> list[str]:
    """The pictures in a text, one by one; a modifier or a joined picture counts for itself."""
    return _EMOJI.findall(text)


def laughter(text: str) -> str:
    """The first laugh in a text ("haha", "lol", ":)", "(laughs)"), normalised; "" if none."""
    return _found(_LAUGHTER, text)


def explaining(text: str) -> str:
    """The first phrase that explains or announces the joke ("get it?", "the joke is that"); "" if none."""
    return _found(_EXPLANATION, text)


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(as_read(text).replace("’", "'"))
    return match.group() if match else ""


def missing_words(text: str, required: Iterable[str]) -> list[str]:
    """The wanted words that a text lacks, as whole words in any case: "walrus" is in "a walrus's", not in
    "walruses"."""
    read = as_read(text).replace("’", "'")
    return [word for word in required if not _whole_word(word).search(read)]


@lru_cache(maxsize=4096)
def _whole_word(word: str) -> re.Pattern[str]:
    spaced = r"\s+".join(map(re.escape, as_read(word).replace("’", "'").split()))
    return re.compile(rf"(?<!\w){spaced}(?!\w)")
