"""The small authored sets keep their promises: form, sizes, no copies, no leaks between splits, house rules.

Each rule is a function that lists what breaks it. The bundled files must give an empty list, and a copy with a
planted fault must not: so a rule that has gone blind turns a test red as well.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Any

import pytest

from humor_env.types import SPLITS

Record = dict[str, Any]
DEVICES = {"exaggeration", "understatement", "irony", "pun", "absurd comparison", "callback"}
KINDS = {"topic", "headline", "words"}

# Laughter, padding, and figures of speech so worn that a reader has seen them before the line is read.
FORBIDDEN = re.compile(
    r"\b(a?ha(ha)+h?|he(he)+|l+o+l+|lmf?ao+|rofl|hilarious\w*|jk|just kidding|ba dum tss|pun intended|joke's on)\b"
    r"|\b(my therapist|participation trophy|sponsored by|plot twist|raccoons?|adulting)\b"
    r"|\b(technically|apparently|literally)\b"
    r"|[!#@<>{}\[\]*_\\—–]|https?:|[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F\u200D]",
    re.IGNORECASE,
)
SMALL_WORDS = frozenset(
    re.findall(
        r"\S+",
        """a all an and are as at be been but by can do for from get got had has have he her him his i i'm i've in is it
        it's its just me my no not now of on one or our out she so that the their them then there they this to up us
        very was we were what when who with you your""",
    )
)


def _load(name: str) -> list[Record]:
    text = files("humor_env.data").joinpath(name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _content(text: str) -> frozenset[str]:
    return frozenset(_words(text)) - SMALL_WORDS


def _grams(text: str) -> frozenset[tuple[str, ...]]:
    words = _words(text)
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([tuple(words)])


def _alike(
    texts: list[tuple[str, str]], features: Callable[[str], frozenset[Any]], limit: float
) -> Iterator[tuple[str, str]]:
    """Labels of texts whose features overlap (Jaccard) by at least `limit`; only pairs that share one are compared."""
    sets = [features(text) for _, text in texts]
    holders: dict[Any, list[int]] = defaultdict(list)
    for index, found in enumerate(sets):
        shared = Counter(other for feature in found for other in holders[feature])
        for other, common in shared.items():
            if common >= limit * (len(found) + len(sets[other]) - common):
                yield texts[other][0], texts[index][0]
        for feature in found:
            holders[feature].append(index)


def _texts(record: Record) -> list[str]:
    return [line["text"] for line in record["lines"]]


# --- the rules: each yields what breaks it ---


def head(records: list[Record], prefix: str, keys: set[str]) -> Iterator[object]:
    for number, record in enumerate(records, start=1):
        if set(record) != keys or record["id"] != f"{prefix}-{number:04d}":
            yield record
        elif (record["source"], record["licence"]) != ("humor_env authors", "CC-BY-4.0"):
            yield record["id"], record["source"], record["licence"]
        elif record["split"] not in SPLITS:
            yield record["id"], record["split"]


def everyday_head(records: list[Record]) -> Iterator[object]:
    yield from head(records, "everyday", {"id", "literal", "split", "lines", "source", "licence"})


def three_devices(records: list[Record]) -> Iterator[object]:
    for record in records:
        devices = {line["device"] for line in record["lines"] if set(line) == {"text", "device"}}
        if len(record["lines"]) != 3 or len(devices) != 3 or not devices <= DEVICES:
            yield record["id"]


def device_shares(records: list[Record]) -> Iterator[object]:
    counts = Counter(line["device"] for record in records for line in record["lines"])
    yield from (device for device in DEVICES if counts[device] < 0.1 * counts.total())


def clean(texts: Iterable[tuple[str, bool]]) -> Iterator[object]:
    for text, is_sentence in texts:
        starts = text[0].isupper() or text[0] in "'\""
        ends = text.rstrip("\"'").endswith((".", "?"))
        one_clean_line = text == " ".join(text.split()) and text.isprintable() and not FORBIDDEN.search(text)
        if not one_clean_line or (is_sentence and not (starts and ends)):
            yield text


def everyday_clean(records: list[Record]) -> Iterator[object]:
    yield from clean((text, r["split"] != "ood") for r in records for text in [r["literal"], *_texts(r)])


def length_ratios(records: list[Record]) -> Iterator[object]:
    ratios = {(r["id"], text): len(text) / len(r["literal"]) for r in records for text in _texts(r)}
    yield from (key for key, ratio in ratios.items() if not 0.5 <= ratio <= 2.75)
    if sum(0.8 <= ratio <= 2.2 for ratio in ratios.values()) < 0.95 * len(ratios):
        yield "too many lines are much shorter or longer than their literal sentence"


def no_twins(records: list[Record]) -> Iterator[object]:
    """No line says another again, in any item; and none merely repeats its literal sentence."""
    yield from _alike([(text, text) for r in records for text in _texts(r)], _grams, 0.25)
    for record in records:
        yield from _alike([(t, t) for t in [record["literal"], *_texts(record)]], _grams, 0.5)


def no_leaks(records: list[Record]) -> Iterator[object]:
    """Situations of one split are not told again in another."""
    split = {record["id"]: record["split"] for record in records}
    for pair in _alike([(r["id"], r["literal"]) for r in records], _content, 0.4):
        if split[pair[0]] != split[pair[1]]:
            yield pair


def no_tics(records: list[Record]) -> Iterator[object]:
    """No content word carries over 5 % of the lines that are not about it, no opening of three words over 1 %."""
    lines = [(r, text) for r in records for text in _texts(r)]
    words = Counter(word for r, text in lines for word in _content(text) - _content(r["literal"]))
    openings = Counter(" ".join(_words(text)[:3]) for _, text in lines)
    yield from (word for word, count in words.items() if count > 0.05 * len(lines))
    yield from (opening for opening, count in openings.items() if count > 0.01 * len(lines))


EVERYDAY_RULES = [
    everyday_head,
    three_devices,
    device_shares,
    everyday_clean,
    length_ratios,
    no_twins,
    no_leaks,
    no_tics,
]


def oneliner_head(records: list[Record]) -> Iterator[object]:
    yield from head(records, "oneliner", {"id", "kind", "text", "words", "split", "source", "licence"})
    yield from (record["kind"] for record in records if record["kind"] not in KINDS)


def words_are_asked_for(records: list[Record]) -> Iterator[object]:
    """A pair names two words, both in the text that the student reads; no word is asked for twice in the set."""
    for record in records:
        found = [word for word in record["words"] if re.search(rf"\b{re.escape(word)}\b", record["text"])]
        if len(found) != len(record["words"]) or len(set(found)) != (2 if record["kind"] == "words" else 0):
            yield record["id"]
    asked = Counter(word.lower() for record in records for word in record["words"])
    yield from (word for word, count in asked.items() if count > 1)


def _subject(text: str) -> str:
    """The part of a constraint that is not the fixed request."""
    return re.sub(r'^Write a one-line joke (about|that follows this headline:|that uses the words)|" and "', " ", text)


def oneliners_differ(records: list[Record]) -> Iterator[object]:
    yield from _alike([(r["id"], _subject(r["text"])) for r in records], _content, 0.5)


def oneliner_clean(records: list[Record]) -> Iterator[object]:
    yield from clean((r["text"], r["split"] != "ood" and r["kind"] != "headline") for r in records)


ONELINER_RULES = [oneliner_head, words_are_asked_for, oneliners_differ, oneliner_clean]

# --- the bundled files ---


@pytest.fixture(scope="module")
def everyday() -> list[Record]:
    return _load("everyday.jsonl")


@pytest.fixture(scope="module")
def oneliners() -> list[Record]:
    return _load("oneliners.jsonl")


@pytest.mark.parametrize("rule", EVERYDAY_RULES)
def test_everyday_keeps(rule, everyday):
    assert list(rule(everyday)) == []


@pytest.mark.parametrize("rule", ONELINER_RULES)
def test_oneliners_keep(rule, oneliners):
    assert list(rule(oneliners)) == []


def test_sizes(everyday, oneliners):
    assert len(everyday) >= 400
    assert Counter(r["split"] for r in everyday) == {"train": 300, "dev": 40, "test": 40, "ood": 30}
    assert len(oneliners) >= 220
    assert min(Counter(r["kind"] for r in oneliners).values()) >= 70
    assert all(count >= 20 for count in Counter(r["split"] for r in oneliners).values())
    assert {(r["split"], r["kind"]) for r in oneliners} == {(split, kind) for split in SPLITS for kind in KINDS}


def test_ood_is_another_register(everyday):
    """Chat messages start in lower case, plain sentences never do: the split is out of distribution by form."""
    assert {r["split"] == "ood" for r in everyday if r["literal"][0].islower() or r["literal"][0].isdigit()} == {True}
    assert not [r["id"] for r in everyday if r["split"] == "ood" and r["literal"][0].isupper()]


# --- the rules see: a planted fault is found ---


def _set_line(record: Record, text: str) -> None:
    record["lines"][1]["text"] = text


EVERYDAY_FAULTS: list[tuple[Callable, Callable[[list[Record]], object]]] = [
    (everyday_head, lambda rs: rs[5].update(licence="CC0")),
    (everyday_head, lambda rs: rs[5].update(source="")),
    (everyday_head, lambda rs: rs[5].update(id="everyday-0005")),
    (everyday_head, lambda rs: rs[5].update(split="validation")),
    (everyday_head, lambda rs: rs[5].update(note="x")),
    (three_devices, lambda rs: rs[0]["lines"].pop()),
    (three_devices, lambda rs: rs[0]["lines"][0].update(device=rs[0]["lines"][1]["device"])),
    (three_devices, lambda rs: rs[0]["lines"][0].update(device="sarcasm")),
    (device_shares, lambda rs: [x.update(device="pun") for r in rs for x in r["lines"] if x["device"] == "callback"]),
    (everyday_clean, lambda rs: _set_line(rs[0], "The door locked me out, haha, in my bathrobe.")),
    (everyday_clean, lambda rs: _set_line(rs[0], "The door locked me out in my bathrobe!")),
    (everyday_clean, lambda rs: _set_line(rs[0], "The door locked me out in my bathrobe \U0001f602.")),
    (everyday_clean, lambda rs: _set_line(rs[0], "The door locked me out.\nIn my bathrobe.")),
    (everyday_clean, lambda rs: _set_line(rs[0], "The door locked me out in my bathrobe")),
    (everyday_clean, lambda rs: rs[0].update(literal="my therapist locked me out.")),
    (length_ratios, lambda rs: _set_line(rs[0], "Out.")),
    (length_ratios, lambda rs: _set_line(rs[0], "Out. " * 40)),
    (length_ratios, lambda rs: [x.update(text=r["literal"] * 2 + "and a half.") for r in rs[:60] for x in r["lines"]]),
    (no_twins, lambda rs: _set_line(rs[0], "Well, " + rs[200]["lines"][2]["text"])),
    (no_twins, lambda rs: _set_line(rs[0], rs[0]["literal"][:-1] + ", as one does.")),
    (no_leaks, lambda rs: rs[3].update(literal="I locked myself out in a bathrobe this one morning.")),
    (no_tics, lambda rs: [_set_line(r, "A wardrobe fell on everyone, and we sang.") for r in rs[:70]]),
    (no_tics, lambda rs: [_set_line(r, f"To be fair number {i} it was.") for i, r in enumerate(rs[:14])]),
]


@pytest.mark.parametrize(("rule", "plant"), EVERYDAY_FAULTS)
def test_everyday_rules_see(rule, plant, everyday):
    records = copy.deepcopy(everyday)
    plant(records)
    assert list(rule(records))


ONELINER_FAULTS: list[tuple[Callable, Callable[[list[Record]], object]]] = [
    (oneliner_head, lambda rs: rs[0].update(licence=None)),
    (oneliner_head, lambda rs: rs[0].update(kind="pun")),
    (words_are_asked_for, lambda rs: rs[-1].update(words=["walnut"])),
    (words_are_asked_for, lambda rs: rs[-1].update(words=["walnut", "space"])),
    (words_are_asked_for, lambda rs: rs[0].update(words=["joke", "one"])),
    (words_are_asked_for, lambda rs: rs[-2].update(text="walnut and spaceship", words=["walnut", "spaceship"])),
    (oneliners_differ, lambda rs: rs[1].update(text=rs[0]["text"].replace("the neighbor", "a neighbor"))),
    (oneliner_clean, lambda rs: rs[0].update(text="Write a one-line joke about a dog, lol.")),
]


@pytest.mark.parametrize(("rule", "plant"), ONELINER_FAULTS)
def test_oneliner_rules_see(rule, plant, oneliners):
    records = copy.deepcopy(oneliners)
    plant(records)
    assert list(rule(records))
