"""The small authored sets keep their promises: form, sizes, no copies, no leaks between splits, house rules.

Each rule is a function that lists what breaks it. The bundled files must give an empty list, and a copy with a
planted fault must not: so a rule that has gone blind turns a test red as well.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Any

import pytest

from humor_env.experiments.upkeep.everyday_set import (
    CAPITALS,
    DEVICES,
    FORBIDDEN,
    MAX_WORDS,
    Across,
    Near,
    add,
    american,
    content,
    grams,
    main,
    texts,
    tics,
    words,
)
from humor_env.shared.streams import stream_seed
from humor_env.types import SPLITS

Record = dict[str, Any]
FIRST = 410  # records that were written first, with six devices
LATER = {"personification", "wordplay on an idiom"}
KINDS = {"topic", "headline", "words"}


def _load(name: str) -> list[Record]:
    text = files("humor_env.data").joinpath(name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def _alike(
    labelled: list[tuple[str, str]], features: Callable[[str], frozenset[Any]], limit: float
) -> Iterator[tuple[str, str]]:
    """Labels of texts whose features overlap (Jaccard) by at least `limit`."""
    near = Near(features)
    for label, text in labelled:
        yield from ((other, label) for _, other in near.overlaps(text, limit))
        near.add(label, text)


# --- the rules: each yields what breaks it ---


def head(records: list[Record], prefix: str, keys: set[str]) -> Iterator[object]:
    for number, record in enumerate(records, start=1):
        form = {"form"} if prefix == "everyday" and record["split"] == "ood" else set()
        if set(record) != keys | form or record["id"] != f"{prefix}-{number:04d}":
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
    yield from (device for device in DEVICES - LATER if counts[device] < 0.1 * counts.total())
    # The first records know no line of the last two devices: those have their share among the later ones.
    later = Counter(line["device"] for record in records[FIRST:] for line in record["lines"])
    yield from (device for device in DEVICES if later[device] < 0.1 * later.total())


def clean(texts: Iterable[tuple[str, bool]]) -> Iterator[object]:
    for text, is_sentence in texts:
        starts = text[0].isupper() or text[0] in "'\""
        ends = text.rstrip("\"'").endswith((".", "?"))
        one_clean_line = text == " ".join(text.split()) and text.isprintable() and not FORBIDDEN.search(text)
        if not one_clean_line or (is_sentence and not (starts and ends)):
            yield text


def everyday_clean(records: list[Record]) -> Iterator[object]:
    yield from clean((text, r["split"] != "ood") for r in records for text in [r["literal"], *texts(r)])
    yield from (text for r in records for text in texts(r) if CAPITALS.search(text))


def word_limit(records: list[Record]) -> Iterator[object]:
    """At most 25 words a line; the first records, which stay as they were, have six of 26 or 27."""
    counts = [(r["id"], len(text.split())) for r in records[FIRST:] for text in texts(r)]
    yield from (found for found in counts if found[1] > MAX_WORDS)
    long = [len(text.split()) for r in records[:FIRST] for text in texts(r) if len(text.split()) > MAX_WORDS]
    if len(long) > 6 or max(long, default=0) > 27:
        yield long


def length_ratios(records: list[Record]) -> Iterator[object]:
    ratios = {(r["id"], text): len(text) / len(r["literal"]) for r in records for text in texts(r)}
    yield from (key for key, ratio in ratios.items() if not 0.5 <= ratio <= 2.75)
    if sum(0.8 <= ratio <= 2.2 for ratio in ratios.values()) < 0.95 * len(ratios):
        yield "too many lines are much shorter or longer than their literal sentence"


def no_twins(records: list[Record]) -> Iterator[object]:
    """No line says another again, in any item; and none merely repeats its literal sentence."""
    yield from _alike([(text, text) for r in records for text in texts(r)], grams, 0.25)
    for record in records:
        yield from _alike([(t, t) for t in [record["literal"], *texts(record)]], grams, 0.5)


def all_texts_differ(records: list[Record]) -> Iterator[object]:
    counts = Counter(" ".join(words(text)) for r in records for text in [r["literal"], *texts(r)])
    yield from (text for text, count in counts.items() if count > 1)


def no_leaks(records: list[Record]) -> Iterator[object]:
    """Situations of one split are not told again in another."""
    split = {record["id"]: record["split"] for record in records}
    for pair in _alike([(r["id"], r["literal"]) for r in records], content, 0.35):
        if split[pair[0]] != split[pair[1]]:
            yield pair


def no_lines_across(records: list[Record]) -> Iterator[object]:
    """No line of one split is near a line or a literal sentence of another."""
    across = Across()
    for record in records:
        yield from ((record["id"], text) for split, text in across.near(record) if split != record["split"])
        across.add(record)


def no_tics(records: list[Record]) -> Iterator[object]:
    """No content word carries over 5 % of the lines that are not about it, no opening of three words over 1 %, no
    run of four words over 0.5 %."""
    lines = [(r, text) for r in records for text in texts(r)]
    counts = Counter(word for r, text in lines for word in content(text) - content(r["literal"]))
    # A comparison is made with "like", and an eighth of the lines are comparisons.
    likes = counts.pop("like", 0)
    yield from (word for word, count in counts.items() if count > 0.05 * len(lines))
    if likes > 0.1 * len(lines):
        yield "like"
    yield from tics(records)


EVERYDAY_RULES = [
    everyday_head,
    three_devices,
    device_shares,
    everyday_clean,
    word_limit,
    length_ratios,
    no_twins,
    all_texts_differ,
    no_leaks,
    no_lines_across,
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
    yield from _alike([(r["id"], _subject(r["text"])) for r in records], content, 0.5)


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
    assert len(everyday) == 1510
    assert Counter(r["split"] for r in everyday) == {"train": 1110, "dev": 100, "test": 200, "ood": 100}
    assert len(oneliners) >= 220
    assert min(Counter(r["kind"] for r in oneliners).values()) >= 70
    assert all(count >= 20 for count in Counter(r["split"] for r in oneliners).values())
    assert {(r["split"], r["kind"]) for r in oneliners} == {(split, kind) for split in SPLITS for kind in KINDS}


def test_ood_is_another_register(everyday):
    """Out of distribution by form: chat messages, which alone start in lower case, and a dozen other forms."""
    assert {r["split"] == "ood" for r in everyday if r["literal"][0].islower() or r["literal"][0].isdigit()} == {True}
    assert not [r["id"] for r in everyday if r.get("form") == "text message" and r["literal"][0].isupper()]
    forms = Counter(r["form"] for r in everyday if r["split"] == "ood")
    assert len(forms) >= 12
    assert max(forms.values()) <= 50


def test_subjects_are_in_every_split(everyday):
    """A hash divides the later records, so no split is of one subject."""
    subjects = {
        "home": {"door", "kitchen", "bed", "roof", "lamp", "bathroom", "stairs", "wall"},
        "family": {"mother", "father", "wife", "husband", "son", "daughter", "aunt", "uncle", "grandmother", "brother"},
        "food": {"soup", "cake", "bread", "cheese", "coffee", "dinner", "restaurant", "waiter", "eggs", "potatoes"},
        "animals": {"dog", "cat", "cow", "goose", "bird", "bees", "hamster", "parrot", "pigeons", "horse"},
        "body": {"hair", "teeth", "dentist", "doctor", "knee", "back", "glasses", "eyes", "nose", "foot"},
    }
    for split in ("train", "dev", "test"):
        found = Counter(
            name
            for r in everyday
            if r["split"] == split
            for name, near in subjects.items()
            if near & content(r["literal"])
        )
        assert set(found) == set(subjects), split


def test_the_first_records_stay(everyday):
    """Runs on the 410 first records can be read beside those on all: ids, texts and splits are as they were."""
    kept = "\x1e".join(f"{r['id']}\x1f{r['split']}\x1f{r['literal']}\x1f{texts(r)}" for r in everyday[:FIRST])
    assert hashlib.blake2b(kept.encode(), digest_size=8).hexdigest() == "d560be26d0c4d6dc"


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
    (everyday_clean, lambda rs: _set_line(rs[0], "The door LOCKED OUT its owner.")),
    (everyday_clean, lambda rs: rs[0].update(literal="my therapist locked me out.")),
    (length_ratios, lambda rs: _set_line(rs[0], "Out.")),
    (length_ratios, lambda rs: _set_line(rs[0], "Out. " * 40)),
    (length_ratios, lambda rs: [x.update(text=r["literal"] * 2 + "and a half.") for r in rs[:60] for x in r["lines"]]),
    (no_twins, lambda rs: _set_line(rs[0], "Well, " + rs[200]["lines"][2]["text"])),
    (no_twins, lambda rs: _set_line(rs[0], rs[0]["literal"][:-1] + ", as one does.")),
    (no_leaks, lambda rs: rs[3].update(literal="I locked myself out in a bathrobe this one morning.")),
    (no_lines_across, lambda rs: _set_line(rs[3], "Nearly " + rs[301]["lines"][0]["text"])),
    (no_lines_across, lambda rs: _set_line(rs[3], "Nearly " + rs[301]["literal"])),
    (all_texts_differ, lambda rs: _set_line(rs[3], rs[4]["literal"])),
    (word_limit, lambda rs: _set_line(rs[500], "one two " * 13)),
    (word_limit, lambda rs: _set_line(rs[3], "one two " * 13)),
    (word_limit, lambda rs: _set_line(rs[0], "one two " * 14)),
    (everyday_head, lambda rs: rs[0].update(form="text message")),
    (everyday_head, lambda rs: next(r for r in rs if r["split"] == "ood").pop("form")),
    (device_shares, lambda rs: [x.update(device="pun") for r in rs for x in r["lines"] if x["device"] in LATER]),
    (no_tics, lambda rs: [_set_line(r, "A wardrobe fell on everyone, and we sang.") for r in rs[:190]]),
    (no_tics, lambda rs: [_set_line(r, f"To be fair number {i} it was.") for i, r in enumerate(rs[:40])]),
    (no_tics, lambda rs: [_set_line(r, f"{i} to be fair about it.") for i, r in enumerate(rs[:30])]),
    (no_tics, lambda rs: [_set_line(r, f"{i} is like {i}.") for i, r in enumerate(rs[:120])]),
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


# --- adding records ---


def _written(literal: str, *lines: str, **more: str) -> Record:
    devices = ("pun", "irony", "callback")
    return {
        "literal": literal,
        "lines": [{"text": t, "device": d} for t, d in zip(lines, devices, strict=True)],
        **more,
    }


KETTLE = _written(
    "The kettle at my neighbour's place whistles out of tune.",
    "His kettle has the steam for opera and none of the ear.",
    "Two streets of dogs have learnt to join in by the third bar.",
    "He says it's off key, and it hasn't been off anything since March.",
)


def test_added_records_are_checked_spelled_and_divided(everyday):
    """The hash of a sentence, not the order of the files, decides its split; what is there stays."""
    other = _written(
        "cant find the remote, its under someone",
        "remotes under one of u, lift and declare",
        "nobody has the remote, everyone is sitting v still",
        "we lost the remote, then the will to stand, then the remote again",
        form="text message",
    )
    base = everyday[:FIRST]
    made, refused = add(base, [KETTLE, other])
    assert (refused, made[:FIRST]) == ([], base)
    assert add(base, [other, KETTLE])[0] == made
    assert [r["id"] for r in made[FIRST:]] == ["everyday-0411", "everyday-0412"]
    kettle, chat = sorted(made[FIRST:], key=lambda r: r["split"], reverse=True)
    assert kettle["literal"] == "The kettle at my neighbor's place whistles out of tune."
    assert (kettle["split"], "form" in kettle) == ("test", False), "test is filled first"
    assert (chat["split"], chat["form"]) == ("ood", "text message")
    assert add(everyday, [KETTLE])[0][-1]["split"] == "train", "dev and test are full"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["lines"].pop(), "Three lines with three different devices are needed"),
        (lambda r: r["lines"][0].update(device="sarcasm"), "found sarcasm, irony, callback"),
        (lambda r: r["lines"][0].update(text="It whistles, haha, out of tune."), "'haha' in"),
        (lambda r: r["lines"][0].update(text="It whistles OUT AND OUT wrong."), "'OUT AND' in"),
        (lambda r: r["lines"][0].update(text="It whistles out of tune"), "is not a sentence"),
        (lambda r: r["lines"][0].update(text="It has a go. " + "So do I. " * 8), "is not one clean line"),
        (lambda r: r["lines"][0].update(text="It has a go." + " So do I." * 8), "has 28 words, at most 25"),
        (lambda r: r["lines"][0].update(text="It sings."), "0.16 times as long"),
        (lambda r: r["lines"][0].update(text=r["literal"][:-1] + " today."), "repeats another text"),
        (lambda r: r["lines"][0].update(text="I woke up rested, which on a workday is how you know."), "is too near"),
        (
            lambda r: [x.update(text="Boiling, it sobs in " + x["device"] + ".") for x in r["lines"][:2]],
            "Two or three of",
        ),
        (lambda r: r.update(form="text message"), "The split ood has its 100 records"),
        (lambda r: r.update(lines=["x"]), 'It needs a "literal" and "lines"'),
    ],
)
def test_what_breaks_a_rule_is_refused_in_a_sentence(change, said, everyday):
    record = copy.deepcopy(KETTLE)
    change(record)
    made, [(_, reason)] = add(everyday, [record])
    assert made == everyday
    assert said in reason


def test_what_is_near_another_split_joins_it(everyday):
    """A sentence like one of dev goes to dev while there is room, and is refused where there is none."""
    base = everyday[:FIRST]
    told = next(r for r in base if r["split"] == "dev")
    again = {**KETTLE, "literal": told["literal"].rstrip(".") + " again."}
    assert add(base, [again])[0][-1]["split"] == "dev"
    [(_, reason)] = add(everyday, [again])[1]
    assert reason == "The split dev has its 100 records."


def test_american_spelling():
    assert american("My neighbours' Grey cat, a grey one, practises in the kerb's COLOUR.") == (
        "My neighbors' Grey cat, a gray one, practices in the curb's COLOR."
    )
    assert american("Mum, the mumps and the metrics; centimetres towards a multi-storey metre") == (
        "Mom, the mumps and the metrics; centimeters toward a multi-story meter"
    )


def test_the_command_adds_and_refuses(tmp_path, capsys, everyday):
    file, new = tmp_path / "set.jsonl", tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in everyday[:FIRST]), encoding="utf-8")
    new.write_text("\n".join(json.dumps(r) for r in (KETTLE, {**KETTLE, "lines": []})), encoding="utf-8")
    assert main(["--set", str(file), str(new)]) == 0
    out, err = capsys.readouterr()
    assert out == "1 added, 1 refused; train 300, dev 40, test 41, ood 30\n"
    assert err.startswith("refused: The kettle at my neighbour's place whistles out of tune. Three lines")
    written = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in written][-1] == "everyday-0411"
    assert len(written) == 411
    assert main(["--set", str(file), str(tmp_path / "none.jsonl")]) == 1
    new.write_text("{", encoding="utf-8")
    assert main(["--set", str(file), str(new)]) == 1
    assert "line 1: not valid JSON" in capsys.readouterr().err
    assert len(file.read_text(encoding="utf-8").splitlines()) == 411


def test_records_that_nobody_used_are_divided_again(tmp_path, capsys, everyday):
    """Later records all went to train, so their subjects were in no other split."""
    file, new = tmp_path / "set.jsonl", tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in everyday), encoding="utf-8")
    # The hash of the literal sentence decides; of these the first in its order is surely in dev or test.
    owners = ("neighbor", "aunt", "cousin", "dentist", "brother", "boss", "sister", "landlord", "tutor", "barber")
    kettles = [f"The kettle at my {owner}'s place whistles out of tune." for owner in owners]
    first = min(kettles, key=lambda literal: stream_seed(0, "everyday-split", literal))
    new.write_text(json.dumps(KETTLE | {"literal": first}), encoding="utf-8")
    assert main(["--set", str(file), "--keep", str(FIRST), str(new)]) == 0
    said = capsys.readouterr().out
    added, refused = (int(number) for number in re.findall(r"\d+", said)[:2])
    assert added + refused == len(everyday) - FIRST + 1  # the kettle may take the last place in dev from another
    assert said.endswith("dev 100, test 200, ood 100\n")
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert found[:FIRST] == everyday[:FIRST]
    assert {r["literal"]: r["split"] for r in found}[first] != "train"
    assert [r["id"] for r in found] == [f"everyday-{n:04d}" for n in range(1, len(found) + 1)]
