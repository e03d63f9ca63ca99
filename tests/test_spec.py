"""Experiments as files: what is read, what is refused and where the error points, and that a saved spec is the spec."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from humor_env import registry
from humor_env.agents.ppo import PPOConfig
from humor_env.agents.sft import SFTConfig
from humor_env.errors import InvalidOption
from humor_env.experiments.options import read_override
from humor_env.experiments.specs.learner_settings import config_class, make_config
from humor_env.experiments.specs.spec import bundled, bundled_text, load_spec, parse_spec
from humor_env.experiments.specs.toml_text import dumps, key_lines

SMALL = """\
name = "small"

[[critic]]
critic = "pocket"

[learner]
name = "ppo"
steps = 3
"""


def refusal(text, *overrides):
    with pytest.raises(InvalidOption) as caught:
        parse_spec(text, overrides, "mine.toml")
    return str(caught.value)


@pytest.mark.parametrize("name", bundled())
def test_bundled_specs_are_read_and_saved_as_they_are(name):
    spec = load_spec(name)
    assert spec.name == name
    assert parse_spec(spec.to_toml()) == spec
    assert dataclasses.is_dataclass(spec.learner_config(0))
    assert bundled_text(name).startswith("# ")


def test_there_is_a_spec_for_each_use():
    assert {"pocket-quickstart", "pocket-seq2seq", "pocket-revise", "one-gpu-anthropic", "one-gpu-local"} <= set(
        bundled()
    )
    assert {"paper-scale", "two-processes"} <= set(bundled())
    assert "anthropic:" in load_spec("one-gpu-anthropic").to_toml()
    assert "@http://127.0.0.1" in load_spec("one-gpu-local").to_toml()
    assert load_spec("pocket-revise").env.attempts == 2


def test_the_resolved_spec_says_every_setting():
    spec = parse_spec(SMALL)
    saved = tomllib.loads(spec.to_toml())
    plain = {f.name for f in dataclasses.fields(PPOConfig) if getattr(PPOConfig(), f.name) is not None}
    assert set(saved["learner"]) == plain - {"seed"} | {"name"}
    assert saved["learner"]["sampling"]["max_new_tokens"] == PPOConfig().sampling.max_new_tokens
    assert saved["seeds"] == [0]
    assert "teacher" not in saved


def test_settings_become_the_learners_own_config_with_the_seed():
    config = parse_spec(SMALL, ["learner.sampling.top_k=5", "learner.kl_target=2"]).learner_config(7)
    assert isinstance(config, PPOConfig)
    assert (config.steps, config.seed, config.sampling.top_k, config.kl_target) == (3, 7, 5, 2)
    assert config.batch_size == PPOConfig().batch_size


def test_the_warm_start_is_done_where_there_is_a_teacher_and_the_learner_is_not_imitation_itself():
    teacher = SMALL + '[teacher]\nlines = "pocket"\n[teacher.imitation]\nepochs = 2\n'
    spec = parse_spec(teacher)
    assert spec.imitates
    assert spec.imitation_config(4) == SFTConfig(epochs=2, seed=4)
    assert not parse_spec(SMALL).imitates
    assert not parse_spec(teacher, ["teacher.imitate=false"]).imitates
    assert not parse_spec(teacher.replace('"ppo"\nsteps = 3', '"sft"')).imitates


# Mistakes


def test_an_unknown_key_is_told_with_its_line_and_the_nearest_key():
    assert refusal(SMALL + "lerning_rate = 1e-5\n") == (
        "mine.toml, line 9: [learner] has no key 'lerning_rate'. Did you mean 'learning_rate'?"
    )
    assert "line 10: [student] has no key 'modell'. Did you mean 'model'?" in refusal(
        SMALL + '[student]\nmodell = "x"\n'
    )
    assert "the top level has no key 'evl'. Did you mean 'eval'?" in refusal(SMALL + "[evl]\n")
    assert "line 10: [learner.sampling] has no key 'temprature'. Did you mean 'temperature'?" in refusal(
        SMALL + "[learner.sampling]\ntemprature = 1\n"
    )
    assert "line 4: [critic.0] has no key 'weigth'. Did you mean 'weight'?" in refusal(
        SMALL.replace('critic = "pocket"', 'weigth = 1\ncritic = "pocket"')
    )


def test_a_key_near_to_nothing_is_told_the_known_ones():
    said = refusal(SMALL + "zzz = 1\n")
    assert "Known: micro_batch, learning_rate" in said and "steps, batch_size" in said
    assert "seed" not in said.split("Known:")[1].split(", ")


def test_the_seed_is_not_the_learners():
    assert "[learner] has no key 'seed'. 'seeds' at the top gives the seed." in refusal(SMALL + "seed = 1\n")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learner.steps=many", "'learner.steps' should be a whole number, found 'many'."),
        ("learner.steps=5.0", "'learner.steps' should be a whole number, found 5.0."),
        ("learner.steps=true", "'learner.steps' should be a whole number, found True."),
        ('learner.learning_rate="1e-5"', "'learner.learning_rate' should be a number, found '1e-5'."),
        ("learner.whiten_advantages=1", "'learner.whiten_advantages' should be a valid boolean, found 1."),
        ("learner.sampling=3", "'learner.sampling' should be a table, found 3."),
        ("seeds=0", "'seeds' should be a list, found 0."),
        ("seeds=[0, 0]", "'seeds' names a seed twice, found [0, 0]."),
        ("seeds=[]", "'seeds' should have at least 1 item, found []."),
        ("seeds=[-1]", "'seeds.0' should be greater than or equal to 0, found -1."),
        ("critic.0.gate=2", "'critic.0.gate' should be less than or equal to 1, found 2."),
        ("student.lora.targets=3", "'student.lora.targets' should be a text or be a list, found 3."),
        ("student.lora.dropout=2", "'student.lora.dropout' should be less than 1, found 2."),
        ("learner.stepz=3", "[learner] has no key 'stepz'. Did you mean 'steps'?"),
    ],
)
def test_overrides_are_checked_by_type_and_named_in_the_error(override, sentence):
    assert refusal(SMALL, override) == f"--set {override}: {sentence}"


def test_overrides_reach_into_lists_and_make_tables():
    spec = parse_spec(SMALL, ["critic.0.options.a.b=[1, 2]", "eval.limit=3", "name=other", "learner.decay=linear"])
    assert spec.critic[0].options == {"a": {"b": [1, 2]}}
    assert (spec.eval.limit, spec.name, spec.learner["decay"]) == (3, "other", "linear")
    assert "'critic' is a list, whose entries are numbered: 0; found '1'" in refusal(SMALL, "critic.1.gate=0.5")
    assert "'name' is not a table, so it has no 'x'" in refusal(SMALL, "name.x=1")
    assert "expected a key and a value" in refusal(SMALL, "learner.steps")
    assert "a part of the dotted key is empty" in refusal(SMALL, "learner..steps=1")


def test_a_text_with_a_line_break_is_one_value():
    """An override whose value holds a line break was read as two TOML keys, and only the first was kept."""
    assert read_override("a=1\nb=2", "--set") == ("a", "1\nb=2")


def test_the_fields_short_form_of_the_learning_rate():
    assert parse_spec(SMALL, ["learner.lr=1e-5"]).learner["learning_rate"] == 1e-5
    assert "lr" not in parse_spec(SMALL, ["learner.lr=1e-5"]).learner
    assert refusal(SMALL + 'lr = "x"\n').startswith("mine.toml, line 9: 'learner.learning_rate' should be a number")


def test_all_mistakes_are_told_at_once():
    said = refusal('[[critic]]\ncritic = "pockt"\n[learner]\nname = "pp"\n[env]\nid = "humor_env/Parafrase-v0"\n')
    assert len(said.splitlines()) == 3
    assert "line 2: no critic is called 'pockt'. Did you mean 'pocket'?" in said
    assert "line 4: No learner is called 'pp'. Did you mean 'ppo'?" in said
    assert "line 6: no environment is called 'humor_env/Parafrase-v0'. Did you mean 'humor_env/Paraphrase-v0'?" in said


def test_settings_that_do_not_fit_together_are_told_in_the_learners_own_words():
    said = refusal(SMALL, "learner.siblings=3")
    assert "line 6: the learner's settings do not fit together: batch_size 64 must be a multiple" in said


def test_missing_parts_and_broken_files(tmp_path):
    assert "needs a [[critic]] to learn from, or at least an [[eval.critic]]" in refusal('[learner]\nname = "ppo"\n')
    assert "the top level needs the key 'learner'" in refusal('[[critic]]\ncritic = "pocket"\n')
    assert "[learner] needs the key 'name'" in refusal(SMALL.replace('name = "ppo"\n', ""))
    assert "'mine.toml' is not TOML" in refusal("name = \n")
    with pytest.raises(InvalidOption, match=r"no spec 'pocket-quikstart'\. Did you mean 'pocket-quickstart'\?"):
        load_spec("pocket-quikstart")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidOption, match="cannot be read"):
        load_spec(binary)


def test_a_name_that_would_leave_the_folder_is_refused():
    for name in ("../x", "a/b", ".hidden", ""):
        assert "'name'" in refusal(SMALL, f'name="{name}"')


# A learner of one's own


@dataclass(frozen=True)
class Inner:
    width: float = 1.0


@dataclass(frozen=True)
class MyConfig:
    depth: int
    inner: Inner = field(default_factory=Inner)
    places: tuple[str, ...] = ("a",)
    limit: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.depth > 9:
            raise InvalidOption("depth is at most 9.")


def train_mine(config: "MyConfig", student) -> None: ...


def train_blindly(config, student): ...


def test_a_learners_config_is_found_by_its_annotation(monkeypatch):
    monkeypatch.setattr(registry.learners, "_entries", dict(registry.learners._entries))
    registry.learners.register("mine", train_mine, "a test's own")
    text = SMALL.replace('"ppo"\nsteps = 3', '"mine"\ndepth = 2\nplaces = ["b", "c"]\ninner = {width = 3}')
    spec = parse_spec(text)
    assert spec.learner_config(5) == MyConfig(2, Inner(3), ("b", "c"), seed=5)
    assert tomllib.loads(spec.to_toml())["learner"] == {
        "name": "mine",
        "depth": 2,
        "places": ["b", "c"],
        "inner": {"width": 3.0},
    }
    assert "depth is at most 9." in refusal(text, "learner.depth=10")
    assert "[learner] needs the key 'depth'" in refusal(text.replace("depth = 2\n", ""))
    assert "[learner.inner] has no key 'widht'. Did you mean 'width'?" in refusal(text, "learner.inner.widht=1")


def test_a_learner_without_a_config_is_told_how_to_have_one():
    with pytest.raises(InvalidOption, match="annotate the first parameter"):
        config_class(train_blindly)
    with pytest.raises(InvalidOption, match="is a int; expected a function"):
        config_class(3, "three")


def test_a_config_without_a_seed_is_not_given_one():
    @dataclass(frozen=True)
    class Seedless:
        steps: int = 1

    assert make_config(Seedless, {"steps": 2}, seed=3) == Seedless(2)


# TOML


def test_the_lines_of_keys():
    text = (
        'name = "x" # [no]\n'
        'text = """\n[not.a.table]\na = 1\n"""\n'
        '"q.r" = [1,\n  2, # ]\n  3]\n'
        "[env]\nlora.rank = 3\n"
        "[[critic]]\na = 'it is \"[b]\"'\n[critic.options]\nb = 1\n"
        '[[critic]]\na = {x = "}", y = [1]}\n  [critic.options]\n c = 2\n'
    )
    tomllib.loads(text)
    assert key_lines(text) == {
        ("name",): 1,
        ("text",): 2,
        ("q.r",): 6,
        ("env",): 9,
        ("env", "lora", "rank"): 10,
        ("critic",): 11,
        ("critic", 0): 11,
        ("critic", 0, "a"): 12,
        ("critic", 0, "options"): 13,
        ("critic", 0, "options", "b"): 14,
        ("critic", 1): 15,
        ("critic", 1, "a"): 16,
        ("critic", 1, "options"): 17,
        ("critic", 1, "options", "c"): 18,
    }


def test_an_escaped_quote_does_not_end_a_text():
    assert key_lines('a = "\\"["\nb = 1\n') == {("a",): 1, ("b",): 2}


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_scalars = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | _texts
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_texts, _values, max_size=4))
def test_what_is_written_is_read_again(table):
    assert tomllib.loads(dumps(table)) == table


def test_nothing_is_left_out_and_strange_values_are_refused():
    assert dumps({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"
    with pytest.raises(TypeError, match="TOML cannot represent object"):
        dumps({"a": object()})


def test_specs_come_with_the_package():
    folder = Path(__file__).resolve().parent.parent / "experiments" / "configs"
    assert sorted(p.stem for p in folder.glob("*.toml")) == bundled()


def test_one_setting_under_two_names_is_an_error_and_an_override_replaces_either():
    """`lr` won over `learning_rate` in silence, in either order."""
    both = "--set learner.learning_rate=2.0 and --set learner.lr=1.0 are one setting"
    assert both in refusal(SMALL, "learner.lr=1.0", "learner.learning_rate=2.0")
    assert "are one setting" in refusal(SMALL, "learner.learning_rate=2.0", "learner.lr=1.0")
    said = refusal(SMALL + "lr = 1.0\nlearning_rate = 2.0\n")
    assert said == "mine.toml, line 9: 'lr' and 'learning_rate' are one setting: found 1.0 and 2.0. Give one of them."
    for file, over in (("lr", "learning_rate"), ("learning_rate", "lr"), ("lr", "lr")):
        spec = parse_spec(SMALL + f"{file} = 1.0\n", [f"learner.{over}=2.0"])
        assert spec.learner_config(0).learning_rate == 2.0


@pytest.mark.parametrize(
    ("learner", "key", "ours"),
    [
        ("ppo", "max_new_tokens", "learner.sampling.max_new_tokens"),
        ("ppo", "temperature", "learner.sampling.temperature"),
        ("ppo", "max_completion_length", "learner.sampling.max_new_tokens"),
        ("grpo", "beta", "learner.kl_weight"),
        ("grpo", "num_generations", "learner.siblings"),
        ("sft", "num_train_epochs", "learner.epochs"),
    ],
)
def test_names_from_elsewhere_get_a_pointer(learner, key, ours):
    said = refusal(SMALL.replace('"ppo"\nsteps = 3', f'"{learner}"\n{key} = 8'))
    assert said == f"mine.toml, line 8: [learner] has no key '{key}'. Did you mean '{ours}'?"


def test_a_single_critic_is_still_a_list():
    said = refusal(SMALL.replace("[[critic]]", "[critic]"))
    assert (
        said
        == "mine.toml, line 3: 'critic' may be given more than once, so its header is [[critic]], with two brackets."
    )


def test_what_does_not_print_is_escaped_in_a_spec():
    """A dry run printed a change of direction, and a control character that starts an escape sequence, as they were."""
    odd = {"model": "a\u202eb\u200bc\x9b31m\x7f\U000e0041 é 日本 🐌", "key\u202e": 1}
    text = dumps(odd)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "é 日本 🐌" in text
    assert tomllib.loads(text) == odd
