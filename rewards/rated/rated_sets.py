"""What people found funny, read from the public files as they were published: texts with ratings, or pairs.

    rated = load_rated("humicroedit", "task-1_train.csv")
    rated.texts[0].text, rated.texts[0].score, rated.texts[0].raters     # "…", 0.2, (1.0, 0.0, 0.0, 0.0, 0.0)
    load_rated("humicroedit", "task-2_dev.csv").decided()                # pairs, those that people tied left out
    rated_sets.register("mine", "my_package.data:load_mine", "our office's votes")

What people rated is not shipped: get a set from those who published it, mind its licence. (`everyday-grades`, by a
language model, is bundled.) A loader is a function of a list of paths (and options) that returns a `RatedSet`; what it
changed on the way (padding, rows without a rating) it says in `notes`. Several of these sets hold offensive texts:
nothing here prints any.
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


@dataclass(frozen=True, slots=True)
class RatedText:
    """A text and what people thought of it: `score` is their mean, on the scale of the set; more is funnier.

    `raters` holds single grades where the set has them; they are in no particular order unless `rater_ids` says whose
    they are. `prompt` is what the text answers (a headline before the edit, a cartoon's description; empty where there
    is none). `kind` tells texts apart that must not be mixed (puns from non-puns, jokes from straight endings).
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
    """Two texts for one prompt and which of them people found funnier. Where the set has votes only, the texts' scores
    are not a number (`gap` is None)."""

    id: str
    a: RatedText
    b: RatedText
    label: Label

    @property
    def gap(self) -> float | None:
        """How far apart the two ratings are, or None where there are only votes."""
        gap = abs(self.a.score - self.b.score)
        return None if math.isnan(gap) else gap

    @property
    def jokes(self) -> tuple[Joke, Joke]:
        return self.a.joke, self.b.joke


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others published on this set, with where it stands. `what` is "pair accuracy" or "spearman"."""

    who: str
    what: str
    value: float
    source: str


@dataclass(frozen=True)
class RatedSet:
    """A rated set as loaded. `scale` is the lowest and the highest grade that a rater could give; `main` the kind of
    text on which critics are compared, where there are several; `notes` what the loader mended or left out; `rated_by`
    whose ratings they are, in words that can follow "agreement with"."""

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
        """The rated texts, or those that stand in the pairs, each once."""
        if self.texts:
            return self.texts
        return tuple({text.id: text for pair in self.pairs for text in (pair.a, pair.b)}.values())

    def unit(self, score: float) -> float:
        """A grade on [0, 1]."""
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
        "isarcasm": (f"{_SEMEVAL}:load_isarcasm", "sarcastic tweets beside literal rephrases, iSarcasmEval"),
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
    """The set of a registered name (or `package.module:name`) from its file or files; a bundled one has none."""
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
