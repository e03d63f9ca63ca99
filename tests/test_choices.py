"""What a run is made of, where several settings speak; and what a learner is given of it."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import humor_env.agents.ppo
import humor_env.agents.sft  # noqa: F401 - so that their seconds are no test's
from humor_env.agents.session.limits import Limits
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import CredentialError, InvalidOption, StudentError
from humor_env.experiments.runs import ingredients, run
from humor_env.experiments.runs.ingredients import (
    Ingredients,
    check_named,
    check_student,
    device_of,
    evaluation_sampling,
    student_settings,
)
from humor_env.experiments.runs.run import OFFERS, SeedResult, SeedRun, chosen_arguments, same_folder
from humor_env.experiments.specs.spec import StudentSpec, parse_spec
from humor_env.prompts import load_prompts
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Judgement

SPEC = """
[[critic]]
critic = "rules"
[learner]
name = "ppo"
batch_size = 8
"""


def rules_like(jokes):
    return [Judgement("mine", 0.5) for _ in jokes]


def spec(*overrides):
    return parse_spec(SPEC, overrides)


def parts(*overrides, folder=Path("run")):
    return Ingredients(spec(*overrides), folder)


def refusal(act, error=InvalidOption):
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


# Files, folders and devices


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("env.prompts", "env.prompts"),
        ("teacher.lines", "teacher.lines"),
        ("learner.preferences", "learner.preferences"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_file_that_a_spec_names_is_there(tmp_path, setting, key, ending):
    file = tmp_path / f"mine{ending}"
    made = spec(f"{setting}={file}")
    assert refusal(lambda: check_named(made)) == f"There is no file '{file}', which {key} names."
    file.touch()
    check_named(made)
    check_named(spec(f"{setting}={tmp_path}/mine.txt"))
    check_named(spec())


def test_a_student_in_a_folder_has_a_config(tmp_path):
    wanted = f"The student '{tmp_path}' does not exist: expected a folder with a config.json or a student.json."
    assert refusal(lambda: check_student(StudentSpec(model=str(tmp_path))), StudentError) == wanted
    for file in ("config.json", "student.json"):
        (tmp_path / file).touch()
        check_student(StudentSpec(model=str(tmp_path)))
        (tmp_path / file).unlink()
    for model in ("a/b/c", "./x", "~/x"):
        assert "does not exist: expected a folder" in refusal(
            lambda m=model: check_student(StudentSpec(model=m)), StudentError
        )
    check_student(StudentSpec(model="owner/name"))  # of a hub


def test_a_student_in_a_file_is_there(tmp_path):
    file = tmp_path / "x.gguf"
    said = refusal(lambda: check_student(StudentSpec(model=str(file))), StudentError)
    assert said == f"The student '{file}' does not exist: there is no such file."
    file.touch()
    check_student(StudentSpec(model=str(file)))


def test_a_device_is_tried():
    check_student(StudentSpec(device="cpu"))
    said = refusal(lambda: check_student(StudentSpec(device="no-such")), StudentError)
    assert said.startswith("[student] device 'no-such' cannot be used here (") and said.endswith(
        "). Give 'cpu' or 'auto'."
    )
    assert "\n" not in said


@pytest.mark.parametrize(("asked", "got"), [("cpu", "cpu"), ("meta", "meta")])
def test_a_device_that_is_named_is_taken(asked, got, monkeypatch):
    monkeypatch.setattr(ingredients, "PartialState", lambda: pytest.fail("nobody else is asked"))
    assert device_of(StudentSpec(device=asked)) == torch.device(got)


@pytest.mark.parametrize(
    ("overrides", "record", "dtype"),
    [
        ([], None, "auto"),
        ([], {}, "auto"),
        ([], {"precision": "bfloat16"}, "bfloat16"),
        ([], {"precision": "float16"}, "float16"),
        ([], {"precision": "float8"}, "auto"),
        (["student.dtype=float32"], {"precision": "bfloat16"}, "float32"),
        (["teacher.imitation.full=true"], {"precision": "bfloat16"}, "float32"),
        (["teacher.imitation.full=true", "student.dtype=bfloat16"], None, "bfloat16"),
        (["teacher.imitation.full=true", "teacher.imitate=false"], None, "auto"),
    ],
)
def test_the_precision_is_the_specs_then_what_training_needs_then_the_records(overrides, record, dtype):
    made = spec(*overrides)
    settings = student_settings(made, record)
    assert settings == made.student.model_copy(update={"dtype": dtype})


def test_lines_are_measured_as_the_spec_says_or_as_they_are_trained():
    own, inner = Sampling(max_new_tokens=5), Sampling(max_new_tokens=6)
    config = SimpleNamespace(sampling=own, pairs=SimpleNamespace(sampling=inner))
    assert evaluation_sampling(spec("eval.sampling.top_k=3"), config) == Sampling(top_k=3)
    assert evaluation_sampling(spec(), config) is own
    assert evaluation_sampling(spec(), SimpleNamespace(pairs=config.pairs)) is inner
    assert evaluation_sampling(spec(), SimpleNamespace(sampling="x")) == Sampling()


# Prompts, lines and environments


def test_the_environments_settings_are_its_own_until_the_spec_says_otherwise():
    revise = parts("env.id=humor_env/Revise-v0")
    registered = dict(ingredients.env_spec("humor_env/Revise-v0").kwargs)
    assert registered["attempts"] > 1
    assert revise.env_options == registered | {"split": "train"}
    chosen = parts("env.id=humor_env/Revise-v0", "env.attempts=7", "env.max_chars=9", "env.split=dev")
    assert chosen.env_options == registered | {"attempts": 7, "max_chars": 9, "split": "dev"}
    assert parts().prompts.name == load_prompts("pocket").name
    assert parts("env.prompts=everyday").prompts.name == "everyday"


def test_held_out_prompts_are_the_first_of_their_split():
    found = load_prompts("pocket")
    assert parts().eval_prompts == found.split("test")
    assert parts("eval.limit=3", "eval.split=dev").eval_prompts == found.split("dev")[:3]


@pytest.fixture
def teacher(monkeypatch):
    """A teacher with as many lines as it is asked for, for each of the pocket prompts."""
    prompts = load_prompts("pocket")
    monkeypatch.setattr(
        ingredients,
        "pocket_lines",
        lambda count: TeacherBuffer(
            None, [Demonstration(p, f"{p.id} {i}", "t") for p in prompts for i in range(count)]
        ),
    )


@pytest.mark.usefixtures("teacher")
def test_lines_to_imitate_are_so_many_of_so_many_prompts():
    nobody = parts()
    assert (nobody.teacher, nobody.demonstrations, nobody.dev) == (None, (), ())
    some = parts("teacher.limit=2", "teacher.per_prompt=3", "teacher.dev_per_prompt=2")
    train, dev = some.prompts.split("train"), some.prompts.split("dev")
    assert [d.prompt.id for d in some.demonstrations] == [p.id for p in train[:2] for _ in range(3)]
    assert [d.prompt.id for d in some.dev] == [p.id for p in dev[:2] for _ in range(2)]
    # The pocket teacher writes as many lines as the more demanding of the two wants.
    assert len(parts("teacher.per_prompt=1", "teacher.dev_per_prompt=4").teacher.lines_for(dev[0].id)) == 4
    assert len(parts("teacher.per_prompt=4", "teacher.dev_per_prompt=1").teacher.lines_for(train[0].id)) == 4


@pytest.mark.usefixtures("teacher")
def test_digests_are_of_the_prompts_and_of_the_lines():
    both = parts("teacher.limit=1", "teacher.per_prompt=2")
    a, b = both.demonstrations
    text = f"{a.prompt.id}\0{a.text}\0{b.prompt.id}\0{b.text}"
    assert both.digests() == {
        "prompts of 'train'": both.prompts.digest("train"),
        "prompts of 'test'": both.prompts.digest("test"),
        "teacher's lines": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    }
    assert list(parts("eval.split=train").digests()) == ["prompts of 'train'"]


@pytest.mark.parametrize(("groups", "sizes"), [(1, [8]), (2, [4, 4])])
def test_the_batch_is_split_into_groups(groups, sizes):
    made = parts(f"env.groups={groups}", "env.max_chars=77")
    envs = made.make_envs(made.spec.learner_config(0))
    assert [env.num_envs for env in envs] == sizes
    assert {env.single_action_space.max_length for env in envs} == {77}


def test_groups_are_whole_families(monkeypatch):
    config = SimpleNamespace(batch_size=8, siblings=4)
    assert refusal(lambda: parts("env.groups=4").make_envs(config)) == (
        "[env] groups = 4: a process's 8 lines do not divide into 4 groups of whole families of 4 siblings."
    )
    monkeypatch.setattr(ingredients, "process_count", lambda: 2)
    assert "a process's 4 lines" in refusal(lambda: parts("env.groups=2").make_envs(config))
    assert [env.num_envs for env in parts().make_envs(config)] == [4]


# Critics, limits and keys


def test_limits_are_the_budgets():
    assert parts().limits == Limits()
    some = parts("budget.max_samples=1", "budget.max_judgements=2", "budget.max_seconds=3", "budget.max_calls=4")
    assert some.limits == Limits(1, 2, 3.0)


def test_the_held_out_critic_of_the_monitor_is_never_the_training_critic():
    same, other = '[{critic="rules"}]', '[{critic="pocket"}]'

    def watching(*overrides):
        return parts(*overrides).watching_critic

    assert watching() is watching("monitor.every=3") is watching(f"eval.critic={same}") is None
    assert watching(f"monitor.critic={same}") is None
    assert watching(f"monitor.critic={other}").name == "pocket"
    assert watching(f"eval.critic={other}").name == "pocket"
    assert watching(f"monitor.critic={same}", f"eval.critic={other}").name == "pocket"
    assert watching(f"monitor.critic={other}", f"eval.critic={same}").name == "pocket"


def test_a_learner_from_a_critic_needs_one():
    nobody = Ingredients(parse_spec('[[eval.critic]]\ncritic = "rules"\n[learner]\nname = "ppo"'), Path("run"))
    assert nobody.eval_critic.name == "rules"
    assert refusal(lambda: nobody.train_critic) == (
        "The learner 'ppo' learns from a critic: the spec needs [[critic]]."
    )


def test_a_ledger_a_limit_and_a_pace_are_the_runs_until_the_critic_has_its_own(tmp_path):
    def filled(*overrides, **options):
        made = parts('critic=[{critic="scorer", options={client="local:x"}}]', *overrides, folder=tmp_path)
        return made._filled(ingredients.registry.critics, "scorer", {"client": "local:x", **options})

    assert filled() == {"client": "local:x", "ledger": str(tmp_path / "ledger.sqlite")}
    limited = filled("budget.max_calls=3", "budget.requests_per_minute=60", "budget.ledger=mine.sqlite")
    budget = {"max_calls": 3, "requests_per_minute": 60.0, "scope": "run"}
    assert limited == {"client": "local:x", "ledger": "mine.sqlite", "budget": budget}
    assert filled("budget.max_calls=3", budget={"max_calls": 1})["budget"] == {"max_calls": 1}
    assert filled("budget.tokens_per_minute=5")["budget"] == {"tokens_per_minute": 5.0, "scope": "run"}


def test_a_critic_between_prompts_gets_the_runs_and_their_split():
    made = parts("env.split=dev")
    filled = made._filled(ingredients.registry.critics, "lift", {"critic": "rules"})
    assert filled["prompts"] is made.prompts and filled["split"] == "dev"
    own = made._filled(ingredients.registry.critics, "lift", {"critic": "rules", "prompts": "pocket"})
    assert own["prompts"] == "pocket" and "split" not in own
    assert made._filled(ingredients.registry.critics, "lift", {"critic": "rules", "split": "test"})["split"] == "test"


def test_a_servers_key_is_read_from_its_variable_for_hosts_that_may_have_it(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    assert parts().backend_key is None
    assert parts("student.backend.url=http://h:1").backend_key is None
    made = parts("student.backend.url=http://127.0.0.1:1", "student.backend.key_env=MY_KEY")
    assert refusal(lambda: made.backend_key, CredentialError) == (
        "[student.backend] reads its key from MY_KEY, which is not set."
    )
    monkeypatch.setenv("MY_KEY", "k")
    monkeypatch.setattr(ingredients.address, "may_have_key", lambda url: url == made.spec.student.backend.url)
    assert made.backend_key == "k"
    other = parts("student.backend.url=http://me:pass@h.org:1/v1", "student.backend.key_env=MY_KEY")
    said = refusal(lambda: other.backend_key, CredentialError)
    assert "the variable MY_KEY is sent only to hosts that you allow" in said and "pass" not in said
    assert f"set {ingredients.address.ALLOW_KEY_HOSTS}=h.org" in said


def test_a_server_is_told_the_base_under_its_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(ingredients, "Server", lambda *a, **o: asked.append((a, o)))
    assert parts().make_backend("student", tmp_path) is None and asked == []
    url = "student.backend.url=http://h"
    parts(url).make_backend("student", tmp_path)
    parts(url, "student.backend.base=b", "student.backend.timeout=3", "student.backend.concurrency=2").make_backend(
        "student", tmp_path
    )
    both = {"adapters": tmp_path / "adapters", "key": None}
    assert asked == [
        (("http://h", "student"), {"base": "pocket:causal", "timeout": 120.0, "concurrency": 16, **both}),
        (("http://h", "student"), {"base": "b", "timeout": 3.0, "concurrency": 2, **both}),
    ]


# What a learner is given


def test_a_learner_is_given_what_it_has_parameters_for():
    made = []
    offers = {name: lambda name=name: made.append(name) or name.upper() for name in ("env", "log", "judge")}

    def train(config, env, *more, judge=None, other=3, **rest): ...

    assert chosen_arguments(train, "mine", offers) == {"env": "ENV", "judge": "JUDGE"}
    assert made == ["env", "judge"], "nothing is made that nobody takes"

    def wants(config, env, telescope): ...

    assert refusal(lambda: chosen_arguments(wants, "mine", offers)) == (
        "The learner 'mine' wants 'telescope', which a run does not have. It offers: env, log, judge."
    )
    assert len(set(OFFERS)) == len(OFFERS) == 15


def test_the_main_process_chooses_the_folder(monkeypatch):
    assert same_folder(lambda: Path("mine")) == Path("mine")
    monkeypatch.setattr(run, "process_count", lambda: 2)
    monkeypatch.setattr(run, "broadcast_object_list", lambda chosen: chosen.__setitem__(0, Path("theirs")))
    monkeypatch.setattr(run, "is_main_process", lambda: False)
    assert same_folder(lambda: pytest.fail("another process chooses")) == Path("theirs")


def test_processes_are_joined_over_the_cpu_where_there_is_no_accelerator(monkeypatch):
    asked = []
    monkeypatch.setattr(run, "PartialState", lambda cpu: asked.append(cpu))
    for world, accelerator in ((None, False), ("1", False), ("2", False), ("2", True)):
        monkeypatch.setattr(run.torch.accelerator, "is_available", lambda there=accelerator: there)
        if world is None:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        else:
            monkeypatch.setitem(os.environ, "WORLD_SIZE", world)
        run.join_processes()
    assert asked == [False, False, True, False]


def test_the_record_of_a_seed():
    result = SeedResult(3, Path("x"), {"base": {"score": 0.5}}, 7, True, {"ppo": 1.5}, "the budget")
    assert result.record() == {
        "seed": 3,
        "steps": 7,
        "stopped": True,
        "why": "the budget",
        "stages": {"base": {"score": 0.5}},
        "seconds": {"ppo": 1.5},
    }


def test_what_base_a_saved_student_names(tmp_path):
    def base_of(*overrides):
        return SeedRun._base(SimpleNamespace(spec=spec(*overrides)))

    assert base_of() is None
    assert base_of("student.model=owner/name") == "owner/name"
    assert base_of("student.model=owner/name", "teacher.imitation.full=true") is None
    assert base_of(f"student.model={tmp_path}") == str(tmp_path.resolve())
    (tmp_path / "x.gguf").touch()
    assert base_of(f"student.model={tmp_path}/x.gguf") == str((tmp_path / "x.gguf").resolve())
    (tmp_path / "student.json").write_text('{"base": "owner/other"}')
    assert base_of(f"student.model={tmp_path}") == "owner/other"
    (tmp_path / "student.json").write_text('{"base": null}')
    assert base_of(f"student.model={tmp_path}") == str((tmp_path / "base").resolve())


def test_a_critic_is_alone_or_one_of_a_mix():
    name = f"{__name__}:rules_like"
    assert parts(f'critic=[{{critic="{name}"}}]').train_critic is rules_like
    mixed = parts(f'critic=[{{critic="{name}", gate=0.25, name="g"}}, {{critic="rules", required=false}}]').train_critic
    assert [(m.name, m.gate, m.required) for m in mixed.members] == [("g", 0.25, True), ("rules", None, False)]
    assert parts(f'critic=[{{critic="{name}", weight=1.0}}]').train_critic.members[0].critic is rules_like
    gate = f'critic=[{{critic="{name}", gate=0.25}}]'
    assert refusal(lambda: parts(gate).train_critic).startswith("A mix needs at least one critic with a weight")
