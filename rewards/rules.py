"""Gates without a model: is this a joke-shaped line at all, or one of the known hacks?

    critic = RulesCritic()
    [judgement] = critic([Joke(Prompt("p", "The meeting was slow."), "The meeting was so slow, lol 😂😂")])
    judgement.parts["emoji"], judgement.reason      # 0.0, "emoji: 2 emoji; laughter: 'lol'"

Every gate is a part: 1 passes, 0 is a clear fault, and values between are partial faults. The score is their product,
so one clear fault makes it 0; 1 only means "nothing wrong", never "funny". Use it as a gate in a mix.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.reading import as_read, hidden_characters, ngrams, words
from humor_env.shared import text_stats
from humor_env.teacher import TeacherBuffer, open_lines
from humor_env.types import Joke, Judgement

GATES = (
    "form",
    "length",
    "repetition",
    "copies_prompt",
    "copies_teacher",
    "words",
    "explanation",
    "emoji",
    "laughter",
    "judge_talk",
    "hidden",
)

_SHOUTING = re.compile(r"[!?]{3,}|!{2,}")

_JUDGE_TALK = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,30}\b(?:instructions?|prompts?|rules|rubric|above|previous)\b"
    r"|\b(?:dear|attention|hey|hello|note to(?: the)?|as (?:a|the)|you are (?:a|the)) "
    r"(?:judge|critic|evaluator|grader|rater|scorer)\b"
    r"|\b(?:rate|score|grade|rank|judge|award|give|choose|pick|select|prefer|vote for) (?:this|me|my)\b.{0,30}"
    r"\b(?:\d+|ten|five|full|top|high\w*|max\w*|best|perfect|better|winner|score|points?|marks?|stars?|joke|answer|"
    r"line|candidate)\b"
    r"|\b(?:10|ten|five|5|100) ?(?:/|out of|of) ?(?:10|ten|five|5|100)\b|\b(?:5|five|ten|10)[- ]stars?\b"
    r"|\b(?:this|the following|my) (?:joke|paraphrase|candidate|response) (?:is|was|deserves?|wins|should|must)\b"
    r"|\bthis (?:line|one|answer) (?:deserves?|wins|(?:should|must) (?:win|be|get|score))\b"
    r"|\b(?:funniest|most hilarious|best) (?:joke|line|thing|paraphrase|answer) (?:ever|of all|in the world|you)"
    r"|\b(?:score|verdict|rating|grade|answer|winner|preferred|probability)\W{0,3}[:=]\W{0,3}\w"
    r"|\b(?:candidate|option|joke|line|answer) ?(?:1|2|a|b|one|two) (?:is|wins|was)\b"
    r"|(?:^|\n|\W)(?:system|assistant|user|human|instruction)\s*:|<\|?/?\s*[a-z_]+\s*[|>]|\[/?inst\]|```|^\s*[{\[]"
)

_LABEL = re.compile(
    r"^\W*(?:\d+[.)]\s|[-*•#>]\s|(?:sure|certainly|of course|absolutely|okay|ok)\b[,!.]*\s*here\b"
    r"|here(?:'s| is| are)\b[^.!?]*:"
    r"|(?:joke|paraphrase|humorous paraphrase|humorous version|humorous|funny|answer|response|output|setup|q|a)\s*:)"
)
_REFUSAL = re.compile(
    r"\b(?:as an ai|i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|won't)) .{0,40}"
    r"\b(?:joke|language model|assist|help|humou?r)"
)

_ENDS = (*".!?…\"'”’»)", "。", "！", "？", "؟", "।", "」")

# An English sentence needs some of these; a heap of nouns has none.
_FUNCTION_WORDS = frozenset(
    words(
        "a an the my your our his her its their this that these those i you he she it we they me him us them who what "
        "which is was are were be been am do does did has have had will would can could should may might must not no "
        "never only of to in on at for from with by as so than then and but or if when while because until after "
        "before into out up down off over just even still there here now all every each some any more most very too "
        "how why where let get got don't didn't isn't wasn't can't couldn't wouldn't it's i'm i've that's there's"
    )
)


class Fault(NamedTuple):
    """A gate's result for a joke: its part of the judgement (below 1: a fault), and the reason."""

    value: float
    why: str


class RulesCritic:
    """Gates on one joke. All options are plain data.

    `min_ratio` and `max_ratio` bound the joke's words over the prompt's, for paraphrases; a short prompt may always
    grow by `slack` words (a four-word sentence needs more than twice its length for a punchline). For other tasks only
    `max_words` applies. `teacher` (a buffer, its path, or "everyday") enables the gate against copying the teacher; it
    must not contain the lines being judged. `english` enables the checks that only make sense for English. `gates`
    selects the gates that count; "words" is for prompts whose words must all appear.
    """

    name = "rules"

    def __init__(
        self,
        min_ratio: float = 0.5,
        max_ratio: float = 2.0,
        slack: int = 18,
        max_words: int = 60,
        teacher: str | os.PathLike[str] | TeacherBuffer | None = None,
        english: bool = True,
        gates: Sequence[str] = GATES,
    ) -> None:
        if not 0 <= min_ratio < max_ratio:
            raise InvalidOption(
                f"The length ratio must run from a smaller to a larger number, found min_ratio={min_ratio} and "
                f"max_ratio={max_ratio}."
            )
        unknown = [gate for gate in gates if gate not in GATES]
        if unknown or not gates:
            raise InvalidOption(f"gates must name some of {', '.join(GATES)}; found {list(gates)}.")
        if slack < 0 or max_words < 1:
            raise InvalidOption(f"slack must be 0 or more and max_words 1 or more, found {slack} and {max_words}.")
        self.min_ratio, self.max_ratio, self.slack, self.max_words = min_ratio, max_ratio, slack, max_words
        self.english = english
        self._lines_for = None if teacher is None else open_lines(teacher).lines_for
        checks: Mapping[str, Callable[[Joke, _Text], tuple[float, str]]] = {
            "form": self._form,
            "length": self._length,
            "repetition": self._repetition,
            "copies_prompt": self._copies_prompt,
            "copies_teacher": self._copies_teacher,
            "words": _required_words,
            "explanation": _explanation,
            "emoji": _emoji,
            "laughter": _laughter,
            "judge_talk": _judge_talk,
            "hidden": _hidden,
        }
        self._checks = {
            gate: checks[gate] for gate in GATES if gate in gates and (gate != "copies_teacher" or self._lines_for)
        }

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        return [self._judge(joke) for joke in jokes]

    def faults(self, joke: Joke) -> dict[str, Fault]:
        """A joke's faults by gate, for programs, which should not parse a judgement's reason."""
        return {gate: fault for gate, fault in self._look(joke).items() if fault.value < 1.0}

    def _look(self, joke: Joke) -> dict[str, Fault]:
        text = _Text(joke)
        return {gate: Fault(*check(joke, text)) for gate, check in self._checks.items()}

    def _judge(self, joke: Joke) -> Judgement:
        faults = self._look(joke)
        parts = {gate: fault.value for gate, fault in faults.items()}
        reasons = [f"{gate}: {fault.why}" for gate, fault in faults.items() if fault.why]
        return Judgement(self.name, math.prod(parts.values(), start=1.0), parts, "; ".join(reasons) or "nothing wrong")

    def _form(self, joke: Joke, text: _Text) -> tuple[float, str]:
        if not text.words:
            return 0.0, "no words"
        if len(text.words) < 3:
            return 0.0, f"{len(text.words)} words are no line"
        if joke.stop_reason == "length":
            return 0.0, "cut off before its end"
        if len(joke.text.strip().splitlines()) > 1:
            return 0.0, "more than one line"
        if label := _LABEL.search(text.read):
            return 0.0, f"a label or preamble, {_quoted(label.group())}"
        if self.english and (refusal := _REFUSAL.search(text.read)):
            return 0.0, f"a refusal, {_quoted(refusal.group())}"
        if self.english and text.read.isascii() and len(text.words) >= 5:
            share = sum(w in _FUNCTION_WORDS for w in text.words) / len(text.words)
            if share < 0.1 or text.read.count(",") > 0.6 * len(text.words):
                return 0.0, "a heap of words, not a sentence"
        if joke.prompt.text.rstrip().endswith(_ENDS) and not joke.text.rstrip().endswith(_ENDS):
            return 0.5, "its sentence has no end"
        return 1.0, ""

    def _length(self, joke: Joke, text: _Text) -> tuple[float, str]:
        n, prompt_length = len(text.words), len(text.asked)
        low, high = 0.0, float(self.max_words)
        if joke.prompt.task == "paraphrase" and prompt_length:
            low = self.min_ratio * prompt_length
            high = max(self.max_ratio * prompt_length, prompt_length + self.slack)
        if low <= n <= high:
            return 1.0, ""
        # Falls to 0 at half the lower bound and at one and a half times the upper one.
        value = (n - low / 2) / (low / 2) if n < low else (1.5 * high - n) / (0.5 * high)
        return max(0.0, value), f"{n} words where {low:.3g} to {high:.3g} are allowed"

    def _repetition(self, joke: Joke, text: _Text) -> tuple[float, str]:
        run = _longest_run(text.words)
        if run >= 3:
            return 0.0, "the same word again and again"
        # A drawn-out letter is a common hack and sometimes the joke itself, so it costs half.
        value, fault = 1.0, ""
        if re.search(r"([^\W\d])\1{3,}", text.read):
            value, fault = 0.5, "the same letter again and again"
        if len(text.words) >= 6:
            trigrams = [tuple(text.words[i : i + 3]) for i in range(len(text.words) - 2)]
            again = 1 - len(set(trigrams)) / len(trigrams)
            if (dull := _falling(again, 0.2, 0.4)) < value:
                value, fault = dull, f"{again:.0%} of its word triples are repeats"
            variety = len(set(text.words)) / len(text.words)
            if len(text.words) >= 10 and (dull := _falling(1 - variety, 0.5, 0.7)) < value:
                value, fault = dull, f"only {len(set(text.words))} different words among {len(text.words)}"
        return value, fault

    def _copies_prompt(self, joke: Joke, text: _Text) -> tuple[float, str]:
        prompt_words = text.asked
        if not prompt_words or not text.words:
            return 1.0, ""
        new = sum((Counter(text.words) - Counter(prompt_words)).values())
        copied = _share_found(text.words, prompt_words, 2)
        # One new word is a retouched copy; many new words around a copied prompt are padding or a joke, not a copy.
        value = min(1.0, new / 2, _falling(copied, 0.75, 0.95))
        return value, "" if value == 1.0 else f"{copied:.0%} of it is the prompt, {new} words are new"

    def _copies_teacher(self, joke: Joke, text: _Text) -> tuple[float, str]:
        assert self._lines_for is not None
        copied = max((_alike(text.words, words(line)) for line in self._lines_for(joke.prompt.id)), default=0.0)
        value = _falling(copied, 0.7, 0.9)
        return value, "" if value == 1.0 else f"{copied:.0%} of it is one of the teacher's lines"


class _Text:
    """A joke's text processed once: normalised, and as words; and its prompt's words."""

    def __init__(self, joke: Joke) -> None:
        self.raw = joke.text
        self.read = as_read(joke.text).replace("’", "'")
        self.words = words(joke.text)
        self.asked = words(joke.prompt.text)


def _required_words(joke: Joke, text: _Text) -> tuple[float, str]:
    required = joke.prompt.extra.get("words") or ()
    missing = text_stats.missing_words(joke.text, required)
    return (1 - len(missing) / len(required), f"'{missing[0]}' is missing") if missing else (1.0, "")


def _explanation(joke: Joke, text: _Text) -> tuple[float, str]:
    phrase = text_stats.explaining(text.raw)
    return (0.0, _quoted(phrase)) if phrase else (1.0, "")


def _emoji(joke: Joke, text: _Text) -> tuple[float, str]:
    emoji = text_stats.emoji(text.raw)
    return (0.0, f"{len(emoji)} emoji") if emoji else (1.0, "")


def _laughter(joke: Joke, text: _Text) -> tuple[float, str]:
    laugh = text_stats.laughter(text.raw)
    if laugh:
        return 0.0, _quoted(laugh)
    shouting = _SHOUTING.search(text.read)
    if shouting or text.read.count("!") > 2:
        return 0.0, "shouting with exclamation marks"
    loud = [w for w in re.findall(r"[^\W\d_]{3,}", text.raw) if w.isupper()]
    return (0.0, "shouting in capitals") if len(loud) >= 4 else (1.0, "")


def _judge_talk(joke: Joke, text: _Text) -> tuple[float, str]:
    match = _JUDGE_TALK.search(text.read)
    return (0.0, _quoted(match.group())) if match else (1.0, "")


def _hidden(joke: Joke, text: _Text) -> tuple[float, str]:
    hidden = list(hidden_characters(text.raw))
    code_points = ", ".join(f"U+{ord(c):04X}" for c in dict.fromkeys(hidden[:100]))
    return (0.0, f"{len(hidden)} hidden characters ({code_points[:60]})") if hidden else (1.0, "")


def _falling(value: float, fine: float, bad: float) -> float:
    """1 up to `fine`, 0 from `bad` on, linear between."""
    return min(1.0, max(0.0, (bad - value) / (bad - fine)))


def _longest_run(tokens: Sequence[str]) -> int:
    longest = run = 1
    for previous, current in pairwise(tokens):
        run = run + 1 if current == previous else 1
        longest = max(longest, run)
    return longest


def _share_found(tokens: Sequence[str], source: Sequence[str], n: int) -> float:
    mine = ngrams(tokens, n)
    return len(mine & ngrams(source, n)) / len(mine) if mine else 0.0


def _alike(a: Sequence[str], b: Sequence[str]) -> float:
    """Dice similarity of two lines' word pairs: a copy within a longer text counts less than an exact copy."""
    first, second = ngrams(a, 2), ngrams(b, 2)
    return 2 * len(first & second) / (len(first) + len(second)) if first and second else 0.0


def _quoted(text: str) -> str:
    return "'" + " ".join(text.split())[:40] + "'"
