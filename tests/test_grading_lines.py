"""Lines for graders: blind, divided between the critics by sentence, and never changed once they are given out."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import tiny

from humor_env.experiments.upkeep import grading_lines
from humor_env.experiments.upkeep.grading_lines import STUDENTS, Writer, by_program, choose, turns
from humor_env.teacher import everyday_lines


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.jsonl")) for row in grading_lines.read_jsonl(file)]


def test_no_sentence_is_for_both_critics_and_test_sentences_are_for_neither() -> None:
    chosen = choose(0, grading_lines.PER_SPLIT)
    assert len({prompt.id for prompt, _ in chosen}) == len(chosen) == 1100
    counts = Counter((prompt.split, use) for prompt, use in chosen)
    assert counts == {
        ("train", "everyday"): 450,
        ("train", "everyday-judge"): 450,
        ("dev", "everyday"): 50,
        ("dev", "everyday-judge"): 50,
        ("test", "evaluation"): 100,
    }


def test_each_sentence_has_two_students_and_all_students_write_equally_often() -> None:
    sentences = choose(0, grading_lines.PER_SPLIT)
    plan = turns(sentences, 0, 0)
    counts = [len(plan[writer]) for writer in STUDENTS]
    assert sum(counts) == 2 * len(sentences) and max(counts) - min(counts) <= 1
    met = defaultdict(list)
    for writer, prompts in plan.items():
        for prompt in prompts:
            met[prompt.id].append(writer)
    assert all(len(set(writers)) == len(writers) == 4 for writers in met.values())
    assert all(sum(writer in STUDENTS for writer in writers) == 2 for writers in met.values())
    pairs = Counter(
        frozenset(w for w in writers if isinstance(w, Writer) and w in STUDENTS) for writers in met.values()
    )
    assert len(pairs) == 55  # every pair of eleven writers meets on some sentence


def test_a_program_takes_other_sentences_lines_from_the_same_split() -> None:
    buffer = everyday_lines()
    own = {p.id: buffer.lines_for(p.id) for p in buffer.prompts()}
    split = {line: p.split for p in buffer.prompts() for line in own[p.id]}
    prompts = [p for p, _ in choose(0, {"train": 20, "test": 20})]
    for prompt, line, _ in by_program("other sentence", prompts, 0):
        assert split[line] == prompt.split and line not in own[prompt.id]
    for prompt, line, _ in by_program("cut off", prompts, 0):
        assert any(text.startswith(line) and text != line for text in own[prompt.id])
    tricks = {trick for _, _, trick in by_program("hack", prompts, 0)}
    assert {"laughter", "order to the judge", "word soup"} <= tricks


@pytest.fixture
def student(tmp_path: Path) -> str:
    model = tiny.llama()
    model.config.max_position_embeddings = 512  # its tokens are letters, and the instructions are long
    model.save_pretrained(tmp_path / "tiny")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.mark.slow
def test_batches_are_blind_complete_and_only_added_to(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading_lines, "PER_SPLIT", {"train": 32, "dev": 6, "test": 6})
    monkeypatch.setattr(grading_lines, "BLOCKS", 2)
    monkeypatch.setattr(grading_lines, "BATCH", 25)
    monkeypatch.setattr(grading_lines, "MOST_TOKENS", 6)
    folder = tmp_path / "grading"

    def run(*more: str) -> list[dict[str, Any]]:
        assert grading_lines.main([str(folder), "--student", student, "--taught", "8", *more]) == 0
        return grading_lines.read_jsonl(folder / "lines.jsonl")

    first = run("--blocks", "1")
    before = {file: file.read_bytes() for file in sorted(folder.glob("batches*/*.jsonl"))}
    assert len({row["prompt_id"] for row in first}) == 22
    rows = run("--blocks", "2")
    assert rows[: len(first)] == first and len({row["prompt_id"] for row in rows}) == 44
    assert all(file.read_bytes() == content for file, content in before.items())
    assert run("--release") == rows

    orders = []
    for batches, key in (("batches", "key"), ("batches2", "key2")):
        blind = read(folder / batches)
        assert all(set(row) == {"n", "literal", "line"} for row in blind)
        leads = {row["n"]: row["id"] for row in grading_lines.read_jsonl(folder / f"{key}.jsonl")}
        by_id = {row["id"]: row for row in rows}
        assert sorted(leads.values()) == sorted(by_id) and [row["n"] for row in blind] == list(range(len(rows)))
        assert all(by_id[leads[row["n"]]]["line"] == row["line"] for row in blind)
        assert all(by_id[leads[row["n"]]]["literal"] == row["literal"] for row in blind)
        orders.append([leads[n] for n in range(len(rows))])
    assert orders[0] != orders[1]
    writers = Counter(row["writer"] for row in rows)
    assert {"raw", "imitation-1", "imitation-2", "imitation-3", "spoilt", "paraphrase", "teacher"} <= set(writers)
    assert len({(row["prompt_id"], row["line"]) for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_what_it_has(tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written before a stop is not written again, and the whole is what an unstopped run gives."""
    monkeypatch.setattr(grading_lines, "PER_SPLIT", {"train": 11})
    monkeypatch.setattr(grading_lines, "BLOCKS", 1)
    monkeypatch.setattr(grading_lines, "MOST_TOKENS", 4)
    write, count = grading_lines.Workshop.write, 0

    def stops(*given: Any) -> list[str]:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return write(*given)

    def run(folder: Path) -> str:
        grading_lines.main([str(folder), "--student", student, "--taught", "4"])
        return (folder / "lines.jsonl").read_text()

    with monkeypatch.context() as patch:
        patch.setattr(grading_lines.Workshop, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "lines.jsonl").exists()
    assert run(tmp_path / "stopped") == run(tmp_path / "whole")
    assert json.loads(run(tmp_path / "whole").splitlines()[0])["id"] == "line-0000"


def test_broken_lines_are_made_of_a_teachers_words() -> None:
    sentences = choose(0, grading_lines.PER_SPLIT)
    rows = list(grading_lines.broken(sentences, 40, 0))
    assert rows == list(grading_lines.broken(sentences, 40, 0))
    assert Counter(row["writer"] for row in rows) == {"shuffled": 20, "spliced": 20}
    split_of = {prompt.id: prompt.split for prompt, _ in sentences}
    lines = everyday_lines()
    for row in rows:
        own = [line.split() for line in lines.lines_for(row["prompt_id"])]
        words = row["line"].split()
        if row["writer"] == "shuffled":
            assert sorted(words) in [sorted(line) for line in own]
        else:
            others = [p.id for p, _ in sentences if p.split == split_of[row["prompt_id"]]]
            ends = {word for prompt in others for word in lines.lines_for(prompt)[0].split()}
            assert words[0] in {line[0] for line in own}
            assert words[-1] in ends


def test_lines_of_other_writers_are_added_behind_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompt = choose(0, grading_lines.PER_SPLIT)[0][0].id
    added = tmp_path / "more.jsonl"
    rows = [{"prompt_id": prompt, "line": "So it was.", "writer": "hand"}, {"prompt_id": "no-such", "line": "x"}]
    added.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for place in ("a", "b"):
        arguments = [str(tmp_path / place), "--release", "--blocks", "1"]
        assert grading_lines.main(arguments) == 0
        before = read(tmp_path / place / "batches")
        assert grading_lines.main([*arguments, "--add", str(added)]) == 0
        after = read(tmp_path / place / "batches")
        assert after[: len(before)] == before
        assert [row["line"] for row in after[len(before) :]] == ["So it was."]
