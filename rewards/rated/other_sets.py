"""Loaders for the other public human-rated sets, and for two plain formats for your own data.

    load_rated("kao", "data-agg.csv")
    load_rated("newyorker", ["summary_510.csv", "scenes.csv"], ranks="30-39:300-309")
    load_rated("ratings", "office.csv")          # id, text, score; optionally prompt, raters, kind, offence
    load_rated("pairs", "office.jsonl")          # a, b, label (a, b or tie); optionally prompt

Raters' names never leave a loader: each is replaced by a short hash.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from humor_env.errors import InvalidOption, RatingsError
from humor_env.rewards.rated.rated_sets import Label, Published, RatedPair, RatedSet, RatedText, make_prompt
from humor_env.rewards.rated.tables import Column, Row, read_table, read_text
from humor_env.types import Prompt

NOT_A_NUMBER = float("nan")


def anonymous(rater: str) -> str:
    """A short hash of a rater's name, which only distinguishes raters."""
    return hashlib.blake2b(rater.encode(), digest_size=5, person=b"humor-rater").hexdigest()


def _tables(paths: Sequence[Path], what: str, columns: Sequence[Column]) -> list[Row]:
    return [row for path in paths for row in read_table(path, what, columns)]


def _grouped(
    rows: Iterable[Row],
    scale: tuple[float, float],
    *,
    kind: Callable[[Row], str] = lambda row: row["kind"],
    turn: Callable[[float], float] = lambda grade: grade,
    task: str = "joke",
) -> tuple[RatedText, ...]:
    """One text per id (or per prompt and text, without ids), from rows with one rater's grade each."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["id"] or (f"{row['prompt']}: {row['text']}" if row["prompt"] else row["text"])].append(row)
    texts = []
    for id, id_rows in groups.items():
        first = id_rows[0]
        for what in ("text", "prompt"):
            if any(row[what] != first[what] for row in id_rows):
                raise RatingsError(f"{id_rows[-1].place}: the id {id[:40]!r} belongs to two {what}s.")
        grades = []
        for row in id_rows:
            grade = row.number("score")
            if not scale[0] <= grade <= scale[1]:
                raise RatingsError(f"{row.place}: a grade must be in {scale[0]:g} to {scale[1]:g}, found {grade:g}.")
            grades.append(turn(grade))
        raters = tuple(anonymous(row["rater"]) for row in id_rows) if all(row["rater"] for row in id_rows) else ()
        offences = [row.number("offence") for row in id_rows if row["offence"]]
        texts.append(
            RatedText(
                id,
                make_prompt(first["prompt"], id, task),
                first["text"],
                sum(grades) / len(grades),
                tuple(grades) if len(grades) > 1 else (),
                raters if len(grades) > 1 else (),
                kind(first),
                sum(offences) / len(offences) if offences else None,
            )
        )
    return tuple(texts)


# Kao, Levy and Goodman: sentences with a marked word, Latin-1, bare carriage returns

KAO = [
    Column("id", ("sentenceID",)),
    Column("kind", ("sentenceType",)),
    Column("text", ("sentence",)),
    Column("score", ("funniness",)),
    Column("entropy", required=False),
    Column("kl", ("KL",), required=False),
]


def load_kao(paths: Sequence[Path]) -> RatedSet:
    """Sentences with z-scored funniness. The ambiguous word's mark (#) is removed."""
    rows = [row for path in paths for row in read_table(path, "kao", KAO, encoding="latin-1")]
    texts = []
    for index, row in enumerate(rows):
        kind = "pun" if row["kind"] == "pun" else "control"
        id = f"{row['id']}-{index}"
        texts.append(RatedText(id, make_prompt("", id), row["text"].replace("#", ""), row.number("score"), kind=kind))
    # z-scores are unbounded; three standard deviations cover the data.
    published = (Published("distinctiveness, within puns", "spearman", 0.28, "Kao, Levy and Goodman 2016 (Pearson)"),)
    notes = ("funniness is z-scored by rater; single grades were not published",)
    return RatedSet("kao", tuple(texts), (), (-3.0, 3.0), "pun", notes, published)


def load_pun_surprise(paths: Sequence[Path]) -> RatedSet:
    """Sentences with a mean score, or one row per rater (`worker` or `WorkerId`, hashed here)."""
    columns = [
        Column("id", ("sentence_id",), required=False, empty=True),
        Column("text", ("sentence", "sent")),
        Column("score", ("funniness", "funny")),
        Column("kind", ("type",), required=False, empty=True),
        Column("prompt", ("pair",), required=False, empty=True),
        Column("rater", ("worker", "WorkerId"), required=False, empty=True),
    ]
    rows = _tables(paths, "pun-surprise", columns)
    high = max((row.number("score") for row in rows), default=5.0)
    low = min((row.number("score") for row in rows), default=0.0)
    # The pun's pair of words is a label, not shown to readers.
    bare = [Row(row.place, {**row.values, "prompt": ""}) for row in rows]
    scale = (min(0.0, low), max(5.0, high)) if low >= 0 else (min(-3.0, low), max(3.0, high))
    kinds = {row["kind"] for row in rows}
    return RatedSet("pun-surprise", _grouped(bare, scale), (), scale, "pun" if "pun" in kinds else None)


# The New Yorker's caption contest

CAPTIONS = [
    Column("text", ("caption",)),
    Column("score", ("mean",)),
    Column("rank", required=False, empty=True),
    Column("contest", ("contest_number",), required=False, empty=True),
    Column("precision", required=False, empty=True),
    Column("count", ("votes",), required=False, empty=True),
    Column("unfunny", ("not_funny",), required=False, empty=True),
    Column("somewhat_funny", (), required=False, empty=True),
    Column("funny", (), required=False, empty=True),
]
SCENES = [Column("contest", ("contest_number",)), Column("scene", ("description", "image_description"))]


def load_newyorker(
    paths: Sequence[Path], min_count: int = 50, ranks: str | None = "1-10:1000-1009", max_grades: int = 100
) -> RatedSet:
    """Contest summaries, and optionally a table (contest, description) of the cartoons' scenes.

    A bandit algorithm gave more votes to good captions, so captions with fewer than `min_count` are left out. With
    `ranks` the set is pairs of a contest's captions from two ranges of ranks (the winner's is 1): "1-10:1000-1009" is
    the easy test of the literature and "30-39:300-309" the hard one; with None, it is the rated captions. At most
    `max_grades` of each caption's votes are kept as single grades, in the original proportions.
    """
    scenes: dict[str, str] = {}
    captions: dict[str, list[tuple[int, RatedText]]] = defaultdict(list)
    few = 0
    for path in paths:
        header = read_text(path).split("\n", 1)[0].lower()
        if "caption" not in header:
            scenes |= {row["contest"]: row["scene"] for row in read_table(path, "newyorker scenes", SCENES)}
    for path in paths:
        header = read_text(path).split("\n", 1)[0].lower()
        if "caption" not in header:
            continue
        rows = read_table(path, "newyorker", CAPTIONS)
        # The published files number the ranks from 0, `ranks` from 1.
        shift = int(any(row["rank"] and row.number("rank") == 0 for row in rows))
        for place, row in enumerate(rows, start=1):
            contest = row["contest"] or _digits(path.stem)
            counts = [int(row.number(name)) for name in ("unfunny", "somewhat_funny", "funny") if row[name]]
            total = int(row.number("count")) if row["count"] else sum(counts)
            if total < min_count:
                few += 1
                continue
            rank = int(row.number("rank")) + shift if row["rank"] else place
            id = f"{contest}-{rank}"
            raters = _spread(counts, max_grades) if len(counts) == 3 else ()
            prompt = Prompt(f"contest:{contest}", scenes.get(contest, ""), "caption")
            captions[contest].append((rank, RatedText(id, prompt, row["text"], row.number("score"), raters)))
    notes = [f"{few} captions with fewer than {min_count} votes left out"] if few else []
    if not all(contest in scenes for contest in captions):
        notes.append("no description of some cartoons: a critic that reads text only is handicapped")
    pairs = _rank_pairs(captions, ranks) if ranks else ()
    texts = () if ranks else tuple(text for contest_captions in captions.values() for _, text in contest_captions)
    if ranks and not pairs:
        raise RatingsError(
            f"No contest has captions of the ranks {ranks} with {min_count} votes. Give other ranks, or ranks=None."
        )
    published = {
        "1-10:1000-1009": (
            Published("GPT-4o, zero-shot", "pair accuracy", 0.673, "arXiv 2502.20356"),
            Published("fine-tuned on people", "pair accuracy", 0.824, "arXiv 2502.20356"),
            Published("a crowd worker", "pair accuracy", 0.617, "Zhang et al., NeurIPS 2024"),
        ),
        "30-39:300-309": (Published("fine-tuned on people", "pair accuracy", 0.632, "arXiv 2502.20356"),),
    }.get(ranks or "", ())
    return RatedSet("newyorker", texts, pairs, (1.0, 3.0), None, tuple(notes), published)


def _digits(stem: str) -> str:
    numbers = re.findall(r"\d+", stem)
    return numbers[0] if numbers else stem


def _spread(counts: Sequence[int], most: int) -> tuple[float, ...]:
    """Votes as single grades 1, 2 and 3, at most `most` of them, in proportion."""
    total = sum(counts)
    share = min(1.0, most / total) if total else 0.0
    return tuple(float(grade) for grade, n in enumerate(counts, start=1) for _ in range(round(n * share)))


def _rank_pairs(captions: dict[str, list[tuple[int, RatedText]]], ranks: str) -> tuple[RatedPair, ...]:
    match = re.fullmatch(r"(\d+)-(\d+):(\d+)-(\d+)", ranks)
    if not match:
        raise InvalidOption(f"ranks must have the form 1-10:1000-1009; found {ranks!r}.")
    low, high, lower, higher = map(int, match.groups())
    pairs = []
    for contest_captions in captions.values():
        best = [text for rank, text in contest_captions if low <= rank <= high]
        worse = [text for rank, text in contest_captions if lower <= rank <= higher]
        for i, a in enumerate(best):
            for j, b in enumerate(worse):
                # Alternate the sides, so that "always the first" does not work.
                first, second, label = (a, b, "a") if (i + j) % 2 == 0 else (b, a, "b")
                pairs.append(RatedPair(f"{a.id}/{b.id}", first, second, "a" if label == "a" else "b"))
    return tuple(pairs)


def load_newyorker_pairs(paths: Sequence[Path]) -> RatedSet:
    """Two captions with a description of the cartoon; `expected` says which won (A or B)."""
    columns = [
        Column("id", ("instance_id",), required=False, empty=True),
        Column("a", ("caption_a",)),
        Column("b", ("caption_b",)),
        Column("label", ("expected",)),
        Column("kind", ("winner_source",), required=False, empty=True),
        Column("prompt", ("image_description",), required=False, empty=True),
        Column("uncanny", ("image_uncanny_description",), required=False, empty=True),
    ]
    rows = _tables(paths, "newyorker-pairs", columns)
    pairs = tuple(_vote(row, index, "caption", extra=row["uncanny"]) for index, row in enumerate(rows))
    published = (Published("4 B model, LoRA on people", "pair accuracy", 0.657, "HumorLoRA repository, 2026"),)
    return RatedSet("newyorker-pairs", (), pairs, published=published)


_SIDES: dict[str, Label] = {
    **dict.fromkeys(("a", "1", "left", "captiona", "first"), "a"),
    **dict.fromkeys(("b", "2", "right", "captionb", "second"), "b"),
    **dict.fromkeys(("tie", "0", "both", "neither", "none", "equal", "draw"), "tie"),
}


def _vote(row: Row, index: int, task: str, extra: str = "") -> RatedPair:
    """A pair from a row with two texts and a vote. Its texts have no ratings."""
    label = _SIDES.get(re.sub(r"[^a-z0-9]", "", row["label"].lower()))
    if label is None:
        raise RatingsError(f"{row.place}: expected a label a, b or tie (or 1, 2, 0), found {row['label'][:40]!r}.")
    id = row["id"] or str(index + 1)
    question = " ".join(part for part in (row["prompt"], extra) if part)
    prompt = make_prompt(question, id, task)
    # The id of a text is the text itself, because the same line may be in many pairs.
    under = f"{prompt.id}/" if question else ""
    a, b = (RatedText(under + row[side], prompt, row[side], NOT_A_NUMBER, kind=row["kind"]) for side in ("a", "b"))
    return RatedPair(id, a, b, label)


def load_humor_arena(paths: Sequence[Path]) -> RatedSet:
    """Votes on two jokes about a theme. Nearly half of them say "neither is funny": these are ties, and left out."""
    columns = [
        Column("id", ("vote_id",), required=False, empty=True),
        Column("a", ("left_joke", "joke_left")),
        Column("b", ("right_joke", "joke_right")),
        Column("label", ("winner",)),
        Column("prompt", ("theme",), required=False, empty=True),
    ]
    rows = _tables(paths, "humor-arena", columns)
    neither = sum(row["label"].strip().lower() == "neither" for row in rows)
    pairs = tuple(_vote(row, index, "theme") for index, row in enumerate(rows))
    return RatedSet("humor-arena", (), pairs, notes=(f"{neither} votes say that neither is funny",))


# Sets of single grades


def load_turing_jest(paths: Sequence[Path]) -> RatedSet:
    """One row per participant and sentence. `Is_Joke` does not distinguish straight from expected endings; `type`
    does."""
    columns = [
        Column("id", ("item", "sentence_id"), required=False, empty=True),
        Column("text", ("sentence",)),
        Column("kind", ("type", "condition")),
        Column("score", ("funny", "funniness", "funny_rating")),
        Column("rater", ("participant", "participant_id"), required=False, empty=True),
    ]
    rows = _tables(paths, "turing-jest", columns)
    # Minimal pairs share a number: the sentence, not the number, is the item.
    rows = [Row(row.place, {**row.values, "id": ""}) for row in rows]
    texts = _grouped(rows, (1.0, 5.0), kind=lambda row: row["kind"].strip().lower())
    main = next((k for k in dict.fromkeys(text.kind for text in texts) if k.startswith("joke")), None)
    notes = ("jokes are compared with jokes only: straight and expected endings are easy to tell from them",)
    return RatedSet("turing-jest", texts, (), (1.0, 5.0), main, notes)


def load_unfun(paths: Sequence[Path]) -> RatedSet:
    """The rated *seriousness* of headlines, 0 to 1, inverted: 1 is a headline that nobody took for news."""
    columns = [
        Column("id", ("headline_id", "title_id"), required=False, empty=True),
        Column("text", ("title", "headline")),
        Column("score", ("rating", "seriousness")),
        Column("kind", ("type", "satire", "source"), required=False, empty=True),
        Column("rater", ("user_id", "session", "rater_id"), required=False, empty=True),
    ]
    texts = _grouped(_tables(paths, "unfun", columns), (0.0, 1.0), turn=lambda grade: 1 - grade, task="headline")
    return RatedSet("unfun", texts, (), (0.0, 1.0), None, ("the score is one minus the rated seriousness",))


def load_getting_serious(paths: Sequence[Path]) -> RatedSet:
    """Headlines from ten sources, three raters each. The kind is the source, so that sources can be compared."""
    columns = [
        Column("id", ("headline_id",), required=False, empty=True),
        Column("text", ("headline", "title")),
        Column("score", ("funniness", "funny")),
        Column("kind", ("source", "model"), required=False, empty=True),
        Column("rater", ("annotator", "worker", "WorkerId"), required=False, empty=True),
    ]
    texts = _grouped(_tables(paths, "getting-serious", columns), (0.0, 2.0), task="headline")
    return RatedSet("getting-serious", texts, (), (0.0, 2.0))


def load_humor_mechanics(paths: Sequence[Path]) -> RatedSet:
    """Mean ratings of about five people; the six files may be given together. The kind is the file."""
    columns = [
        Column("id", (), required=False, empty=True),
        Column("text", ("joke_text", "body", "content")),
        Column("score", ("funniness", "funny")),
        Column("offence", ("offensive", "offensiveness"), required=False, empty=True),
    ]
    texts: list[RatedText] = []
    for path in paths:
        rows = [
            Row(row.place, {**row.values, "id": f"{path.stem}-{row['id'] or number}", "kind": path.stem})
            for number, row in enumerate(read_table(path, "humor-mechanics", columns), 1)
        ]
        texts += _grouped(rows, (0.0, 5.0))
    return RatedSet("humor-mechanics", tuple(texts), (), (0.0, 5.0))


def load_rjokes(paths: Sequence[Path]) -> RatedSet:
    """Lines with a bin of log upvotes (0 to 11), a tab and the joke; no header."""
    texts = []
    for path in paths:
        for number, line in enumerate(read_text(path).split("\n"), 1):
            grade, tab, text = line.rstrip("\r").partition("\t")
            if not line.strip():
                continue
            if not tab or not grade.strip().isdigit() or not int(grade) <= 11:
                raise RatingsError(f"{path}, line {number}: expected a bin 0 to 11, a tab and a joke.")
            id = f"{path.stem}-{number}"
            texts.append(RatedText(id, make_prompt("", id), text.strip(), float(grade)))
    return RatedSet("rjokes", tuple(texts), (), (0.0, 11.0), None, ("upvotes measure reach as much as funniness",))


def load_jester(paths: Sequence[Path], min_raters: int = 50) -> RatedSet:
    """Two tables: the users' grades (one row per user: the number of rated jokes, then a grade per joke, 99 for none)
    and the jokes (id, text). The grades were published as .xls: save the sheet as .csv first."""
    tables = {path: read_text(path) for path in paths if path.suffix.lower() != ".xls"}
    jokes_file = next((p for p, text in tables.items() if "text" in text.split("\n", 1)[0].lower()), None)
    grade_files = [p for p in tables if p != jokes_file]
    if jokes_file is None or not grade_files:
        raise RatingsError(
            "jester expects a table of jokes (id, text) and the users' grades saved as .csv (one row per user: the "
            "number of rated jokes, then one grade per joke, 99 for none)."
        )
    jokes = {r["id"]: r["text"] for r in read_table(jokes_file, "jester jokes", [Column("id"), Column("text")])}
    grades: dict[int, list[float]] = defaultdict(list)
    for path in grade_files:
        for number, line in enumerate(tables[path].splitlines(), 1):
            try:
                cells = [float(cell) for cell in line.split(",")[1:]]
            except ValueError:
                raise RatingsError(
                    f"{path}, line {number}: expected numbers with commas, found {line[:40]!r}."
                ) from None
            for joke, grade in enumerate(cells, start=1):
                if grade != 99 and not -10 <= grade <= 10:
                    raise RatingsError(f"{path}, line {number}: a grade must be in -10 to 10, or 99; found {grade:g}.")
                if grade != 99:
                    grades[joke].append(grade)
    texts = tuple(
        RatedText(id, make_prompt("", id), text, sum(joke_grades) / len(joke_grades), tuple(joke_grades))
        for id, text in jokes.items()
        if id.isdigit() and len(joke_grades := grades.get(int(id), [])) >= min_raters
    )
    return RatedSet("jester", texts, (), (-10.0, 10.0), None, (f"jokes with fewer than {min_raters} grades left out",))


# Your own data


def load_ratings(paths: Sequence[Path], low: float | None = None, high: float | None = None) -> RatedSet:
    """id, text, score; optionally prompt, raters (all grades in one cell, or a row per rater with a column `rater`),
    kind and offence. `low` and `high` are the ends of the scale; without them, the lowest and highest grade found."""
    columns = [
        Column("id", required=False, empty=True),
        Column("text"),
        Column("score", empty=True),
        Column("prompt", required=False, empty=True),
        Column("raters", ("grades",), required=False, empty=True),
        Column("rater", required=False, empty=True),
        Column("kind", required=False, empty=True),
        Column("offence", ("offense",), required=False, empty=True),
    ]
    rows = _tables(paths, "ratings", columns)
    if any(row["rater"] for row in rows):
        ends = [row.number("score") for row in rows]
        scale = _scale(ends, low, high)
        return RatedSet("ratings", _grouped(rows, scale, task="joke"), (), scale)
    texts, seen, every = [], set(), []
    for index, row in enumerate(rows, 1):
        id = row["id"] or str(index)
        if id in seen:
            raise RatingsError(f"{row.place}: the id {id[:40]!r} occurs twice; a row per rater needs a column 'rater'.")
        seen.add(id)
        raters = row.numbers("raters")
        if not row["score"] and not raters:
            raise RatingsError(f"{row.place}: neither a score nor raters' grades.")
        score = row.number("score") if row["score"] else sum(raters) / len(raters)
        every += [score, *raters]
        offence = row.number("offence") if row["offence"] else None
        texts.append(
            RatedText(id, make_prompt(row["prompt"], id), row["text"], score, raters, (), row["kind"], offence)
        )
    return RatedSet("ratings", tuple(texts), (), _scale(every, low, high))


def _scale(grades: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    bottom, top = min(grades, default=0.0) if low is None else low, max(grades, default=1.0) if high is None else high
    if grades and not (bottom <= min(grades) and max(grades) <= top):
        raise RatingsError(f"Grades are in {min(grades):g} to {max(grades):g}, outside low={bottom:g} to high={top:g}.")
    return bottom, top if top > bottom else bottom + 1


def load_pairs(paths: Sequence[Path]) -> RatedSet:
    """a, b, label (a, b or tie; also 1, 2, 0; left, right, both), and optionally prompt, id and kind."""
    columns = [
        Column("id", required=False, empty=True),
        Column("a"),
        Column("b"),
        Column("label", ("winner",)),
        Column("prompt", required=False, empty=True),
        Column("kind", required=False, empty=True),
    ]
    rows = _tables(paths, "pairs", columns)
    return RatedSet("pairs", (), tuple(_vote(row, index, "joke") for index, row in enumerate(rows)))
