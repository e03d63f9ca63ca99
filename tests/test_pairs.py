"""Making pairs as the paper does: which two lines, what is dropped, what the judge's verdicts become; and rounds."""

import json
from dataclasses import replace

import pytest
from tiny import letters_critic, prompts, stir, student

from humor_env.agents.feedback import pairs
from humor_env.agents.feedback.pairs import (
    CriticAsJudge,
    Feedback,
    PairConfig,
    most_different,
    ngram_distance,
    preference_record,
    read_preference,
    student_pairs,
    teacher_pairs,
    write_candidates,
)
from humor_env.agents.feedback.rounds import Rounds
from humor_env.agents.student import POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.writer import InProcess
from humor_env.errors import CriticContractError, InvalidOption, JudgingFailed, TrainingStopped
from humor_env.types import Demonstration, Joke, Judgement, Preference, Prompt, Usage, Verdict

P = Prompt("p", "The meeting was slow.", extra={"kind": "x"})


def jokes(*texts):
    return [Joke(P, t) for t in texts]


def test_ngram_distance_by_hand():
    # Bigrams: (,a)(a,b)(b,c) against (,a)(a,x)(x,c): two of three are replaced.
    assert ngram_distance("a b c", "a x c", 2) == pytest.approx(2 / 3)
    assert ngram_distance("a b c", "a x c", 1) == pytest.approx(1 / 3)
    # One bigram is put in: over the longer line's two.
    assert ngram_distance("a", "a b", 2) == pytest.approx(1 / 2)
    # The order counts: a bag of words would see no difference.
    assert ngram_distance("a b", "b a", 1) == 1.0
    assert ngram_distance("So cold!", "so cold", 2) == 0.0
    assert ngram_distance("", "", 2) == 0.0
    assert ngram_distance("", "a b", 3) == 1.0


def test_the_most_different_pair_and_its_length():
    lines = jokes("aa bb cc", "aa bb dd", "xx yy zzzzzzzzz")
    assert most_different(lines, PairConfig(length_filter="off")) == (lines[0], lines[2])
    # The paper filters after choosing; "before" finds the best among those of equal length.
    assert most_different(lines, PairConfig()) == "uneven"
    assert most_different(lines, PairConfig(length_filter="before")) == (lines[0], lines[1])
    assert most_different(jokes("aa", "aa", "AA!"), PairConfig()) == "alike"
    assert most_different(jokes("aa"), PairConfig()) == "alike"
    assert (
        most_different(jokes("a b", "aaaaaaaaa", "ccccccccccccccccc"), PairConfig(length_filter="before")) == "uneven"
    )


@pytest.mark.parametrize(("lengths", "even"), [((10, 12), True), ((12, 10), True), ((8, 10), False), ((10, 13), False)])
def test_the_length_filter_does_not_depend_on_the_order(lengths, even):
    """8 / 10 is 0.8, but 10 / 8 is 1.25: which of the two came first must not decide."""
    lines = jokes("a" * lengths[0], "b" * lengths[1])
    assert (most_different(lines, PairConfig()) != "uneven") is even
    assert (most_different(lines[::-1], PairConfig()) != "uneven") is even


def test_both_ends_of_the_ratio_count():
    lines = jokes("a" * 8, "b" * 10)
    assert most_different(lines, PairConfig(shortest_ratio=0.9, longest_ratio=2.0)) == "uneven"
    assert most_different(lines, PairConfig(shortest_ratio=0.5, longest_ratio=1.1)) == "uneven"
    assert most_different(lines, PairConfig(shortest_ratio=0.8, longest_ratio=1.25)) == (lines[0], lines[1])


def test_empty_lines_make_no_pair():
    assert most_different(jokes("", "aa"), PairConfig()) == "uneven"


class Scripted:
    """A judge that answers by the first line's text."""

    name = "scripted"

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, pairs):
        self.asked += [(a.text, b.text) for a, b in pairs]
        found = []
        for a, _ in pairs:
            p = self.answers[a.text[0]]
            usage = Usage(calls=2)
            found.append(
                Verdict(self.name, None, error="no answer", usage=usage)
                if p is None
                else Verdict(self.name, p, flipped=p == 0.5, usage=usage, reason="so said")
            )
        return found


def lines_of(*pairs):
    return [Demonstration(Prompt(f"p{i}", "x"), text, "t") for i, pair in enumerate(pairs) for text in pair]


def test_verdicts_become_preferences():
    judge = Scripted(a=0.9, b=0.25, c=0.5, d=None, e=0.54)
    lines = lines_of(("aa", "ax"), ("bb", "bx"), ("cc", "cx"), ("dd", "dx"), ("ee", "ex"), ("ff",), ("gg", "ggggggg"))
    found = teacher_pairs(judge, lines, PairConfig(least_edge=0.05))
    assert [(p.chosen, p.rejected, p.probability) for p in found.preferences] == [("aa", "ax", 0.9), ("bx", "bb", 0.75)]
    assert found.preferences[0].source == "scripted on teacher lines"
    assert found.counts == {
        "samples": 0,
        "alike": 1,
        "uneven": 1,
        "judged": 5,
        "calls": 10,
        "both_orders": 4,
        "flipped": 1,
        "ties": 2,
        "failed": 1,
        "preferences": 2,
    }
    assert [j.text for j in found.jokes[:4]] == ["aa", "ax", "bb", "bx"]
    assert [j.score for j in found.judgements[:4]] == pytest.approx([0.9, 0.1, 0.25, 0.75])
    assert sum(j.usage.calls for j in found.judgements) == 10
    assert [j.failed for j in found.judgements[6:8]] == [True, True]
    assert [j.reason for j in found.judgements[:2]] == ["so said", "so said"]


def test_too_many_failures_end_the_run():
    with pytest.raises(JudgingFailed, match="scripted: no answer"):
        teacher_pairs(Scripted(a=None, b=0.9), lines_of(("aa", "ax"), ("bb", "bx")), PairConfig(max_failure_share=0.4))


EDGE = PairConfig(least_edge=0.25)


class ByPlace:
    """It likes what is shown first, a little better for some letters: so it flips on every pair, and still answers."""

    name = "by place"

    def __call__(self, pairs):
        return [Verdict(self.name, 0.5 + (ord(a.text[0]) - 99) / 100, flipped=True) for a, _ in pairs]


def test_a_judge_that_goes_by_the_place_teaches_only_by_an_explicit_wish():
    """A local judge flipped on 7 of 7 pairs: all were learned from, and nobody said so."""
    lines = lines_of(("aa", "ax"), ("bb", "bx"), ("dd", "dx"), ("ee", "ex"), ("ff", "fx"), ("gg", "gx"))
    with pytest.raises(JudgingFailed, match=r"'by place' .* 6 of 6 .* max_flip_share = 1"):
        teacher_pairs(ByPlace(), lines, PairConfig())
    assert len(teacher_pairs(ByPlace(), lines, PairConfig(max_flip_share=1.0)).preferences) == 6
    # So few may be chance.
    assert len(teacher_pairs(ByPlace(), lines[:-2], PairConfig()).preferences) == 5
    with pytest.raises(InvalidOption, match="max_flip_share"):
        PairConfig(max_flip_share=7)


def test_a_judge_of_the_wrong_length_is_refused():
    with pytest.raises(CriticContractError, match="1 pairs and returned a list of 0"):
        teacher_pairs(lambda pairs: [], lines_of(("aa", "ax")), PairConfig())


def test_a_critic_as_judge():
    def critic(jokes):
        return [Judgement("c", None, error="?") if "?" in j.text else Judgement("c", len(j.text) / 10) for j in jokes]

    a, b, broken, close = jokes("aaaa", "aa", "?", "aaa")
    judge = CriticAsJudge(critic, gap=0.15)
    verdicts = judge([(a, b), (b, a), (a, broken), (broken, a), (a, close)])
    assert [v.probability for v in verdicts] == [1.0, 0.0, None, None, 0.5]
    assert verdicts[4].tie == 1.0


def test_a_critic_as_judge_keeps_what_it_cost_and_why_it_failed():
    def critic(jokes):
        return [
            Judgement("c", None, error=f"no {j.text}", usage=Usage(calls=1))
            if "?" in j.text
            else Judgement("c", len(j.text) / 4, usage=Usage(calls=2))
            for j in jokes
        ]

    a, b, broken = jokes("aaa", "aa", "?")
    at_the_gap, failed, both = CriticAsJudge(critic, gap=0.25)([(a, b), (a, broken), (broken, broken)])
    assert (at_the_gap.probability, at_the_gap.tie, at_the_gap.usage.calls) == (0.5, 1.0, 4)
    assert (failed.error, failed.usage.calls, both.error) == ("no ?", 3, "no ?")
    assert CriticAsJudge(critic)([(a, a)])[0].probability == 0.5


def test_a_verdict_at_the_edge_is_a_tie_and_a_line_keeps_its_author():
    found = teacher_pairs(Scripted(a=0.75, b=0.25, c=0.76), lines_of(*(("aa", "ax"), ("bb", "bx"), ("cc", "cx"))), EDGE)
    assert [(p.chosen, p.probability) for p in found.preferences] == [("cc", 0.76)]
    assert found.counts["ties"] == 2
    assert {joke.author for joke in found.jokes} == {"t"}


SHORT = Sampling(max_new_tokens=8)


def own_lines(**changes):
    one = student()
    stir(one, POLICY)
    config = PairConfig(**({"sampling": SHORT, "length_filter": "off"} | changes))
    return one, config


def test_candidates_depend_on_seed_round_and_place_only():
    one, config = own_lines(micro_batch=12)
    texts = lambda found: [[j.text for j in lines] for lines in found]  # noqa: E731
    whole = texts(write_candidates(one, prompts(5), config, seed=0, name="0"))
    assert [len(lines) for lines in whole] == [6] * 5
    assert len({t for lines in whole for t in lines}) > 20
    other = PairConfig(sampling=SHORT, micro_batch=96)
    assert texts(write_candidates(one, prompts(5)[2:], other, seed=0, name="0", first=2)) == whole[2:]
    assert texts(write_candidates(one, prompts(5), config, seed=0, name="1")) != whole
    assert texts(write_candidates(one, prompts(5), config, seed=1, name="0")) != whole
    few = PairConfig(sampling=SHORT, micro_batch=2)  # fewer at once than one prompt has candidates
    assert texts(write_candidates(one, prompts(5)[:2], few, seed=0, name="0")) == whole[:2]
    for how in ("sampling", "beams"):
        assert write_candidates(one, [], PairConfig(sampling=SHORT, how=how), seed=0, name="0") == []


@pytest.mark.parametrize("how", ["sampling", "beams"])
def test_students_lines_are_judged(how):
    one, config = own_lines(how=how)
    judge = CriticAsJudge(letters_critic())
    found = student_pairs(one, judge, prompts(4), config, seed=0)
    assert found.counts["samples"] == 24
    lost = sum(found.counts[n] for n in ("alike", "uneven", "ties", "failed"))
    assert found.counts["preferences"] == len(found.preferences) == 4 - lost
    assert found.preferences
    share = lambda text: text.count("e") / max(1, len(text))  # noqa: E731
    assert all(share(p.chosen) > share(p.rejected) for p in found.preferences)
    assert {p.prompt.id for p in found.preferences} <= {p.id for p in prompts(4)}


@pytest.mark.parametrize("cut", ["longer", "shorter"])
def test_preferences_say_which_lines_were_cut_off(monkeypatch, cut):
    whole = "length" if cut == "longer" else "end"
    lines = [
        Joke(P, "seen e e", "student", whole),
        Joke(P, "xx yy zz", "student", "end" if whole == "length" else "length"),
    ]
    monkeypatch.setattr(pairs, "write_candidates", lambda *_, **__: [lines])
    found = student_pairs(student(), CriticAsJudge(letters_critic()), prompts(1), own_lines()[1], seed=0)
    [preference] = found.preferences
    assert preference.chosen == "seen e e"
    assert (preference.chosen_ended, preference.rejected_ended) == (cut == "shorter", cut == "longer")


@pytest.mark.parametrize("how", ["sampling", "beams"])
def test_candidates_know_whether_they_ended(how):
    """With one token a line ends only if it is empty."""
    one, config = own_lines(how=how)
    config = replace(config, sampling=Sampling(max_new_tokens=1))
    lines = [j for group in write_candidates(one, prompts(3), config, seed=0, name="0") for j in group]
    assert {j.stop_reason for j in lines if j.text} == {"length"}
    assert not any(j.text for j in lines if j.stop_reason == "end")


def test_a_server_cannot_search_with_beams():
    """It was left out in silence: the lines came from this process."""
    one, config = own_lines(how="beams")
    with pytest.raises(InvalidOption, match=r"leave student.backend out, or set how = \"sampling\""):
        write_candidates(one, prompts(2), config, seed=0, name="0", backend=InProcess(one))
    assert write_candidates(one, prompts(2), config, seed=0, name="0")


def test_preferences_survive_json():
    preference = Preference(P, "a", "b", 0.75, "judge", rejected_ended=False)
    assert read_preference(json.loads(json.dumps(preference_record(preference)))) == preference


@pytest.mark.parametrize(
    "wrong",
    [
        *({"candidates": 1}, {"how": "magic"}, {"length_filter": "maybe"}, {"shortest_ratio": 1.1}),
        *({"least_edge": 0.5}, {"max_failure_share": -0.1}, {"diversity": float("nan")}),
        *({"ngram": 0}, {"micro_batch": 0}, {"longest_ratio": 0.9}, {"shortest_ratio": -0.1}, {"least_edge": -0.1}),
    ],
)
def test_impossible_settings_are_explained(wrong):
    with pytest.raises(InvalidOption):
        PairConfig(**wrong)


def given(count):
    return Feedback.given([Preference(P, f"a{i}", f"b{i}", 1.0, "t") for i in range(count)])


def walk(rounds, sizes):
    """The batches of each epoch, and at which epoch feedback was collected."""
    batches, begun, step, expected = {}, [], 0, []
    while not rounds.done:
        if rounds.due:
            begun.append(rounds.epoch)
            rounds.begin(given(sizes[rounds.begun]))
            continue
        expected.append(rounds.expected_steps(step))
        epoch = rounds.epoch
        batches.setdefault(epoch, []).append(sorted(rounds.next_batch().tolist()))
        step += 1
    return batches, begun, step, expected


def test_rounds_are_spread_over_epochs():
    make = lambda epochs, n: Rounds(prompts(4), epochs=epochs, rounds=n, batch_size=2, seed=0)  # noqa: E731
    assert walk(make(10, 1), [3])[1] == [0]
    assert walk(make(10, 2), [3, 3])[1] == [0, 5]
    assert walk(make(10, 10), [3] * 10)[1] == list(range(10))
    assert walk(make(5, 2), [3, 3])[1] == [0, 2]
    batches, _, step, expected = walk(make(4, 2), [3, 5])
    # Each epoch holds every preference of its round once; 2 steps for 3, 3 steps for 5.
    assert [sorted(i for batch in batches[e] for i in batch) for e in range(4)] == [list(range(3))] * 2 + [
        list(range(5))
    ] * 2
    assert [len(batches[e]) for e in range(4)] == [2, 2, 3, 3]
    # The first round is taken as the measure of what is to come, then the second's own size.
    assert (step, expected) == (10, [8] * 4 + [10] * 6)
    with pytest.raises(InvalidOption, match="rounds"):
        make(2, 3)


def test_each_epoch_has_an_order_of_its_own():
    rounds = Rounds(prompts(4), epochs=2, rounds=1, batch_size=20, seed=0)
    rounds.begin(given(20))
    first, second = rounds.next_batch().tolist(), rounds.next_batch().tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    again = Rounds(prompts(4), epochs=2, rounds=1, batch_size=20, seed=1)
    again.begin(given(20))
    assert again.next_batch().tolist() != first


def test_a_round_without_preferences():
    rounds = Rounds(prompts(4), epochs=6, rounds=3, batch_size=2, seed=0)
    batches, begun, _, _ = walk(rounds, [2, 0, 4])
    assert begun == [0, 2, 4]
    assert sorted(batches) == [0, 1, 4, 5]
    assert rounds.numbers()["feedback/preferences"] == 6
    last = Rounds(prompts(4), epochs=6, rounds=2, batch_size=2, seed=0)
    assert sorted(walk(last, [2, 0])[0]) == [0, 1, 2]
    with pytest.raises(TrainingStopped, match="no preference"):
        walk(Rounds(prompts(4), epochs=6, rounds=2, batch_size=2, seed=0), [0, 2])


def test_rounds_go_on_from_a_state_that_did_not_count_answers_in_both_orders():
    """Otherwise flips of all rounds would be a share of the later rounds' pairs: more than all."""
    rounds = Rounds(prompts(4), epochs=4, rounds=2, batch_size=2, seed=3)
    rounds.begin(given(5))
    state = rounds.get_state()
    state["counts"] = {"judged": 9.0, "failed": 2.0, "flipped": 3.0}
    rounds.set_state(state)
    assert rounds.numbers()["feedback/both_orders"] == 7.0
    rounds.set_state(state | {"counts": state["counts"] | {"both_orders": 4.0}})
    assert rounds.numbers()["feedback/both_orders"] == 4.0


def test_rounds_go_on_from_their_state():
    make = lambda: Rounds(prompts(4), epochs=4, rounds=2, batch_size=2, seed=3)  # noqa: E731
    whole, cut = make(), make()
    for rounds in (whole, cut):
        rounds.take_prompts()
        rounds.begin(given(5))
        rounds.next_batch()
    resumed = make()
    resumed.set_state(json.loads(json.dumps(cut.get_state())))
    assert resumed.preferences == whole.preferences
    assert not resumed.is_fresh
    assert walk(resumed, [5, 3])[0] == walk(whole, [5, 3])[0]
    assert [p.id for p in resumed.take_prompts()] == [p.id for p in whole.take_prompts()]
    assert resumed.numbers() == whole.numbers()


def test_a_round_takes_as_many_prompts_as_it_is_told_and_goes_on_from_there():
    rounds = Rounds(prompts(6), epochs=2, rounds=2, batch_size=2, seed=0, prompts_per_round=3)
    first, second = rounds.take_prompts(), rounds.take_prompts()
    assert sorted(p.id for p in first + second) == [f"p{i}" for i in range(6)]
    assert len(first) == 3
    assert len(Rounds(prompts(6), epochs=1, rounds=1, batch_size=2, seed=0).take_prompts()) == 6
    rounds.begin(given(4))
    rounds.begin(given(3))
    assert rounds.numbers()["feedback/rounds"] == 2
    assert rounds.numbers()["feedback/round_preferences"] == 3
    assert rounds.numbers()["feedback/preferences"] == 7
    with pytest.raises(InvalidOption, match="needs prompts"):
        Rounds([], epochs=1, rounds=1, batch_size=2, seed=0).take_prompts()
