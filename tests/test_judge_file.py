"""Scoring a file: resumable, within limits, estimated first; and comparing critics on a finished run."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_messages_server import running

from humor_env.errors import CriticContractError, InvalidOption, PromptError
from humor_env.experiments.commands.cli import app
from humor_env.experiments.commands.judge_file import Line, agreement, best_and_worst, judge_file, read_jokes
from humor_env.experiments.commands.judged_rows import asked_of, changed_options
from humor_env.experiments.options import key_values
from humor_env.types import Joke, Judgement, Prompt


class Counting:
    """Scores by length; fails on "fail"; remembers what it judged; dies when told to."""

    name = "counting"

    def __init__(self, dies_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.dies_after = dies_after

    def __call__(self, jokes: list[Joke]) -> list[Judgement]:
        if self.dies_after is not None and len(self.seen) >= self.dies_after:
            raise KeyboardInterrupt
        self.seen += [joke.text for joke in jokes]
        return [
            Judgement(self.name, None, error="as told")
            if "fail" in joke.text
            else Judgement(self.name, len(joke.text) / 100)
            for joke in jokes
        ]


class Failing:
    """Fails on all but "a joke", for two causes."""

    name = "failing"

    def __call__(self, jokes: list[Joke]) -> list[Judgement]:
        causes = {"a joke": None, "unsafe": "unsafe"}
        errors = [causes.get(joke.text, "told to") for joke in jokes]
        return [Judgement(self.name, None if error else 0.5, error=error) for error in errors]


def main(arguments: list[str]) -> int:
    """The exit code of `humor-env judge`, or of `rescore` where the arguments begin with it."""
    given = arguments if arguments[0] == "rescore" else ["judge", *arguments]
    with pytest.raises(SystemExit) as left:
        app(given, prog_name="humor-env")
    return int(left.value.code or 0)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_gives_a_table(tmp_path: Path) -> None:
    """CSV was refused, although prompts may be a CSV file and most people's jokes are in a spreadsheet."""
    source = tmp_path / "jokes.csv"
    source.write_text('\ufeffprompt,text,mine\r\n"A, b.",fail,1\r\nMeeting.,"two\r\nlines, ""quoted""",\r\n', "utf-8")
    lines = read_jokes(source)
    assert [(line.joke.prompt.text, line.joke.text) for line in lines] == [
        ("A, b.", "fail"),
        ("Meeting.", 'two\nlines, "quoted"'),
    ]
    summary = judge_file(lines, tmp_path / "out.csv", Counting())
    assert (summary.jokes, summary.failed, summary.output) == (2, 1, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["mine"], row["critic"], row["score"], row["error"]) for row in rows] == [
        ("A, b.", "1", "counting", "", "as told"),
        ("Meeting.", "", "counting", "0.19", ""),
    ]
    # The JSON lines beside it are what a second call goes on from.
    again = Counting()
    assert judge_file(lines, tmp_path / "out.csv", again).resumed == 1
    assert again.seen == ["fail"]
    assert read_jokes(tmp_path / "out.csv")[1].score == 0.19


def test_a_table_by_the_command_and_one_that_is_no_table_of_jokes(tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "jokes.csv"
    source.write_text("prompt,text\nThe meeting was slow.,Glaciers overtook it.\n")
    assert main([str(source), "--critic", "rules"]) == 0
    assert "jokes.rules.csv" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["jokes.csv", "jokes.rules.csv", "jokes.rules.csv.jsonl"]
    source.write_text("name,line\na,b\n")
    assert main([str(source), "--critic", "rules"]) == 2
    assert "column" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        '"score": 7.5',
        '"score": "x"',
        '"score": true',
        '"other": 0.5',
        f'"score": 1{"0" * 400}',
        f'"score": {"[" * 99999}',
    ],
    ids=["7.5", "text", "true", "none", "huge", "deep"],
)
def test_a_damaged_output_is_told_and_never_believed(tmp_path: Path, damage: str) -> None:
    """A score of 7.5 was taken over; others were tracebacks."""
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    good = '{"text": "xx", "line": 2, "critic": "counting", "judgement": {"score": 0.1}}'
    out = tmp_path / "out.jsonl"
    out.write_text('{"text": "x", "line": 1, "critic": "counting", "judgement": {' + damage + "}}\n" + good + "\n")
    before = out.read_bytes()
    with pytest.raises(InvalidOption, match="holds no judgements"):
        judge_file(lines, out, Counting())
    assert out.read_bytes() == before
    out.write_text(good.replace('"line": 2', '"line": [2]') + "\n" + good + "\n")
    with pytest.raises(InvalidOption, match="holds no judgements"):
        judge_file(lines, out, Counting())


@pytest.mark.parametrize("score", [f"1{'0' * 400}", '"x"', "[1]"])
def test_an_odd_score_of_the_source_is_no_score(tmp_path: Path, score: str) -> None:
    path = tmp_path / "jokes.jsonl"
    path.write_text('{"prompt": "a", "text": "b", "score": ' + score + "}\n")
    assert read_jokes(path)[0].score is None
    path.write_text('{"prompt": "a", "text": ' + "[" * 99999 + "}\n")
    with pytest.raises(PromptError, match="line 1: not JSON"):
        read_jokes(path)


def test_a_dry_run_says_which_jokes_have_no_line_of_the_teacher(tmp_path: Path, capsys: Any) -> None:
    """It said that this costs nothing, and then all 50 of 50 failed."""
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "The meeting was slow.", "text": "Glaciers overtook it."}])
    assert main([str(source), "--critic", "win-tie", "--option", "teacher=everyday", "--dry-run"]) == 0
    assert "1 of them will fail: the teacher has no line" in capsys.readouterr().out


def test_the_commonest_cause_of_failures_is_shown(tmp_path: Path, capsys: Any) -> None:
    """The screen said "40 failed" and nothing else; the cause was in the file only."""
    texts = ["fail", "a joke", "fail again", "unsafe"]
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "The meeting was slow.", "text": text} for text in texts])
    assert main([str(source), "--critic", "test_judge_file:Failing"]) == 0
    assert "4 jokes (0 from before), 3 failed (most often: told to), mean score 0.500" in capsys.readouterr().out
    # A script must notice that nothing was judged.
    nothing = write(tmp_path / "nothing.jsonl", [{"prompt": "The meeting was slow.", "text": "fail"}])
    assert main([str(nothing), "--critic", "test_judge_file:Failing"]) == 1
    assert "1 failed (most often: told to), mean score none" in capsys.readouterr().out


def test_a_server_that_is_not_there_leaves_no_files(tmp_path: Path, capsys: Any) -> None:
    """An empty output and a ledger without entries stayed."""
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "The meeting was slow.", "text": "Glaciers overtook it."}])
    with socket.socket() as nobody:  # bound and not listening: its port is refused, and nobody else can take it
        nobody.bind(("127.0.0.1", 0))
        client = f'client="openai:m@http://127.0.0.1:{nobody.getsockname()[1]}/v1"'
        assert main([str(source), "--critic", "scorer", "--option", client]) != 0
    assert "No server answers" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["jokes.jsonl"]


def ten(path: Path) -> Path:
    return write(path, [{"prompt": f"Meeting {n % 3}.", "text": "x" * (n + 1), "mine": n} for n in range(10)])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def test_what_a_line_may_look_like(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Meeting.", "text": "Moss."},
        {"prompt": {"id": "p1", "text": "Meeting.", "task": "topic", "extra": {"w": 1}}, "joke": "Moss.", "score": 0.5},
        {"prompt": "Meeting.", "prompt_id": "p2", "completion": "é", "judgement": {"score": 0.25}, "author": "teacher"},
    ]
    lines = read_jokes(write(tmp_path / "jokes.jsonl", rows))
    assert [line.joke for line in lines] == [
        Joke(Prompt("Meeting.", "Meeting."), "Moss."),
        Joke(Prompt("p1", "Meeting.", "topic", "train", {"w": 1}), "Moss."),
        Joke(Prompt("p2", "Meeting."), "é", "teacher"),
    ]
    assert [line.score for line in lines] == [None, 0.5, 0.25]
    assert read_jokes(tmp_path) == lines


@pytest.mark.parametrize(
    "row", ['{"prompt": "x"}', '{"text": "x"}', '{"prompt": {"id": 1}, "text": "x"}', "[]", "{", "7"]
)
def test_a_bad_line_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "jokes.jsonl"
    path.write_text('{"prompt": "Meeting.", "text": "Moss."}\n' + row + "\n")
    with pytest.raises(PromptError, match="line 2"):
        read_jokes(path)
    with pytest.raises(PromptError, match="no file"):
        read_jokes(tmp_path / "none.jsonl")


def test_it_goes_on_where_it_stopped_and_tries_failures_again(tmp_path: Path) -> None:
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    output = tmp_path / "out.jsonl"
    first = Counting(dies_after=4)
    with pytest.raises(KeyboardInterrupt):
        judge_file(lines, output, first, chunk=2)
    rows = output.read_text().splitlines()
    assert len(rows) == 4
    # A failure, and a line that was being written when the process was killed.
    failed = json.loads(rows[1])
    failed["judgement"] |= {"score": None, "error": "no answer"}
    output.write_text("\n".join([rows[0], json.dumps(failed), rows[2], rows[3][:30]]))
    second = Counting()
    summary = judge_file(lines, output, second, chunk=3)
    assert second.seen == ["x" * n for n in (2, 4, 5, 6, 7, 8, 9, 10)]
    assert (summary.jokes, summary.resumed, summary.failed) == (10, 2, 0)
    assert summary.mean == pytest.approx(0.055)
    done = records(output)
    assert [r["line"] for r in done] == list(range(1, 11))
    assert [r["judgement"]["score"] for r in done] == [n / 100 for n in range(1, 11)]
    assert [r["mine"] for r in done] == list(range(10))
    third = Counting()
    assert judge_file(lines, output, third).resumed == 10
    assert third.seen == []


def test_a_joke_in_the_field_line_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    """The number of the line takes its place in the output."""
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "Meeting.", "line": "x" * n} for n in (1, 2, 3)])
    output = tmp_path / "out.jsonl"
    judge_file(read_jokes(source), output, Counting())
    assert [(r["line"], r["text"]) for r in records(output)] == [(1, "x"), (2, "xx"), (3, "xxx")]
    assert judge_file(read_jokes(source), output, Counting()).resumed == 3


def test_an_output_of_another_file_or_critic_is_not_touched(tmp_path: Path) -> None:
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    output = tmp_path / "out.jsonl"
    judge_file(lines, output, Counting())
    before = output.read_bytes()
    other = Counting()
    other.name = "other"
    changed = [*lines[:3], Line(4, {}, Joke(lines[3].joke.prompt, "changed"), None)]
    for new_lines, critic, says in (
        (lines, other, "another critic ('counting', not 'other')"),
        (changed, Counting(), "another file: line 4 was 'xxxx' there and is 'changed' here"),
        (lines[:9], Counting(), "another file: it has a line 10"),
    ):
        with pytest.raises(InvalidOption, match=re.escape(says)):
            judge_file(new_lines, output, critic)
        assert output.read_bytes() == before


@pytest.mark.parametrize("content", ["Buy milk.\nCall Ann.", "Buy milk.", "null", '{"mine": 1}\n', "\xff"])
def test_a_file_of_something_else_is_not_written_over(tmp_path: Path, content: str) -> None:
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    output = tmp_path / "notes.txt"
    output.write_text(content, encoding="latin-1")
    before = output.read_bytes()
    with pytest.raises(InvalidOption, match=r"holds no judgements \(line 1\)"):
        judge_file(lines, output, Counting())
    assert output.read_bytes() == before


def test_a_file_that_is_no_text_or_has_an_odd_prompt_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "jokes.jsonl"
    path.write_bytes('{"prompt": "Müde.", "text": "x"}\n'.encode("latin-1"))
    with pytest.raises(PromptError, match="is not UTF-8"):
        read_jokes(path)
    with pytest.raises(PromptError, match="line 1: the prompt's 'extra' is an object; found 'abc'"):
        read_jokes(write(path, [{"prompt": {"text": "Meeting.", "extra": "abc"}, "text": "x"}]))


def test_a_critic_that_loses_a_joke_is_told_so(tmp_path: Path) -> None:
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    with pytest.raises(CriticContractError, match="10 jokes and returned 9"):
        judge_file(lines, tmp_path / "out.jsonl", lambda jokes: [Judgement("c", 0.5)] * (len(jokes) - 1))


def test_agreement_by_hand() -> None:
    """Prompt a: old .1 .2 .3, new .1 .3 .2, so 2 of 3 pairs in the same order; prompt b: a tie, which counts not."""
    old = {"a": [0.1, 0.2, 0.3, 0.9], "b": [0.5, 0.5]}
    new = [0.1, 0.3, 0.2, None, 0.4, 0.6]
    lines = [Line(0, {}, Joke(Prompt(name, name), "x"), score) for name, scores in old.items() for score in scores]
    lines = [Line(n, line.record, line.joke, line.score) for n, line in enumerate(lines)]
    found = agreement(lines, dict(enumerate(new)))
    assert (found.jokes, found.pairs) == (5, 3)
    assert found.same_order == pytest.approx(2 / 3)
    assert found.mean_before == pytest.approx(0.32)
    assert found.mean_after == pytest.approx(0.32)
    # Ranks 1 2 3 4.5 4.5 and 1 3 2 4 5: covariance 8.5 of variances 9.5 and 10, by hand.
    assert found.spearman == pytest.approx(8.5 / (9.5 * 10) ** 0.5)
    assert "rank correlation 0.872" in str(found)
    nothing = agreement(lines, {})
    assert (nothing.jokes, nothing.spearman, nothing.same_order, nothing.mean_before) == (0, None, None, None)


def test_the_best_and_the_worst_lines_are_shown(tmp_path: Path, capsys: Any) -> None:
    """A mean says nothing about what a critic likes; the lines do. They are untrusted."""
    texts = ["a" * n + "\x1b[31m" for n in (10, 60, 20, 90, 30, 80, 40)]
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "P.", "text": text} for text in [*texts, "fail"]])
    assert main([str(source), "--critic", "test_judge_file:Counting"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    found = [line.split()[0] + " " + str(line.count("a")) for line in shown.splitlines() if line.startswith("  0.")]
    assert found == ["0.95 90", "0.85 80", "0.65 60", "0.35 30", "0.25 20", "0.15 10"]
    assert shown.index("Best:") < shown.index("Worst:")


def test_too_few_lines_or_one_score_have_no_best() -> None:
    jokes = [Joke(Prompt("p", "P.", "paraphrase", "train"), f"line {n}") for n in range(6)]
    lines = [Line(n, {}, joke, None) for n, joke in enumerate(jokes)]
    assert best_and_worst(lines[:5], {n: n / 10 for n in range(5)}) == ""
    assert best_and_worst(lines, dict.fromkeys(range(6), 0.5)) == ""
    assert best_and_worst(lines, {n: 0.5 + (n == 4) / 4 for n in range(6)}).startswith("Best:\n  0.75  line 4\n  0.50")
    assert best_and_worst(lines, {0: None, **{n: n / 10 for n in range(1, 6)}}) == ""


def test_two_names_of_one_output_are_one_file(tmp_path: Path) -> None:
    """Through a link the second writer was not refused, and the link became a file of its own."""
    lines = read_jokes(ten(tmp_path / "jokes.jsonl"))
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "out.jsonl")
    inside: list[str] = []

    class Meddling(Counting):
        def __call__(self, jokes: list[Joke]) -> list[Judgement]:
            with pytest.raises(InvalidOption, match="being written by another"):
                judge_file(lines, tmp_path / "out.jsonl", Counting())
            inside.append("refused")
            return super().__call__(jokes)

    assert judge_file(lines, link, Meddling()).output == link
    assert inside and link.is_symlink() and len(records(tmp_path / "out.jsonl")) == 10


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    source = ten(tmp_path / "jokes.jsonl")
    with running() as server:
        command = [str(source), "--critic", "scorer", "--option", f"client=anthropic:claude-haiku-4-5@{server.url}"]
        assert main([*command, "--dry-run"]) == 0
        assert "10 calls" in capsys.readouterr().out
        assert sorted(os.listdir(tmp_path)) == ["jokes.jsonl"]
        assert main([*command, "--max-calls", "4"]) == 3
        assert "limit of 4 calls" in capsys.readouterr().err
        assert server.stats()["calls"] == 4
        # The limit is for the file: the same command spends nothing more, a higher one goes on.
        assert main([*command, "--max-calls", "4"]) == 3
        assert server.stats()["calls"] == 4
        assert main([*command, "--max-calls", "10"]) == 0
        assert server.stats()["calls"] == 10
        shown = capsys.readouterr()
        assert "10 jokes (0 from before), 0 failed" in shown.out
        assert "6 calls, $" in shown.out
        output = tmp_path / "jokes.scorer.jsonl"
        assert len(records(output)) == 10
        # Another option, another judge: the run's own scores against new ones.
        assert (
            main(
                [
                    "rescore",
                    str(output),
                    "--critic",
                    "test_judge_file:Counting",
                    "--output",
                    str(tmp_path / "again.jsonl"),
                ]
            )
            == 0
        )
        assert "10 jokes with both scores: rank correlation" in capsys.readouterr().out
        assert records(tmp_path / "again.jsonl")[0]["before"]["critic"] == "scorer"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--critic", "scorre"], "Did you mean 'scorer'"),
        (["--critic", "test_judge_file:Counting", "--max-calls", "3"], "takes no limits"),
        (["--critic", "test_judge_file:Counting", "--option", "x"], "key=value"),
        (["--critic", "scorer", "--option", "wieghts={wit = 1}"], "weights"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], says: str
) -> None:
    assert main([str(ten(tmp_path / "jokes.jsonl")), *extra]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err


def test_options_are_plain_data(tmp_path: Path) -> None:
    found = key_values(["a=5", "b=true", "c=[1, 2]", "d={x = 0.5}", "e=openai:m@http://h/v1", "f=a=b", "g="])
    assert found == {"a": 5, "b": True, "c": [1, 2], "d": {"x": 0.5}, "e": "openai:m@http://h/v1", "f": "a=b", "g": ""}


def test_a_key_with_a_dot_is_an_option_in_a_table() -> None:
    """`--option options.dtype=float32` was refused, although `--set` takes such keys."""
    found = key_values(["options.dtype=float32", "options.concurrency=2", "a.b.c=1", "client=x"])
    assert found == {"options": {"dtype": "float32", "concurrency": 2}, "a": {"b": {"c": 1}}, "client": "x"}
    for twice in (["o.a=1", "o.a=2"], ["o.a=1", "o={b = 2}"], ["o=1", "o.a=2"]):
        with pytest.raises(InvalidOption, match="twice"):
            key_values(twice)


def test_a_list_may_be_written_as_the_error_message_shows_it() -> None:
    """In JSON it was taken for a text: 'critics must be a list such as [{"critic": "rules", …', found just that."""
    found = key_values(['critics=[{"critic": "rules", "gate": 0.5}]', 'd={"x": null}', "e=[not, a list]", "f={x"])
    assert found == {"critics": [{"critic": "rules", "gate": 0.5}], "d": {"x": None}, "e": "[not, a list]", "f": "{x"}


def test_other_options_are_refused_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores of the earlier call were given as the result of the new one, without a word."""
    source = write(tmp_path / "jokes.jsonl", [{"prompt": "The meeting was slow.", "text": "Glaciers overtook it."}])
    loose, strict = ["--option", "max_ratio=5.0"], ["--option", "max_ratio=0.6", "--option", "slack=0"]
    command = [str(source), "--critic", "rules"]
    assert main([*command, *loose]) == 0
    output = tmp_path / "jokes.rules.jsonl"
    assert records(output)[0]["judgement"]["score"] == 1
    before = output.read_bytes()
    capsys.readouterr()
    assert main([*command, *strict]) == 2
    assert "asked with other options (max_ratio, slack). Give another --output" in capsys.readouterr().err
    assert main(command) == 2
    assert "other options (max_ratio)" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert main([*command, *loose]) == 0
    assert "1 jokes (1 from before)" in capsys.readouterr().out
    assert main([*command, *loose, "--option", "min_ratio=0.5"]) == 0, "the default is no other option"


def test_what_only_says_how_to_ask_is_no_other_option() -> None:
    """Limits, the place of the ledger and how many calls are in the air may change between two calls."""
    asked = lambda **options: asked_of("scorer", options)  # noqa: E731
    plain = asked(client="openai:m@http://h:1/v1", options={"temperature": 0})
    more = {"concurrency": 4, "requests_per_minute": 9, "temperature": 0}
    assert plain == asked(client="openai:m@http://h:1/v1", ledger="x", budget={"max_calls": 4}, options=more)
    assert plain == asked(client="openai:m@http://me:secret@h:1/v1", options={"temperature": 0})
    # `ask_again`, which the docs name for stored failures, was refused as another option.
    assert asked(client="a", options={"concurrency": 1, "ask_again": ["invalid"]}) == asked(client="a")
    for other in (
        {"client": "openai:m@http://other:1/v1", "options": {"temperature": 0}},
        {"client": "openai:n@http://h:1/v1", "options": {"temperature": 0}},
    ):
        assert changed_options(plain, asked(**other)) == ["client"]
    assert changed_options(plain, asked(client="openai:m@http://h:1/v1", options={"temperature": 1})) == ["options"]
    jury = lambda **inner: asked_of("mix", {"critics": [{"critic": "scorer", "options": inner}]})  # noqa: E731
    assert jury(client="anthropic", ledger="a") == jury(client="anthropic", ledger="b")
    assert changed_options(jury(client="anthropic"), jury(client="openai:m")) == ["critics"]
    assert "secret" not in json.dumps(asked(client="openai:m@http://me:secret@h:1/v1"))
    assert asked_of("diversity", {"archive": datetime.date(2024, 1, 1)})["options"], "a date of TOML is no error"


def test_a_file_that_an_option_names_is_asked_about_by_what_it_holds(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Is it funny?")
    first = asked_of("scorer", {"rubric": str(rubric)})
    assert first == asked_of("scorer", {"rubric": str(rubric)})
    rubric.write_text("Is it very funny?")
    assert changed_options(first, asked_of("scorer", {"rubric": str(rubric)})) == ["rubric"]


def test_a_corrected_prompt_is_judged_anew_and_the_rest_is_kept(tmp_path: Path, capsys: Any) -> None:
    """Only the texts were compared: a line kept the score that it had with the old prompt."""
    rows = [{"prompt": f"Meeting {n}.", "text": "x" * (n + 1)} for n in range(4)]
    source, output = write(tmp_path / "jokes.jsonl", rows), tmp_path / "out.jsonl"
    judge_file(read_jokes(source), output, Counting())
    rows[2]["prompt"] = "The meeting was slow."
    write(source, rows)
    again = Counting()
    summary = judge_file(read_jokes(source), output, again)
    assert again.seen == ["xxx"]
    assert (summary.resumed, summary.changed) == (3, 1)
    assert [row["prompt"] for row in records(output)] == [row["prompt"] for row in rows]
    rows[0]["prompt"] = {"id": "Meeting 0.", "text": "Meeting 0.", "extra": {"words": ["slow"]}}
    write(source, rows)
    assert main([str(source), "--critic", "test_judge_file:Counting", "--output", str(output)]) == 0
    assert "4 jokes (3 from before, 1 judged again after a change)" in capsys.readouterr().out


def test_an_output_without_a_record_of_the_options_is_gone_on_with(tmp_path: Path, capsys: Any) -> None:
    """Outputs of older versions do not say how they were asked."""
    source = ten(tmp_path / "jokes.jsonl")
    command = [str(source), "--critic", "rules", "--option", "slack=0", "--output", str(tmp_path / "out.jsonl")]
    assert main(command) == 0
    rows = records(tmp_path / "out.jsonl")
    write(tmp_path / "out.jsonl", [{k: v for k, v in row.items() if k != "asked"} for row in rows])
    assert main(command) == 0
    assert "10 jokes (10 from before)" in capsys.readouterr().out


def test_a_table_and_a_file_of_lines_of_one_name_do_not_meet(tmp_path: Path, capsys: Any) -> None:
    """The second was refused: "another critic ('rules', not 'rules')"."""
    write(tmp_path / "jokes.jsonl", [{"prompt": "Meeting.", "text": "Moss grew on the chair."}])
    (tmp_path / "jokes.csv").write_text("prompt,text\nBus.,The bus has retired.\n")
    for name in ("jokes.jsonl", "jokes.csv", "jokes.jsonl", "jokes.csv"):
        assert main([str(tmp_path / name), "--critic", "rules"]) == 0, capsys.readouterr().err
    assert read_jokes(tmp_path / "jokes.rules.csv")[0].joke.text == "The bus has retired."
    assert read_jokes(tmp_path / "jokes.rules.jsonl")[0].joke.text == "Moss grew on the chair."


def test_a_table_may_have_its_suffix_in_capitals(tmp_path: Path, capsys: Any) -> None:
    """JOKES.CSV, as some programs call it, was read as JSON lines."""
    (tmp_path / "JOKES.CSV").write_text("prompt,text\nBus.,The bus has retired.\n")
    assert main([str(tmp_path / "JOKES.CSV"), "--critic", "rules"]) == 0, capsys.readouterr().err
    assert read_jokes(tmp_path / "JOKES.rules.csv")[0].joke.text == "The bus has retired."
    out = tmp_path / "OUT.CSV"
    judge_file(read_jokes(tmp_path / "JOKES.CSV"), out, Counting())
    assert out.read_text("utf-8-sig").startswith("prompt,text,critic,score")


def test_a_date_is_a_text_like_any_other() -> None:
    """`--option archive=2024-01-01`, a file, was a TOML date and a traceback. No option is a date."""
    written = ["a=2024-01-01", "b=07:32:00", "c=2024-01-01T07:32:00Z", "d=2024-01-01 07:32:00"]
    assert [f"{key}={value}" for key, value in key_values(written).items()] == written


@pytest.mark.slow
def test_killed_while_it_judges_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    rows = [{"prompt": f"Meeting {n}.", "text": f"Moss {n}."} for n in range(300)]
    source = write(tmp_path / "jokes.jsonl", rows)
    with running("--latency", "0.05") as server:
        options = [
            "--option",
            f"client=anthropic:claude-haiku-4-5@{server.url}",
            "--option",
            "options={concurrency = 4}",
        ]
        command = [
            sys.executable,
            "-m",
            "humor_env.experiments.commands.cli",
            "judge",
            str(source),
            "--critic",
            "scorer",
            "--chunk",
            "16",
        ]
        with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for _ in range(4):
                process.stderr.readline()
            process.send_signal(signal.SIGKILL)
        calls = server.stats()["calls"]
        assert 64 <= calls < 300
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        assert "300 jokes (" in done.stdout
        assert 300 <= server.stats()["calls"] <= 304
        assert len(records(tmp_path / "jokes.scorer.jsonl")) == 300
