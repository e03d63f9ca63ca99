"""The pocket teacher: the same lines everywhere, faults at the rates it is given, room left above it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from statistics import fmean

import pytest

from humor_env import pocket
from humor_env.errors import InvalidOption, PromptError
from humor_env.pocket.judge import PocketScore
from humor_env.pocket.teacher import PocketTeacher
from humor_env.types import Demonstration, Joke, Prompt

WORLD = pocket.load_world()
TRAIN = [p for p in WORLD.prompts() if p.split == "train"]
ONELINERS = [p for p in WORLD.prompts("oneliner") if p.split == "train"]


def scores(demonstrations: list[Demonstration]) -> list[PocketScore]:
    return WORLD.judge_many([Joke(d.prompt, d.text) for d in demonstrations])


@pytest.fixture(scope="module")
def buffer() -> list[Demonstration]:
    return PocketTeacher().demonstrations(TRAIN, n=3)


def test_same_buffer_on_every_machine(buffer: list[Demonstration]) -> None:
    """If the lexicon or the teacher was changed on purpose, put the hash that this test prints here."""
    text = "\n".join(f"{d.prompt.id}\t{d.text}" for d in buffer)
    text += "\n".join(f"{d.prompt.id}\t{d.text}" for d in PocketTeacher(seed=1).demonstrations(ONELINERS, n=2))
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "7b0800fae418dd0c"


def test_demonstrations_say_where_they_come_from(buffer: list[Demonstration]) -> None:
    assert len(buffer) == 3 * len(TRAIN)
    assert {(d.source, d.licence) for d in buffer} == {("pocket-teacher", "CC-BY-4.0")}
    assert [d.prompt.id for d in buffer[:6]] == [TRAIN[0].id] * 3 + [TRAIN[1].id] * 3


def test_lines_do_not_depend_on_the_calls_before() -> None:
    teacher = PocketTeacher()
    forward = [teacher.lines(p) for p in TRAIN[:50]]
    again = [PocketTeacher().lines(p) for p in reversed(TRAIN[:50])]
    assert forward == again[::-1]
    assert teacher.lines(TRAIN[0], 5)[:3] == forward[0]
    assert PocketTeacher(seed=1).lines(TRAIN[0]) != forward[0]
    assert all(len(set(lines)) == 3 for lines in forward)


def test_every_line_is_a_whole_sentence(buffer: list[Demonstration]) -> None:
    assert {WORLD.read(d.text).kind for d in buffer} == {"joke"}


def test_without_faults_every_line_is_honest_and_even() -> None:
    teacher = PocketTeacher(cliche_rate=0, wrong_complaint_rate=0, lost_meaning_rate=0)
    found = scores(teacher.demonstrations(TRAIN, 2))
    assert all(s.parts["meaning"] == s.parts["resolution"] == 1.0 for s in found)
    assert min(s.score for s in found) >= 0.5
    # Two of 29 frames are worn out: drawn evenly, that is 1 in 14.5
    worn = {f.template for f in WORLD.habits.frames.worn}
    readings = [WORLD.read(d.text) for d in teacher.demonstrations(TRAIN, 2)]
    share = fmean(r.frame is not None and r.frame.template in worn for r in readings)
    assert share == pytest.approx(len(worn) / len(WORLD.lexicon.frames), abs=0.02)


def test_cliche_rate_of_one_draws_by_zipfs_law() -> None:
    teacher = PocketTeacher(cliche_rate=1, wrong_complaint_rate=0, lost_meaning_rate=0)
    frames = Counter(WORLD.read(line).frame for p in TRAIN for line in teacher.lines(p, 2))
    ranked = WORLD.habits.frames.ranked
    weights = [1 / rank**1.3 for rank in range(1, len(ranked) + 1)]
    for rank in (0, 1, 4):
        assert frames[ranked[rank]] / frames.total() == pytest.approx(weights[rank] / sum(weights), abs=0.025)


def test_wrong_complaint_rate() -> None:
    """Of the wrong punchlines half have neither part right, a quarter each only the witness or only the reaction.

    A complaint drawn at random is the right one after all once in 44 times, and a wrong witness may fit by chance.
    """
    teacher = PocketTeacher(cliche_rate=0, wrong_complaint_rate=1, lost_meaning_rate=0)
    found = scores(teacher.demonstrations(TRAIN, 2))
    assert {s.parts["meaning"] for s in found} == {1.0}
    kinds = Counter(s.parts["resolution"] for s in found)
    assert kinds[0.0] / len(found) == pytest.approx(0.5 * 43 / 44, abs=0.05)
    assert kinds[0.3] / len(found) == pytest.approx(0.5, abs=0.05)
    both = [PocketTeacher(wrong_complaint_rate=rate, lost_meaning_rate=0) for rate in (0.1, 0.4)]
    few, many = (fmean(s.parts["resolution"] < 1 for s in scores(t.demonstrations(TRAIN, 1))) for t in both)
    assert few == pytest.approx(0.1, abs=0.03)
    assert many == pytest.approx(0.4, abs=0.04)


def test_lost_meaning_rate() -> None:
    teacher = PocketTeacher(wrong_complaint_rate=0, lost_meaning_rate=1)
    found = scores(teacher.demonstrations(TRAIN, 1))
    assert {s.parts["meaning"] for s in found} == {0.3}
    subject_lost = fmean(" became '" not in s.reason for s in found)
    assert subject_lost == pytest.approx(0.5, abs=0.05)
    some = PocketTeacher(wrong_complaint_rate=0, lost_meaning_rate=0.2)
    assert fmean(s.parts["meaning"] < 1 for s in scores(some.demonstrations(TRAIN, 1))) == pytest.approx(0.2, abs=0.03)


def test_defaults_leave_room(buffer: list[Demonstration]) -> None:
    """Gifted (0.6 to 0.7 on average) and lazy: mostly right, often worn out, rarely perfect."""
    found = scores(buffer)
    assert 0.6 <= fmean(s.score for s in found) <= 0.7
    right = [s for s in found if s.parts["meaning"] == s.parts["resolution"] == 1.0]
    assert 0.6 <= len(right) / len(found) <= 0.8
    assert fmean(s.score == 1.0 for s in found) < 0.12
    fresh = [s.score for s in right if s.parts["freshness"] == 1.0]
    assert min(fresh) >= 0.8
    worn = [s.score for s in right if s.parts["freshness"] <= 0.3]
    assert max(worn) < 0.8


def test_buffer_shows_a_small_part_of_what_there_is(buffer: list[Demonstration]) -> None:
    good = {d.text for d, s in zip(buffer, scores(buffer), strict=True) if s.score >= 0.8}
    assert 1000 < len(good) < 0.05 * WORLD.enumerate_count(0.8)


def test_one_liners_follow_their_constraints() -> None:
    teacher = PocketTeacher(wrong_complaint_rate=0, lost_meaning_rate=0)
    by_kind: dict[str, list[float]] = {}
    for prompt in ONELINERS:
        for line in teacher.lines(prompt, 2):
            parts = WORLD.judge(prompt, line).parts
            by_kind.setdefault(prompt.extra["kind"], []).append(parts["meaning"] * parts["resolution"])
    assert fmean(by_kind["topic"]) == fmean(by_kind["headline"]) == fmean(by_kind["words"]) == 1.0
    assert 0.55 <= fmean(s.score for s in scores(PocketTeacher().demonstrations(ONELINERS, 3))) <= 0.75


def test_twenty_thousand_lines_a_second(slowness: Callable[[], float]) -> None:
    teacher = PocketTeacher()
    for prompts in (TRAIN, ONELINERS):
        best = 0.0
        for _ in range(3):
            start = time.process_time()
            lines = teacher.demonstrations(prompts, 3)
            best = max(best, len(lines) / (time.process_time() - start) * slowness())
        assert best > 20_000


def test_impossible_requests_are_explained() -> None:
    with pytest.raises(InvalidOption, match="cliche_rate must be a probability"):
        PocketTeacher(cliche_rate=1.2)
    with pytest.raises(InvalidOption, match="lost_meaning_rate must be a probability"):
        PocketTeacher(lost_meaning_rate=-0.1)
    with pytest.raises(InvalidOption, match="at least one line"):
        PocketTeacher().lines(TRAIN[0], 0)
    with pytest.raises(PromptError, match="not of the pocket world"):
        PocketTeacher().lines(Prompt("x", "I lost my keys again."))
