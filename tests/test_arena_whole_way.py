"""The whole way: what people said in the arena audits a critic, trains one, and fills two tables of the paper."""

import json

import pytest
from arena_sessions import Visitor, served, simulate
from test_arena import links
from test_reward_model import WORDS, encoder
from typer.testing import CliRunner

from humor_env.experiments.arena import exports
from humor_env.experiments.arena.sources import gather
from humor_env.experiments.arena.store import Settings, Store
from humor_env.experiments.commands.cli import app
from humor_env.shared.streams import stream_seed

SMALL = {"people.prompts": 8, "data.pocket_test": 8, "data.pocket_ood": 2, "data.pocket_train": 6, "data.pocket_dev": 2}


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.mark.slow
def test_from_the_arena_to_a_trained_critic_and_its_card(tmp_path):
    """People love glaciers. A critic that is trained on what they said in the arena does too, and its card says that it
    agrees with them; a critic of form alone does not."""
    words, rows = [w for w in WORDS if w.strip() and w != "glaciers"], []
    for n in range(60):
        chosen = [words[stream_seed(0, "words", f"{n}/{k}") % len(words)] for k in range(5)]
        for name, word in (("mine", "glaciers"), ("teacher", words[n % len(words)])):
            text = " ".join([*chosen[: n % 5], word, *chosen[n % 5 + 1 :]]) + f" n{n}"
            rows.append({"prompt": " ".join(chosen) + f" n{n}", "text": text, "author": name})
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(questions=("humor",), per_rater=50)
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "lines.jsonl")]), settings, 3)
    with served(store) as (arena, address):
        for link in links(arena, address):
            one = Visitor(link)
            while one.page.asks:
                one.answer(humor="first" if "glaciers" in one.page.texts[1] else "second")
    store.close()
    run("arena", "--store", tmp_path / "s", "--export", tmp_path / "out")
    pairs = tmp_path / "out" / "pairs.jsonl"
    base = encoder(tmp_path / "base")
    critic = tmp_path / "critic"
    learning = ("lr=5e-3", "head_lr=5e-3", "batch_size=16", "precision=float32")
    sets = [word for setting in learning for word in ("--set", setting)]
    run("train-critic", critic, "--data", f"pairs={pairs}", "--model", base, "--epochs", 5, *sets)
    accuracy = {}
    for name, options in (("reward-model", ["--option", f"folder={critic}"]), ("rules", [])):
        figures = tmp_path / f"{name}.json"
        run("audit", "--critic", name, *options, "--data", "pairs", "--file", pairs, "--out", figures)
        accuracy[name] = json.loads(figures.read_text())["pairs"]["accuracy"]
    assert accuracy["reward-model"] > 0.9 and accuracy["rules"] < 0.75
    cards = tmp_path / "cards"
    run(
        *("card", "reward-model", "--option", f"folder={critic}", "--prompts", "pocket"),
        *("--audit", tmp_path / "reward-model.json", "--out", cards),
    )
    [card] = cards.glob("*.md")
    assert f"{100 * accuracy['reward-model']:.1f} %" in card.read_text()


def test_from_the_arena_to_tables_1_and_6_of_the_reproduction(tmp_path):
    """The people of the paper's protocol sit in the arena: blind pairs of FT's, BRIO's and DPO's lines with the
    teacher's, asked about humor, consistency and the whole. Then the cell of Tables 1 and 6 reads what they said."""
    from humor_env.experiments.reproduction import cells, reproduce, tables
    from humor_env.experiments.reproduction.numbers import Results
    from humor_env.experiments.reproduction.systems import SYSTEMS

    spec = reproduce.load_scale("pocket", [f"{key}={value}" for key, value in SMALL.items()])
    record, out = spec.record(), tmp_path / "out"
    material = cells.open_material(spec, 0, out)
    outcomes = {}
    for system in (s for s in SYSTEMS if s.people):
        own = out / "cells" / "seed-0" / system.name
        own.mkdir(parents=True)
        rows = [
            {"prompt": p.id, "text": f"{p.text} It was {system.name} of a thing."} for p in material.prompts["test"]
        ]
        (own / "lines-test-beams.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcomes[f"seed-0/{system.name}"] = type("Done", (), {"error": None})
    reproduce._write_pairs(spec, out, [0], outcomes)

    material = gather([out])  # a reproduction's folder: its people.jsonl
    assert material.asks_overall and len(material.plan) == 24
    settings = Settings(choose="plan", questions=("humor", "consistency", "overall"), per_rater=30)
    store = Store.create(tmp_path / "s", material, settings, 2)

    def taste(texts):
        """DPO's lines are funnier than the teacher's, BRIO's as good, FT's worse."""
        rank = [2 if " dpo " in t else 1 if " brio " in t else 0 if " ft " in t else 1 for t in texts]
        return "tie" if rank[0] == rank[1] else "first" if rank[0] > rank[1] else "second"

    simulate(store, taste, 2 * 26)  # repeats among them, which do not count
    (tmp_path / "people.jsonl").write_text(exports.people_file(store))
    store.close()
    record["people"] = {"who": str(tmp_path / "people.jsonl"), "prompts": 8}
    record.pop("cloze", None)
    job = {"scale": record, "people": record["people"]}
    found = cells.ask_people(job, 0, out / "cells" / "seed-0" / "people")
    made = tables.make_tables(Results({0: {"people": found}}))
    rates = {
        row["row"]: {name: cell["ours"]["mean"] for name, cell in row["cells"].items()} for row in made["6"]["rows"]
    }
    for part in ("humor", "consistency", "overall"):
        assert (rates["ft"][part], rates["brio"][part], rates["dpo"][part]) == (0.0, 100.0, 100.0)
    critics = {row["row"]: row["cells"] for row in made["1"]["rows"]}
    assert 0 <= critics["mcp/humor"]["agree humor"]["ours"]["mean"] <= 100
    assert critics["mcp/overall"]["agree humor"]["ours"]["items"] == 16  # they decided on FT's and DPO's
