"""Files that people write: line separators inside JSON strings, and the mark that Notepad and PowerShell put first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from humor_env.experiments.arena.sources import gather
from humor_env.experiments.commands.arena import _tokens
from humor_env.experiments.commands.judge_file import read_jokes
from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec
from humor_env.experiments.reproduction.cells import read_lines
from humor_env.experiments.reproduction.judges import RatedJudge
from humor_env.experiments.reproduction.spec import load_scale
from humor_env.experiments.sharing import hub
from humor_env.experiments.sharing.export import rows_of
from humor_env.experiments.specs.preference_file import read_preferences
from humor_env.experiments.specs.spec import load_spec
from humor_env.llm.template import load
from humor_env.prompts import load_prompts
from humor_env.rewards.rated.rated_sets import load_rated
from humor_env.shared.json_lines import lines_of
from humor_env.teacher import TeacherBuffer
from humor_env.types import Joke, Prompt

MARK = b"\xef\xbb\xbf"
ODD = "So slow\u2028that\u2029it\u0085\x0c stopped."
ROW = {"prompt": "The meeting was slow.", "prompt_id": "p", "text": ODD}
PAIR = {"prompt": "The meeting was slow.", "chosen": ODD, "rejected": "It was slow."}
RATING = {"prompt": "p", "first": ODD, "second": "It was slow.", "humor": "first"}
VOTE = {"prompt": "The meeting was slow.", "a": ODD, "b": "It was slow.", "label": "a"}
LITERAL = {"prompt": {"id": "p", "text": "The meeting was slow.", "task": "paraphrase", "split": "train"}, "text": ODD}


def staged(path: Path) -> str:
    with hub.staged(path, "owner/name") as folder:
        return str(read_jokes(folder / "data.jsonl")[0].joke.text)


def rated(path: Path) -> str:
    judge = RatedJudge(path, "humor")
    prompt = Prompt("p", "The meeting was slow.")
    [verdict] = judge([(Joke(prompt, ODD), Joke(prompt, "It was slow."))])
    return ODD if verdict.probability == 1 else "not found"


READERS: dict[str, tuple[dict[str, Any], Callable[[Path], str]]] = {
    "jokes": (ROW, lambda path: read_jokes(path)[0].joke.text),
    "push": (ROW, staged),
    "preferences": (PAIR, lambda path: read_preferences(path, [])[0].chosen),
    "people": (RATING, rated),
    "pairs": (VOTE, lambda path: load_rated("pairs", path).pairs[0].a.text),
    "ratings": (ROW | {"score": 1}, lambda path: load_rated("ratings", path).texts[0].text),
    "prompts": ({"text": ODD}, lambda path: next(iter(load_prompts(str(path)))).text),
    "teacher": (LITERAL, lambda path: TeacherBuffer(path).lines_for("p")[0]),
    "arena": (ROW, lambda path: gather([], [str(path)]).lines[0].text),
}


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "with a mark"])
@pytest.mark.parametrize("reader", READERS)
def test_a_line_separator_in_a_text_and_a_mark_before_the_file_are_no_mistake(
    tmp_path: Path, reader: str, mark: bytes
) -> None:
    """`str.splitlines` cut the line in two ("not JSON"), and the mark was refused in all but prompt files."""
    row, read = READERS[reader]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(mark + (json.dumps(row, ensure_ascii=False).replace("\\f", "\\u000c") + "\r\n").encode())
    assert read(path) == ODD


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (load_spec, 'name = "x"\n[learner]\nname = "ppo"\nsteps = 1\n[[critic]]\ncritic = "pocket"\n'),
        (load_benchmark_spec, ""),
        (load_scale, ""),
    ],
    ids=["spec", "benchmark", "scale"],
)
def test_a_spec_may_begin_with_a_mark(tmp_path: Path, read: Callable[..., Any], text: str) -> None:
    path = tmp_path / "mine.toml"
    root = Path(hub.__file__).resolve().parents[1]
    sources = {load_benchmark_spec: "configs/benchmarks/pocket-mini.toml", load_scale: "reproduction/pocket.toml"}
    plain = text.encode() or (root / sources[read]).read_bytes()
    path.write_bytes(plain)
    expected = read(str(path))
    path.write_bytes(MARK + plain)
    assert read(str(path)) == expected


def test_templates_and_tokens_of_raters_may_begin_with_a_mark(tmp_path: Path) -> None:
    """In a template the mark would have been sent to the model; a rater's link would not have worked."""
    (tmp_path / "mine.txt").write_bytes(MARK + b"Which is funnier?")
    assert load("humor_env.rewards", str(tmp_path / "mine.txt")) == "Which is funnier?"
    (tmp_path / "raters.txt").write_bytes(MARK + b"abcd-1234\r\n")
    assert _tokens(str(tmp_path / "raters.txt"), share=False) == ["abcd-1234"]


def test_a_buffer_with_a_mark_can_be_added_to(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(MARK + json.dumps(LITERAL).encode())
    first = next(iter(TeacherBuffer(path)))
    TeacherBuffer(path).add([replace(first, text="Glaciers overtook it.")])
    assert TeacherBuffer(path).lines_for("p") == [ODD, "Glaciers overtook it."]


def test_lines_that_a_run_has_written_are_read_back(tmp_path: Path) -> None:
    """Whoever copies them may write them without escapes."""
    (tmp_path / "jokes.jsonl").write_text(json.dumps(ROW | {"step": 1}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row["text"] for row in rows_of(tmp_path)] == [ODD]
    (tmp_path / "lines.jsonl").write_text(json.dumps({"prompt": "p", "text": ODD}, ensure_ascii=False), "utf-8")
    assert [joke.text for joke in read_lines(tmp_path / "lines.jsonl", [Prompt("p", "Slow.")], "x")] == [ODD]


def test_the_lines_of_a_text_by_hand() -> None:
    assert lines_of("") == []
    assert lines_of("a\u2028b\n\nc\n") == ["a\u2028b", "", "c"]
    assert lines_of("\ufeffa") == ["a"]
