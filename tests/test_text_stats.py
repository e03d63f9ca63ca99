"""What is said of lines without a critic: one lexicon of known hacks, one meaning of a word."""

import pytest

from humor_env.rewards.rules import RulesCritic
from humor_env.rewards.shared import reading as rewards_words
from humor_env.shared import text_stats
from humor_env.types import Joke, Prompt


@pytest.mark.parametrize(
    ("text", "emoji", "laughter", "explaining"),
    [
        ("So slow that glaciers overtook it.", [], "", ""),
        ("So slow 😂 ☃", ["😂", "☃"], "", ""),
        ("So slow, HA ha ha.", [], "ha ha ha", ""),
        ("So slow, l\u200bol :)", [], "lol", ""),
        ("So slow (laughs)", [], "(laughs)", ""),
        ("So slow. Get it?", [], "", "get it?"),
        ("So slow. That’s the joke.", [], "", "that's the joke"),
        ("In other words, slow.", [], "", "in other words"),
        ("It was slow, and that's funny because glaciers hardly move.", [], "", "that's funny because"),
        ("The joke was on us, and I laughed.", [], "", ""),
        ("", [], "", ""),
        ("\ud83d\x00", [], "", ""),
    ],
)
def test_marks_of_known_hacks(text, emoji, laughter, explaining):
    assert (text_stats.emoji(text), text_stats.laughter(text), text_stats.explaining(text)) == (
        emoji,
        laughter,
        explaining,
    )


@pytest.mark.parametrize("text", ["A line 😂.", "A line, hahaha.", "A line. Get it?", "In other words, a line."])
def test_the_gates_stop_what_the_lexicon_finds(text):
    """There were two lists, one of the gates and one of the monitor, and they differed."""
    [judgement] = RulesCritic(gates=["emoji", "laughter", "explanation"])([Joke(Prompt("p", "A long day."), text)])
    assert judgement.score == 0


def test_words_are_the_same_for_critics_and_for_measures():
    """`text_stats.words` cut "don’t" in two, took hidden characters for borders and a line of Chinese for one word."""
    assert text_stats.words is rewards_words.words
    assert text_stats.words("Don’t gla\u200bciers 会议") == ["don't", "glaciers", "会", "议"]
    assert text_stats.distinct_n(["会议会议"], 1) == 0.5


def test_frames_are_what_is_left_of_lines_without_their_content():
    found = text_stats.skeleton("The meeting wasn't so slow that it's over.")
    assert " ".join(found) == "the _ wasn't so _ that it's over"
    # Four words in a row, at most two of them blank.
    assert text_stats.frames("Soup was so cold that penguins left") == {"_ was so _", "was so _ that", "so _ that _"}
    lines = ["Soup was so cold that penguins left", "Dogs were hot", "A cat was so old that museums called", ""]
    assert text_stats.commonest_frame(lines) == ("was so _ that", 0.5)
    # Three frames and four: "a _ was so" is the one that only the second has.
    assert text_stats.frame_variety(lines) == 4 / 7
    assert text_stats.commonest_frame(["one two"]) == ("", 0.0) and text_stats.frame_variety([]) == 0


def test_the_commonest_line_and_word():
    lines = ["Hair!", "hair", "a HAIR", "the bald eagle", "an eagle"]
    assert text_stats.commonest_line(lines) == ("hair", 0.4)
    assert text_stats.commonest_word(lines) == ("hair", 0.6)
    assert text_stats.commonest_word(["it is", ""]) == ("", 0.0) and text_stats.commonest_line([]) == ("", 0.0)


def test_shares_by_hand():
    """Four-grams of the first two lines: abcd, bcde and xbcd, bcde; the third has none."""
    lines = ["a b c d e", "x b c d e", "q"]
    assert text_stats.ngram_set(lines) == {tuple("abcd"), tuple("bcde"), tuple("xbcd")}
    assert text_stats.self_overlap(lines) == 2 / 4
    assert text_stats.self_overlap(["a b a b a b"], 2) == 0.0, "a line is no copy of itself"
    assert text_stats.overlap(lines, ["a b c d"]) == 1 / 4
    assert text_stats.overlap(lines, text_stats.ngram_set(["z b c d e"])) == 2 / 4
    assert text_stats.overlap(lines, lines, 5) == 1.0
    assert (text_stats.overlap(["q"], lines), text_stats.self_overlap(["q"])) == (0.0, 0.0)
    assert text_stats.distinct_n(["a b a b", "b a"], 2) == 2 / 4
    assert text_stats.distinct_n(["a"], 2) == 0.0


def test_the_share_of_the_commonest_lines_by_hand():
    lines = [*"abcdefghijkl", "A!"]
    assert text_stats.commonest_share(lines) == 11 / 13, "a twice, and nine more of the other eleven"
    assert text_stats.commonest_share(lines, top=1) == 2 / 13
    assert text_stats.commonest_share([]) == 0.0


def test_what_nobody_sees_is_not_read():
    """Control characters are ASCII too: a line of plain letters with one inside is not "as read" yet."""
    assert text_stats.as_read("So\x00 SLOW\x1b") == "so slow"
    assert text_stats.as_read("So\tSLOW") == "so\tslow"
    assert text_stats.words("gla\x07ciers") == ["glaciers"]
