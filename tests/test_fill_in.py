"""The critic `fill-in`: what the critic inside it reads, which lines score 0, and what cannot be judged."""

import pytest

from humor_env.errors import InvalidOption
from humor_env.registry import critics
from humor_env.rewards.fill_in import FillInCritic
from humor_env.rewards.lift import LiftCritic
from humor_env.rewards.shared.reading import changed
from humor_env.types import NO_USAGE, Joke, Judgement, Prompt, Usage

HEADLINE = Prompt("h", "Senate passes  [budget] after debate", split="test")


class Reading:
    """Writes down what it is asked; every sentence scores 0.7, and one with "lost" in it has no score."""

    name = "reading"

    def __init__(self):
        self.asked = []

    def __call__(self, jokes):
        self.asked += jokes
        return [
            Judgement("reading", None, error="gone", usage=Usage(1))
            if "lost" in joke.text
            else Judgement("reading", 0.7, {"wit": 0.6}, "fine", usage=Usage(1))
            for joke in jokes
        ]


def test_the_whole_sentence_is_read_as_an_edit_of_the_headline():
    inner = Reading()
    [found] = FillInCritic(inner)([Joke(HEADLINE, " gas ", "someone")])
    [asked] = inner.asked
    assert (asked.prompt.text, asked.text) == ("Senate passes budget after debate", "Senate passes gas after debate")
    assert (asked.prompt.id, asked.prompt.split, asked.author) == ("h", "test", "someone")
    went, came = changed(asked.prompt.text, asked.text)
    assert (asked.prompt.text[slice(*went)], asked.text[slice(*came)]) == ("budget", "gas")
    assert (found.critic, found.score, found.reason, found.usage) == ("fill-in", 0.7, "fine", Usage(1))
    assert found.parts == {"form": 1.0, "wit": 0.6}


def test_the_critic_inside_is_told_why_the_line_ended():
    """It was dropped, so that a word that was cut off counted as whole."""
    inner = Reading()
    FillInCritic(inner)([Joke(HEADLINE, "gas", stop_reason=why) for why in ("length", "end", None)])
    assert [joke.stop_reason for joke in inner.asked] == ["length", "end", None]


@pytest.mark.parametrize("line", ["", "a b c", "gas!", "7", "[gas]", "x_y", "a\nb", "gas  leak", "-gas", "z" * 49])
def test_what_is_no_word_scores_0_and_is_not_asked(line):
    inner = Reading()
    [found] = FillInCritic(inner)([Joke(HEADLINE, line)])
    assert (found.score, found.reason) == (0.0, "expected at most 2 words of letters") and not inner.asked


@pytest.mark.parametrize("line", ["mother-in-law", "Trump's", "two words", "Trump’s hair", "naïve", "日本", "z" * 48])
def test_words_of_people(line):
    assert FillInCritic(Reading())([Joke(HEADLINE, line)])[0].score == 0.7


def test_the_replaced_word_itself_is_no_edit():
    [found] = FillInCritic(Reading())([Joke(HEADLINE, "BUDGET")])
    assert (found.score, found.reason) == (0.0, "it is the word to be replaced")


@pytest.fixture
def headlines(tmp_path):
    file = tmp_path / "headlines.csv"
    file.write_text("id,original,edit\n1,\"Trump's <budget/> isn't mother-in-law\",Toupée\n", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("line", ["Toupée", "TRUMP", "Trump’s", "mother", "law budget", "in-law"])
def test_a_word_of_the_file_may_be_used_in_any_form(headlines, line):
    assert FillInCritic(Reading(), known_words=headlines)([Joke(Prompt("h", "A [tax] rises"), line)])[0].score == 0.7


@pytest.mark.parametrize(
    ("line", "unknown"),
    [("toupéeism", "toupéeism"), ("budgetbudget", "budgetbudget"), ("Trump hairs", "hairs"), ("law-zq ab", "zq, ab")],
)
def test_a_made_up_word_scores_0_and_is_not_asked(headlines, line, unknown):
    inner = Reading()
    [found] = FillInCritic(inner, known_words=headlines)([Joke(Prompt("h", "A [tax] rises"), line)])
    assert (found.score, found.reason, found.parts) == (0.0, f"not among the known words: {unknown}", {"form": 0.0})
    assert not inner.asked
    assert FillInCritic(inner)([Joke(Prompt("h", "A [tax] rises"), line)])[0].score == 0.7  # without the file


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"\xff\xfe\x00", "UTF-8"), (b"12 34\n", "there is no word in")]
)
def test_a_file_of_known_words_that_is_none_is_told(tmp_path, content, said):
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidOption, match=said):
        FillInCritic(Reading(), known_words=str(file))
    with pytest.raises(InvalidOption, match="name of a text file"):
        FillInCritic(Reading(), known_words=["gas"])


def test_order_is_kept_between_words_faults_and_failures():
    lines = ["a b c", "gas", "lost", "budget", "pizza"]
    found = FillInCritic(Reading())([Joke(HEADLINE, line) for line in lines])
    assert [judgement.score for judgement in found] == [0.0, 0.7, None, 0.0, 0.7]
    assert found[2].error == "reading: gone" and found[2].usage == Usage(1) and found[0].usage == NO_USAGE
    assert FillInCritic(Reading())([]) == []


@pytest.mark.parametrize("text", ["No place here", "[one] and [two]", "an empty [ ] place", "not [closed"])
def test_a_prompt_without_one_place_cannot_be_judged(text):
    """A failure, not a score: the run is told that its prompts are of another kind."""
    [found] = FillInCritic(Reading())([Joke(Prompt("p", text), "gas")])
    assert found.failed and "no single word in [brackets]" in found.error


def test_lift_moves_a_word_to_other_headlines():
    prompts = [Prompt(f"p{i}", f"Number {i} passes [budget] again") for i in range(5)]
    inner = Reading()
    [found] = LiftCritic(prompts, FillInCritic(inner), others=3)([Joke(prompts[0], "gas")])
    assert found.score == 0.5
    assert {joke.text for joke in inner.asked} < {f"Number {i} passes gas again" for i in range(5)}


def test_options():
    with pytest.raises(InvalidOption, match="words is the most words of a line and must be at least 1; found 0"):
        FillInCritic(Reading(), words=0)
    with pytest.raises(InvalidOption, match="found True"):
        FillInCritic(Reading(), words=True)
    one = critics.make("fill-in", critic="rules", words=1)
    assert one([Joke(HEADLINE, "two words")])[0].reason == "expected one word of letters"
