"""The cells of a reproduction one by one: the grid, what decides each, its data, and small cells from end to end."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

from humor_env import registry
from humor_env.agents.student import Student
from humor_env.agents.student.beams import beams
from humor_env.experiments.compare.jobs import Outcome
from humor_env.experiments.reproduction import cells
from humor_env.experiments.reproduction.cells import Material, make_cells, open_material, protocol, training_prompts
from humor_env.experiments.reproduction.judges import PARTS, RatedJudge, budget_of, make_judge, make_people
from humor_env.experiments.reproduction.reproduce import _write_pairs, _write_results
from humor_env.experiments.reproduction.spec import JudgeTable, load_scale
from humor_env.experiments.reproduction.systems import SYSTEMS, System, by_name
from humor_env.pocket.teacher import PocketTeacher
from humor_env.prompts import load_prompts
from humor_env.rewards.pocket import PocketJudge
from humor_env.shared.streams import generator, stream_seed
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Prompt, Verdict

SMALL = ("data.pocket_train=7", "data.pocket_dev=2", "data.pocket_test=3", "data.pocket_ood=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    words = tiny.tokenizer()
    tiny.llama(len(words), context=256).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def small(model, *changes):
    quick = ("warm_start.epochs=1", "more_imitation.epochs=1", "writing.max_new_tokens=4", "writing.beams=2")
    return load_scale("pocket", [*SMALL, f"student.model={model!r}", *quick, "feedback.share=0.5", *changes])


# The grid


def test_every_system_is_a_cell_of_each_seed_after_its_warm_start():
    made = make_cells(load_scale("pocket"), Path("out"), [0, 7])
    assert [cell.name for cell in made[:4]] == ["seed-0/warm-3", "seed-7/warm-3", "seed-0/warm-1", "seed-7/warm-1"]
    assert len(made) == 2 * (len(SYSTEMS) + 1)
    found = {cell.name: cell for cell in made}
    assert found["seed-7/warm-1"].needs == ()
    brio = found["seed-7/brio-1"]
    assert (brio.folder, brio.seed, brio.needs) == (Path("out/cells/seed-7/brio-1"), 7, ("seed-7/warm-1",))
    assert (brio.job, brio.spec["system"]) == ("humor_env.experiments.reproduction.cells:train", "brio-1")
    people = made[-1]
    assert people == found["seed-7/people"]
    assert people.needs == ("seed-7/ft", "seed-7/brio", "seed-7/dpo")
    assert (people.job, people.seed, people.folder) == (
        *("humor_env.experiments.reproduction.cells:ask_people", 7, Path("out/cells/seed-7/people")),
    )
    assert set(people.spec) == {"people", "cloze", "scale"}
    assert people.spec["people"] == {"who": "exact", "prompts": 0}


def test_a_language_models_lines_are_a_cell_that_comes_first():
    made = make_cells(load_scale("paper"), Path("out"), [0])
    assert (made[0].name, made[0].folder, made[0].needs) == ("teacher", Path("out/cells/teacher"), ())
    assert made[0].job == "humor_env.experiments.reproduction.cells:teach"
    assert set(made[0].spec) == {"data", "teacher"}
    needs = {cell.name: cell.needs for cell in made[1:]}
    assert needs["seed-0/warm-3"] == ("teacher",)
    assert needs["seed-0/dpo"] == ("seed-0/warm-3",)
    assert "seed-0/people" not in needs  # nobody rates


def test_ratings_decide_the_cell_of_people(tmp_path):
    """Another file of ratings under the same name is another question."""
    path = tmp_path / "ratings.jsonl"
    specs = []
    for text in ("{}\n", "{} \n"):
        path.write_text(text)
        specs.append(make_cells(load_scale("pocket", [f"people.who={str(path)!r}"]), tmp_path, [0])[-1].spec)
    first, second = (spec["ratings"] for spec in specs)
    assert first != second and len(first) == len(second) == 16
    assert "ratings" not in make_cells(load_scale("pocket"), tmp_path, [0])[-1].spec


def test_a_cell_holds_the_settings_that_decide_it_and_no_others():
    found = {cell.name.partition("/")[2]: cell for cell in make_cells(load_scale("pocket"), Path("out"), [0])}
    scales = {name: set(cell.spec["scale"]) for name, cell in found.items()}
    always = {"student", "data", "teacher", "critic", "outside", "warm_start", "writing"}
    assert scales["warm-3"] == scales["people"] == always
    assert scales["ft-1"] == always | {"more_imitation"}
    assert scales["dpo"] == scales["sd"] == always | {"feedback", "learners"}
    of = {name: found[name].spec["scale"]["learners"] for name in ("dpo-unfiltered", "brio-2", "brio-dpo", "sd")}
    assert of["dpo-unfiltered"] == {"dpo": {"learning_rate": 2e-4, "checkpoint_every": 200}}
    assert [list(learners) for learners in of.values()] == [["dpo"], ["brio"], ["brio-dpo"], ["sd"]]
    assert cells._what_decides({"feedback": {}, "learners": {}}, by_name("sd")) == {
        "feedback": {},
        "learners": {"sd": {}},
    }


def test_the_papers_protocol_overrides_a_learners_settings():
    scale = load_scale("pocket", ["feedback.epochs=4", "learners.dpo.pairs={candidates=3, length_filter='off'}"])
    assert protocol(scale, by_name("dpo")) == {
        **{"learning_rate": 2e-4, "checkpoint_every": 200, "epochs": 4, "rounds": 1},
        "pairs": {"candidates": 3, "length_filter": "after"},
    }
    assert protocol(scale, by_name("dpo-unfiltered"))["pairs"] == {"candidates": 3, "length_filter": "off"}
    assert protocol(scale, by_name("brio-1-rounds-10"))["rounds"] == 10
    both = protocol(scale, by_name("brio-dpo"))
    assert (both["brio"]["pairs_of"], both["brio"]["epochs"], both["dpo"]["epochs"]) == ("teacher", 4, 4)
    assert "rounds" not in both["dpo"] and "pairs_of" not in both["dpo"]
    assert both["dpo"]["learning_rate"] == 2e-4


# Data


def test_the_pocket_worlds_material_is_the_first_of_each_split():
    material = open_material(load_scale("pocket", SMALL), 3, Path("nowhere"))
    world = load_prompts("pocket")
    assert {split: len(prompts) for split, prompts in material.prompts.items()} == {
        **{"train": 7, "dev": 2, "test": 3, "ood": 2}
    }
    assert [p.id for p in material.prompts["test"]] == [p.id for p in world.split("test")][:3]
    assert len(material.buffer) == 3 * 14
    teacher = PocketTeacher(seed=3)
    everything = [p for split in ("train", "dev", "test", "ood") for p in material.prompts[split]]
    written = teacher.demonstrations(everything, 3)
    asked = material.prompts["dev"][1]
    shown = [d for d in written if d.prompt.id == asked.id]
    assert [d.text for d in material.demonstrations([asked], 2)] == [d.text for d in shown[:2]]


def test_lines_of_a_language_model_are_read_and_what_it_refused_is_left_out(tmp_path):
    home = tmp_path / "cells" / "teacher"
    home.mkdir(parents=True)
    prompts = [Prompt(f"test/{n}", f"Soup {n}.", "paraphrase", "test") for n in range(3)]
    TeacherBuffer(home / "lines.jsonl").add([Demonstration(p, "So cold.", "t") for p in prompts[:2]])
    rows = [{"id": p.id, "text": p.text, "task": p.task, "split": p.split} for p in prompts]
    (home / "prompts.json").write_text(json.dumps({"test": rows, "train": rows[1:]}))
    material = open_material(load_scale("paper"), 0, tmp_path)
    assert material.prompts == {"test": (prompts[0], prompts[1]), "train": (prompts[1],)}
    assert list(material.buffer.lines_for("test/1")) == ["So cold."]


def test_a_smaller_share_of_the_data_is_part_of_a_larger_one():
    prompts = tuple(Prompt(f"p{n}", f"Soup {n}.") for n in range(8))
    material = Material({"train": prompts}, TeacherBuffer(None))
    shares = [training_prompts(material, System("x", "sd", thirds), 5) for thirds in (1, 2, 3)]
    assert [len(share) for share in shares] == [2, 5, 8]  # 8 x 1 // 3, 8 x 2 // 3
    assert shares[0] == shares[2][:2] and shares[1] == shares[2][:5]
    order = generator(5, "reproduction-data").permutation(8)
    assert shares[2] == [prompts[i] for i in order]
    assert training_prompts(material, System("x", "sd"), 6) != shares[2]


def test_lines_are_kept_and_read_again(tmp_path):
    prompts = [Prompt("a", "One."), Prompt("b", "Two.")]
    cells._keep_lines(tmp_path / "lines.jsonl", [Joke(prompts[1], "é\u2028", "x"), Joke(prompts[0], "o", "x")])
    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert cells.read_lines(tmp_path / "lines.jsonl", prompts, "me") == [
        *(Joke(prompts[1], "é\u2028", "me"), Joke(prompts[0], "o", "me")),
    ]


# Judges


def test_each_kind_of_limit_goes_to_the_one_ledger(tmp_path):
    assert budget_of(load_scale("pocket")) == {}
    scale = load_scale("pocket", ["budget.max_calls=5", "budget.max_cost=2.5"])
    assert budget_of(scale) == {"max_calls": 5, "max_cost": 2.5, "scope": "reproduction"}
    cells.write_allowance(scale, tmp_path / "new" / "out")
    assert json.loads((tmp_path / "new" / "out" / "allowance.json").read_text()) == {"max_calls": 5, "max_cost": 2.5}
    critic = {"judge": "pocket"}
    opened = cells._open({"critic": critic, "outside": critic}, tmp_path / "new" / "out", writing={"beams": 3})
    assert (opened.budget.max_calls, opened.writing.beams, opened.name) == (5, 3, "cell")
    assert cells._open({"critic": critic, "outside": critic}, tmp_path).budget.max_calls is None


class Asked:
    """Keeps what it was made with."""

    def __init__(self, seed=None, ledger=None, budget=None, other=None):
        self.given = {"seed": seed, "ledger": ledger, "budget": budget, "other": other}


def test_a_judge_gets_the_roles_taste_the_ledger_and_the_limits(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.judges._entries, "asked", registry.Entry("asked", Asked, "", "registered"))
    scale = load_scale("pocket", ["budget.max_calls=5", "critic.options.noise=0.25"])

    def given(part="overall", scale=scale, **changes):
        table = JudgeTable(judge="asked", **changes)
        made = make_judge(scale, table, "critic", seed=4, out=tmp_path, part=part)
        return None if made is None else made.given

    ours = {"seed": stream_seed(4, "critic"), "ledger": str(tmp_path / "ledger.sqlite"), "other": None}
    limits = {"max_calls": 5, "scope": "reproduction"}
    assert given() == ours | {"budget": limits}
    own = {"seed": 3, "ledger": "mine", "budget": {}, "other": 1}
    assert given(options=own) == own
    assert given("humor", options={"other": 1}, humor={"other": 2}) == ours | {"budget": limits, "other": 2}
    assert given(options={"other": 1}, humor={"other": 2})["other"] == 1
    assert given("consistency", humor={"other": 2}) is None
    assert given(scale=load_scale("pocket"))["budget"] is None
    crowd = make_judge(scale, scale.critic, "critic", seed=4, out=tmp_path)  # takes neither ledger nor limits
    assert (crowd.seed, crowd.noise, crowd.part) == (stream_seed(4, "critic"), 0.25, "score")


def test_the_exact_judge_stands_for_people_part_by_part(tmp_path):
    assert make_people(None, "overall") is None
    assert [make_people("exact", part).part for part in PARTS] == ["score", "humor", "meaning"]
    assert isinstance(make_people("exact", "humor"), PocketJudge)
    path = tmp_path / "ratings.jsonl"
    path.write_text('{"prompt": "p", "first": "a", "second": "b", "humor": "second"}\n')
    people = make_people(str(path), "humor")
    assert isinstance(people, RatedJudge)
    prompt = Prompt("p", "One.")
    [found, other] = people([(Joke(prompt, "a"), Joke(prompt, "b")), (Joke(prompt, "b"), Joke(prompt, "a"))])
    assert (found.probability, found.tie, other.probability) == (0.0, 0.0, 1.0)


class Longer:
    """Prefers the longer line, says nothing of empty ones, and lines of one length are a tie."""

    def __call__(self, pairs):
        found = []
        for a, b in pairs:
            if not a.text or not b.text:
                found.append(Verdict("longer", None, error="empty"))
            else:
                a, b = len(a.text), len(b.text)
                found.append(Verdict("longer", 0.5 if a == b else float(a > b), tie=float(a == b), flipped=False))
        return found


def test_a_win_or_a_tie_is_against_the_teachers_first_line():
    prompt = Prompt("p", "One.")
    buffer = TeacherBuffer(None, [Demonstration(prompt, "four", "t"), Demonstration(prompt, "of seven", "t")])
    jokes = [Joke(prompt, text, "me") for text in ("five5", "four", "six", "")]
    assert cells.win_ties(jokes, Longer(), buffer) == [1.0, 1.0, 0.0, None]
    assert (cells._rounded(0.123456), cells._rounded(None)) == (0.1235, None)


def test_the_students_share_is_taken_in_either_place():
    mine, theirs = Joke(Prompt("p", "One."), "a", "brio"), Joke(Prompt("p", "One."), "b", "teacher")
    pairs = [(mine, theirs), (theirs, mine), (mine, theirs), (theirs, mine), (mine, theirs)]
    verdicts = [
        *(Verdict("x", 0.25), Verdict("x", 0.25), Verdict("x", 0.5, tie=0.5), Verdict("x", 0.25, tie=0.25)),
        Verdict("x", None, error="none"),
    ]
    assert cells._rates(pairs, verdicts) == [0.25, 0.75, 0.75, 0.875, None]
    assert cells._win_or_tie((mine, theirs), Verdict("x", 0.75, tie=1.0)) == 1.0


@pytest.mark.parametrize(("probability", "side"), [(None, None), (0.5, 0), (0.51, 1), (0.49, -1), (1.0, 1), (0.0, -1)])
def test_the_side_that_a_verdict_takes(probability, side):
    error = "none" if probability is None else None
    assert cells._side(Verdict("x", probability, error=error)) == side


def test_which_of_two_lines_is_longer():
    prompt = Prompt("p", "One.")
    texts = [("ab", "a"), ("a", "ab"), ("a", "b")]
    assert [cells._longer((Joke(prompt, a), Joke(prompt, b))) for a, b in texts] == [1, -1, 0]


# Whole cells, with a student of two thin layers


@dataclass
class Trained:
    scale: object
    out: Path
    results: dict


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduction")
    scale = small(model, "people.prompts=2")
    made = {cell.name: cell for cell in make_cells(scale, out, [1])}
    cells.write_allowance(scale, out)
    results = {}
    for name in ("warm-3", "ft"):
        cell = made[f"seed-1/{name}"]
        cell.folder.mkdir(parents=True)
        results[name] = cells.train(cell.asked["spec"], 1, cell.folder)
    return Trained(scale, out, results)


def test_a_warm_start_writes_nothing_and_is_where_others_begin(trained):
    assert trained.results["warm-3"] == {"steps": 1, "prompts": 7, "feedback": {}, "splits": {}}
    home = trained.out / "cells" / "seed-1"
    assert not (home / "warm-3" / "checkpoints").exists()
    assert sorted(p.name for p in (home / "ft").glob("lines-*")) == [
        f"lines-{split}-{way}.jsonl" for split in ("ood", "test") for way in ("beams", "sampled")
    ]


def test_a_systems_lines_are_measured_by_both_judges_in_both_ways(trained):
    found = trained.results["ft"]
    assert (found["steps"], found["prompts"]) == (1, 7)
    splits = found["splits"]
    assert {split: list(ways) for split, ways in splits.items()} == {
        **{"test": ["beams", "sampled"], "ood": ["beams", "sampled"]}
    }
    material = open_material(trained.scale, 1, trained.out)
    for split, size in (("test", 3), ("ood", 2)):
        for way, values in splits[split].items():
            assert {name: len(each) for name, each in values.items()} == dict.fromkeys(
                ("training", "outside", "length ratio", "exact score"), size
            )
            path = trained.out / "cells" / "seed-1" / "ft" / f"lines-{split}-{way}.jsonl"
            jokes = cells.read_lines(path, material.prompts[split], "ft")
            assert values["length ratio"] == [round(len(j.text) / len(j.prompt.text), 4) for j in jokes]
            for role, table in (("training", trained.scale.critic), ("outside", trained.scale.outside)):
                name = {"training": "critic"}.get(role, role)
                judge = make_judge(trained.scale, table, name, seed=1, out=trained.out)
                assert values[role] == cells.win_ties(jokes, judge, material.buffer)


def test_lines_are_the_best_of_a_beam_search_batch_by_batch(model):
    one = Student.load(model, seed=0)
    prompts = [Prompt(f"p{n}", f"The soup {n} was cold.") for n in range(3)]
    scale = small(model, "writing.batch=2")
    found = cells.write_lines(scale, one, prompts, "x")
    alone = [beams(one, [p.text], width=2, max_new_tokens=4)[0][0].text for p in prompts]
    assert [(j.prompt, j.text, j.author) for j in found] == [(p, t, "x") for p, t in zip(prompts, alone, strict=True)]
    sampled = [cells.sample_lines(scale, one, prompts, "y", seed) for seed in (0, 0, 1)]
    assert [j.text for j in sampled[0]] == [j.text for j in sampled[1]] != [j.text for j in sampled[2]]
    assert {j.author for j in sampled[0]} == {"y"}


def test_people_see_the_first_prompts_of_the_test_split(trained):
    home = trained.out / "cells" / "seed-1"
    material = open_material(trained.scale, 1, trained.out)
    shown = material.prompts["test"]
    lines = [Joke(p, f"line {n}", "x") for n, p in enumerate(shown)]
    for name in ("brio", "dpo"):
        (home / name).mkdir(exist_ok=True)
        cells._keep_lines(home / name / "lines-test-beams.jsonl", lines)
    pairs = cells.people_pairs(trained.scale, material, home)
    assert list(pairs) == ["ft", "brio", "dpo"]
    for n, pair in enumerate(pairs["brio"]):
        theirs = material.buffer.lines_for(shown[n].id)[0]
        assert {(j.author, j.text, j.prompt.id) for j in pair} == {
            *(("brio", f"line {n}", shown[n].id), ("teacher", theirs, shown[n].id)),
        }
    assert [len(each) for each in pairs.values()] == [2, 2, 2]
    everyone = trained.scale.model_copy(update={"people": trained.scale.people.model_copy(update={"prompts": 0})})
    assert [len(each) for each in cells.people_pairs(everyone, material, home).values()] == [3, 3, 3]

    cloze = {"people": {"who": "exact", "prompts": 2}, "scale": trained.scale.record()}
    cloze["scale"] = {k: v for k, v in cloze["scale"].items() if k not in cells._FREE}
    found = cells.ask_people(cloze, 1, home / "people")
    assert found["pairs"] == 6
    assert list(found["critics"]) == [f"mcp{way}/{part}" for part in PARTS for way in ("", " in one order")]
    assert all(len(values) == 6 for columns in found["critics"].values() for values in columns.values())
    exact = {part: make_people("exact", part) for part in PARTS}
    for name, of_system in pairs.items():
        assert found["systems"][name] == {part: cells._rates(of_system, exact[part](of_system)) for part in PARTS}
    every = [pair for of_system in pairs.values() for pair in of_system]
    truth = {part: exact[part](every) for part in PARTS}
    for part in PARTS:
        judge = make_judge(trained.scale, trained.scale.critic, "critic", seed=1, out=trained.out, part=part)
        assert found["critics"][f"mcp/{part}"] == cells.compare(every, judge(every), truth, part)
        assert found["critics"][f"mcp in one order/{part}"] == cells.compare(every, judge.ask(every), truth, part)

    # For people to rate: each pair once, whichever seed it is of, and none of a seed of which a cell failed.
    done = {f"seed-1/{name}": Outcome(f"seed-1/{name}", {}) for name in pairs}
    _write_pairs(trained.scale, trained.out, [1, 1], done | {"seed-2/ft": Outcome("seed-2/ft", error="broke")})
    rows = [json.loads(line) for line in (trained.out / "people.jsonl").read_text().splitlines()]
    expected = {(a.prompt.id, a.prompt.text, a.text, b.text) for a, b in every}
    assert {(r["prompt"], r["input"], r["first"], r["second"]) for r in rows} == expected
    assert len(rows) == len(expected)
    assert rows == sorted(rows, key=lambda row: (row["prompt"], row["first"]))
    assert {(r["humor"], r["consistency"], r["overall"]) for r in rows} == {("", "", "")}
    _write_pairs(trained.scale, trained.out, [2], {"seed-2/ft": Outcome("seed-2/ft", error="broke")})
    assert (trained.out / "people.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["sd", "brio", "dpo", "brio-dpo"])
def test_each_learner_gets_a_share_of_the_prompts(trained, name, monkeypatch):
    """Half of 7 prompts is 3.5, rounded to 4; what a learner is given, and what it answers."""
    home = trained.out / "cells" / "seed-1"
    given = {}

    def learn(config, judge, student, log, **extras):
        given.update(extras, config=config, judge=judge, student=student)
        log.metrics(1, {"feedback/judged": 9.0, "other": 1.0})
        return type("Result", (), {"steps": 5, "stopped": False})()

    monkeypatch.setattr(cells.registry.learners, "resolve", lambda asked: learn if asked == name else None)
    monkeypatch.setattr(cells.ScaleSpec, "learner_config", lambda self, kind, seed, **how: (kind, seed, how))
    monkeypatch.setattr(cells, "_save", lambda *_: None)
    monkeypatch.setattr(cells, "_measure", lambda *given: given[6])
    [cell] = [c for c in make_cells(trained.scale, trained.out, [1]) if c.name == f"seed-1/{name}"]
    cell.folder.mkdir(exist_ok=True)
    found = cells.train(cell.asked["spec"], 1, cell.folder)
    assert found == {"steps": 5, "prompts": 4, "feedback": {"judged": 9.0}, "splits": {"test": "test", "ood": "ood"}}
    material = open_material(trained.scale, 1, trained.out)
    prompts = training_prompts(material, by_name(name), 1)[:4]
    assert [p.id for p in given["prompts"]] == [p.id for p in prompts]
    assert given["config"] == (name, 1, protocol(trained.scale, by_name(name)))
    assert given["judge"].seed == stream_seed(1, "critic")
    lines = [d.text for d in material.demonstrations(prompts, 3)]
    assert [d.text for d in given.get("demonstrations", ())] == (lines if name in ("brio", "brio-dpo") else [])
    assert given["checkpoints"].folder == cell.folder / "checkpoints"
    assert (home / "warm-3" / "student").is_dir()


def test_a_share_below_one_prompt_is_one_and_the_first_place_is_drawn_from_the_texts(trained, monkeypatch):
    given = []
    result = type("Result", (), {"steps": 1, "stopped": False})()
    monkeypatch.setattr(
        cells.registry.learners, "resolve", lambda _: lambda *_, prompts, **__: given.append(prompts) or result
    )
    monkeypatch.setattr(cells.ScaleSpec, "learner_config", lambda *_, **__: None)
    monkeypatch.setattr(cells, "_save", lambda *_: None)
    monkeypatch.setattr(cells, "_measure", lambda *_: None)
    [cell] = [c for c in make_cells(trained.scale, trained.out, [1]) if c.name == "seed-1/sd"]
    record = cell.asked["spec"]
    record["scale"]["feedback"]["share"] = 0.01
    cell.folder.mkdir(exist_ok=True)
    assert cells.train(record, 1, cell.folder)["prompts"] == len(given[0]) == 1
    prompt = Prompt("p", "One.")
    for n in range(8):
        mine, theirs = Joke(prompt, f"mine {n}", "brio"), Joke(prompt, "theirs", "teacher")
        first = stream_seed(0, "blind", f"mine {n}\x1ftheirs") % 2
        assert cells._blind(mine, theirs) == ((mine, theirs) if first else (theirs, mine))


def test_an_interrupted_learner_leaves_no_result(trained, monkeypatch):
    stopped = type("Result", (), {"steps": 5, "stopped": True})()
    monkeypatch.setattr(cells.registry.learners, "resolve", lambda asked: lambda *_, **__: stopped)
    monkeypatch.setattr(cells.ScaleSpec, "learner_config", lambda *_, **__: None)
    [cell] = [c for c in make_cells(trained.scale, trained.out, [1]) if c.name == "seed-1/sd"]
    cell.folder.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        cells.train(cell.asked["spec"], 1, cell.folder)


# Where a student's base is kept


class Saving:
    def save_pretrained(self, folder, base=None):
        self.base = base


@pytest.mark.parametrize(
    ("system", "model", "full", "with_base", "base"),
    [
        ("warm-3", "pocket:causal", False, False, None),
        ("warm-3", "some/model", False, False, "some/model"),
        ("warm-3", "some/model", True, False, None),  # its weights are its own
        ("ft", "some/model", True, True, None),
        ("ft", "some/model", False, True, "some/model"),
        ("dpo", "some/model", True, True, "base"),
        ("dpo", "some/model", True, False, None),
        ("dpo", "pocket:causal", False, False, None),
    ],
)
def test_a_base_is_saved_once(tmp_path, system, model, full, with_base, base):
    scale = load_scale("pocket", [f"student.model={model!r}", f"warm_start.full={str(full).lower()}"])
    start = tmp_path / "warm-3" / "student" / "base"
    if with_base:
        start.mkdir(parents=True)
    one = Saving()
    cells._save(scale, by_name(system), one, tmp_path / system)
    assert one.base == (str(start.resolve()) if base == "base" else base)


def test_results_are_written_by_seed_and_cell_and_failures_left_out(tmp_path):
    outcomes = {
        "teacher": Outcome("teacher", {"lines": 3}, seconds={"wall": 1.5}),
        "seed-12/ft": Outcome("seed-12/ft", {"steps": 2}, seconds={"wall": 2.0}),
        "seed-12/sd": Outcome("seed-12/sd", error="broke"),
    }
    _write_results(tmp_path, {"commit": "abc"}, outcomes)
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == [
        {"cell": "about", "seed": None, "result": {"commit": "abc"}},
        {"cell": "teacher", "seed": None, "seconds": {"wall": 1.5}, "result": {"lines": 3}},
        {"cell": "ft", "seed": 12, "seconds": {"wall": 2.0}, "result": {"steps": 2}},
    ]
