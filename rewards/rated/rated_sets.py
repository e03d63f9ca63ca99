"""Human-rated sets, read from the public files as published: texts with ratings, or pairs.

    rated = load_rated("humicroedit", "task-1_train.csv")
    rated.texts[0].text, rated.texts[0].score, rated.texts[0].raters     # "…", 0.2, (1.0, 0.0, 0.0, 0.0, 0.0)
    load_rated("humicroedit", "task-2_dev.csv").decided()                # pairs, without ties
    rated_sets.register("mine", "my_package.data:load_mine", "our office's votes")

The sets are not shipped: get each from its publisher and mind its licence. (`everyday-grades`, by a language model, is
bundled.) A loader is a function from a list of paths (and options) to a `RatedSet`, whose `notes` say what it changed
(padding, rows without a rating). Several of these sets contain offensive texts: nothing here prints any.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from humor_env.errors import InvalidOption, RatingsError
from humor_env.registry import Registry
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Prompt

Label = Literal["a", "b", "tie"]

_NO_PROMPT = "none"


def make_prompt(text: str, id: str, task: str = "joke") -> Prompt:
    """The prompt of a text in a set; without words, that of a text that answers none, called by the text's `id`."""
    return Prompt(f"asked:{text}" if text else f"{_NO_PROMPT}:{id}", text, task)


def prompt_name(prompt: Prompt) -> str:
    """What lines for one prompt have in common: its words, or if these are unknown its id, such as a contest's. Empty
    for a text that answers no prompt."""
    if prompt.text.strip():
        return prompt.text
    return "" if prompt.id.partition(":")[0] in ("", _NO_PROMPT) else prompt.id


@dataclass(frozen=True, slots=True)
class RatedText:
    """A text and its human rating: `score` is the mean, on the scale of the set; higher is funnier.

    `raters` holds single grades, if the set has them, in no particular order unless `rater_ids` identifies the raters.
    `prompt` is what the text answers (a headline before the edit, a cartoon's description; empty if there is none).
    `kind` separates texts that must not be mixed (puns from non-puns, jokes from straight endings).
    """

    id: str
    prompt: Prompt
    text: str
    score: float
    raters: tuple[float, ...] = ()
    rater_ids: tuple[str, ...] = ()
    kind: str = ""
    offence: float | None = None

    @property
    def joke(self) -> Joke:
        return Joke(self.prompt, self.text, author="people")


@dataclass(frozen=True, slots=True)
class RatedPair:
    """Two texts for one prompt, and which of them people found funnier. If the set has only votes, the texts' scores
    are NaN (`gap` is None)."""

    id: str
    a: RatedText
    b: RatedText
    label: Label

    @property
    def gap(self) -> float | None:
        """The difference of the two ratings; None if there are only votes."""
        gap = abs(self.a.score - self.b.score)
        return None if math.isnan(gap) else gap

    @property
    def jokes(self) -> tuple[Joke, Joke]:
        return self.a.joke, self.b.joke


@dataclass(frozen=True, slots=True)
class Published:
    """A published result on this set, with its source. `what` is "pair accuracy" or "spearman"."""

    who: str
    what: str
    value: float
    source: str


@dataclass(frozen=True)
class RatedSet:
    """A loaded rated set. `scale` is the lowest and the highest possible grade; `main` the kind of text on which
    critics are compared, if there are several; `notes` what the loader fixed or left out; `rated_by` whose ratings they
    are, phrased to follow "agreement with"."""

    name: str
    texts: tuple[RatedText, ...] = ()
    pairs: tuple[RatedPair, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)
    main: str | None = None
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    rated_by: str = "people"

    def decided(self) -> tuple[RatedPair, ...]:
        """The pairs that people did not tie."""
        return tuple(pair for pair in self.pairs if pair.label != "tie")

    @cached_property
    def every_text(self) -> tuple[RatedText, ...]:
        """The rated texts, or those in the pairs, each once."""
        if self.texts:
            return self.texts
        return tuple({text.id: text for pair in self.pairs for text in (pair.a, pair.b)}.values())

    def unit(self, score: float) -> float:
        """A grade rescaled to [0, 1]."""
        low, high = self.scale
        return (score - low) / (high - low)

    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text.kind for text in self.every_text))

    def only(self, kind: str) -> RatedSet:
        """The texts of one kind, and the pairs within it."""
        texts = tuple(text for text in self.texts if text.kind == kind)
        return replace(
            self, texts=texts, pairs=tuple(pair for pair in self.pairs if pair.a.kind == kind and pair.b.kind == kind)
        )


Loader = Callable[..., RatedSet]

BUNDLED = ("everyday-grades",)  # sets that are part of this package

_SEMEVAL = "humor_env.rewards.rated.semeval"
_OTHERS = "humor_env.rewards.rated.other_sets"

rated_sets = Registry(
    "human-rated set",
    "humor_env.rated_sets",
    {
        "humicroedit": (f"{_SEMEVAL}:load_humicroedit", "edited headlines, SemEval-2020 task 7: ratings or pairs"),
        "funlines": (f"{_SEMEVAL}:load_funlines", "edited headlines of the FunLines game, the same format"),
        "hahackathon": (f"{_SEMEVAL}:load_hahackathon", "short texts with humor and offence, SemEval-2021 task 7"),
        "semeval-puns": (f"{_SEMEVAL}:load_semeval_puns", "pun or not, SemEval-2017 task 7: XML and gold files"),
        "expun": (f"{_SEMEVAL}:load_expun", "puns with five raters each, ExPUN"),
        "kao": (f"{_OTHERS}:load_kao", "435 puns and controls, Kao, Levy and Goodman"),
        "pun-surprise": (f"{_OTHERS}:load_pun_surprise", "rated puns, He, Peng and Liang"),
        "newyorker": (f"{_OTHERS}:load_newyorker", "crowd-rated captions of the cartoon contest"),
        "newyorker-pairs": (f"{_OTHERS}:load_newyorker_pairs", "caption pairs with a description of the cartoon"),
        "turing-jest": (f"{_OTHERS}:load_turing_jest", "jokes, straight and expected endings, single ratings"),
        "humor-arena": (f"{_OTHERS}:load_humor_arena", "votes on pairs of jokes that models wrote"),
        "unfun": (f"{_OTHERS}:load_unfun", "how serious headlines seem, satire and its edits"),
        "getting-serious": (f"{_OTHERS}:load_getting_serious", "real, satirical and generated headlines"),
        "humor-mechanics": (f"{_OTHERS}:load_humor_mechanics", "jokes from Reddit and a model, mean ratings"),
        "rjokes": (f"{_OTHERS}:load_rjokes", "Reddit jokes by log of upvotes"),
        "jester": (f"{_OTHERS}:load_jester", "a table of users by jokes, -10 to 10"),
        "isarcasm": (f"{_SEMEVAL}:load_isarcasm", "sarcastic tweets with literal rephrases, iSarcasmEval"),
        "everyday-grades": (
            "humor_env.rewards.rated.everyday_grades:load_everyday_grades",
            "bundled, needs no file: a large language model's grades of `everyday` lines that no critic learned from",
        ),
        "ratings": (f"{_OTHERS}:load_ratings", "your own: id, text, score, and optional prompt, raters, kind"),
        "pairs": (f"{_OTHERS}:load_pairs", "your own: a, b, label, and optional prompt"),
    },
)


def load_rated(
    name: str, files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (), **options: Any
) -> RatedSet:
    """Load the set of a registered name (or `package.module:name`) from its file or files; a bundled one has none."""
    loader: Loader = rated_sets.resolve(name)
    paths = [user_path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    try:
        inspect.signature(loader).bind(paths, **options)
    except TypeError as problem:
        accepted = list(inspect.signature(loader).parameters)[1:]
        raise InvalidOption(
            f"The human-rated set '{name}' cannot be read with the options {sorted(options)}: {problem}. It accepts: "
            f"{', '.join(accepted) or 'no options'}."
        ) from None
    rated = loader(paths, **options)
    if not rated.texts and not rated.pairs:
        where = ", ".join(map(str, paths)) or "no file"
        raise RatingsError(f"{where}: read as '{name}', and no rated text was found in it.")
    return rated
