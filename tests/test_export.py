"""`humor-env export`: the lines of all seeds, in three formats, read back with their own readers."""

import json

import pytest
from typer.testing import CliRunner

from humor_env.agents.session.log import RunLog
from humor_env.experiments.commands.cli import app
from humor_env.types import Joke, Judgement, Prompt


@pytest.fixture
def run(tmp_path):
    """Two seeds of two lines each; one line was not judged, one holds what UTF-8 cannot."""
    prompt = Prompt("p", "The meeting was slow.")
    for seed in (0, 10, 2):
        log = RunLog(tmp_path / "run" / f"seed-{seed}")
        jokes = [Joke(prompt, f"line of {seed} \ud800", "policy"), Joke(prompt, "unjudged", "policy")]
        log.jokes(1, jokes, [Judgement("rules", seed / 10), Judgement("rules", None, error="no answer")])
    (tmp_path / "run" / "seed-0" / "jokes.jsonl").open("a").write('{"step": 2, "te')  # torn by a kill
    return tmp_path / "run"


def call(*words):
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    return done.exit_code, done.output


def test_jsonl_has_every_line_of_every_seed_in_order(run, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    code, said = call(run, out)
    assert code == 0 and said.startswith("6 lines written")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["seed"], r["score"]) for r in rows] == [(0, 0.0), (0, None), (2, 0.2), (2, None), (10, 1.0), (10, None)]
    assert rows[1]["error"] == "no answer"


def test_a_dataset_reads_back(run, tmp_path):
    from datasets import load_from_disk

    assert call(run, tmp_path / "set", "--as", "dataset")[0] == 0
    rows = load_from_disk(str(tmp_path / "set"))
    assert rows["score"][:3] == [0.0, None, 0.2] and rows["text"][0] == "line of 0 \ufffd"


def test_minari_gets_what_was_judged(run, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert call(run, "humor/lines-v0", "--as", "minari") == (0, "3 lines written to humor/lines-v0\n")
    found = minari.load_dataset("humor/lines-v0")
    assert [float(episode.rewards[0]) for episode in found.iterate_episodes()] == [0.0, 0.2, 1.0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["RUN", "OUT", "--as", "csv"], "There is no format 'csv'. Known: jsonl, dataset, minari."),
        (["RUN", "RUN"], "already exists"),
        (["RUN", "OUT", "--stage", "ppo"], "has no evaluation-ppo.jsonl"),
    ],
)
def test_what_cannot_be_exported_is_told(run, tmp_path, words, told):
    named = {"RUN": run, "OUT": tmp_path / "out"}
    code, said = call(*(named.get(word, word) for word in words))
    assert code == 2 and told in " ".join(said.split())
