import datetime
import json

import pytest

from humor_env.errors import InvalidOption
from humor_env.rewards.diversity import DiversityCritic
from humor_env.types import Joke, Prompt

P, Q = Prompt("p", "It was slow."), Prompt("q", "It was cold.")


def scores(*texts, prompt=P, **options):
    return [j.score for j in DiversityCritic(**options)([Joke(prompt, t) for t in texts])]


def test_likeness_is_the_share_of_common_word_pairs_by_hand():
    """ "a b c d" has the pairs ab bc cd; "a b c e" has ab bc ce: 2 common of 4 different, so 0.5 each."""
    assert scores("a b c d", "a b c e") == [0.5, 0.5]
    assert scores("a b c d", "a b c d") == [0.0, 0.0]
    assert scores("a b c d", "e f g h") == [1.0, 1.0]
    # In pairs of ones: a b c d and a b c e share 3 of 5.
    assert scores("a b c d", "a b c e", n=1) == pytest.approx([0.4, 0.4])


def test_siblings_count_by_their_mean():
    found = scores("a b c", "a b c", "x y z", "u v w")
    assert found == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0])


def test_what_the_prompt_dictates_is_nobodys_repetition():
    first, second = scores("It was slow as moss growing.", "It was slow like treacle.")
    assert first == second == 1.0
    both = DiversityCritic()([Joke(P, "It was slow."), Joke(P, "Like moss growing.")])
    assert both[0].score == 0.0
    assert both[0].parts == {"siblings": 0.0, "archive": 0.0}
    assert "no words" in both[0].reason


def test_only_siblings_of_the_same_prompt_are_compared():
    critic = DiversityCritic()
    found = critic([Joke(P, "a b c"), Joke(Q, "a b c"), Joke(P, "x y z")])
    assert [j.score for j in found] == [1.0, 1.0, 1.0]
    assert found[1].parts == {}


@pytest.mark.parametrize("archive", [datetime.date(2024, 1, 1), 5, None, [1, 2], ["fine", None], {"a": 1}])
def test_an_archive_that_is_none_is_a_sentence(archive):
    """A TOML date among the options was a traceback."""
    with pytest.raises(InvalidOption, match=r"archive is .*; expected a list of lines, or a file's path as text"):
        DiversityCritic(archive)


def test_the_archive_counts_by_its_nearest_line():
    archive = ["x y z", "a b c e", "a b q"]
    [judgement] = DiversityCritic(archive)([Joke(P, "a b c d")])
    assert judgement.parts == {"archive": 0.5}  # nearest: ab bc of ab bc cd ce
    assert judgement.reason == "50% like a line of the archive"
    [quarter] = DiversityCritic(["a b q r s"])([Joke(P, "a b")])
    assert quarter.reason == "25% like a line of the archive"
    assert scores("a b c e", archive=archive) == [0.0]
    assert scores("k l m", archive=archive) == [1.0]


def test_the_score_is_the_smaller_part():
    critic = DiversityCritic(["a b c d"])
    old, new = critic([Joke(P, "a b c d"), Joke(P, "x y z")])
    assert old.parts == {"siblings": 1.0, "archive": 0.0}
    assert old.score == 0.0
    assert new.score == 1.0


def test_archives_are_read_from_files(tmp_path):
    text = tmp_path / "old.txt"
    text.write_text("a b c d\n\nx y z\n", encoding="utf-8")
    records = tmp_path / "old.jsonl"
    records.write_text(json.dumps("a b c d") + "\n" + json.dumps({"text": "x y z"}) + "\n", encoding="utf-8")
    for path in (text, str(records)):
        assert scores("a b c d", archive=path) == [0.0]
        assert scores("x y z", archive=path) == [0.0]
        assert scores("k l m", archive=path) == [1.0]


def test_bad_archives_and_options_are_refused(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"fine"\n{"joke": 1}\n')
    with pytest.raises(InvalidOption, match="Record 2"):
        DiversityCritic(bad)
    with pytest.raises(InvalidOption, match="cannot be read"):
        DiversityCritic(tmp_path / "missing.txt")
    with pytest.raises(InvalidOption, match="n must be"):
        DiversityCritic(n=0)
