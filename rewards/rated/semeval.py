"""Loaders for SemEval's shared tasks on humor, and for ExPUN, which rates the puns of one of them.

load_rated("humicroedit", ["task-1_train.csv", "task-1_train_funlines.csv"])    # ratings
load_rated("humicroedit", "task-2_dev.csv")                                     # pairs
load_rated("isarcasm", "train.En.csv")                    # pairs: a sarcastic tweet, and what its author says it means
load_rated("semeval-puns", ["subtask1-homographic-test.xml", "subtask1-homographic-test.gold"])
load_rated("expun", ["expun.json", "subtask1-homographic-test.xml", "subtask1-heterographic-test.xml"])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from humor_env.errors import RatingsError
from humor_env.rewards.rated.rated_sets import Label, Published, RatedPair, RatedSet, RatedText, make_prompt
from humor_env.rewards.rated.tables import Column, Row, read_table, read_text
from humor_env.sources.human_pairs import REPLACED, pair_lines
from humor_env.types import Prompt

HEADLINE_EDIT = "headline-edit"
_LABELS: dict[str, Label] = {"0": "tie", "1": "a", "2": "b"}

_ONE = [Column("id"), Column("original"), Column("edit"), Column("grades", required=False), Column("meanGrade")]
_TWO = [
    Column("id"),
    *(Column(f"{name}{side}") for side in "12" for name in ("original", "edit", "meanGrade")),
    *(Column(f"grades{side}", required=False) for side in "12"),
    Column("label"),
]

HUMICROEDIT_PUBLISHED = (
    Published("4 B model, zero-shot (test)", "pair accuracy", 0.563, "HumorLoRA repository, 2026"),
    Published("4 B model, LoRA on people (test)", "pair accuracy", 0.648, "HumorLoRA repository, 2026"),
    Published("the task's winner (test)", "pair accuracy", 0.674, "SemEval-2020 task 7, Hossain et al."),
)


def load_humicroedit(paths: Sequence[Path]) -> RatedSet:
    """Both tasks' files as published, distinguished by their columns; several files of one task make one set."""
    return _edited_headlines(paths, "humicroedit", HUMICROEDIT_PUBLISHED)


def load_funlines(paths: Sequence[Path]) -> RatedSet:
    """FunLines: the format of Humicroedit, with other headlines and raters."""
    return _edited_headlines(paths, "funlines", ())


def _edited_headlines(paths: Sequence[Path], name: str, published: tuple[Published, ...]) -> RatedSet:
    texts: dict[str, RatedText] = {}
    pairs: list[RatedPair] = []
    mended = _Mended()
    for path in paths:
        if _has_pairs(path):
            pairs += [_headline_pair(row, mended) for row in read_table(path, name, _TWO)]
        else:
            for row in read_table(path, name, _ONE):
                if row["id"] in texts:
                    raise RatingsError(f"{row.place}: the id {row['id']} occurs twice in these files.")
                texts[row["id"]] = _headline(row, "", row["id"], mended)
    if texts and pairs:
        raise RatingsError(
            f"{', '.join(map(str, paths))}: files of task 1 (ratings) and task 2 (pairs). Load them separately."
        )
    return RatedSet(name, tuple(texts.values()), tuple(pairs), (0.0, 3.0), None, mended.notes(), published)


class _Mended:
    """Counts of irregularities in the files."""

    def __init__(self) -> None:
        self.padded = self.strays = 0

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.padded:
            notes.append(f"{self.padded} items rated 0 by everybody are written as a single 0: read as five zeros")
        if self.strays:
            notes.append(f"{self.strays} items hold a grade outside 0 to 3, which their mean leaves out: left out too")
        return tuple(notes)


def _has_pairs(path: Path) -> bool:
    return "original1" in read_text(path).split("\n", 1)[0]


def _headline_pair(row: Row, mended: _Mended) -> RatedPair:
    first, dash, second = row["id"].partition("-")
    if row["label"] not in _LABELS or not dash:
        raise RatingsError(
            f"{row.place}: expected an id of two numbers (123-456) and a label 0 (tie), 1 or 2; found "
            f"{row['id'][:30]!r} and {row['label'][:30]!r}."
        )
    a, b = _headline(row, "1", first, mended), _headline(row, "2", second, mended)
    if a.prompt.text != b.prompt.text:
        raise RatingsError(f"{row.place}: the two edits are of different headlines.")
    return RatedPair(row["id"], a, b, _LABELS[row["label"]])


def _headline(row: Row, side: str, id: str, mended: _Mended) -> RatedText:
    original, edit = row[f"original{side}"], row[f"edit{side}"]
    if len(REPLACED.findall(original)) != 1:
        raise RatingsError(f"{row.place}: expected one word of the headline in marks <…/>, found {original[:80]!r}.")
    before = _spaced(REPLACED.sub(lambda match: match[1], original))
    after = _spaced(REPLACED.sub(lambda _: edit, original))
    mean = row.number(f"meanGrade{side}")
    grades = row[f"grades{side}"].strip()
    if grades == "0":
        grades, mended.padded = "00000", mended.padded + 1
    if not grades.isdigit() and grades:
        raise RatingsError(f"{row.place}: expected grades as digits 0 to 3, such as 32110; found {grades[:30]!r}.")
    raters = tuple(float(digit) for digit in grades if digit in "0123")
    mended.strays += len(raters) < len(grades)
    if raters and abs(sum(raters) / len(raters) - mean) > 0.02:
        raise RatingsError(f"{row.place}: the grades {grades} do not have the mean {mean:g} that the row gives.")
    return RatedText(id, Prompt(f"headline:{before}", before, HEADLINE_EDIT), after, mean, raters)


def _spaced(text: str) -> str:
    return " ".join(text.split())


_HAHA = [
    Column("id"),
    Column("text"),
    Column("is_humor", required=False, empty=True),
    Column("humor_rating", empty=True),
    Column("offense_rating", ("offence_rating",), required=False, empty=True),
]


def load_hahackathon(paths: Sequence[Path]) -> RatedSet:
    """Texts that people called humorous, with their mean rating 0 to 5; the others have none and are left out. The test
    file was published without ratings."""
    texts, left_out = [], 0
    for path in paths:
        for row in read_table(path, "hahackathon (the labelled train or dev file)", _HAHA):
            if row["humor_rating"] == "":
                left_out += 1
                continue
            offence = row.number("offense_rating") if row["offense_rating"] else None
            texts.append(
                RatedText(
                    row["id"], make_prompt("", row["id"]), row["text"], row.number("humor_rating"), offence=offence
                )
            )
    notes = (f"{left_out} texts that people did not call humorous have no rating: left out",) if left_out else ()
    published = (
        Published("4 B model, zero-shot (2,000 pairs)", "pair accuracy", 0.554, "HumorLoRA repository, 2026"),
        Published("4 B model, LoRA on people (2,000 pairs)", "pair accuracy", 0.683, "HumorLoRA repository, 2026"),
    )
    return RatedSet("hahackathon", tuple(texts), (), (0.0, 5.0), None, notes, published)


def load_semeval_puns(paths: Sequence[Path]) -> RatedSet:
    """XML corpora with their gold files (id, tab, 1 for a pun): labels, no ratings."""
    gold: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() != ".xml":
            gold |= _gold(path)
    texts = []
    for path in (p for p in paths if p.suffix.lower() == ".xml"):
        for id, text in pun_texts(path).items():
            if id not in gold:
                raise RatingsError(f"'{path}' has the text {id}, and no gold file says whether it is a pun.")
            kind = "pun" if gold[id] == "1" else "not a pun"
            texts.append(RatedText(id, make_prompt("", id), text, float(gold[id]), kind=kind))
    if not texts:
        raise RatingsError("semeval-puns expects the .xml corpora and the .gold files of subtask 1.")
    return RatedSet("semeval-puns", tuple(texts), notes=("labels (pun or not), not degrees of funniness",))


def _gold(path: Path) -> dict[str, str]:
    labels = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            id, _, label = line.strip().partition("\t")
            if label not in ("0", "1"):
                raise RatingsError(f"{path}, line {number}: expected an id, a tab and 0 or 1; found {line[:60]!r}.")
            labels[id] = label
    return labels


def pun_texts(path: Path) -> dict[str, str]:
    """Texts by id of a corpus of SemEval-2017 task 7: <text id="hom_1"><word id="hom_1_1">They</word>…</text>."""
    words_by_id: dict[str, list[str]] = {}
    current: list[str] | None = None
    in_word = False
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal current, in_word
        if tag == "text":
            current = words_by_id.setdefault(attributes.get("id", str(len(words_by_id) + 1)), [])
        elif tag == "word" and current is not None:
            current.append("")
            in_word = True

    def end(tag: str) -> None:
        nonlocal in_word
        in_word = in_word and tag != "word"

    def characters(data: str) -> None:
        if in_word and current:
            current[-1] += data

    def refuse(*_: Any) -> None:
        # The published corpora declare no entities: refuse entity-expansion attacks.
        raise RatingsError(f"'{path}' declares entities, which a published corpus does not.")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    try:
        parser.Parse(read_text(path).encode(), True)
    except expat.ExpatError as problem:
        raise RatingsError(f"'{path}' is not the XML of a SemEval-2017 pun corpus ({problem}).") from None
    if not words_by_id:
        raise RatingsError(f"'{path}' has no <text id=\"…\"> with <word>s: expected a SemEval-2017 pun corpus.")
    return {id: _joined(words) for id, words in words_by_id.items()}


def _joined(words: Sequence[str]) -> str:
    """Tokens as a sentence: no space before a closing mark or a clitic."""
    return re.sub(r"\s+([.,;:!?%)\]]|n't|'(?:s|re|ll|ve|d|m)\b)", r"\1", " ".join(w.strip() for w in words))


_EXPUN = [
    Column("id", ("ID",)),
    Column("funny", ("Funniness (1-5)", "Funniness (0-5)", "funniness", "funny_rating")),
    Column("joke", ("Is a joke", "is_joke"), required=False, empty=True),
    Column("offensive", ("Offensive/Inappropriate", "Offensive"), required=False, empty=True),
    Column("raters", ("Annotator ID", "Annotator IDs", "annotators", "annotator"), required=False, empty=True),
    Column("text", ("Raw text", "raw", "sentence"), required=False, empty=True),
]


def load_expun(paths: Sequence[Path], z_score: bool = True) -> RatedSet:
    """Five raters per item. Texts missing in the file come from the SemEval-2017 corpora (.xml), and the label "pun"
    from their gold files; without those, an item is a pun if most raters called it a joke.

    Raters use the scale very differently, so the score is the mean of their z-scored grades (`z_score=False` keeps the
    plain mean), and items without raters' names are left out, unless no item has them. A grade of 0 means "not a joke".
    """
    tables = [p for p in paths if p.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv")]
    corpora = [p for p in paths if p.suffix.lower() == ".xml"]
    golds = [p for p in paths if p not in tables and p not in corpora]
    text_by_id = {id: text for path in corpora for id, text in pun_texts(path).items()}
    gold = {id: label for path in golds for id, label in _gold(path).items()}
    rows = [row for path in tables for row in read_table(path, "expun", _EXPUN)]
    if not rows:
        raise RatingsError("expun expects its .json file, and the .xml corpora of SemEval-2017 task 7 for the texts.")
    scales = _rater_scales(rows) if z_score else {}
    texts, nameless = [], 0
    for row in rows:
        text = row["text"] or text_by_id.get(row["id"], "")
        if not text:
            raise RatingsError(
                f"{row.place}: no text for {row['id']}. Give the .xml corpora of SemEval-2017 task 7 with this file."
            )
        grades, raters = row.numbers("funny"), _names(row.values.get("raters"))
        if not grades or (raters and len(raters) != len(grades)):
            raise RatingsError(f"{row.place}: {len(grades)} grades by {len(raters)} raters.")
        if scales and not raters:
            nameless += 1
            continue
        if scales:
            grades = tuple((g - scales[r][0]) / scales[r][1] for g, r in zip(grades, raters, strict=True))
        jokes, offensive = row.numbers("joke"), row.numbers("offensive")
        pun = gold[row["id"]] == "1" if row["id"] in gold else bool(jokes) and sum(jokes) * 2 > len(jokes)
        texts.append(
            RatedText(
                row["id"],
                make_prompt("", row["id"]),
                text,
                sum(grades) / len(grades),
                grades,
                raters,
                "pun" if pun else "not a pun",
                sum(offensive) / len(offensive) if offensive else None,
            )
        )
    standard = bool(scales)
    notes = ["non-puns average far lower: compared within puns only"]
    notes += ["grades are z-scored by rater" if standard else "raters' scales differ; grades are not z-scored"]
    if nameless:
        notes.append(f"{nameless} items without raters' names left out: their grades cannot be z-scored")
    if not gold:
        notes.append("no gold file given: an item is a pun where most raters called it a joke")
    scale = (-3.0, 3.0) if standard else (0.0, 5.0)
    return RatedSet("expun", tuple(texts), (), scale, "pun", tuple(notes))


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return tuple(part for part in re.split(r"[\s,;\[\]\"']+", str(value or "")) if part)


def _rater_scales(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Mean and spread of each rater's grades; a rater who always gives the same grade has spread 1."""
    by_rater: dict[str, list[float]] = {}
    for row in rows:
        grades, raters = row.numbers("funny"), _names(row.values.get("raters"))
        if len(raters) == len(grades):
            for rater, grade in zip(raters, grades, strict=True):
                by_rater.setdefault(rater, []).append(grade)
    scales = {}
    for rater, own_grades in by_rater.items():
        mean = sum(own_grades) / len(own_grades)
        spread = (sum((g - mean) ** 2 for g in own_grades) / len(own_grades)) ** 0.5
        scales[rater] = (mean, spread or 1.0)
    return scales


def load_isarcasm(paths: Sequence[Path]) -> RatedSet:
    """iSarcasmEval's English training file: a sarcastic tweet, and its meaning according to the author. The prompt is
    that literal sentence, and the pair compares the tweet with the sentence itself."""
    pairs = []
    for path in paths:
        for number, line in enumerate(pair_lines(f"isarcasm:{path}")):
            id = f"{path.stem}-{number}"
            tweet = RatedText(f"{id}-tweet", line.prompt, line.text, float("nan"))
            literal = RatedText(f"{id}-literal", line.prompt, line.prompt.text, float("nan"))
            pairs.append(RatedPair(id, tweet, literal, "a"))
    notes = ("its authors call the tweets sarcastic; nobody rated how funny they are",)
    return RatedSet("isarcasm", (), tuple(pairs), notes=notes)
