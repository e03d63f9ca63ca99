"""The arena: what raters are asked, and what is kept."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from arena_sessions import Taste, simulate, write_lines
from report_runs import make_run

from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.arena import choice, exports, figures
from humor_env.experiments.arena.session import Arena
from humor_env.experiments.arena.sources import gather
from humor_env.experiments.arena.store import Settings, Store
from humor_env.experiments.upkeep.arena_trials import judged as judged_by_chance

TASTE = {"good": 2.0, "fair": 0.5, "weak": -1.0, "teacher": 1.0}


def session(folder, systems=tuple(TASTE), prompts=40, raters=2, text=None, **settings):
    material = gather([], [str(write_lines(folder / "lines.jsonl", systems, prompts, text))])
    return Store.create(folder / "arena.sqlite", material, Settings(**settings), raters)


def links(arena, address):
    return [f"{address}/r/{arena.store.token(rater.id)}" for rater in arena.store.raters()]


def kept(store):
    """All that a rater could have changed."""
    return [(x.ask, x.what, dict(x.replies)) for x in store.answers()]


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
        ('{"prompt": "x", "text": 3}', "'text' is not a string"),
        ('{"prompt": "caf\xe9", "text": "x"}', "lines.jsonl' is not UTF-8 text"),
        ("", "There is nothing to judge"),
        ('{"prompt": "a", "text": "b", "author": "x"}\n{"prompt": "c", "text": "d", "author": "y"}', "no prompt in"),
    ],
)
def test_a_file_that_cannot_be_judged_is_told(tmp_path, content, said):
    (tmp_path / "lines.jsonl").write_text(content, encoding="latin-1")
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
    """Two equal systems far above a third one, all met equally often: the gap to the third is known worst, so a game
    with it tells most, until so many of those are on their way that the other gap is the wider one."""
    wins = np.array([[0.0, 10, 20], [10, 0, 20], [0, 0, 0]])
    gains = choice.expected_gains(wins)
    assert min(gains[0, 2], gains[1, 2]) > gains[0, 1] > 0
    asked = np.zeros((3, 3))
    asked[0, 2] = asked[2, 0] = asked[1, 2] = asked[2, 1] = 1000
    gains = choice.expected_gains(wins, asked)
    assert gains[0, 1] > gains[0, 2]


def test_the_adaptive_choice_needs_at_most_sixty_of_a_hundred_answers():
    """With one system far below four others, as an untrained base is. docs/arena.md has ten seeds of five tastes, and
    says for which there is less to gain."""
    taste = {"base": 0.0, "imitation": 3.0, "dpo": 4.0, "ppo": 4.5, "teacher": 5.5}
    goal = np.mean([judged_by_chance(taste, "random", 300, seed=seed)[1] for seed in range(3)])
    took = [judged_by_chance(taste, "adaptive", 900, goal, seed)[0] for seed in range(3)]
    assert np.mean(took) <= 0.6 * 300


def test_the_order_of_five_systems_of_known_taste_is_recovered(tmp_path):
    taste = {"a": -1.6, "b": -0.8, "c": 0.0, "d": 0.8, "teacher": 1.6}
    store = session(tmp_path, tuple(taste), 100, raters=6, per_rater=150, repeats=0.1)
    simulate(store, Taste(taste, ties=0.1), 450)
    rated = figures.ratings(figures.votes_of(store, "humor"), store.systems)
    assert [store.systems[one.system] for one in rated] == ["teacher", "d", "c", "b", "a"]
    for one in rated:
        # A tenth of ties draws strengths together a little: by 1 / (1 + 0.1 / (0.9 · 2 p (1 - p) …)), under a fifth.
        truth = figures.ELO * taste[store.systems[one.system]]
        assert one.points.low - 80 < truth < one.points.high + 80
    assert rated[0].tier == 1 and rated[-1].tier >= 3
    store.close()
