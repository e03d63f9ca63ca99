"""A benchmark's file: who learns, from whom, on what budget, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_benchmark import LEARNERS, text

from humor_env.errors import InvalidOption
from humor_env.experiments.compare.benchmark_spec import bundled_benchmarks, load_benchmark_spec, parse_benchmark
from humor_env.experiments.runs.ingredients import evaluation_sampling


@pytest.mark.parametrize("name", bundled_benchmarks())
def test_bundled_benchmarks_are_whole(name, tmp_path):
    (tmp_path / "file.csv").touch()
    bench = load_benchmark_spec(name)
    bench = bench.with_files([f"{table.name}={tmp_path / 'file.csv'}" for table in bench.data])
    cells = bench.cells(Path("out"))
    assert len(cells) == len(bench.trained) + len(bench.seeds) * (1 + len(bench.pairs()))
    assert parse_benchmark(bench.to_toml()) == bench


def test_base_and_imitation_are_written_at_the_learners_temperature():
    """They were written at 1.0 beside learners at 0.5: the gap between them was one of temperature too."""
    bench = load_benchmark_spec("everyday-smollm2")
    runs = [bench.imitation_run(0), *(bench.learner_run(x, bench.feedback[0], 0) for x in bench.learners)]
    found = [evaluation_sampling(spec, spec.learner_config(0)) for spec in (bench.parsed(run, "a run") for run in runs)]
    assert {(sampling.temperature, sampling.max_new_tokens) for sampling in found} == {(0.5, 32)}


def test_the_main_benchmark_compares_what_it_says():
    bench = load_benchmark_spec("pocket-learners")
    registered = {x.registered for x in bench.learners}
    # Imitation is the eleventh: the warm start of all of them, with a row of its own.
    assert registered == {
        *("sd", "brio", "dpo", "brio-dpo", "ppo", "grpo", "rloo", "reinforce++", "best-of-n", "expert-iteration")
    }
    assert bench.seeds == [0, 1, 2, 3, 4]
    by_name = {x.name: bench.run_spec(x, bench.feedback[0], 0).learner_config(0) for x in bench.learners}
    assert by_name["best-of-8"].n == 8
    rounds = {name: by_name[name].rounds for name in by_name if name.startswith("brio-") and name != "brio-dpo"}
    assert sorted(rounds.values()) == [1, 2, 10]
    assert by_name["brio-dpo"].brio.pairs_of == "teacher"  # naming another setting of it must not undo this


def test_every_learner_gets_the_same_and_each_step_follows_from_it():
    bench = load_benchmark_spec("pocket-learners")
    for learner in bench.learners:
        config = bench.run_spec(learner, bench.feedback[0], 0).learner_config(0)
        config = getattr(config, "dpo", config)
        if hasattr(config, "pairs"):
            lines = config.rounds * config.prompts_per_round * config.pairs.candidates
        elif hasattr(config, "steps"):
            lines = config.steps * config.batch_size
        else:
            continue
        budget = bench.budget.samples * learner.budget
        assert 0.98 * budget <= lines <= budget, learner.name


def test_a_budget_is_derived_by_hand():
    learners = LEARNERS + '\n[[learners]]\nname = "often"\nlearner = "brio"\nsettings = { rounds = 2 }\nbudget = 0.5\n'
    learners += '\n[[learners]]\nname = "rare"\nlearner = "ppo"\nsettings = { evaluate_every = 5 }\n'
    bench = parse_benchmark(text(learners=learners))
    found = {x.name: bench.settings_of(x) for x in bench.learners}
    assert found["ppo"]["steps"] == 6  # 48 lines in batches of 8
    assert found["ppo"]["evaluate_every"] == 3  # two evaluations
    assert found["rare"]["evaluate_every"] == 5  # as it says itself
    assert found["dpo"]["prompts_per_round"] == 8  # 48 lines, six for each prompt
    assert found["often"]["prompts_per_round"] == 2  # 24 lines in two rounds of six each
    fewer = parse_benchmark(text(learners=learners, **{"judgements = 48": "judgements = 17"}))
    found = {x.name: fewer.settings_of(x) for x in fewer.learners}
    assert found["ppo"]["steps"] == 2
    assert found["dpo"]["prompts_per_round"] == 8
    assert found["often"]["prompts_per_round"] == 2


def test_a_share_of_the_budget_is_one_of_its_money_too():
    """Half of the lines and of the seconds came with all of the dollars."""
    overrides = ["budget.cost=2.0", "budget.seconds=100.0", "learners.ppo.budget=0.5"]
    bench = load_benchmark_spec("pocket-mini", overrides)
    [feedback, *_] = bench.feedback
    limits = {x.name: bench.run_spec(x, feedback, 0).budget for x in bench.learners if x.name in ("ppo", "dpo")}
    assert (limits["ppo"].max_cost, limits["ppo"].max_seconds) == (1.0, 50.0)
    assert (limits["dpo"].max_cost, limits["dpo"].max_seconds) == (2.0, 100.0)
    assert bench.imitation_run(0)["budget"] == {"max_cost": 2.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({'name = "ppo"': 'name = "ppo"\nsettings = { steps = 5 }'}, "follows from"),
        ({'name = "ppo"': 'name = "imitation"\nlearner = "ppo"'}, "uses itself"),
        ({'name = "ppo"': 'name = "imitation-again"\nlearner = "ppo"'}, "uses itself"),
        ({'name = "ppo"': 'name = "ppo"\nfeedback = ["crowds"]'}, "Did you mean 'crowd'"),
        ({'name = "ppo"': 'name = "dpo"'}, "two learners"),
        ({"samples = 48, judgements = 48,": ""}, "needs samples or judgements"),
        ({"samples = 48, judgements = 48": "samples = 3"}, "too small"),
        ({'judge = "pocket-crowd"\n': ""}, "needs a judge"),
        ({"seeds = [0]": "seeds = [0, 0]"}, "two seeds"),
        ({"epochs = 2": "epoch = 2"}, "epoch"),
        ({"seeds = [0]": "seed = [0]"}, "seed"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(changes, said):
    with pytest.raises(InvalidOption, match=said):
        parse_benchmark(text(**changes))


@pytest.mark.parametrize(
    ("held_out", "feedback"),
    [
        ('critic = "win-tie", options = { judge = "pocket-crowd", teacher = "x" }', 'judge = "pocket-crowd"'),
        ('critic = "pocket"', 'critic = "pocket"'),
        # By another road, by its import path, in a mixture, and with another seed it is still the same judge.
        ('critic = "pocket"', 'judge = "pocket"'),
        ('critic = "pocket"', 'critic = "humor_env.rewards.pocket:PocketCritic"'),
        ('critic = "pocket"', 'critic = "tournament"\ncritic_options = { judge = "pocket" }'),
        ('critic = "pocket"', 'critic = "mix"\ncritic_options = { critics = [{ critic = "pocket", weight = 1.0 }] }'),
        (
            'critic = "win-tie", options = { judge = "pocket-crowd", judge_options = { seed = 9 } }',
            'judge = "pocket-crowd"',
        ),
        (
            'critic = "scorer", options = { client = "anthropic:a" }',
            'critic = "scorer"\ncritic_options = { client = "anthropic:a" }',
        ),
        # What a critic asks where nothing else is said.
        ('critic = "pocket"', 'critic = "tournament"'),
        ('critic = "pocket"', 'critic = "lift"'),
        ('critic = "pocket"', 'critic = "mix"'),
        ('critic = "tournament"', 'judge = "jury"'),
        ('critic = "scorer"', 'critic = "scorer"\ncritic_options = { client = "anthropic:claude-haiku-4-5" }'),
        # In every place that a judge may have in another one.
        ('critic = "everyday-judge"', 'judge = "cheap-first"\noptions = { cheap = "everyday-judge", paid = "pocket" }'),
        ('critic = "everyday-judge"', 'judge = "cheap-first"\noptions = { cheap = "pocket", paid = "everyday-judge" }'),
        (
            'critic = "fill-in", options = { critic = "everyday" }',
            'critic = "mix"\ncritic_options = { critics = ["novelty", '
            '{ critic = "lift", options = { critic = "everyday" } }] }',
        ),
        # One model and one folder, however they are written.
        (
            'critic = "scorer", options = { client = "anthropic" }',
            'critic = "scorer"\ncritic_options = { client = "anthropic-batch:claude-haiku-4-5" }',
        ),
        (
            'critic = "scorer", options = { client = "openai:m@http://a/v1" }',
            'critic = "scorer"\ncritic_options = { client = "openai:m@http://a/v1/" }',
        ),
        (
            'critic = "reward-model", options = { folder = "runs/critic" }',
            'critic = "reward-model"\ncritic_options = { folder = "./runs/x/../critic/" }',
        ),
    ],
)
def test_who_teaches_is_never_called_held_out(held_out, feedback):
    spec = text().replace('held_out = { critic = "pocket" }', f"held_out = {{ {held_out} }}")
    spec = spec.replace('judge = "pocket-crowd"\ncritic_options = { max_lines = 1 }', feedback)
    with pytest.raises(InvalidOption, match="cannot be called held out"):
        parse_benchmark(spec)


def test_two_models_behind_one_kind_of_critic_are_two_critics():
    from humor_env.experiments.compare.benchmark_spec import FeedbackTable, HeldOutTable, refuse_training_critic

    taught = FeedbackTable(name="a", critic="scorer", critic_options={"client": "anthropic:a"})
    refuse_training_critic(HeldOutTable(critic="scorer", options={"client": "anthropic:b"}), taught)
    refuse_training_critic(HeldOutTable(critic="scorer"), taught)  # the default is a third
    taught = FeedbackTable(name="a", judge="reward-model", options={"folder": "runs/one"})
    refuse_training_critic(HeldOutTable(critic="reward-model", options={"folder": "runs/two"}), taught)
    # A win-tie critic's default judge does not teach where the feedback names another.
    taught = FeedbackTable(name="a", judge="pocket-crowd", critic="win-tie", critic_options={"max_lines": 1})
    refuse_training_critic(HeldOutTable(critic="pocket"), taught)
    taught = FeedbackTable(name="a", critic="tournament", critic_options={"judge": "pocket-crowd"})
    refuse_training_critic(HeldOutTable(critic="pocket"), taught)


def test_a_folder_is_one_by_whatever_way_it_is_reached(tmp_path, monkeypatch):
    from humor_env.experiments.compare.identities import identities_of

    (tmp_path / "critic").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "critic")
    monkeypatch.chdir(tmp_path)
    folders = ["critic", "critic/", "./critic", str(tmp_path / "critic"), "link"]
    assert len({frozenset(identities_of("reward-model", {"folder": folder})) for folder in folders}) == 1
    models = [f"local:{folder}" for folder in folders]
    assert len({frozenset(identities_of("scorer", {"client": model})) for model in models}) == 1
