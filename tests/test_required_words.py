"""A line without a required word of its prompt counts as 0, or loses, wherever lines are learned from or measured.

The rule used to hold in the environments only: evaluation, the monitor, best of n, TRL's rewards, pair judges and the
teacher's filter asked the critic, which knows nothing of it.
"""

import json

import pytest
from tiny import prompts

from humor_env.agents.best_of_n import BestOfN, BestOfNConfig
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig, teacher_pairs, verdicts_with_words
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.trl.formats import make_trl_reward
from humor_env.episodes.episode import judged_with_words
from humor_env.errors import CriticContractError
from humor_env.experiments.compare.benchmark_cell import against_itself, against_teacher, measured
from humor_env.experiments.runs.evaluate import judged
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Judgement, Prompt, Verdict

ASKED = Prompt("w", "Use colander and ferry.", "oneliner", extra={"words": ["colander", "ferry"]})
FREE = Prompt("p", "The bus was late.")
KEEPS, BREAKS = "A colander took the ferry.", "Glaciers overtook it."


class Recording:
    """Scores lines that name glaciers 0.9, others 0.4, and keeps what it is asked."""

    name = "recording"

    def __init__(self):
        self.texts = []

    def __call__(self, jokes):
        self.texts.append([joke.text for joke in jokes])
        return [Judgement("recording", 0.9 if "Glaciers" in joke.text else 0.4) for joke in jokes]


class LongerWins:
    """A pair judge that keeps what it is asked."""

    name = "longer"

    def __init__(self):
        self.asked = []

    def __call__(self, pairs):
        self.asked.append([(a.text, b.text) for a, b in pairs])
        return [
            Verdict("longer", 0.5 if len(a.text) == len(b.text) else float(len(a.text) > len(b.text))) for a, b in pairs
        ]


def test_only_lines_with_their_words_reach_the_critic():
    critic = Recording()
    lines = [Joke(ASKED, BREAKS), Joke(FREE, BREAKS), Joke(ASKED, KEEPS), Joke(ASKED, "A ferry.")]
    found = judged_with_words(critic, lines)
    assert critic.texts == [[BREAKS, KEEPS]]
    assert [j.score for j in found] == [0.0, 0.9, 0.4, 0.0]
    assert [j.parts for j in found] == [{"constraint": 0.0}, {}, {"constraint": 1.0}, {"constraint": 0.0}]
    assert found[3].reason == "The line must contain 'colander'."
    with pytest.raises(CriticContractError, match="asked about 1 jokes and returned 0"):
        judged_with_words(lambda asked: [], lines[2:])


def test_an_evaluation_counts_them():
    critic = Recording()
    evaluation = judged([Joke(ASKED, BREAKS), Joke(FREE, BREAKS)], critic, name="x")
    assert evaluation.scores == [0.0, 0.9] and evaluation.mean == 0.45
    assert evaluation.parts == {"constraint": 0.0}
    # All lines of one turn may lack their words: the critic is then not called.
    assert judged([Joke(ASKED, BREAKS)], critic, name="x").mean == 0.0
    assert critic.texts == [[BREAKS]]


def test_best_of_n_picks_the_best_line_that_has_them():
    class Fixed(BestOfN):
        def _lines(self, prompts, seed):
            return [Joke(p, text) for p in prompts for text in (BREAKS, KEEPS)]

    assert [j.text for j in Fixed(None, Recording(), BestOfNConfig(n=2)).write([ASKED, FREE])] == [KEEPS, BREAKS]


def test_trl_is_rewarded_as_our_learners():
    columns = {
        "prompt_id": ["w", "w", "p"],
        "text": [ASKED.text, ASKED.text, FREE.text],
        "extra": [json.dumps(dict(ASKED.extra))] * 2 + ["{}"],
    }
    reward = make_trl_reward(Recording(), asynchronous=False)
    assert reward(columns["text"], [BREAKS, KEEPS, BREAKS], **columns) == [0.0, 0.4, 0.9]


def test_a_pair_is_lost_without_them():
    judge = LongerWins()
    pair = lambda prompt, a, b: (Joke(prompt, a), Joke(prompt, b))  # noqa: E731
    pairs = [
        pair(ASKED, KEEPS, f"{BREAKS} Twice over."),
        pair(ASKED, f"{BREAKS} Twice over.", KEEPS),
        pair(FREE, KEEPS, BREAKS),
        pair(ASKED, BREAKS, "A ferry."),  # both lack one: as the judge says
        pair(ASKED, KEEPS, f"{KEEPS} Twice."),
    ]
    verdicts = verdicts_with_words(judge, pairs)
    assert [v.probability for v in verdicts] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert judge.asked == [[(KEEPS, BREAKS), (BREAKS, "A ferry."), (KEEPS, f"{KEEPS} Twice.")]]
    assert [v.judge for v in verdicts] == ["constraint", "constraint", "longer", "longer", "longer"]
    assert verdicts[0].reason == verdicts[1].reason == "The line must contain 'colander', 'ferry'."
    with pytest.raises(CriticContractError, match="given 1 pairs and returned a list of 0"):
        verdicts_with_words(lambda pairs: [], pairs[:3])


def test_preferences_are_for_lines_with_them():
    lines = [Demonstration(ASKED, f"{BREAKS} Twice over.", "t"), Demonstration(ASKED, KEEPS, "t")]
    [preference] = teacher_pairs(LongerWins(), lines, PairConfig(length_filter="off")).preferences
    assert (preference.chosen, preference.rejected) == (KEEPS, f"{BREAKS} Twice over.")


def test_a_critic_as_a_judge_scores_as_the_task_does():
    verdicts = CriticAsJudge(Recording())(
        [(Joke(ASKED, BREAKS), Joke(ASKED, KEEPS)), (Joke(ASKED, BREAKS), Joke(ASKED, "A."))]
    )
    assert [(v.probability, v.tie) for v in verdicts] == [(0.0, 0.0), (0.5, 1.0)]


def test_a_benchmark_counts_them():
    class Parts:
        eval_critic, teacher = Recording(), None

    assert measured([Joke(ASKED, BREAKS), Joke(ASKED, KEEPS)], Parts)["scores"] == [0.0, 0.4]
    teacher = TeacherBuffer(None, [Demonstration(ASKED, KEEPS, "t")])
    longer = f"{BREAKS} Twice over."
    assert against_teacher([Joke(ASKED, longer)], teacher, LongerWins())["wins"] == [0.0]
    again = {"scores": [0.0], "exact": {}, "feedback": {"j": {}}}
    against_itself(again, {"scores": [0.4]}, [(Joke(ASKED, longer), Joke(ASKED, KEEPS))], {"j": LongerWins()})
    assert again["exact"]["wins_itself"] == again["feedback"]["j"]["wins_itself"] == [0.0]


def test_the_monitor_counts_them_and_leaves_them_out_of_the_lift():
    """The student writes the same for every prompt. Half of the prompts ask for words that it does not write: their
    scores are 0. A line's lift compares the critic's own scores, which such a line does not have."""

    class Fixed(Monitor):
        def _written(self, student, adapter):
            return [Joke(p, BREAKS) for p in self.prompts]

    asked = [Prompt(f"w{i}", f"Use ferry {i}.", extra={"words": ["ferry"]}) for i in range(2)]
    monitor = Fixed(MonitorConfig(others=1), [*asked, *prompts(2)], held_out=Recording())
    numbers = monitor.measure(0, None, None)
    assert numbers["drift/held_out"] == pytest.approx(0.45)
    assert numbers["drift/lift_held_out"] == pytest.approx(0.0)


def test_a_filtered_teacher_has_them():
    buffer = TeacherBuffer(None, [Demonstration(p, t, "t") for p in (ASKED, FREE) for t in (BREAKS, KEEPS)])
    assert [d.score for d in buffer.scored(Recording())] == [0.0, 0.4, 0.9, 0.4]
    assert [(d.prompt.id, d.text) for d in buffer.filter(Recording(), at_least=0.4)] == [
        ("w", KEEPS),
        ("p", BREAKS),
        ("p", KEEPS),
    ]
