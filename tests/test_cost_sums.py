"""What a run would cost, by sums small enough for the head: lines, pairs, calls, dollars and hours."""

from types import SimpleNamespace

import pytest

from humor_env.experiments.runs import costs, line_counts
from humor_env.experiments.runs.costs import Item, in_words, item_of, name_of, rough_seconds, show_items
from humor_env.experiments.specs.spec import BudgetSpec, CriticSpec, EnvSpec, EvalSpec, MonitorSpec, TeacherSpec
from humor_env.llm.ledgered_client import Estimate
from humor_env.prompts import PromptSet
from humor_env.rewards.lift import LiftCritic
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Prompt

ITEM = Item("learning", "scorer", 4, 3.0, 20.0, 10.0, 0.5)


def test_an_item_is_multiplied_and_added_number_by_number():
    assert ITEM.times(3) == Item("learning", "scorer", 12, 9.0, 60.0, 30.0, 1.5)
    assert ITEM + Item("x", "y", 1, 2.0, 3.0, 4.0, 0.25) == Item("learning", "scorer", 5, 5.0, 23.0, 14.0, 0.75)


def test_an_unknown_price_stays_unknown():
    unknown = Item("x", "y", 1, 2.0, 3.0, 4.0, None)
    assert unknown.times(3) == Item("x", "y", 3, 6.0, 9.0, 12.0, None)
    assert (ITEM + unknown).cost is (unknown + ITEM).cost is None


def test_the_table_and_its_total():
    items = [
        Item("learning", "scorer", 12_000, 1234.5, 2e6, 3e5, 1234.567),
        Item("evaluation", "mix", 5, 6, 7, 8, 0.25),
    ]
    head = (
        "| part | who | lines or pairs | calls | tokens read | tokens written, at most | dollars, at most |\n"
        "|---|---|---:|---:|---:|---:|---:|\n"
        "| learning | scorer | 12,000 | 1,234 | 2,000,000 | 300,000 | 1,234.57 |\n"
        "| evaluation | mix | 5 | 6 | 7 | 8 | 0.25 |\n\n"
    )
    total = "mine, 2 seeds: at most about $1,234.82; "
    assert show_items("mine", items, 2, None) == f"{head}{total}no limit is set in [budget]."
    assert show_items("mine", items, 2, 0.0) == f"{head}{total}the budget stops it at $0.00."
    assert show_items("mine", items, 2, 5, "each run").endswith("; the budget stops each run at $5.00.")
    assert show_items("mine", items, 1, None).split("\n\n")[1].startswith("mine, 1 seed: at most")


def test_one_unknown_price_makes_the_total_unknown():
    said = show_items("mine", [ITEM, Item("a", "b", 1, 1, 1, 1, None)], 1, None)
    assert said.endswith(
        "| a | b | 1 | 1 | 1 | 1 | unknown |\n\nmine, 1 seed: unknown: a model has no price in prices.toml; no limit "
        "is set in [budget]."
    )
    assert show_items("mine", [], 1, None) == "mine: no language model is called; it costs only time."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1.49, "a second"),
        (1.5, "2 seconds"),
        (119.4, "119 seconds"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (7200, "2 hours"),
        (9000, "2.5 hours"),
        (36000, "10 hours"),
        (45000, "12 hours"),
        (48 * 3600 - 1, "48 hours"),
        (48 * 3600, "2 days"),
        (86400 * 9.96, "10 days"),
        (86400 * 100, "100 days"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert in_words(seconds) == words


def test_writing_and_learning_take_as_long_and_imitating_three_quarters():
    # 2 s a line: 10 lines written and learned from, 3 lines in each of 4 stages but the teacher's, 8 imitated.
    assert rough_seconds(2.0, 10, measured=3, stages=4, lessons=8) == 2 * (2 * 10 + 3 * 3 + 0.75 * 8)


# Numbers of lines


PROMPTS = PromptSet(
    "some",
    [Prompt(f"{s}{i}", f"The {s} {i}.", split=s) for s, n in (("train", 6), ("dev", 4), ("test", 5)) for i in range(n)],
)


def a_spec(config, **more):
    made = {"seeds": [3], "env": EnvSpec(), "eval": EvalSpec(lines=2, dev_limit=3, dev_lines=5), "monitor": None}
    asked = []
    made |= {"learner_config": lambda seed: asked.append(seed) or config, "asked": asked, "imitates": False, **more}
    return SimpleNamespace(**made)


PARTS = SimpleNamespace(
    prompts=PROMPTS,
    eval_prompts=PROMPTS.split("test")[:4],
    demonstrations=range(7),
    preferences=(),
    env_options={},
)
NO = SimpleNamespace()


@pytest.mark.parametrize(
    ("config", "options", "lines"),
    [
        ({"steps": 3, "batch_size": 8}, {}, 24),
        ({"steps": 3, "batch_size": 8}, {"attempts": 2}, 48),
        ({"n": 4, "steps": 3}, {}, 4 * 4 * 2),  # best of four, for two lines of each of four prompts
        ({"steps": 0, "batch_size": 8}, {}, 0),
        ({}, {}, 0),
    ],
)
def test_lines_to_learn_from(config, options, lines):
    """The attempts are the environment's own: Revise-v0 has three without a word about it in the spec."""
    spec = a_spec(SimpleNamespace(**config))
    parts = SimpleNamespace(**{**vars(PARTS), "env_options": options})
    assert line_counts.lines_to_learn_from(spec, parts) == lines
    assert spec.asked == [3]


def test_lines_that_are_measured():
    assert line_counts.tested_lines(a_spec(NO), PARTS) == 4 * 2
    # After steps 3, 6 and 9 of ten: three of the four dev prompts, five lines each.
    assert line_counts.dev_lines(a_spec(SimpleNamespace(evaluate_every=3, steps=10)), PARTS) == 3 * 3 * 5
    few = a_spec(SimpleNamespace(evaluate_every=3, steps=10), eval=EvalSpec(dev_limit=9))
    assert line_counts.dev_lines(few, PARTS) == 3 * 4
    assert line_counts.dev_lines(a_spec(SimpleNamespace(evaluate_every=0, steps=10)), PARTS) == 0
    assert line_counts.dev_lines(a_spec(NO), PARTS) == 0


def test_lines_that_are_watched():
    steps = SimpleNamespace(steps=10)
    # Before the first step and after 4 and 8; three prompts, each line with its own and two other prompts.
    watched = a_spec(steps, monitor=MonitorSpec(every=4, lines=3, others=2))
    assert line_counts.watched_lines(watched, PARTS) == 3 * 3 * 3
    assert line_counts.watched_lines(a_spec(steps, monitor=MonitorSpec(every=4, lines=9, others=0)), PARTS) == 3 * 4
    test = MonitorSpec(every=11, lines=9, others=0, split="test")
    assert line_counts.watched_lines(a_spec(steps, monitor=test), PARTS) == 5
    assert line_counts.watched_lines(a_spec(steps), PARTS) == 0
    assert line_counts.watched_lines(a_spec(NO, monitor=MonitorSpec()), PARTS) == 0


def test_learners_without_steps_are_measured_and_watched_too():
    """Six train prompts in batches of four are two steps an epoch. Both numbers were 0."""
    dpo = SimpleNamespace(epochs=5, batch_size=4, rounds=2, prompts_per_round=0, evaluate_every=3)
    monitor = MonitorSpec(every=4, lines=3, others=2)
    assert line_counts.most_steps(dpo, a_spec(dpo), PARTS) == 5 * 2
    assert line_counts.dev_lines(a_spec(dpo), PARTS) == 3 * 3 * 5
    assert line_counts.watched_lines(a_spec(dpo, monitor=monitor), PARTS) == 3 * 3 * 3
    # Nine prompts a round are three steps; two given preferences are one.
    more = SimpleNamespace(**{**vars(dpo), "prompts_per_round": 9})
    assert line_counts.most_steps(more, a_spec(more), PARTS) == 5 * 3
    given = SimpleNamespace(**{**vars(PARTS), "preferences": ("a", "b")})
    assert line_counts.most_steps(more, a_spec(more), given) == 5
    # The teacher's pairs are for all six prompts; 2 epochs of them and 5 of the other phase's: 4 + 10 steps, of which
    # each second of the first phase and each third of the other are followed by a measurement.
    brio = SimpleNamespace(**{**vars(dpo), "epochs": 2, "pairs_of": "teacher", "prompts_per_round": 1, "rounds": 1})
    brio.evaluate_every = 2
    both = SimpleNamespace(brio=brio, dpo=dpo)
    assert line_counts.dev_lines(a_spec(both), PARTS) == (2 + 3) * 3 * 5
    assert line_counts.watched_lines(a_spec(both, monitor=monitor), PARTS) == (1 + 14 // 4) * 3 * 3
    assert line_counts.pairs_to_judge(a_spec(both), PARTS) == 6 + 2 * 6
    # Imitation: seven lessons in batches of four, three epochs.
    sft = SimpleNamespace(epochs=3, batch_size=4)
    assert line_counts.most_steps(sft, a_spec(sft), PARTS) == 6
    assert line_counts.watched_lines(a_spec(sft, monitor=monitor), PARTS) == 2 * 3 * 3


def test_lines_to_choose_pairs_from():
    """A dry run said that DPO writes 0 lines. Six prompts, two rounds, five candidates; not the teacher's."""
    dpo = SimpleNamespace(rounds=2, pairs=SimpleNamespace(candidates=5))
    brio = SimpleNamespace(rounds=1, pairs=SimpleNamespace(candidates=5), pairs_of="teacher")
    assert line_counts.candidate_lines(a_spec(dpo), PARTS) == 60
    assert line_counts.candidate_lines(a_spec(SimpleNamespace(brio=brio, dpo=dpo)), PARTS) == 60
    assert line_counts.candidate_lines(a_spec(dpo), SimpleNamespace(**{**vars(PARTS), "preferences": ("a",)})) == 0
    assert line_counts.candidate_lines(a_spec(NO), PARTS) == 0


@pytest.mark.parametrize(
    ("config", "pairs"),
    [
        (SimpleNamespace(prompts_per_round=4, rounds=3), 12),
        (SimpleNamespace(prompts_per_round=0, rounds=3), 18),
        (SimpleNamespace(rounds=2), 12),
        (NO, 6),
        (SimpleNamespace(brio=SimpleNamespace(rounds=2), dpo=SimpleNamespace(prompts_per_round=5)), 12 + 5),
        (SimpleNamespace(brio=None, dpo=SimpleNamespace(prompts_per_round=5)), 5),
    ],
)
def test_pairs_that_are_judged(config, pairs):
    assert line_counts.pairs_to_judge(a_spec(config), PARTS) == pairs


def test_lessons_are_lines_by_epochs():
    from humor_env.agents.sft import SFTConfig

    assert line_counts.lessons(a_spec(SFTConfig(epochs=3)), PARTS) == 21
    assert line_counts.lessons(a_spec(NO), PARTS) == 0
    warm = a_spec(NO, imitates=True, imitation_config=lambda seed: SFTConfig(epochs=2, seed=seed))
    assert line_counts.lessons(warm, PARTS) == 14


def test_questions_are_measured_on_two_different_texts_of_the_first_prompts(monkeypatch):
    monkeypatch.setattr(costs, "SAMPLE", 3)
    parts = SimpleNamespace(prompts=PROMPTS, teacher=None, spec=a_spec(NO))
    train = PROMPTS.split("train")
    assert costs.sample_pairs(parts) == [(Joke(p, f"{p.text} Twice. "), Joke(p, f"{p.text} Twice.")) for p in train[:3]]
    lines = [Demonstration(train[0], text, "t") for text in ("one", "two", "three")]
    parts.teacher = TeacherBuffer(None, [*lines, Demonstration(train[1], "only", "t")])
    assert [(a.text, b.text) for a, b in costs.sample_pairs(parts)] == [
        ("one ", "two"),
        ("only ", "only"),
        (f"{train[2].text} Twice. ", f"{train[2].text} Twice."),
    ]


# What each critic sends


class Asks:
    """A judge or critic that knows what it would send: a call and the characters for each."""

    def __init__(self, cost=0.5):
        self.cost, self.seen = cost, []

    def estimate(self, asked):
        self.seen.append(list(asked))
        n = len(asked)
        return Estimate(n, 0, n, 10 * n, 100 * n, None if self.cost is None else self.cost * n)


SAMPLE = [(Joke(p, f"{p.id} "), Joke(p, "other")) for p in PROMPTS.split("train")[:2]]


def test_a_critic_is_measured_on_the_sample_and_scaled_to_the_lines():
    critic = Asks()
    assert item_of("learning", "mine", critic, SAMPLE, 10) == Item("learning", "mine", 10, 10.0, 100.0, 1000.0, 5.0)
    assert critic.seen == [[a for a, _ in SAMPLE]]
    assert item_of("learning", "mine", Asks(None), SAMPLE, 10).cost is None
    assert item_of("learning", "mine", len, SAMPLE, 10) is None


def test_a_judge_is_measured_on_pairs():
    judge = Asks()
    judge.votes, judge.requests = 1, lambda pairs: []
    assert item_of("learning", "mine", judge, SAMPLE, 10).calls == 10
    assert judge.seen == [[(Joke(a.prompt, f"{a.text}!"), b) for a, b in SAMPLE]]


def test_lift_asks_about_each_line_with_each_prompt():
    critic = LiftCritic(PROMPTS, Asks(), others=3)
    item = item_of("learning", "lift", critic, SAMPLE, 10)
    assert (item.lines, item.calls) == (40, 40.0)


def test_a_mix_asks_each_member_that_asks():
    mix = SimpleNamespace(inner_critics=[Asks(), len], inner_judges=[Asks(0.25)])
    assert item_of("learning", "mix", mix, SAMPLE, 10) == Item("learning", "mix", 10, 20.0, 200.0, 2000.0, 7.5)
    assert item_of("learning", "mix", SimpleNamespace(inner_critics=[len]), SAMPLE, 10) is None


def test_win_tie_asks_about_as_many_of_the_teachers_lines_as_it_may():
    train = PROMPTS.split("train")
    teacher = TeacherBuffer(None, [Demonstration(train[0], text, "t") for text in ("one", "two", "three")])
    judge = Asks()
    critic = SimpleNamespace(judge=judge, teacher=teacher, max_lines=2)
    item = item_of("evaluation", "win-tie", critic, SAMPLE, 10)
    # Two pairs for the two prompts of the sample: one a line.
    assert judge.seen == [[(Joke(train[0], f"{SAMPLE[0][0].text}!"), Joke(train[0], b)) for b in ("one", "two")]]
    assert (item.lines, item.calls) == (10, 10.0)


def test_a_jury_is_the_sum_of_its_judges():
    one, two = Asks(), Asks(0.25)
    jury = SimpleNamespace(inner_judges=[one, len, SimpleNamespace(inner_judges=[two])])
    assert costs._of_pairs(jury)(SAMPLE) == Estimate(4, 0, 4, 40, 400, 1.5)
    assert one.seen == two.seen == [SAMPLE]
    assert costs._of_pairs(SimpleNamespace(inner_judges=[len])) is costs._of_pairs(None) is None


def test_names_of_critics_with_those_they_ask():
    assert name_of(CriticSpec(critic="rules")) == "rules"
    assert name_of(CriticSpec(critic="win-tie", options={"judge": "pocket"})) == "win-tie, pocket"
    assert name_of(CriticSpec(critic="lift", options={"critic": "rules"})) == "lift, rules"
    assert name_of(CriticSpec(critic="lift", options={"judge": "a", "critic": "b"})) == "lift, a"
    assert name_of(CriticSpec(critic="lift", options={"critic": {"x": 1}})) == "lift"


# A spec whose critics send nothing


SPEC = """
[[critic]]
critic = "scorer"
options = {client = "local:/models/a", options = {concurrency = 3}, ledger = "mine.sqlite"}
[[critic]]
critic = "mix"
options = {critics = ["rules", {critic = "scorer", options = {client = "local:~/b"}}]}
[[eval.critic]]
critic = "win-tie"
options = {judge = "multiple-choice", judge_options = {client = "openai:c"}}
[judge]
judge = "multiple-choice"
options = {client = "openai:d"}
[monitor]
[[monitor.critic]]
critic = "scorer"
options = {client = "openai:e"}
[teacher]
filter = {critic = "rules"}
per_prompt = 2
[learner]
name = "sft"
"""


def test_a_spec_without_keys_changes_what_sends_and_nothing_else():
    from humor_env.experiments.specs.spec import parse_spec

    spec = parse_spec(SPEC)
    assert costs._clients(spec) == ["local:/models/a", "local:~/b", "openai:d", "openai:c", "openai:e"]
    quiet = costs.without_keys(spec)
    harmless = {"ledger": ":memory:", "options": {"must_have_key": False}}
    first, mix = (c.options for c in quiet.critic)
    assert first == {
        "client": "local:/models/a",
        "ledger": ":memory:",
        "options": {"concurrency": 3, "must_have_key": False},
    }
    assert mix["critics"][1]["options"] == {"client": "local:~/b", **harmless}
    assert quiet.eval.critic[0].options["judge_options"] == {"client": "openai:c", **harmless}
    assert quiet.judge.options == {"client": "openai:d", **harmless}
    assert quiet.monitor.critic[0].options == {"client": "openai:e", **harmless}
    assert quiet.teacher == TeacherSpec(per_prompt=2, imitate=False)
    assert (quiet.learner, quiet.budget, quiet.env) == (spec.learner, BudgetSpec(), spec.env)
    assert spec.critic[0].options["ledger"] == "mine.sqlite", "the spec itself is unchanged"
    plain = costs.without_keys(parse_spec('[[critic]]\ncritic = "rules"\n[learner]\nname = "sft"'))
    assert (plain.teacher, plain.judge, plain.monitor) == (None, None, None)


PAID = 'critic = "scorer"\noptions = {client = "anthropic:claude-haiku-4-5"}'
WATCHED = f"""
seeds = [0, 1]
[env]
prompts = "everyday"
[[critic]]
{PAID}
[eval]
limit = 5
lines = 2
[monitor]
every = 2
lines = 4
others = 0
[learner]
name = "grpo"
steps = 3
batch_size = 16
"""


def test_items_of_a_whole_run():
    """Without a warm start or a teacher two stages are measured, base and learner; the one critic does all three."""
    from humor_env.experiments.specs.spec import parse_spec

    items = costs.estimate_spec(parse_spec(WATCHED))
    assert [(item.what, item.who, item.lines) for item in items] == [
        ("learning", "scorer", 2 * 3 * 16),
        ("evaluation", "scorer", 2 * 2 * 5 * 2),
        ("monitor", "scorer", 2 * 2 * 4),
    ]
    # The monitor's held-out critic is priced once, also where it is the training critic.
    same = costs.estimate_spec(parse_spec(WATCHED + f"[[eval.critic]]\n{PAID}\n"))
    assert same == items
    other = PAID.replace("haiku", "sonnet")
    more = costs.estimate_spec(parse_spec(WATCHED + f"[[eval.critic]]\n{other}\n"))
    assert [item.what for item in more] == ["learning", "evaluation", "monitor", "monitor"]


def test_the_seconds_of_a_line_are_a_share_of_all(monkeypatch):
    """Weights that are not here, or too many, are not tried."""
    from humor_env.experiments.specs.spec import parse_spec

    spec = parse_spec(WATCHED)
    for bytes_here in (0, 4 * 1024**3):
        monkeypatch.setattr(costs, "_weights", lambda model, n=bytes_here: n)
        assert costs.seconds_to_write(spec) is None
    monkeypatch.undo()
    monkeypatch.setattr(costs.students, "gguf_bytes", lambda model: 3)
    assert costs._weights("owner/no-such-model") == 4 * 3


def test_weights_are_those_in_the_folder(tmp_path):
    (tmp_path / "part").mkdir()
    for place, size in (("a.safetensors", 5), ("part/b.safetensors", 2), ("c.bin", 9)):
        (tmp_path / place).write_bytes(b"x" * size)
    assert costs._weights(str(tmp_path)) == 7


def test_a_forecast_in_words(monkeypatch):
    from humor_env.experiments.specs.spec import parse_spec

    monkeypatch.setattr(costs, "estimate_spec", lambda spec: [])
    monkeypatch.setattr(costs, "seconds_to_write", lambda spec: 2.0)
    spec = parse_spec(WATCHED)
    # 2 s a line, two seeds: 48 lines written and learned from, 5 prompts of two lines for the learner's stage.
    seconds = 2 * 2.0 * (2 * 48 + 10)
    assert costs.forecast(spec) == (
        "run: no language model is called; it costs only time.\nThe learner writes about 96 lines to learn from, and "
        "each stage is measured on 5 prompts, 2 lines for each. On this machine that takes roughly "
        f"{costs.in_words(seconds)}, from how fast the student wrote just now, plus the time spent waiting for "
        "language models."
    )
    monkeypatch.setattr(costs, "seconds_to_write", lambda spec: None)
    assert costs.forecast(parse_spec(WATCHED, ["eval.lines=1"])).endswith(
        "each stage is measured on 5 prompts. The time depends on the student and the machine: run it with --set "
        "learner.steps=2 and look at timings.jsonl."
    )
