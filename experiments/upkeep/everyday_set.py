"""Adds new records to the bundled everyday sentences: checks, normalizes spelling, numbers, assigns splits.

    python -m humor_env.experiments.upkeep.everyday_set new.jsonl more.jsonl

A record of a file is {"literal": …, "lines": [{"text": …, "device": …}, three in all]}, with "form" if the sentence
is not a plain one ("text message", "headline"): those go to the split "ood". A hash of the literal sentence decides the
others' splits, so that neither the order of the files nor the user chooses the test sentences. Existing records do not
change. A record that breaks a rule, or repeats an existing one, is refused with a sentence each.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import humor_env
from humor_env.errors import HumorEnvError, PromptError
from humor_env.shared.streams import stream_seed

Record = dict[str, Any]

DEVICES = frozenset(
    {
        "absurd comparison",
        "callback",
        "exaggeration",
        "irony",
        "personification",
        "pun",
        "understatement",
        "wordplay on an idiom",
    }
)
# These are filled first; "train" takes the rest.
TARGETS = {"test": 200, "dev": 100, "ood": 100}
MAX_WORDS = 25
# The most that two texts may overlap (Jaccard): runs of three words in two lines, and in two texts of one record; and
# for texts in two different splits: content words of two sentences, of two lines, of a line and a sentence, and runs of
# three words in two lines. Chosen by reading the nearest pairs: below these limits no joke or situation was repeated.
LINES, OWN = 0.25, 0.5
SENTENCES, LINES_ACROSS, LINE_SENTENCE, RUNS_ACROSS = 0.35, 0.35, 0.45, 0.2
FOUR_WORDS, OPENING = 0.005, 0.01

# Laughter, padding, and worn-out figures of speech.
FORBIDDEN = re.compile(
    r"\b(a?ha(ha)+h?|he(he)+|l+o+l+|lmf?ao+|rofl|hilarious\w*|jk|just kidding|ba dum tss|pun intended|joke's on)\b"
    r"|\b(my therapist|participation trophy|sponsored by|plot twist|raccoons?|adulting)\b"
    r"|\b(technically|apparently|literally)\b"
    r"|[!#@<>{}\[\]*_\\—–]|https?:|[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F\u200D]",
    re.IGNORECASE,
)
CAPITALS = re.compile(r"\b[A-Z]{3,}\W+[A-Z]{3,}\b")  # two words: gates treat it as shouting, even in a headline
SMALL_WORDS = frozenset(
    re.findall(
        r"\S+",
        """a all an and are as at be been but by can do for from get got had has have he her him his i i'd i'm i've in
        is it it's its just me my no not now of on one or our out she so that the their them then there they this to up
        us very was we were what when who with you your""",
    )
)
# British spellings to American ones, as in the first records. "Grey" with a capital is a name or a tea.
_AMERICAN = {
    "anaesthetist": "anesthetist", "anaesthetic": "anesthetic", "apologis": "apologiz", "baptis": "baptiz",
    "behaviour": "behavior", "centimetre": "centimeter", "centre": "center", "cheque": "check", "civilis": "civiliz",
    "colour": "color", "cosy": "cozy", "councillor": "councilor", "favour": "favor", "flavour": "flavor",
    "harbour": "harbor", "honour": "honor", "humour": "humor", "jewellery": "jewelry", "kerb": "curb",
    "kilometre": "kilometer", "labelled": "labeled", "labour": "labor", "maths": "math", "memoris": "memoriz",
    "metre": "meter", "moustache": "mustache", "mum": "mom", "neighbour": "neighbor", "organise": "organize",
    "organising": "organizing", "parlour": "parlor", "plough": "plow", "practis": "practic", "programme": "program",
    "pyjamas": "pajamas", "quarrelled": "quarreled", "realis": "realiz", "recognis": "recogniz", "rumour": "rumor",
    "savour": "savor", "storey": "story", "theatre": "theater", "towards": "toward", "travelled": "traveled",
    "travelling": "traveling", "traveller": "traveler", "tyre": "tire", "yoghurt": "yogurt",
}  # fmt: skip
_BRITISH = re.compile(
    rf"\b({'|'.join(sorted(_AMERICAN, key=len, reverse=True))})(?=(s|'s|s'|e|es|ed|er|ing|ation|hoods?|ly|ite)?\b)"
    r"|\bgrey(?=\b|s\b|ed\b|ing\b)|\bGREY\b",
    re.IGNORECASE,
)


def american(text: str) -> str:
    """The text with American spelling, with the same words and capitals."""

    def spelled(match: re.Match[str]) -> str:
        word = match.group()
        if word == "Grey":
            return word
        new = "gray" if word.lower() == "grey" else _AMERICAN[word.lower()]
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return _BRITISH.sub(spelled, text)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def content(text: str) -> frozenset[str]:
    return frozenset(words(text)) - SMALL_WORDS


def grams(text: str, n: int = 3) -> frozenset[tuple[str, ...]]:
    """Runs of `n` words; a shorter text is one run."""
    tokens = words(text)
    return frozenset(zip(*(tokens[i:] for i in range(n)), strict=False)) or frozenset([tuple(tokens)])


def texts(record: Record) -> list[str]:
    return [line["text"] for line in record["lines"]]


class Near:
    """Finds which of the added texts overlap with another text; only texts that share a feature are compared."""

    def __init__(self, features: Callable[[str], frozenset[Any]]) -> None:
        self._features = features
        self._added: list[tuple[Any, frozenset[Any]]] = []
        self._holders: dict[Any, list[int]] = defaultdict(list)

    def add(self, label: Any, text: str) -> None:
        features = self._features(text)
        for feature in features:
            self._holders[feature].append(len(self._added))
        self._added.append((label, features))

    def overlaps(self, text: str, limit: float) -> Iterator[tuple[float, Any]]:
        """(Jaccard overlap, label) of each text that overlaps with this one by at least `limit`."""
        features = self._features(text)
        shared = Counter(other for feature in features for other in self._holders.get(feature, ()))
        for other, common in shared.items():
            label, theirs = self._added[other]
            if common >= limit * (len(features) + len(theirs) - common):
                yield common / (len(features) + len(theirs) - common), label


class Across:
    """Finds which texts of the added records are so near to another record that both must be in one split."""

    def __init__(self) -> None:
        self._sentences, self._lines, self._runs = Near(content), Near(content), Near(grams)

    def add(self, record: Record) -> None:
        self._sentences.add((record["split"], record["literal"]), record["literal"])
        for text in texts(record):
            self._lines.add((record["split"], text), text)
            self._runs.add((record["split"], text), text)

    def near(self, record: Record) -> Iterator[tuple[str, str]]:
        """(split, text) of each text that the record is near to."""
        checks = [(self._sentences, record["literal"], SENTENCES), (self._lines, record["literal"], LINE_SENTENCE)]
        for text in texts(record):
            checks += [(self._sentences, text, LINE_SENTENCE), (self._lines, text, LINES_ACROSS)]
            checks.append((self._runs, text, RUNS_ACROSS))
        for index, text, limit in checks:
            yield from (label for _, label in index.overlaps(text, limit))


def faults(record: Record) -> Iterator[str]:
    """The faults of a single record, a sentence each."""
    try:
        literal, lines = record["literal"], [(line["text"], line["device"]) for line in record["lines"]]
    except (KeyError, TypeError):
        yield 'It needs a "literal" and "lines", each line with a "text" and a "device".'
        return
    devices = [device for _, device in lines]
    if len(lines) != 3 or len(set(devices)) != 3 or not set(devices) <= DEVICES:
        yield f"Three lines with three different devices are needed, found {', '.join(map(str, devices))}."
    plain = record.get("form", "plain") == "plain"
    unusual = 0
    for text in [literal, *(text for text, _ in lines)]:
        if text != " ".join(text.split()) or not text.isprintable() or not text:
            yield f"'{text}' is not one clean line."
            continue
        if match := FORBIDDEN.search(text) or CAPITALS.search(text):
            yield f"'{match.group()}' in '{text}' is against the house rules."
        if plain and not ((text[0].isupper() or text[0] in "'\"") and text.rstrip("\"'").endswith((".", "?"))):
            yield f"'{text}' is not a sentence with a capital at its start and a full stop at its end."
        if len(text.split()) > MAX_WORDS:
            yield f"'{text}' has {len(text.split())} words, at most {MAX_WORDS} are allowed."
        ratio = len(text) / len(literal)
        unusual += not 0.8 <= ratio <= 2.2
        if not 0.5 <= ratio <= 2.75:
            yield f"'{text}' is {ratio:.2f} times as long as its literal sentence, 0.5 to 2.75 is allowed."
    if unusual > 1:
        yield "Two or three of its lines are much shorter or longer than the literal sentence."
    earlier = Near(grams)
    for text in [literal, *(text for text, _ in lines)]:
        if any(earlier.overlaps(text, OWN)):
            yield f"'{text}' repeats another text of the same record."
        earlier.add(text, text)


def tics(records: Sequence[Record]) -> Iterator[str]:
    """Runs of four words, and openings of three, that are too frequent in the lines of the whole set."""
    lines = [text for record in records for text in texts(record)]
    runs = Counter(run for text in lines for run in grams(text, 4) if len(run) == 4)
    openings = Counter(" ".join(words(text)[:3]) for text in lines)
    yield from (
        f"'{' '.join(run)}' is in {n} of {len(lines)} lines." for run, n in runs.items() if n > FOUR_WORDS * len(lines)
    )
    yield from (
        f"'{start}' opens {n} of {len(lines)} lines." for start, n in openings.items() if n > OPENING * len(lines)
    )


def add(existing: Sequence[Record], candidates: Iterable[Record]) -> tuple[list[Record], list[tuple[str, str]]]:
    """The set with the new records, and (literal sentence, reason) for each that was refused."""
    records: list[Record] = list(existing)
    refused: list[tuple[str, str]] = []
    room = dict(TARGETS)
    runs, across = Near(grams), Across()

    def remember(record: Record) -> None:
        split = record["split"]
        room[split] = room.get(split, 0) - 1
        across.add(record)
        for text in texts(record):
            runs.add(text, text)

    for old_record in existing:
        remember(old_record)
    for raw in sorted(candidates, key=lambda r: stream_seed(0, "everyday-split", str(r.get("literal")))):
        wrong = " ".join(faults(raw))
        if wrong:
            refused.append((str(raw.get("literal")), wrong))
            continue
        literal = american(raw["literal"])
        lines = [{"text": american(line["text"]), "device": line["device"]} for line in raw["lines"]]
        twin = next((overlap for line in lines for overlap in runs.overlaps(line["text"], LINES)), None)
        if twin:
            refused.append((literal, f"A line is too near '{twin[1]}' (overlap {twin[0]:.2f})."))
            continue
        neighbors = list(across.near({"literal": literal, "lines": lines}))
        split, reason = _split(raw.get("form", "plain") != "plain", room, neighbors)
        if reason:
            refused.append((literal, reason))
            continue
        record: Record = {"id": f"everyday-{len(records) + 1:04d}", "literal": literal, "split": split, "lines": lines}
        if split == "ood":
            record["form"] = raw["form"]
        record |= {"source": "humor_env authors", "licence": "CC-BY-4.0"}
        records.append(record)
        remember(record)
    return records, refused


def _split(is_ood: bool, room: dict[str, int], neighbors: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The split of the next record, or why there is none: records near each other must share a split."""
    fresh = "ood" if is_ood else next((name for name in ("test", "dev") if room[name] > 0), "train")
    theirs = {name for name, _ in neighbors} or {fresh}
    chosen = min(theirs)
    if len(theirs) > 1 or (chosen == "ood") != is_ood:
        return "", f"It is too near '{neighbors[0][1]}' in the split {neighbors[0][0]}."
    if chosen != "train" and room[chosen] < 1:
        return "", f"The split {chosen} has its {TARGETS[chosen]} records."
    return chosen, ""


def load_records(path: Path) -> list[Record]:
    """The records of a JSON-lines file; a line that is not JSON is named."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            raise PromptError(f"{path}, line {number}: not valid JSON ({problem.msg}).") from None
        if not isinstance(record, dict):
            raise PromptError(f"{path}, line {number}: expected one JSON object per line, found {line[:60]}")
        records.append(record)
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Add written records to the bundled everyday sentences.")
    parser.add_argument("files", nargs="+", type=Path, help="JSON-lines files of new records")
    parser.add_argument(
        "--set",
        type=Path,
        default=Path(humor_env.__file__).parent / "data" / "everyday.jsonl",
        help="the set to add to",
    )
    parser.add_argument(
        "--keep",
        type=int,
        help="keep this many of the first records, and divide the others again with the new ones; only for records "
        "that nobody has used yet, since ids and splits change",
    )
    options = parser.parse_args(arguments)
    try:
        existing = load_records(options.set)
        candidates = [record for path in options.files for record in load_records(path)]
    except (HumorEnvError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    if options.keep is not None:
        existing, candidates = existing[: options.keep], existing[options.keep :] + candidates
    records, refused = add(existing, candidates)
    for literal, reason in refused:
        print(f"refused: {literal} {reason}", file=sys.stderr)
    if repeats := list(tics(records)):
        print("Nothing was written, as the lines would repeat themselves:", *repeats, sep="\n", file=sys.stderr)
        return 1
    options.set.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    sizes = Counter(record["split"] for record in records)
    print(
        f"{len(records) - len(existing)} added, {len(refused)} refused;",
        ", ".join(f"{s} {n}" for s, n in sizes.items()),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
