"""The pages that go to the Hub, sentence by sentence."""

import json
from types import SimpleNamespace

import pytest

import humor_env.agents.ppo  # noqa: F401 - so that its seconds are no test's
from humor_env import __version__
from humor_env.experiments.sharing import model_card as cards
from humor_env.experiments.sharing.model_card import (
    OWN_DATA,
    UNKNOWN,
    _critics,
    _hacks,
    _licence,
    _name,
    _options,
    _results,
    _samples,
    _sources,
    _table,
    _use,
    _verdict,
    dataset_card,
    model_card,
    results_seed,
)
from humor_env.experiments.specs.spec import parse_spec

SPEC = """
[[critic]]
critic = "rules"
[learner]
name = "ppo"
steps = 3
"""


def spec(*overrides):
    return parse_spec(SPEC, overrides)


def test_a_seed_is_named_by_its_folder(tmp_path):
    assert results_seed(tmp_path / "seed-12") == "12"


def test_how_it_is_used():
    one = _use("me/it", "owner/base", False)
    assert one.split("\n") == [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("owner/base")    # a seq2seq base: AutoModelForSeq2SeqLM',
        'model = PeftModel.from_pretrained(model, "me/it", subfolder="policy")',
        'tokenizer = AutoTokenizer.from_pretrained("me/it")',
        "```",
    ]
    assert 'from_pretrained("me/it", subfolder="base")' in _use("me/it", None, False)
    whole = 'whole = AutoModelForCausalLM.from_pretrained("me/it", subfolder="merged")    # without PEFT\n```'
    assert _use("me/it", None, True).endswith(f"\n\n{whole}")
    assert "merged" not in one


def test_where_base_and_data_are_from(tmp_path):
    base = ("base model", "pocket:causal", OWN_DATA)
    assert _sources(spec(), None, tmp_path) == [base, ("sentences", "pocket", OWN_DATA)]
    theirs = "the base model's own, see its page"
    made = spec("student.model=/home/me/model", "env.prompts=/nowhere/mine.jsonl", "teacher.lines=everyday")
    assert _sources(made, None, tmp_path) == [
        ("base model", "model", theirs),
        ("sentences", "mine.jsonl", UNKNOWN),
        ("teacher's lines", "everyday", OWN_DATA),
    ]
    assert _sources(made, "owner/base", tmp_path)[0] == ("base model", "owner/base", theirs)
    assert _name("humicroedit:/home/me/x.csv") == "humicroedit:x.csv"


def test_a_licence_is_ours_or_the_files_commonest_first(tmp_path):
    for name in ("pocket", "everyday", "oneliners"):
        assert _licence(name) == OWN_DATA
    file = tmp_path / "lines.jsonl"
    file.write_text("")
    assert _licence(str(file)) == UNKNOWN
    rows = ["A", "B", None, "B", "unknown", "unknown", "unknown"]
    odd = ["{", "[]", "3"]
    file.write_text("\n".join([json.dumps({"licence": row}) for row in rows] + odd))
    assert _licence(str(file)) == "B, A"
    file.write_text('{"text": "x"}\n')
    assert _licence(str(file)) == UNKNOWN


def test_options_are_shown_only_as_plain_values():
    assert _options({"folder": "/home/me", "n": 3, "x": 0.5, "on": True, "l": [1], "none": None}) == (
        " (n = 3, x = 0.5, on = True)"
    )
    assert _options({"folder": "/home/me"}) == _options({}) == ""


CARDS = {
    "untried": SimpleNamespace(verdict="not tried", failing=()),
    "good": SimpleNamespace(verdict="passing", failing=()),
    "bad": SimpleNamespace(verdict="failing", failing=("likes emoji", "likes length")),
    "worse": SimpleNamespace(verdict="failing", failing=("likes emoji",)),
}


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(cards, "find_card", lambda critic, options: CARDS.get(critic))


def critic(name, **options):
    return SimpleNamespace(critic=name, options=options)


def of_critics(training, measuring=()):
    return SimpleNamespace(critic=list(training), eval=SimpleNamespace(critic=list(measuring)))


def test_what_is_known_of_a_critic(known):
    assert _verdict("none", {}) == "it has no card, so it was not tested on known hacks or compared with people."
    assert _verdict("untried", {}) == "its card says that it was not tried."
    assert _verdict("good", {}) == "its card: it rewards none of the known hacks that were tried."
    assert _verdict("bad", {}) == "its card finds 2 faults, listed under known hacks."


def test_who_gave_the_reward_and_who_measured(known):
    both = of_critics([critic("bad", n=1)], [critic("untried"), critic("none")])
    assert _critics(both) == [
        "- `bad` gave the reward (n = 1): its card finds 2 faults, listed under known hacks.",
        "- `untried` measured the results: its card says that it was not tried.",
        "- `none` measured the results: it has no card, so it was not tested on known hacks or compared with people.",
    ]
    assert [line.split(":")[0] for line in _critics(of_critics([critic("good")]))] == [
        "- `good` gave the reward",
        "- `good` measured the results",
    ]


def test_hacks_are_those_of_the_reward(known):
    nothing = (
        "None is known for the critics it was trained with. Without a card this says little: read the lines above."
    )
    twice = of_critics([critic("bad"), critic("bad"), critic("worse"), critic("none")], [critic("good")])
    assert _hacks(twice) == ["- `bad`: likes emoji", "- `bad`: likes length", "- `worse`: likes emoji"]
    assert _hacks(of_critics([critic("good"), critic("none")], [critic("bad")])) == [nothing]
    assert _hacks(of_critics([], [critic("worse")])) == ["- `worse`: likes emoji"]


def test_results_have_a_row_a_system():
    stages = {
        "base": {"score": 0.1234, "low": 0.1, "high": 0.25, "count": 40.0, "failures": 2.0},
        "ppo": {"score": 0.5, "low": None, "high": None, "count": 3.0},
    }
    first, second = _results(stages)
    assert first[:2] == ("base", "0.123") and first[3:] == ("40", "2")
    assert "0.100" in first[2] and "0.250" in first[2]
    assert second == ("ppo", "0.500", "too few lines for one", "3", "0")
    assert _results({}) == [("none", "it was not measured", "none", "0", "0")]


def test_samples_go_evenly_from_the_lowest_to_the_highest(tmp_path):
    assert _samples(tmp_path, "ppo") == [("none", "no held-out line was judged", "none")]
    path = tmp_path / "evaluation-ppo.jsonl"
    rows = [{"prompt": "p", "text": f"t{i}", "score": i / 100} for i in (5, 3, 1)]
    rows += [{"prompt": "p", "text": "", "score": 0.0}, {"prompt": "p", "text": "x", "score": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _samples(tmp_path, "ppo") == [
        ("p", "(nothing)", "0.000"),
        ("p", "t1", "0.010"),
        ("p", "t3", "0.030"),
        ("p", "t5", "0.050"),
    ]
    rows = [{"prompt": "p", "text": f"t{i}", "score": i / 100} for i in range(13)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Nine of thirteen: every one and a half, and halves go to the even one.
    assert [text for _, text, _ in _samples(tmp_path, "ppo")] == [f"t{i}" for i in (0, 2, 3, 4, 6, 8, 9, 10, 12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    assert len(_samples(tmp_path, "ppo")) == 9


def test_a_table_of_cells():
    assert _table(("a", "b"), [("x|y", "z" * 301)]) == f"| a | b |\n| --- | --- |\n| x\\|y | {'z' * 299}… |"


def test_a_file_of_lines_says_who_wrote_and_judged_it(tmp_path):
    rows = [{"text": "x", "source": "me", "licence": "CC0"}, {"text": "y", "critic": "rules", "source": ""}]
    page = dataset_card(tmp_path / "lines.jsonl", "me/lines", rows)
    assert page == (
        "---\nlicense: other\nlicense_name: see-below\nlanguage: en\ntags:\n- humor\n- humor_env\nconfigs:\n"
        "- config_name: default\n  data_files: data.jsonl\n---\n\n# lines\n\nHumorous lines with the sentences they "
        f"were made from, one a row, kept by humor_env {__version__}.\n\n| what | is |\n| --- | --- |\n| rows | 2 |\n"
        "| columns | text, source, licence, critic |\n| written by | me |\n| judged by | rules |\n| licence | CC0 |\n\n"
        '```python\nfrom datasets import load_dataset\n\nrows = load_dataset("me/lines", split="train")\n```\n'
    )
    bare = dataset_card(tmp_path / "lines.jsonl", "me/lines", [{"text": "x"}])
    assert "| judged by | nobody |" in bare and f"| licence | {UNKNOWN} |" in bare
    assert r"| written by | a student of humor\_env or whoever the file does not name |" in bare


def test_a_students_page(tmp_path):
    seed = tmp_path / "seed-4"
    seed.mkdir()
    (tmp_path / "spec.toml").write_text(spec().to_toml())
    (tmp_path / "run.json").write_text('{"started": "today"}')
    (seed / "results.json").write_text('{"stages": {}, "seconds": {}, "steps": 3}')
    page = model_card(tmp_path, seed, repo="me/it", base="owner/base", merged=False)
    head = (
        "---\nbase_model: owner/base\nlibrary_name: peft\nlicense: other\nlicense_name: that-of-the-base-model\n"
        "language: en\ntags:\n- humor\n- humor_env\n- lora\n- ppo\n---\n\n# it\n\n"
    )
    assert page.startswith(head)
    assert f"trained by `ppo` with [humor_env](https://pypi.org/project/humor-env/) {__version__}; seed 4, 3 " in page
    assert "3 steps, started today." in page and "(9 at most)" in page and "on the split `test`" in page
    assert page.endswith("measures it again\n```\n") and "humor-env pull me/it student\n" in page
    for part in (_use("me/it", "owner/base", False), "\n".join(_hacks(spec())), "\n".join(_critics(spec()))):
        assert f"\n\n{part}\n\n" in page
    (seed / "results.json").write_text('{"stages": {}, "seconds": {}, "steps": null}')
    local = model_card(tmp_path, seed, repo="me/it", base=None, merged=True)
    assert "base_model" not in local and "; seed 4, 0 steps" in local and 'subfolder="merged"' in local
