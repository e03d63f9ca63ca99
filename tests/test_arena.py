"""The arena: what raters are asked, what is kept, what cannot be answered, and what the figures say."""

import csv
import http.client
import io
import json
import math
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from arena_sessions import HIDDEN, Server, Taste, Visitor, code, served, simulate, write_lines
from report_runs import HOSTILE, make_run
from typer.testing import CliRunner

from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.arena import choice, exports, figures
from humor_env.experiments.arena.results import results_view
from humor_env.experiments.arena.server import Arena, Limiter, open_socket
from humor_env.experiments.arena.sources import Line, gather
from humor_env.experiments.arena.store import Answered, Ask, Settings, Store
from humor_env.experiments.commands.cli import app
from humor_env.rewards.tournament import strengths

TASTE = {"good": 2.0, "fair": 0.5, "weak": -1.0, "teacher": 1.0}


def session(folder, systems=tuple(TASTE), prompts=40, raters=2, text=None, **settings):
    material = gather([], [str(write_lines(folder / "lines.jsonl", systems, prompts, text))])
    return Store.create(folder / "arena.sqlite", material, Settings(**settings), raters)


def links(arena, address):
    return [f"{address}/r/{arena.store.token(rater.id)}" for rater in arena.store.raters()]


def kept(store):
    """All that a rater could have changed."""
    return [(x.ask, x.what, dict(x.said)) for x in store.answers()]


# What is shown


def test_a_run_gives_its_stages_with_the_scores_of_its_critics(tmp_path):
    run = make_run(tmp_path / "some", seeds=2, prompts=5)
    found = gather([run])
    assert found.systems == ("base", "imitation", "ppo")
    assert len(found.prompts) == 5
    assert {critic for line in found.lines for critic in line.scores} == {"pocket"}
    assert gather([run], teacher=True).systems == ("base", "imitation", "ppo", "teacher")
    assert gather([run], teacher=True, systems=["ppo", "teacher"]).systems == ("ppo", "teacher")
    other = make_run(tmp_path / "other", seeds=1, prompts=5)
    assert gather([run, other], teacher=True, systems=["some/ppo", "other/ppo", "teacher"]).systems[-1] == "teacher"
    with pytest.raises(InvalidOption, match="Did you mean 'ppo'"):
        gather([run], systems=["pp0"])


def test_files_of_lines_of_a_buffer_and_of_pairs(tmp_path):
    prompt = {"id": "p1", "text": "The  Bus was late.", "task": "paraphrase", "split": "test", "extra": {}}
    (tmp_path / "buffer.jsonl").write_text(json.dumps({"prompt": prompt, "text": "Snails passed it.", "source": "x"}))
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"prompt": "the bus was late.", "text": "It had retired.", "author": "me"})
    )
    found = gather([], [f"teacher={tmp_path / 'buffer.jsonl'}", str(tmp_path / "mine.jsonl")], teacher=True)
    assert [(line.system, line.text) for line in found.lines] == [
        ("teacher", "Snails passed it."),
        ("me", "It had retired."),
    ]
    assert list(found.prompts.values()) == [("p1", "The  Bus was late.")]  # the same sentence is one prompt
    pair = {"prompt": "p1", "input": "The bus was late.", "first": "It had retired.", "second": "Other.", "overall": ""}
    (tmp_path / "people.jsonl").write_text(json.dumps(pair) + "\n")
    blind = gather([], [str(tmp_path / "people.jsonl")])
    assert (blind.systems, blind.plan, blind.asks_overall) == ((), [(0, 1)], True)
    known = gather([], [str(tmp_path / "mine.jsonl")], plan=tmp_path / "people.jsonl")
    assert [known.lines[place].system for place in known.plan[0]] == ["me", ""]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "expected an object, found list"),
        ('{"text": "x"}', "line 1: not a line to judge"),
        ('{"prompt": "x", "text": 3}', "'text' is no text"),
        ("", "There is nothing to judge"),
        ('{"prompt": "a", "text": "b", "author": "x"}\n{"prompt": "c", "text": "d", "author": "y"}', "no prompt in"),
    ],
)
def test_a_file_that_cannot_be_judged_is_told(tmp_path, content, said):
    (tmp_path / "lines.jsonl").write_text(content)
    with pytest.raises((PromptError, InvalidOption), match=said):
        gather([], [str(tmp_path / "lines.jsonl")])


def test_half_a_surrogate_pair_can_be_kept_and_shown(tmp_path):
    rows = [{"prompt": "a b", "text": "x \ud800", "author": name} for name in "ab"]
    rows[1]["text"] = "y"
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "lines.jsonl")]), Settings())
    assert store.lines[0].text == "x \ufffd"
    store.close()


# What is asked


def test_sides_are_balanced_systems_meet_and_pairs_come_again_turned(tmp_path):
    store = session(tmp_path, raters=8, per_rater=60)
    simulate(store, Taste(TASTE), 8 * 60)
    asks = store.asks()
    fresh = [ask for ask in asks if ask.again is None]
    turned = np.mean([ask.turned for ask in fresh])
    assert abs(turned - 0.5) < 3 * 0.5 / math.sqrt(len(fresh))
    by_id = {ask.id: ask for ask in asks}
    repeats = [ask for ask in asks if ask.again is not None]
    assert len(repeats) == 8 * 6  # each tenth
    for ask in repeats:
        old = by_id[ask.again]
        assert (old.a, old.b, old.rater, old.turned) == (ask.a, ask.b, ask.rater, not ask.turned)
    systems = Counter(frozenset((store.lines[a.a].system, store.lines[a.b].system)) for a in fresh)
    assert len(systems) == 6 and min(systems.values()) >= 5 and all(len(s) == 2 for s in systems)
    assert all(store.lines[a.a].prompt == store.lines[a.b].prompt for a in fresh)
    for rater in range(1, 9):
        own = [(a.a, a.b) for a in fresh if a.rater == rater]
        assert len(set(own)) == len(own) == 54  # nobody is asked the same twice, but for repeats
    shared = Counter((a.a, a.b) for a in fresh)
    assert sum(count > 1 for count in shared.values()) > 60  # so agreement can be known
    store.close()


def test_a_plan_is_followed_by_everybody_each_in_an_order_of_their_own(tmp_path):
    plan = [{"prompt": f"s{n}", "input": f"Sentence {n}.", "first": f"A {n}", "second": f"B {n}"} for n in range(12)]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plan))
    settings = Settings(choose="plan", repeats=0, questions=("humor",))
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "plan.jsonl")]), settings, 2)
    simulate(store, lambda texts: "first" if texts[0][0] == "A" else "second", 24)
    orders = [[(a.a, a.b) for a in store.asks() if a.rater == rater] for rater in (1, 2)]
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1]) and len(orders[0]) == 12
    assert Arena(store).ask_of(1) is None
    assert {(r["first"][0], r["humor"]) for r in map(json.loads, exports.people_file(store).splitlines())} == {
        ("A", "first"),
        ("B", "second"),
    }
    store.close()


def test_the_same_line_of_two_systems_is_never_asked(tmp_path):
    store = session(tmp_path, ("a", "b"), 12, text=lambda name, n: f"Line {n if n % 2 else (name, n)}", repeats=0)
    arena = Arena(store)
    for _ in range(6):
        ask = arena.ask_of(1)
        assert store.lines[ask.a].text != store.lines[ask.b].text
        arena.answer(1, ask.nonce, {"humor": "tie", "consistency": "tie"})
    assert arena.ask_of(1) is None
    store.close()


def test_what_tells_most_is_asked_by_hand():
    """Two equal systems far above a third one, all met equally often: the game of the two equal ones tells most about
    their gap, but the widest gap is the other; of the two ways to it the nearer system is no better than its twin."""
    wins = np.array([[0.0, 10, 20], [10, 0, 20], [0, 0, 0]])
    gains = choice.expected_gains(wins)
    assert gains[0, 2] == pytest.approx(gains[1, 2], rel=1e-6)
    assert gains[0, 2] > gains[0, 1] > 0
    asked = np.zeros((3, 3))
    asked[0, 2] = asked[2, 0] = asked[1, 2] = asked[2, 1] = 1000  # answers that are on their way
    gains = choice.expected_gains(wins, asked)
    assert gains[0, 1] > gains[0, 2]


def needed(taste, how, goal=None, answers=4000, seed=0):
    """Answers of four raters until the widest gap between neighbours is known to `goal`; without one, how well it is
    known after all of them. Straight with the chooser: the store would wait for the disk."""
    systems = tuple(taste)
    lines = [Line(f"p{n}", name, f"{name} {n}") for n in range(400) for name in systems]
    settings = Settings(choose=how, seed=seed, per_rater=10_000, repeats=0, questions=("humor",))
    chooser, chance = choice.Chooser(lines, settings), random.Random(f"{seed} {how}")
    for count in range(answers):
        found = chooser.next(1 + count % 4)
        ask = Ask(count, 1 + count % 4, "", found.a, found.b, found.turned, None, 0.0)
        chooser.asked(ask)
        first, second = (taste[lines[place].system] for place in (found.a, found.b))
        wins = chance.random() < 1 / (1 + math.exp(second - first))
        said = "first" if wins != found.turned else "second"
        chooser.answered(Answered(ask, "answer", {"humor": said}, 0.0))
        if goal is not None and count % 10 == 9 and widest(chooser) <= goal:
            return count + 1
    return widest(chooser) if goal is None else answers


def widest(chooser):
    """Half the width of that gap's interval."""
    wins = chooser.wins
    t = strengths(wins)
    _, covariance = choice.information(wins + wins.T, t)
    order = np.argsort(t)
    gaps = [covariance[i, i] + covariance[j, j] - 2 * covariance[i, j] for i, j in zip(order, order[1:], strict=False)]
    return 1.96 * math.sqrt(max(gaps))
