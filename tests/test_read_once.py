"""What a critic with weights read is kept while something is measured, and only then."""

from humor_env.rewards.shared.read_once import read_once, reading_once
from humor_env.types import Joke, Prompt

P, Q = Prompt("p", "The soup was cold."), Prompt("q", "The meeting was slow.")


def test_lines_are_read_once_for_each_reader_and_prompt_and_come_in_order():
    asked = []

    def read(jokes):
        asked.append([(joke.prompt.id, joke.text) for joke in jokes])
        return [f"{joke.prompt.id}{joke.text}" for joke in jokes]

    a, b, other = Joke(P, "a"), Joke(P, "b"), Joke(Q, "a")
    assert read_once("one", [a, b, a], read) == ["pa", "pb", "pa"]
    assert read_once("one", [a], read) == ["pa"]
    assert asked == [[("p", "a"), ("p", "b")], [("p", "a")]], "outside of a measurement nothing is kept"
    asked.clear()
    known = {}
    with reading_once(known):
        assert read_once("one", [b, a], read) == ["pb", "pa"]
        assert read_once("one", [a, other, b], read) == ["pa", "qa", "pb"]
        assert read_once("two", [a], read) == ["pa"]
        with reading_once({}):
            read_once("two", [a], read)
        assert read_once("two", [Joke(P, "a", "teacher")], read) == ["pa"]
    with reading_once(known):
        assert read_once("one", [], read) == [] and read_once("one", [other], read) == ["qa"]
    assert asked == [[("p", "b"), ("p", "a")], [("q", "a")], [("p", "a")], [("p", "a")]]
    read_once("one", [a], read)
    assert len(asked) == 5
