"""Measure a critic's agreement with people on a human-rated set, compared with chance, length and a single person.

    report = audit("rules", load_rated("humicroedit", "task-2_dev.csv"))
    report.pairs.accuracy, report.pairs.interval       # 0.51, (0.49, 0.53): no better than chance
    print(report.markdown())

Pair accuracy: on pairs that people did not tie, the share in which the critic prefers the same line; a critic's tie
counts half. Every pair is judged in both orders and the two are averaged before deciding. Intervals are 95 %, from
resampling prompts (not pairs). Critics of single lines and judges of pairs get the same numbers; only critics have a
rank correlation, and context: whether they read the prompt at all. No text is printed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, TypeVar, cast

import numpy as np

from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import CriticContractError, InvalidOption
from humor_env.registry import critics, judges
from humor_env.rewards.audits import audit_stats as stats
from humor_env.rewards.audits.audit_stats import Floats
from humor_env.rewards.audits.context import DRAWS, measure_context
from humor_env.rewards.audits.report import AuditReport, Example, GapRow, Kind, PairScores, Reference, TextScores
from humor_env.rewards.likelihood.surprisal import make_surprisal
from humor_env.rewards.rated.rated_sets import Published, RatedPair, RatedSet, RatedText, prompt_name
from humor_env.rewards.shared.both_orders import Pair, both_ways
from humor_env.rewards.shared.reading import ngrams, words
from humor_env.shared.streams import generator, stream_seed
from humor_env.types import Critic, Joke, Judge, Verdict, critic_name

# Upper ends of the bins of rating gaps, as shares of the scale; the last bin is "a third and more" (grades 0 to 3).
GAPS = (0.1, 0.2, 1 / 3, math.inf)
MOST_MADE_PAIRS = 2000
MOST_FOR_ALL_PAIRS = 200  # texts for one prompt; of more, such as a contest's thousands of captions, random pairs

Item = TypeVar("Item", RatedPair, RatedText)


def audit(
    critic: str | Critic | Judge,
    rated: RatedSet,
    *,
    options: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    limit: int | None = None,
    both_orders: bool = True,
    surprisal: str | None = "unigram",
    examples: int = 0,
    context: int = DRAWS,
    seed: int = 0,
) -> AuditReport:
    """Measure a critic or judge, by name with options or live.

    A name may be a critic's or a judge's; if it is both, or for a live judge, set `kind`.
    `limit` bounds the pairs and the texts, sampled at random. `both_orders=False` calls a critic of single lines once:
    half the price, but no flip rate. `surprisal` is "unigram", a language model's name, or None for no such row.
    `examples` keeps that many pairs on which it was most surely wrong: they contain text of the set, possibly
    offensive. `context` is how many other prompts each line is scored with, 0 for none: a critic of single lines scores
    each of at most 500 lines this many more times.
    """
    critic_or_judge, kind = make_judging(critic, kind, options or {})
    notes = list(rated.notes)
    whole = rated
    rated = _main_kind(rated, notes)
    pairs, made_here = _decided_pairs(rated, seed)
    tied = sum(pair.label == "tie" for pair in rated.pairs)
    if tied:
        notes.append(f"{tied} pairs left out because people tied them")
    if made_here:
        notes.append("the set has ratings, so pairs were made from them")
    pairs = _drawn(pairs, limit, seed)
    texts = _drawn(whole.texts, limit, seed)
    judging = _Judging(critic_or_judge, kind, both_orders, seed)
    judging.see(pairs, texts)
    own_pairs = judging.pair_scores(pairs, rated) if pairs else None
    # A set of pairs with rated texts has both kinds of human answers.
    ranked = texts or tuple({t.id: t for pair in pairs for t in (pair.a, pair.b) if not math.isnan(t.score)}.values())
    own_texts = judging.text_scores(ranked, rated.main) if kind == "critic" and len(ranked) > 2 else None
    main_texts = [t for t in ranked if rated.main is None or t.kind == rated.main]
    references = _references(pairs, main_texts, rated, surprisal, seed)
    alpha = stats.krippendorff_alpha([t.raters for t in main_texts])
    own_context = None
    if kind == "critic" and context:
        context_texts = main_texts or list({t.id: t for pair in pairs for t in (pair.a, pair.b)}.values())
        own_context = measure_context(
            cast(Critic, critic_or_judge),
            [text.joke for text in context_texts],
            draws=context,
            grades=[text.score for text in context_texts] if main_texts else (),
            scale=rated.scale,
            seed=seed,
        )
    return AuditReport(
        critic_name(critic_or_judge) if not isinstance(critic, str) else critic,
        kind,
        rated.name,
        dict(options or {}),
        own_pairs,
        own_texts,
        references,
        alpha,
        tuple(dict.fromkeys([*notes, *judging.notes])),
        judging.confidently_wrong(pairs, examples),
        own_context,
        rated.rated_by,
    )


def make_judging(
    what: str | Critic | Judge, kind: Kind | None, options: Mapping[str, Any]
) -> tuple[Critic | Judge, Kind]:
    """Make the critic or judge; return it with its kind."""
    if not isinstance(what, str):
        return what, kind or "critic"
    if kind is None:
        kind = "judge" if what in judges.entries() and what not in critics.entries() else "critic"
    registry = judges if kind == "judge" else critics
    return cast(Critic | Judge, registry.make(what, **options)), kind


def _main_kind(rated: RatedSet, notes: list[str]) -> RatedSet:
    if rated.main is None:
        return rated
    main = rated.only(rated.main)
    notes.append(f"pairs and the rank correlation are for the kind '{rated.main}' only")
    return main


def _drawn(items: Sequence[Item], limit: int | None, seed: int) -> tuple[Item, ...]:
    """At most `limit` items, chosen by a hash of their ids, so that a larger limit extends a smaller one."""
    if limit is None or len(items) <= limit:
        return tuple(items)
    if limit < 1:
        raise InvalidOption(f"limit must be at least 1, found {limit}.")
    chosen = set(sorted(range(len(items)), key=lambda i: stream_seed(seed, "audit-limit", items[i].id))[:limit])
    return tuple(item for i, item in enumerate(items) if i in chosen)


def _decided_pairs(rated: RatedSet, seed: int) -> tuple[tuple[RatedPair, ...], bool]:
    """The set's decided pairs; for a set of ratings, pairs of texts for one prompt with different ratings. Texts that
    answer no prompt are paired at random."""
    if rated.pairs:
        return rated.decided(), False
    groups: dict[str, list[RatedText]] = defaultdict(list)
    for text in rated.texts:
        groups[prompt_name(text.prompt)].append(text)
    pairs: list[RatedPair] = []
    for name, group in groups.items():
        if name and len(group) <= MOST_FOR_ALL_PAIRS:
            pairs += [_pair(a, b) for a, b in combinations(group, 2) if a.score != b.score]
        elif len(group) > 1:
            index = name.encode("utf-8", "surrogatepass").hex() or 0
            pairs += _random_pairs(group, generator(seed, "audit-pairs", index))
    return _drawn(pairs, MOST_MADE_PAIRS, seed), True


def _random_pairs(texts: Sequence[RatedText], random: np.random.Generator) -> list[RatedPair]:
    """At most `MOST_MADE_PAIRS` pairs of texts with different ratings."""
    pairs: list[RatedPair] = []
    seen: set[tuple[int, int]] = set()
    for _ in range(4 * MOST_MADE_PAIRS):
        i, j = (int(k) for k in random.choice(len(texts), 2, replace=False))
        if len(seen) < MOST_MADE_PAIRS and (min(i, j), max(i, j)) not in seen and texts[i].score != texts[j].score:
            seen.add((min(i, j), max(i, j)))
            # A judge compares lines for one prompt; texts without one have none in common.
            pairs.append(_pair(texts[i], replace(texts[j], prompt=texts[i].prompt)))
    return pairs


def _pair(a: RatedText, b: RatedText) -> RatedPair:
    return RatedPair(f"{a.id}/{b.id}", a, b, "a" if a.score > b.score else "b")


def _truth(pairs: Sequence[RatedPair]) -> Floats:
    return np.array([1.0 if pair.label == "a" else -1.0 for pair in pairs])


def _longer(pairs: Sequence[RatedPair]) -> Floats:
    """How much longer the preferred text is, as a log ratio of characters."""
    raw = np.array([math.log((len(p.a.text) + 1) / (len(p.b.text) + 1)) for p in pairs])
    return cast(Floats, raw * _truth(pairs))


def _clusters(pairs: Sequence[RatedPair]) -> list[Hashable]:
    """The resampling units: the prompts, or without prompts the first texts."""
    return [prompt_name(pair.a.prompt) or pair.a.id for pair in pairs]


class _Judging:
    """A critic's or judge's answers on one set: collected once, then used for every number."""

    def __init__(self, critic_or_judge: Critic | Judge, kind: Kind, both_orders: bool, seed: int) -> None:
        self.critic_or_judge, self.kind, self.both_orders, self.seed = critic_or_judge, kind, both_orders, seed
        self.notes: list[str] = []
        self.scores: list[dict[tuple[str, str], float | None]] = []
        self.first: list[Verdict] = []
        self.second: list[Verdict] = []

    def see(self, pairs: Sequence[RatedPair], texts: Sequence[RatedText]) -> None:
        if self.kind == "critic":
            jokes = [joke for pair in pairs for joke in pair.jokes] + [text.joke for text in texts]
            distinct = list({_key(joke): joke for joke in jokes}.values())
            self.scores.append(self._score(distinct))
            if self.both_orders:
                self.scores.append(self._score(distinct[::-1]))
            return
        joke_pairs: list[Pair] = [pair.jokes for pair in pairs]
        ask = getattr(self.critic_or_judge, "ask", None)
        if callable(ask):
            # Separate orders give more information than their average, at the same cost.
            answers = self._verdicts(ask, both_ways(joke_pairs))
            self.first, self.second = answers[::2], answers[1::2]
        else:
            self.first = self._verdicts(self.critic_or_judge, joke_pairs)

    def _score(self, jokes: Sequence[Joke]) -> dict[tuple[str, str], float | None]:
        judgements = cast(Critic, self.critic_or_judge)(jokes) if jokes else []
        if len(judgements) != len(jokes):
            raise CriticContractError(
                f"The critic '{critic_name(self.critic_or_judge)}' was given {len(jokes)} jokes and returned "
                f"{len(judgements)} judgements: it must return one per joke, in order."
            )
        self._say(zip([[joke] for joke in jokes], [j.error for j in judgements], strict=True))
        return {_key(joke): judgement.score for joke, judgement in zip(jokes, judgements, strict=True)}

    def _verdicts(self, ask: Any, pairs: Sequence[Pair]) -> list[Verdict]:
        verdicts = checked_verdicts(ask, pairs, critic_name(self.critic_or_judge))
        self._say(zip(pairs, [v.error for v in verdicts], strict=True))
        return verdicts

    def _say(self, errors: Iterable[tuple[Sequence[Joke], str | None]]) -> None:
        """Note why something could not be judged, in at most three sentences, without quoting the texts."""
        problems = {_without_texts(error, jokes) for jokes, error in errors if error}
        self.notes += [f"could not judge: {error}" for error in sorted(problems)[:3]]

    def _margins(self, pairs: Sequence[RatedPair]) -> tuple[Floats, Floats | None]:
        """How much the first text is preferred, in each order (NaN if it failed); None if there is only one order."""
        if self.kind == "critic":
            columns = []
            for scores in self.scores:
                both = [(scores[_key(p.a.joke)], scores[_key(p.b.joke)]) for p in pairs]
                columns.append(np.array([math.nan if a is None or b is None else a - b for a, b in both], dtype=float))
            return columns[0], columns[1] if len(columns) > 1 else None
        first = np.array([math.nan if v.probability is None else v.probability - 0.5 for v in self.first], dtype=float)
        if not self.second:
            return first, None
        # Asked as (b, a), so a's probability is the complement.
        return first, np.array(
            [math.nan if v.probability is None else 0.5 - v.probability for v in self.second], dtype=float
        )

    def pair_scores(self, pairs: Sequence[RatedPair], rated: RatedSet) -> PairScores:
        forward, back = self._margins(pairs)
        margins = forward if back is None else (forward + back) / 2
        judged = ~np.isnan(margins)
        failed = int((~judged).sum())
        if not judged.any():
            return PairScores(0, failed)
        kept = [pair for pair, ok in zip(pairs, judged, strict=True) if ok]
        forward, margins = forward[judged], margins[judged]
        truth, longer, clusters = _truth(kept), _longer(kept), _clusters(kept)
        credit = stats.pair_credit(margins, truth)
        grades = [(pair.a.raters, pair.b.raters) for pair in kept]
        flips: float | None = None
        orders: tuple[float | None, float | None] = (None, None)
        first: float | None = None
        if back is not None:
            back = back[judged]
            flips = float(np.mean(np.sign(forward) != np.sign(back)))
            orders = (float(stats.pair_credit(forward, truth).mean()), float(stats.pair_credit(back, truth).mean()))
            if self.kind == "judge":
                # a is shown first in one order, b in the other.
                both = stats.pair_credit(forward, np.ones(len(kept))) + stats.pair_credit(back, -np.ones(len(kept)))
                first = float(both.mean() / 2)
        elif self.kind == "judge":
            flipped = [v.flipped for v, ok in zip(self.first, judged, strict=True) if ok and v.flipped is not None]
            flips = sum(flipped) / len(flipped) if flipped else None
        bins = stats.calibration_bins(0.5 + np.abs(margins), credit)
        return PairScores(
            len(kept),
            failed,
            float(credit.mean()),
            stats.interval(credit, clusters, self.seed),
            _by_gap(kept, credit, clusters, rated, self.seed),
            *orders,
            first,
            flips,
            float(np.mean((credit == 0) & (longer < 0))),
            stats.length_controlled(credit, longer),
            stats.agreement_with_one(margins, grades),
            bins,
            stats.calibration_error(bins) if self.kind == "judge" else None,
        )

    def confidently_wrong(self, pairs: Sequence[RatedPair], count: int) -> tuple[Example, ...]:
        """The wrong pairs of which it was most confident."""
        if not pairs or count < 1:
            return ()
        forward, back = self._margins(pairs)
        against = -_truth(pairs) * (forward if back is None else (forward + back) / 2)
        order = [int(i) for i in np.argsort(-np.nan_to_num(against, nan=-1.0), kind="stable")[:count]]
        examples = []
        for i in (i for i in order if against[i] > 0):
            a, b = pairs[i].a, pairs[i].b
            best, named = (a, b) if pairs[i].label == "a" else (b, a)
            examples.append(Example(a.prompt.text, best.text, named.text, float(against[i])))
        return tuple(examples)

    def text_scores(self, texts: Sequence[RatedText], main: str | None) -> TextScores:
        scored = [(text, [scores[_key(text.joke)] for scores in self.scores]) for text in texts]
        good = [(t, sum(cast(list[float], s)) / len(s)) for t, s in scored if all(x is not None for x in s)]
        failed = len(texts) - len(good)
        scored_texts = [(t, s) for t, s in good if main is None or t.kind == main]
        kinds = {t.kind for t, _ in good} if len({t.kind for t, _ in good}) > 1 else set()
        score, people = [s for _, s in scored_texts], [t.score for t, _ in scored_texts]
        rated = [(t.offence, s, t.score) for t, s in scored_texts if t.offence is not None]
        return TextScores(
            len(scored_texts),
            failed,
            stats.spearman(score, people),
            stats.spearman_interval(score, people, [prompt_name(t.prompt) or t.id for t, _ in scored_texts], self.seed),
            stats.partial_spearman(score, people, [len(t.text) for t, _ in scored_texts]),
            stats.spearman([s for _, s, _ in rated], [o for o, _, _ in rated]),
            stats.spearman([p for _, _, p in rated], [o for o, _, _ in rated]),
            {
                kind: stats.spearman(
                    [s for t, s in good if t.kind == kind], [t.score for t, _ in good if t.kind == kind]
                )
                for kind in sorted(kinds)
            },
        )


def _without_texts(error: str, jokes: Sequence[Joke]) -> str:
    """An error message without the texts it quotes, which may be offensive."""
    for text in sorted({t for j in jokes for t in (j.prompt.id, j.prompt.text, j.text) if t}, key=len, reverse=True):
        error = error.replace(text, "…")
    trigrams = {gram for joke in jokes for t in (joke.prompt.text, joke.text) for gram in ngrams(words(t), 3)}
    if trigrams & ngrams(words(error), 3):
        return "an error that quotes the text"
    return error[:160]


def _key(joke: Joke) -> tuple[str, str]:
    return joke.prompt.text, joke.text


def _by_gap(
    pairs: Sequence[RatedPair], credit: Floats, clusters: Sequence[Hashable], rated: RatedSet, seed: int
) -> tuple[GapRow, ...]:
    gaps = np.array([math.nan if pair.gap is None else pair.gap for pair in pairs])
    span = rated.scale[1] - rated.scale[0]
    rows, low = [], 0.0
    for share in GAPS:
        high = share * span
        # Grades are means of a few raters: 0.6 and 0.6000000001 are the same gap.
        in_row = (gaps >= low - 1e-9) & (gaps < high - 1e-9)
        if in_row.any():
            inside = [c for c, ok in zip(clusters, in_row, strict=True) if ok]
            bounds = stats.interval(credit[in_row], inside, seed)
            upper = None if math.isinf(high) else high
            rows.append(GapRow(low, upper, int(in_row.sum()), float(credit[in_row].mean()), bounds))
        low = high
    return tuple(rows)


def _references(
    pairs: Sequence[RatedPair], texts: Sequence[RatedText], rated: RatedSet, surprisal: str | None, seed: int
) -> tuple[Reference, ...]:
    """Reference rows on the same pairs and texts: chance, length, surprisal, people, ceiling, published results."""
    people = [text.score for text in texts]
    rows = [Reference("chance", 0.5 if pairs else None, None, 0.0 if texts else None)]

    def measured(name: str, values: Mapping[str, float]) -> Reference:
        accuracy = bounds = None
        if pairs:
            margins = np.array([values[p.a.text] - values[p.b.text] for p in pairs])
            credit = stats.pair_credit(margins, _truth(pairs))
            accuracy, bounds = float(credit.mean()), stats.interval(credit, _clusters(pairs), seed)
        return Reference(name, accuracy, bounds, stats.spearman([values[t.text] for t in texts], people))

    every = list(dict.fromkeys([t.text for p in pairs for t in (p.a, p.b)] + [t.text for t in texts]))
    rows.append(measured("the longer line", {text: float(len(text)) for text in every}))
    rows.append(measured("the shorter line", {text: -float(len(text)) for text in every}))
    if surprisal is not None:
        name, measure = make_surprisal(surprisal, every)
        rows.append(measured(name, dict(zip(every, measure(every), strict=True))))
    grades = [(pair.a.raters, pair.b.raters) for pair in pairs]
    raters = [text.raters for text in texts]
    person, ceiling = stats.one_against_others(grades, seed), stats.pair_ceiling(grades)
    rank, cap = stats.one_against_rest(raters, seed), stats.correlation_ceiling(raters)
    if person is not None or rank is not None:
        rater = "one person" if rated.rated_by == "people" else "one grading"
        rows.append(Reference(f"{rater} against the others", person, None, rank, "from this set's raters"))
    if ceiling is not None or cap is not None:
        rows.append(Reference("ceiling: a perfect critic", ceiling, None, cap, "from this set's raters"))
    return (*rows, *map(_published, rated.published))


def _published(figure: Published) -> Reference:
    accurate = figure.what == "pair accuracy"
    return Reference(
        figure.who,
        figure.value if accurate else None,
        None,
        None if accurate else figure.value,
        f"published: {figure.source}",
    )
