"""What an experiment would ask of language models, worked out by hand beside it."""

import re

import pytest
import torch

from humor_env.agents.student import writer
from humor_env.errors import HumorEnvError
from humor_env.experiments.runs import costs
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.prompts import load_prompts

CHEAP = '{ client = "anthropic:claude-haiku-4-5" }'


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def spec(learner, critic="", rest=""):
    return parse_spec(f"""
        seeds = [0, 1]
        [env]
        prompts = "everyday"
        [teacher]
        lines = "everyday"
        {critic}
        [eval]
        limit = 10
        [[eval.critic]]
        critic = "rules"
        {rest}
        [learner]
        {learner}
    """)


def test_each_line_of_each_step_is_one_question():
    critic = f'[[critic]]\ncritic = "scorer"\noptions = {CHEAP}'
    [item] = costs.estimate_spec(spec('name = "grpo"\nsteps = 3\nbatch_size = 16', critic))
    assert (item.what, item.who, item.lines) == ("learning", "scorer", 2 * 3 * 16)
    assert item.calls == pytest.approx(96)
    # At most 300 tokens are written a question; dollars by the price list: 1 and 5 per million.
    assert item.output_tokens == pytest.approx(96 * 300)
    assert item.cost == pytest.approx((item.input_tokens * 1 + item.output_tokens * 5) / 1e6)


def test_what_the_monitor_asks_is_priced():
    """Before the first step and after each second one of five: three times 20 lines, each under its own and two other
    prompts, by the critic that teaches and by the one that is held against it; two seeds. It was left out once."""
    critic = f'[[critic]]\ncritic = "scorer"\noptions = {CHEAP}'
    monitor = """
        [monitor]
        every = 2
        lines = 20
        others = 2
        [[monitor.critic]]
        critic = "scorer"
        options = { client = "anthropic:claude-haiku-4-5" }
    """
    made = spec('name = "grpo"\nsteps = 5\nbatch_size = 16', critic, monitor)
    learning, *watched = costs.estimate_spec(made)
    assert learning.what == "learning"
    assert [(item.what, item.lines) for item in watched] == [("monitor", 2 * 3 * 20 * 3)]
    other = monitor.replace("claude-haiku-4-5", "claude-sonnet-4-5")
    made = spec('name = "grpo"\nsteps = 5\nbatch_size = 16', critic, other)
    assert [item.what for item in costs.estimate_spec(made)] == ["learning", "monitor", "monitor"]


def test_comparing_with_the_teacher_asks_in_both_orders():
    rest = f"""
        [[eval.critic]]
        critic = "win-tie"
        [eval.critic.options]
        judge = "multiple-choice"
        judge_options = {CHEAP}
        max_lines = 1
    """
    made = spec('name = "ppo"\nsteps = 4\nbatch_size = 8\nevaluate_every = 2', '[[critic]]\ncritic = "rules"', rest)
    [item] = costs.estimate_spec(made)
    assert (item.what, item.who) == ("evaluation", "win-tie, multiple-choice")
    dev = len(load_prompts("everyday").split("dev"))
    # Base, imitation, teacher and learner at the end, and the dev prompts after steps 2 and 4; two seeds.
    measured = 2 * (4 * 10 + 2 * min(64, dev))
    assert item.lines == measured
    assert item.calls == pytest.approx(2 * measured)


def test_each_member_of_a_mix_or_a_jury_is_priced():
    """Both were free: what asks only through others was taken for one that asks nobody."""
    paid, judge = f'{{ critic = "scorer", options = {CHEAP} }}', f'{{ judge = "multiple-choice", options = {CHEAP} }}'
    inside = f'{{ critic = "mix", options = {{ critics = ["rules", {paid}] }} }}'
    jury = f'{{ judge = "jury", judge_options = {{ judges = ["pocket", {judge}, {judge}] }}, max_lines = 1 }}'
    members = f'[{paid}, {inside}, {{ critic = "win-tie", options = {jury} }}]'
    critic = f'[[critic]]\ncritic = "mix"\noptions = {{ critics = {members} }}'
    [item] = costs.estimate_spec(spec('name = "grpo"\nsteps = 3\nbatch_size = 16', critic))
    # Of each line two scorers ask once, and two judges in both orders about a pair with one of the teacher's lines.
    assert item.lines == 96 and item.calls == pytest.approx(96 * (2 + 2 * 2))
    assert item.cost > 0


@pytest.mark.parametrize(
    ("options", "games"), [("", 28), ("small = 2, ", 5 * 4), ('pairing = "swiss", rounds = 3, ', 12)]
)
def test_a_tournament_is_priced_by_its_games(options, games):
    """The dry run ended in a traceback. Eight siblings: all meet, or four games a round, in two rounds more than it
    takes to halve eight to one."""
    inner = f'{{ {options}judge = "multiple-choice", judge_options = {CHEAP} }}'
    critic = f'[[critic]]\ncritic = "tournament"\noptions = {inner}'
    [item] = costs.estimate_spec(spec('name = "grpo"\nsteps = 3\nbatch_size = 16\nsiblings = 8', critic))
    assert item.lines == 96 and item.calls == pytest.approx(2 * games * 96 / 8)


def test_learners_of_pairs_ask_once_a_prompt_and_round():
    judge = f'[judge]\njudge = "multiple-choice"\noptions = {CHEAP}'
    made = spec('name = "dpo"\nepochs = 4\nrounds = 2\nprompts_per_round = 5', judge)
    [item] = costs.estimate_spec(made)
    assert item.lines == 2 * 2 * 5
    assert item.calls == pytest.approx(2 * item.lines), "both orders"


def test_where_no_model_is_asked_it_says_so():
    quick = load_spec("pocket-quickstart")
    assert costs.estimate_spec(quick) == []
    assert "costs only time" in costs.show(quick, [])


def test_an_unknown_price_is_not_free(capsys):
    assert costs.main(["one-gpu-local"]) == 0
    said = capsys.readouterr().out
    assert "| unknown |" in said
    assert "no limit is set" in said


def test_a_mistake_is_a_sentence(capsys):
    assert costs.main(["one-gpu-antropic"]) == 2
    assert "Did you mean" in capsys.readouterr().err


RULES = '[[critic]]\ncritic = "rules"'


@pytest.mark.parametrize(
    ("critic", "overrides", "told"),
    [
        (RULES, ["env.prompts='everday'"], "everday"),
        (RULES, ["teacher.lines='pocket'"], "has no line for the split 'train'"),
        ('[[critic]]\ncritic = "scorer"\noptions = { client = "anthropc:claude" }', [], "Did you mean 'anthropic'"),
        ('[[critic]]\ncritic = "rules"\noptions = { rubrik = 1 }', [], "rubrik"),
        ('[[critic]]\ncritic = "scorer"\noptions = { client = "local:/nope" }', [], "/nope"),
        (RULES, ["student.model='/nope'"], "The student '/nope' does not exist"),
        (RULES, ["student.device='cuda:77'"], "device 'cuda:77' cannot be used here"),
        (RULES, ["teacher.filter={critic='rules', options={rubrik=1}}"], "rubrik"),
    ],
)
def test_a_dry_run_finds_what_would_stop_the_run(critic, overrides, told):
    """All of these passed a dry run, which said nothing, and stopped the run."""
    made = spec('name = "grpo"\nsteps = 3\nbatch_size = 16', critic)
    made = parse_spec(made.to_toml(), overrides)
    with pytest.raises(HumorEnvError, match=told):
        costs.check_without_paying(made)


def test_a_dry_run_needs_no_key_asks_nobody_and_says_what_it_would_cost(monkeypatch):
    """Filtering a teacher's lines asks the critic about each of them: a dry run only makes it."""
    asked = []
    monkeypatch.setattr("humor_env.rewards.rules.RulesCritic.__call__", lambda self, jokes: asked.append(jokes))
    made = spec('name = "grpo"\nsteps = 3\nbatch_size = 16', f'[[critic]]\ncritic = "scorer"\noptions = {CHEAP}')
    made = parse_spec(made.to_toml(), ["teacher.filter={critic='rules'}"])
    assert costs.check_without_paying(made) == []
    costs.forecast(made)
    assert asked == []
    said = costs.forecast(load_spec("one-gpu-anthropic"))
    assert "| learning | scorer |" in said and "at most about $" in said and "lines to learn from" in said


def test_a_dry_run_says_roughly_how_long_where_the_student_is_here(monkeypatch):
    """It printed what a run costs, and not whether it takes minutes or days."""
    said = costs.forecast(load_spec("pocket-quickstart", ["learner.steps=2"]))
    few = re.search(r"roughly ([\d.]+) (seconds|minutes)", said)
    assert few, said
    assert "On this machine" in said
    clock = iter(range(0, 4000, 32))
    monkeypatch.setattr(costs, "perf_counter", lambda: next(clock))  # 32 s for 32 lines
    made = load_spec("pocket-quickstart", ["learner.steps=10"])
    lines = 10 * made.learner_config(0).batch_size
    assert costs.seconds_to_write(made) == pytest.approx(1.0)
    assert costs.rough_seconds(1.0, lines, measured=50, stages=4, lessons=30) == pytest.approx(
        2 * lines + 150 + 0.75 * 30
    )
    # With the threads of the run, not of this process: 84 minutes were shown as 4.6 days on a busy machine.
    used = []
    write = writer.write_jokes
    monkeypatch.setattr(writer, "write_jokes", lambda *a, **o: used.append(torch.get_num_threads()) or write(*a, **o))
    before = torch.get_num_threads()
    costs.seconds_to_write(made, before + 1)
    assert used == [before + 1] * 2 and torch.get_num_threads() == before
    # A model that would have to be fetched is not tried.
    assert costs.seconds_to_write(load_spec("one-gpu-anthropic")) is None
    assert "learner.steps=2" in costs.forecast(load_spec("one-gpu-anthropic"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "a second"), (40, "40 seconds"), (200, "3 minutes"), (9000, "2.5 hours"), (3e5, "3.5 days")],
)
def test_rough_times_in_words(seconds, said):
    assert costs.in_words(seconds) == said


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_toml_that_python_cannot_read_is_a_sentence(value):
    with pytest.raises(HumorEnvError, match="is not TOML"):
        parse_spec(f"x = {value}")
