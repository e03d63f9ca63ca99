"""The pocket world's words, sentences, prompts and scores. Scores are computed by hand on a world of a few words."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from humor_env import pocket
from humor_env.errors import InvalidOption, PromptError, UnknownName
from humor_env.pocket.__main__ import sizes, speeds, teacher_rates, worn_out_table
from humor_env.pocket.grammar import FRAGMENT_FORM, LONGEST
from humor_env.pocket.judge import PARTS, combine
from humor_env.pocket.lexicon import load_lexicon
from humor_env.pocket.teacher import PocketTeacher
from humor_env.pocket.world import PocketWorld
from humor_env.types import Joke, Prompt

# Worn out by hand: for "slow", glaciers (the only witness that is slow before all else) and "overtook it"; for "cold",
# penguins and "shivered near it"; the first frame. "old" has two witnesses only, so none of them is worn out.
SUBJECTS = """
domain = [{name = "office", related = ["school"]}, {name = "school"}, {name = "nature"}, {name = "animals"}]
complaint = [
    {name = "slow", synonyms = ["sluggish"]}, {name = "cold", synonyms = ["chilly"]}, {name = "old", synonyms = []},
]
subject = [
    {text = "the meeting", domain = "office", complaints = ["slow", "cold"]},
    {text = "the meeting room", domain = "office", complaints = ["cold", "old"]},
    {text = "my lesson", domain = "school", complaints = ["slow", "old"]},
]
literal = [
    {template = "{Subject} was {complaint}.", style = "plain"},
    {template = "I found {subject} {complaint}.", style = "plain"},
    {template = "Ugh, {subject} was {complaint}.", style = "conversational"},
]
frame = [
    {template = "{Subject} was so {complaint} that {witness} {reaction}."},
    {template = "{Witness} {reaction}, so {complaint} was {subject}."},
    {template = "One day {subject} was {complaint}: {witness} {reaction}."},
]
"""
WITNESSES = """
witness = [
    {text = "glaciers", domain = "nature", traits = ["slow", "cold"]},
    {text = "penguins", domain = "animals", traits = ["cold", "slow"]},
    {text = "a fax machine", domain = "office", traits = ["old", "slow"]},
    {text = "a stern headmaster", domain = "school", traits = ["old", "cold", "slow"]},
]
reaction = [
    {text = "overtook it", implies = ["slow"]},
    {text = "overtook it twice", implies = ["old", "slow"]},
    {text = "shivered near it", implies = ["cold"]},
    {text = "napped through it", implies = ["old", "slow"]},
    {text = "knitted it a scarf", implies = ["old", "cold"]},
    {text = "lit a fire under it", implies = ["old", "cold"]},
]
"""


def write_lexicon(folder: Path, subjects: str = SUBJECTS, witnesses: str = WITNESSES) -> Path:
    (folder / "subjects.toml").write_text(subjects, encoding="utf-8")
    (folder / "witnesses.toml").write_text(witnesses, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PocketWorld:
    return PocketWorld(load_lexicon(write_lexicon(tmp_path_factory.mktemp("lexicon"))))


@pytest.fixture(scope="module")
def world() -> PocketWorld:
    return pocket.load_world()


SLOW = Prompt("p", "The meeting was slow.", extra={"subject": "the meeting", "complaint": "slow"})
TOPIC = Prompt("t", "Write one line about the meeting.", "oneliner", extra={"kind": "topic", "subject": "the meeting"})
WORDS = Prompt(
    "w",
    "Write one line with the words meeting and penguins.",
    "oneliner",
    extra={"kind": "words", "subject": "the meeting", "words": ["meeting", "penguins"]},
)


# ---- the score, by hand: form × meaning × (0.1 + resolution × (0.4 + 0.15 incongruity + 0.35 freshness)) ----


@pytest.mark.parametrize(
    ("text", "score", "parts"),
    [
        # all three pieces worn out: 0.1 + 0.4 + 0.15
        ("The meeting was so slow that glaciers overtook it.", 0.65, (1, 1, 1, 1, 0)),
        # the case of the first letter and blanks around the line do not matter
        (" the meeting was so slow that glaciers overtook it.\n", 0.65, (1, 1, 1, 1, 0)),
        # worn frame only: + 0.35 × 0.8
        ("The meeting was so sluggish that penguins napped through it.", 0.93, (1, 1, 1, 1, 0.8)),
        # worn reaction only: + 0.35 × 0.7
        ("One day the meeting was slow: penguins overtook it.", 0.895, (1, 1, 1, 1, 0.7)),
        # worn witness only: + 0.35 × 0.5
        ("Glaciers napped through it, so slow was the meeting.", 0.825, (1, 1, 1, 1, 0.5)),
        # nothing worn out; then from a related corner, then from the subject's own
        ("Penguins napped through it, so slow was the meeting.", 1.0, (1, 1, 1, 1, 1)),
        ("One day the meeting was slow: a stern headmaster overtook it twice.", 0.925, (1, 1, 1, 0.5, 1)),
        ("One day the meeting was slow: a fax machine napped through it.", 0.85, (1, 1, 1, 0, 1)),
        # one of witness and reaction fits: 0.1 + 0.3 × 0.9; the other one is not worn out for "slow"
        ("One day the meeting was slow: penguins shivered near it.", 0.37, (1, 1, 0.3, 1, 1)),
        # a joke about another complaint, told well: the prompt's complaint is lost, and only the witness fits it
        ("One day the meeting was cold: penguins lit a fire under it.", 0.111, (1, 0.3, 0.3, 1, 1)),
        # another subject: 0.3 × 0.9 (the headmaster is far from neither) with the meeting room, 0.3 × 1.0
        ("One day the meeting room was slow: penguins napped through it.", 0.3, (1, 0.3, 1, 1, 1)),
        # neither kept
        ("One day my lesson was old: penguins overtook it.", 0.0, (1, 0, 1, 1, 0.7)),
        # plain sentences, the copy included
        ("The meeting was slow.", 0.1, (1, 1, 0, 0, 0)),
        ("Ugh, the meeting was sluggish.", 0.1, (1, 1, 0, 0, 0)),
        ("The meeting was cold.", 0.03, (1, 0.3, 0, 0, 0)),
        # nothing to find
        ("", 0.0, (0, 0, 0, 0, 0)),
        ("bus bus bus", 0.0, (0, 0, 0, 0, 0)),
    ],
)
def test_scores_computed_by_hand(small: PocketWorld, text: str, score: float, parts: tuple[float, ...]) -> None:
    found = small.judge(SLOW, text)
    assert tuple(found.parts[name] for name in PARTS) == pytest.approx(parts)
    assert found.score == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "known", "pairs", "rest"),
    [
        # <edge> S was so C that W R . <edge>: nine of nine neighbours known, yet the spacing is wrong
        ("The meeting was so slow that penguins napped through it .", 9, 9, 0.1 + 0.4 + 0.15 + 0.35 * 0.8),
        # without "that": so-C known, C-W not; no frame, so its share of freshness is lost too
        ("The meeting was so slow penguins napped through it.", 7, 8, 0.1 + 0.4 + 0.15 + 0.35 * 0.8),
        # two punchlines: both are void
        ("The meeting was so slow that penguins napped through it and glaciers overtook it.", 10, 12, 0.1),
        # no reaction: of the rest, half of the resolution, freshness 1 - 0.3 - 0.2
        ("The meeting was so slow that penguins.", 7, 8, 0.1 + 0.3 * (0.4 + 0.15 + 0.35 * 0.5)),
        # no witness: half of the resolution, no incongruity, freshness 1 - 0.5 - 0.2
        ("The meeting was so slow that napped through it.", 7, 8, 0.1 + 0.3 * (0.4 + 0.35 * 0.3)),
    ],
)
def test_fragments_score_by_the_parts_found(small: PocketWorld, text: str, known: int, pairs: int, rest: float) -> None:
    found = small.judge(SLOW, text)
    assert found.parts["form"] == pytest.approx(FRAGMENT_FORM * known / pairs, abs=1e-6)
    assert found.score == pytest.approx(FRAGMENT_FORM * known / pairs * rest, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "The meeting was so slow that penguins napped through it" + " and on" * 40,
        "The meeting was so slow that penguins\nnapped through it.",
        "The meeting was so slow that penguins napped through it. 😂",
        "The meeting was so slow that penguins napped through it.\u200b",
        "The meeting was so slow that penguins napped through it.\u00a0",
        "The meeting was so slow that penguins napped through it.\x00",
    ],
)
def test_what_is_not_one_short_line_of_plain_letters_has_no_form(small: PocketWorld, text: str) -> None:
    assert small.judge(SLOW, text).parts["form"] == 0.0
    assert small.judge(SLOW, text).score == 0.0


def test_reasons_say_what_is_right_and_what_is_not(small: PocketWorld) -> None:
    def why(text: str) -> str:
        return small.judge(SLOW, text).reason

    assert why("Penguins napped through it, so slow was the meeting.") == (
        "'slow' fits penguins, and 'napped through it' shows it"
    )
    assert why("Glaciers shivered near it, so slow was the meeting.") == (
        "'slow' fits glaciers, but 'shivered near it' does not show it; worn out: glaciers"
    )
    assert why("One day my lesson was slow: a stern headmaster napped through it.") == (
        "the meeting became my lesson; 'slow' fits a stern headmaster, and 'napped through it' shows it, "
        "which is close to home"
    )
    assert why("The meeting was cold.") == "'slow' became 'cold'; there is no punchline"
    assert why("The meeting was so slow that penguins overtook it.") == (
        "'slow' fits penguins, and 'overtook it' shows it; worn out: 'overtook it', the way it is told"
    )
    assert why("The meeting was so slow that glaciers.").endswith("but nothing happens; worn out: glaciers")
    assert why("The meeting was so slow that overtook it.").endswith("would show 'slow'; worn out: 'overtook it'")
    assert why("The meeting was so slow that penguins napped through it!").startswith("it is not a whole sentence")
    assert "more than one witness" in why("One day the meeting was slow: penguins glaciers overtook it.")


def test_score_never_falls_when_a_part_rises() -> None:
    grid = (0.0, 0.3, 0.5, 1.0)
    cells = [(a, b, c, d, e) for a in grid for b in grid for c in grid for d in grid for e in grid]
    for cell in cells:
        for place in range(5):
            higher = [v for v in grid if v > cell[place]]
            for value in higher[:1]:
                raised = (*cell[:place], value, *cell[place + 1 :])
                assert combine(*raised) >= combine(*cell)
    assert combine(1, 1, 1, 1, 1) == 1.0
    assert combine(1, 1, 0, 1, 1) == 0.1


# ---- one-liners ----


@pytest.mark.parametrize(
    ("prompt", "text", "meaning"),
    [
        (TOPIC, "One day the meeting was cold: glaciers knitted it a scarf.", 1.0),
        (TOPIC, "One day the meeting was old: penguins napped through it.", 0.3),  # nobody calls the meeting old
        (TOPIC, "One day my lesson was slow: penguins napped through it.", 0.0),
        (WORDS, "One day the meeting was slow: penguins napped through it.", 1.0),
        (WORDS, "One day the meeting room was cold: penguins knitted it a scarf.", 1.0),  # the words are there
        (WORDS, "One day the meeting was old: penguins napped through it.", 0.3),
        (WORDS, "One day the meeting was slow: glaciers napped through it.", 0.3),
        (WORDS, "One day my lesson was slow: glaciers napped through it.", 0.0),
    ],
)
def test_one_liners_keep_their_subject_and_words(small: PocketWorld, prompt: Prompt, text: str, meaning: float) -> None:
    assert small.judge(prompt, text).parts["meaning"] == meaning


def test_a_free_line_is_resolved_by_its_own_complaint(small: PocketWorld) -> None:
    fresh = small.judge(TOPIC, "One day the meeting was cold: glaciers knitted it a scarf.")
    assert fresh.score == 1.0
    assert small.judge(TOPIC, "One day the meeting was cold: glaciers napped through it.").parts["resolution"] == 0.3


def test_a_punchline_without_a_complaint_is_none(small: PocketWorld) -> None:
    """Nothing is said of the subject that a witness could fit: only a paraphrase's prompt says it for the line."""
    text = "The meeting was so that penguins napped through it."
    free = small.judge(TOPIC, text)
    assert free.parts["resolution"] == free.parts["incongruity"] == free.parts["freshness"] == 0.0
    assert free.reason.endswith("nobody would say that of it; there is no punchline")
    assert small.judge(SLOW, text).parts["resolution"] == 1.0


# ---- reading ----


def test_longest_phrase_wins(small: PocketWorld) -> None:
    reading = small.read("One day the meeting room was old: penguins overtook it twice.")
    assert reading.kind == "joke"
    assert reading.subject is not None
    assert reading.subject.text == "the meeting room"
    assert reading.reaction is not None
    assert reading.reaction.text == "overtook it twice"


def test_every_sentence_reads_back_to_its_own_parts(world: PocketWorld) -> None:
    """All witnesses with all reactions, and every phrase in every template: no sentence can be read in two ways."""
    lexicon, grammar = world.lexicon, world.grammar
    subject, witness, reaction = lexicon.subjects[0], lexicon.witnesses[0], lexicon.reactions[0]
    frame = lexicon.frames[0]
    for w in lexicon.witnesses:
        for r in lexicon.reactions:
            found = grammar.read(grammar.joke(frame, subject, "slow", w, r))
            assert found.witness is w, (w, r)
            assert found.reaction is r, (w, r)
    for frame in lexicon.frames:
        for w in lexicon.witnesses:
            assert grammar.read(grammar.joke(frame, subject, "slow", w, reaction)).witness is w
        for r in lexicon.reactions:
            assert grammar.read(grammar.joke(frame, subject, "slow", witness, r)).reaction is r
        for s in lexicon.subjects:
            found = grammar.read(grammar.joke(frame, s, "slow", witness, reaction))
            assert (found.kind, found.subject, found.frame) == ("joke", s, frame)
    for way in lexicon.literals:
        for complaint in lexicon.complaints:
            for adjective in complaint.adjectives:
                found = grammar.read(grammar.literal(way, subject, adjective))
                assert (found.kind, found.complaint) == ("literal", complaint)


def test_longest_sentence_is_below_the_limit(world: PocketWorld) -> None:
    lexicon = world.lexicon
    line = world.grammar.joke(
        max(lexicon.frames, key=lambda f: len(f.template)),
        max(lexicon.subjects, key=lambda s: len(s.text)),
        max((a for c in lexicon.complaints for a in c.adjectives), key=len),
        max(lexicon.witnesses, key=lambda w: len(w.text)),
        max(lexicon.reactions, key=lambda r: len(r.text)),
    )
    assert world.read(line).kind == "joke"
    assert len(line) <= LONGEST


# ---- the lexicon's checks ----


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('complaints = ["slow", "cold"]', 'complaints = ["slwo", "cold"]', "Did you mean 'slow'?"),
        ('text = "my lesson", domain = "school"', 'text = "my lesson", domain = "shcool"', "Did you mean 'school'?"),
        ('synonyms = ["chilly"]', 'synonyms = ["sluggish"]', "'sluggish' of complaint 'cold' is already in"),
        ('text = "my lesson"', 'text = "glaciers"', "'glaciers' of witnesses is already in subjects"),
        ('text = "my lesson"', 'text = "Glaciers"', "'glaciers' of witnesses is already in subjects"),
        ('text = "my lesson"', 'text = "my  lesson"', "not plain words"),
        ("I found {subject} {complaint}", "I found {subject}", "each of {subject}, {complaint} exactly once"),
        ("I found {subject} {complaint}", "I  found {subject} {complaint}", "single spaces"),
        ("I found {subject} {complaint}", "I found {sUbject} {complaint}", "one capital"),
        ("I found {subject}", "Cold, I found {subject}", "outside its slots"),
        ('I found {subject} {complaint}.", style = "plain"', 'I found {subject} {complaint}.", style = "x"', "style"),
        ("Ugh, {subject} was {complaint}.", "{Subject} was {complaint}.", "is in the lexicon twice"),
        ('complaints = ["slow", "cold"]', 'complaint = ["slow", "cold"]', "[[subject]] number 1"),
        ("frame = [", "framez = [", "no [[frame]]"),
        ("domain = [", "domain = ", "not valid TOML"),
    ],
)
def test_faulty_lexicon_is_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SUBJECTS
    folder = write_lexicon(tmp_path, SUBJECTS.replace(old, new, 1))
    with pytest.raises(InvalidOption) as caught:
        PocketWorld(load_lexicon(folder))
    assert message in str(caught.value)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    faulty = WITNESSES.replace('traits = ["slow", "cold"]', 'traits = ["slwo"]').replace(
        'implies = ["cold"]', 'implies = ["clod"]'
    )
    with pytest.raises(InvalidOption, match=r"2 problem\(s\)(?s:.*)slwo(?s:.*)clod"):
        load_lexicon(write_lexicon(tmp_path, SUBJECTS, faulty))


def test_missing_lexicon_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "subjects.toml").write_text(SUBJECTS, encoding="utf-8")
    with pytest.raises(InvalidOption, match=r"'witnesses\.toml' was not found"):
        load_lexicon(tmp_path)


def test_related_domains_are_half_as_far_in_both_directions(small: PocketWorld) -> None:
    distance = small.lexicon.distance
    assert distance("office", "school") == distance("school", "office") == 0.5
    assert distance("office", "office") == 0.0
    assert distance("office", "nature") == 1.0


# ---- prompts ----


def test_paraphrase_splits(world: PocketWorld) -> None:
    prompts = world.prompts()
    assert Counter(p.split for p in prompts) == {"train": 2400, "dev": 200, "test": 300, "ood": 300}
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts)

    def pairs(*splits: str) -> set[tuple[str, str]]:
        return {(p.extra["subject"], p.extra["complaint"]) for p in prompts if p.split in splits}

    held = {(s.text, c.name) for s, c in world.held_out_pairs()}
    assert pairs("dev", "test") <= pairs("train")
    assert pairs("ood") == held
    assert not pairs("train") & held
    assert len(pairs("train")) + len(held) == len(world.pairs())
    # What is new in ood is the combination: its subjects and complaints are all known from training.
    assert {s for s, _ in held} <= {s for s, _ in pairs("train")}
    assert {c for _, c in held} <= {c for _, c in pairs("train")}
    for prompt in prompts:
        reading = world.read(prompt.text)
        assert reading.kind == "literal"
        assert reading.subject is not None
        assert reading.complaint is not None
        assert (reading.subject.text, reading.complaint.name) == (prompt.extra["subject"], prompt.extra["complaint"])
        style = "conversational" if prompt.split == "ood" else "plain"
        assert prompt.text in world.literals(prompt.extra["subject"], prompt.extra["complaint"], style)


def test_rare_complaints_are_never_held_out(tmp_path: Path) -> None:
    """Each of three complaints is made about four subjects only: to hold one out would make the word itself new."""
    everything = 'complaints = ["slow", "cold", "old"]'
    rare = SUBJECTS
    for pair in ('["slow", "cold"]', '["cold", "old"]', '["slow", "old"]'):
        rare = rare.replace(f"complaints = {pair}", everything)
    more = '{text = "the exam", domain = "school", complaints = ["slow", "cold", "old"]}'
    rare = rare.replace("subject = [", f"subject = [{more}, ")
    assert PocketWorld(load_lexicon(write_lexicon(tmp_path, rare))).held_out_pairs() == []


def test_a_prompt_never_asks_for_the_same_word_twice(tmp_path: Path) -> None:
    folder = write_lexicon(tmp_path, SUBJECTS, WITNESSES.replace('"penguins"', '"a penguin meeting"'))
    words = [p.extra["words"] for p in PocketWorld(load_lexicon(folder)).prompts("oneliner")]
    assert any(words)
    assert all(len(set(asked)) == len(asked) for asked in words)


def test_one_liner_splits(world: PocketWorld) -> None:
    prompts = world.prompts("oneliner")
    assert Counter(p.split for p in prompts) == {"train": 600, "dev": 90, "test": 120, "ood": 120}
    assert Counter(p.extra["kind"] for p in prompts) == {"topic": 310, "headline": 310, "words": 310}
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts)
    held = {(s.text, c.name) for s, c in world.held_out_pairs()}
    for prompt in prompts:
        assert all(word in world.grammar.words(prompt.text) for word in prompt.extra["words"])
        if prompt.extra["kind"] == "headline":
            assert ((prompt.extra["subject"], prompt.extra["complaint"]) in held) is (prompt.split == "ood")


def test_every_prompt_has_a_perfect_line(world: PocketWorld) -> None:
    for prompt in (*world.prompts(), *world.prompts("oneliner")):
        assert world.judge(prompt, world.best(prompt)).score == 1.0, prompt


def test_no_plain_sentence_scores_above_a_tenth(world: PocketWorld) -> None:
    """A student that only paraphrases stays below 0.15, and so does one that copies the prompt."""
    for prompt in world.prompts()[::7]:
        assert world.judge(prompt, prompt.text).score <= 0.1
        for style in ("plain", "conversational"):
            for line in world.literals(prompt.extra["subject"], prompt.extra["complaint"], style)[::5]:
                assert world.judge(prompt, line).score == 0.1
    for fact in world.facts():
        assert world.judge(world.prompts()[0], fact).score <= 0.1


def test_same_prompts_on_every_machine(world: PocketWorld) -> None:
    """If the lexicon was changed on purpose, put the hash that this test prints here, and rebuild the students."""
    text = "\n".join(f"{p.id}\t{p.text}" for task in ("paraphrase", "oneliner") for p in world.prompts(task))
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "3c59c494c62d1301"


def test_prompt_of_another_world_is_an_error(world: PocketWorld) -> None:
    with pytest.raises(PromptError, match="not of the pocket world"):
        world.judge(Prompt("x", "I lost my keys again."), "Ha.")
    with pytest.raises(PromptError, match="Did you mean 'the meeting'"):
        world.judge(Prompt("x", "?", extra={"subject": "the meetin", "complaint": "slow"}), "Ha.")
    with pytest.raises(PromptError, match="Did you mean 'slow'"):
        world.judge(Prompt("x", "?", extra={"subject": "the meeting", "complaint": "slowe"}), "Ha.")


def test_typed_prompt_is_read_from_its_text(small: PocketWorld) -> None:
    typed = Prompt("typed", "I found the meeting sluggish.")
    assert small.judge(typed, "One day the meeting was slow: penguins napped through it.").score == 1.0


def test_unknown_task_and_student_are_explained(world: PocketWorld) -> None:
    with pytest.raises(InvalidOption, match="Did you mean 'oneliner'"):
        world.prompts("one-liner")
    with pytest.raises(UnknownName, match="Did you mean 'causal'"):
        pocket.path("casual")


# ---- how much there is ----


def test_enumeration_agrees_with_brute_force(small: PocketWorld) -> None:
    for threshold in (0.65, 0.8, 0.9, 1.0):
        texts, ideas = set(), set()
        for subject, name in small.pairs():
            prompt = Prompt("x", "", extra={"subject": subject.text, "complaint": name})
            for adjective in small.lexicon.complaint(name).adjectives:
                for witness in small.lexicon.witnesses:
                    for reaction in small.lexicon.reactions:
                        for frame in small.lexicon.frames:
                            line = small.grammar.joke(frame, subject, adjective, witness, reaction)
                            if small.judge(prompt, line).score >= threshold:
                                texts.add(line)
                                ideas.add((subject, name, witness, reaction))
        assert small.enumerate_count(threshold) == len(texts)
        assert small.enumerate_count(threshold, ideas=True) == len(ideas)


def test_there_is_room_to_be_creative(world: PocketWorld) -> None:
    assert world.enumerate_count(0.8, ideas=True) >= 100_000
    lexicon = world.lexicon
    counts = (len(lexicon.subjects), len(lexicon.complaints), len(lexicon.witnesses), len(lexicon.reactions))
    assert all(found >= wanted for found, wanted in zip(counts, (150, 40, 250, 250), strict=True)), counts
    assert sum(way.style == "plain" for way in lexicon.literals) >= 25
    assert len(lexicon.frames) >= 20


def test_worn_out_is_the_head_of_the_teachers_habits(small: PocketWorld, world: PocketWorld) -> None:
    habits = small.habits
    assert {w.text for w in habits.witnesses["slow"].worn} == {"glaciers"}
    assert {w.text for w in habits.witnesses["cold"].worn} == {"penguins"}
    assert habits.witnesses["old"].worn == frozenset()  # two only: nothing fresh would be left
    assert [f.template for f in habits.frames.worn] == [small.lexicon.frames[0].template]
    # Zipf: rank 2 is drawn 2 ** -1.3 = 0.406 times as often as rank 1
    first, second, *_ = habits.witnesses["slow"].cumulative
    assert (second - first) / first == pytest.approx(2**-1.3)
    for name in world.habits.witnesses:
        for habit in (world.habits.witnesses[name], world.habits.reactions[name]):
            assert 0 < len(habit.worn) <= len(habit.ranked) / 3
            assert set(habit.ranked[: len(habit.worn)]) == habit.worn


def test_facts_for_whoever_teaches_a_student_to_speak(small: PocketWorld) -> None:
    assert ("glaciers", "slow") in small.trait_facts()
    assert ("napped through it", "old") in small.reaction_facts()
    assert "People say cold when they think of penguins." in small.facts()
    assert "Somebody overtook it because it was slow." in small.facts()
    assert small.literals("the meeting", "slow") == (
        "The meeting was slow.",
        "The meeting was sluggish.",
        "I found the meeting slow.",
        "I found the meeting sluggish.",
    )


# ---- speed ----


def test_twenty_thousand_judgements_a_second(world: PocketWorld, slowness: Callable[[], float]) -> None:
    """On distinct texts, in processor time, the best of three: the machine may be busy, the judge may not be slow."""
    grammar, lexicon = world.grammar, world.lexicon
    jokes = []
    for number, prompt in enumerate(world.prompts()):
        subject = lexicon.subject(prompt.extra["subject"])
        witness = lexicon.witnesses[number % len(lexicon.witnesses)]
        for frame in lexicon.frames[:3]:
            reaction = lexicon.reactions[(number * 7) % len(lexicon.reactions)]
            line = grammar.joke(frame, subject, prompt.extra["complaint"], witness, reaction)
            jokes.append(Joke(prompt, line if number % 2 else line[:-9]))
    texts = len({joke.text for joke in jokes})
    assert texts > 0.95 * len(jokes)
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        scores = world.judge_many(jokes)
        best = max(best, len(scores) / (time.process_time() - start) * slowness())
    assert best > 20_000


def test_world_loads_in_a_fifth_of_a_second(slowness: Callable[[], float]) -> None:
    """The world with our own modules; numpy and Gymnasium are there before the clock starts."""
    code = (
        "import time, gymnasium; a = time.process_time(); from humor_env import pocket; pocket.load_world();"
        "print(time.process_time() - a)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.2 * slowness()


# ---- what the documentation says ----


def test_documented_table_of_cliches_is_true(world: PocketWorld) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "pocket.md").read_text(encoding="utf-8")
    assert "\n".join(worn_out_table(world)) in page


def test_documented_counts_are_true(world: PocketWorld) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "pocket.md").read_text(encoding="utf-8")
    teacher = PocketTeacher().demonstrations([p for p in world.prompts() if p.split == "train"], 3)
    for row in (*sizes(world), *teacher_rates(world, teacher)):
        assert row in page


def test_speeds_are_counts_by_seconds(world: PocketWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt for prompt in world.prompts() if prompt.split == "train"]
    buffer = PocketTeacher().demonstrations(prompts[:5], 2)
    clock = iter([100.0, 102.0, 200.0, 205.0, 300.0, 300.0 + len(prompts)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    [line] = speeds(world, buffer)
    assert line.startswith("world read and checked in 2.000 s; 2 judgements/s")
    assert line.endswith("; 3 teacher lines/s")
