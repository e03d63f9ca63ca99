"""A spec's defaults, its rules between tables, and the sentences where they are broken."""

import tomllib

import pytest

import humor_env.agents.ppo
import humor_env.agents.sft  # noqa: F401 - so that their seconds are no test's
from humor_env.errors import InvalidOption
from humor_env.experiments.specs.spec import (
    IMITATORS,
    BudgetSpec,
    CriticSpec,
    EnvSpec,
    EvalSpec,
    FilterSpec,
    MonitorSpec,
    Spec,
    StudentSpec,
    TeacherSpec,
    _without_empty,
    load_spec,
    parse_spec,
)

SMALL = '[[critic]]\ncritic = "rules"\n[learner]\nname = "ppo"\n'


def refusal(text, *overrides):
    with pytest.raises(InvalidOption) as caught:
        parse_spec(text, overrides, "mine.toml")
    return str(caught.value)


def test_what_a_spec_leaves_out_has_these_values():
    made = Spec(learner={"name": "ppo"})
    assert (made.name, made.seeds, made.critic, made.teacher, made.judge, made.monitor) == ("run", [0], [], *[None] * 3)
    assert EnvSpec().model_dump() == {
        "id": "humor_env/Paraphrase-v0",
        "prompts": None,
        "prompts_options": {},
        "split": "train",
        "attempts": None,
        "max_chars": None,
        "groups": 1,
    }
    assert StudentSpec().model_dump() == {
        "model": "pocket:causal",
        "instruction": None,
        "device": "auto",
        "dtype": "auto",
        "lora": None,
        "backend": None,
    }
    assert TeacherSpec().model_dump() == {
        "lines": "pocket",
        "per_prompt": 3,
        "dev_per_prompt": 1,
        "limit": None,
        "filter": None,
        "imitate": None,
        "imitation": {},
    }
    assert FilterSpec(critic="x").model_dump() == {"critic": "x", "at_least": 0.5, "options": {}}
    assert CriticSpec(critic="x").model_dump() == {
        "critic": "x",
        "name": None,
        "weight": None,
        "gate": None,
        "required": True,
        "options": {},
    }
    assert EvalSpec().model_dump() == {
        "split": "test",
        "limit": None,
        "lines": 1,
        "dev_limit": 64,
        "dev_lines": 1,
        "sampling": None,
        "critic": [],
    }
    assert set(BudgetSpec().model_dump().values()) == {None} and len(BudgetSpec.model_fields) == 9
    assert (MonitorSpec().split, MonitorSpec().critic) == ("dev", [])
    assert IMITATORS == ("sft", "trl-sft")


@pytest.mark.parametrize(
    ("key", "least"),
    [
        ("env.groups", 1),
        ("env.attempts", 1),
        ("env.max_chars", 1),
        ("teacher.per_prompt", 1),
        ("teacher.dev_per_prompt", 1),
        ("teacher.limit", 1),
        ("eval.limit", 1),
        ("eval.lines", 1),
        ("eval.dev_limit", 1),
        ("eval.dev_lines", 1),
        ("budget.max_samples", 1),
        ("budget.max_judgements", 1),
        ("budget.max_calls", 0),
        ("budget.max_tokens", 0),
        ("budget.max_cost", 0),
        ("critic.0.weight", 0),
        ("critic.0.gate", 0),
        ("tracking.every", 1),
        ("tracking.lines", 0),
        ("tracking.calls", 0),
    ],
)
def test_the_least_of_each_number(key, least):
    parse_spec(SMALL, [f"{key}={least}"])
    assert f"'{key}' should be greater than or equal to {least}, found {least - 1}." in refusal(
        SMALL, f"{key}={least - 1}"
    )


@pytest.mark.parametrize("key", ["budget.max_seconds", "budget.requests_per_minute", "budget.tokens_per_minute"])
def test_what_is_above_0(key):
    parse_spec(SMALL, [f"{key}=0.001"])
    assert f"'{key}' should be greater than 0, found 0." in refusal(SMALL, f"{key}=0")


def test_a_filter_is_between_0_and_1():
    for at_least in (0, 1):
        parse_spec(SMALL, [f"teacher.filter={{critic='rules', at_least={at_least}}}"])
    for at_least in (-0.1, 1.1):
        assert "'teacher.filter.at_least' should be" in refusal(
            SMALL, f"teacher.filter={{critic='rules', at_least={at_least}}}"
        )


def test_the_settings_that_are_the_learners_and_those_that_are_not():
    spec = parse_spec(SMALL + 'preferences = "x.jsonl"\nlr = 0.5\n')
    assert (spec.learner_name, spec.preferences, spec.learner["learning_rate"]) == ("ppo", "x.jsonl", 0.5)
    assert parse_spec(SMALL).preferences is None
    config = spec.learner_config(9)
    assert (config.learning_rate, config.seed) == (0.5, 9)
    assert spec.imitation_config(3).seed == 3


def test_the_warm_start_is_resolved():
    taught = SMALL + "[teacher]\n"
    made = parse_spec(taught)
    assert made.teacher.imitate is True and made.teacher.imitation["epochs"] == made.imitation_config(0).epochs
    off = parse_spec(taught + "imitate = false\n[teacher.imitation]\nepochs = 9\n")
    assert off.teacher.imitate is False and off.teacher.imitation == {}
    for learner in IMITATORS:
        sft = Spec(learner={"name": learner}, teacher=TeacherSpec())
        assert not sft.imitates
        assert Spec(learner={"name": learner}, teacher=TeacherSpec(imitate=True)).imitates


def test_a_base_is_trained_by_either_learner():
    full = "[teacher]\n[teacher.imitation]\nfull = true\n"
    assert not parse_spec(SMALL).trains_base and not parse_spec(SMALL + "[teacher]\n").trains_base
    assert parse_spec(SMALL + full).trains_base
    assert not parse_spec(SMALL + full, ["teacher.imitate=false"]).trains_base
    assert parse_spec(SMALL.replace("ppo", "sft") + "full = true\n").trains_base


def test_empty_tables_are_not_written():
    table = {"a": {}, "b": {"c": {}, "d": 1}, "l": [{"e": {}, "f": 2}], "n": [], "z": 0}
    assert _without_empty(table) == {"b": {"d": 1}, "l": [{"f": 2}], "n": [], "z": 0}
    saved = tomllib.loads(parse_spec(SMALL).to_toml())
    assert saved["critic"] == [{"critic": "rules", "required": True}]
    assert "budget" not in saved and "teacher" not in saved


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SMALL.replace('"ppo"', "3"), "mine.toml, line 4: the learner's 'name' is a text; found 3."),
        (
            SMALL.replace('name = "ppo"', ""),
            "mine.toml, line 3: [learner] needs the key 'name', such as name = \"ppo\".",
        ),
        (SMALL + "preferences = 3\n", "mine.toml, line 5: 'learner.preferences' should be the path of a file."),
        (SMALL + "[env]\nsplit = 'x'\n", "mine.toml, line 6: 'env.split' should be 'train', 'dev', 'test' or 'ood', "),
        ("learner = 3\n[[critic]]\ncritic = 'rules'", "mine.toml, line 1: 'learner' should be a table, found 3."),
        (
            SMALL[SMALL.index("[learner]") :],
            "mine.toml: the spec needs a [[critic]] to learn from, or at least an [[eval.critic]].",
        ),
        (
            SMALL + "[judge]\njudge = 'pokcet'\n",
            "mine.toml, line 6: no judge is called 'pokcet'. Did you mean 'pocket'?",
        ),
        (SMALL + "[[eval.critic]]\ncritic = 'ruels'\n", "mine.toml, line 6: no critic is called 'ruels'."),
        (SMALL + "[[monitor.critic]]\ncritic = 'ruels'\n", "mine.toml, line 6: no critic is called 'ruels'."),
        (SMALL + "[teacher.filter]\ncritic = 'ruels'\n", "mine.toml, line 6: no critic is called 'ruels'."),
        (SMALL + "[env]\nid = 'CartPole-v9'\n", "mine.toml, line 6: no environment is called 'CartPole-v9'."),
        (SMALL + "[teacher]\n[teacher.imitation]\nepohcs = 1\n", "mine.toml, line 7: [teacher.imitation] has no key "),
        (
            SMALL + "[teacher]\n[teacher.imitation]\nlr = 1.0\nlearning_rate = 2.0\n",
            "mine.toml, line 7: 'lr' and 'learning_rate' are one setting: found 1.0 and 2.0. Give one of them.",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(text, sentence):
    said = refusal(text)
    assert said.startswith(sentence) and "\n" not in said


def test_names_with_a_module_are_anybodys():
    made = parse_spec(
        SMALL.replace('"rules"', '"mine:critic"') + "[judge]\njudge = 'mine:j'\n[env]\nid = 'mine:E-v0'\n"
    )
    assert (made.critic[0].critic, made.judge.judge, made.env.id) == ("mine:critic", "mine:j", "mine:E-v0")
    only_eval = parse_spec("[[eval.critic]]\ncritic = 'rules'\n[learner]\nname = 'ppo'")
    assert only_eval.critic == []


def test_a_spec_is_a_file_a_folders_or_a_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.toml").write_text("\ufeffname = 'inside'\n" + SMALL)
    assert load_spec(tmp_path).name == load_spec(str(tmp_path / "spec.toml")).name == "inside"
    assert load_spec(tmp_path, ["name=other"]).name == "other"
    assert load_spec("pocket-quickstart").name == "pocket-quickstart"
    (tmp_path / "pocket-quickstart").write_text(SMALL)
    assert load_spec("pocket-quickstart").name == "run", "a file of that name is meant before the bundled one"
    with pytest.raises(InvalidOption, match=r"^There is no spec 'zzz'\. Give the path of a TOML file, or one of those"):
        load_spec("zzz")
    (tmp_path / "spec.toml").unlink()
    with pytest.raises(InvalidOption, match="There is no spec"):
        load_spec(tmp_path)
