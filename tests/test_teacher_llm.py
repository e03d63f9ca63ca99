"""The teacher: lists are read line by line, refusals dropped and counted, and nothing is paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from fake_messages_server import running
from test_injection import Recorder

from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.llm import Reply, Request
from humor_env.llm.protocol import OnReply
from humor_env.llm.replies import read
from humor_env.teacher_llm import LanguageModelTeacher, read_list
from humor_env.types import Prompt, Usage

PROMPTS = [Prompt(f"p{n}", f"Meeting {n} was slow.") for n in range(12)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1. One.\n2. Two.\n3. Three.", ["One.", "Two.", "Three."]),
        ("Here you are:\n\n1) One.\n\n2) Two.\nEnjoy!", ["One.", "Two."]),
        ('1. "One."\n2. “Two.”\n3. "No" and "yes".', ["One.", "Two.", '"No" and "yes".']),
        ('1. “\n2. ""\n3. Three.', ["“", "Three."]),
        ('1. "\n2. Two.', ['"', "Two."]),
        ("**1.** One.\n  2.  Two  words. ", ["One.", "Two words."]),
        ("1. In 2024.\n2024. That was a year.\n2. Two.", ["In 2024.", "Two."]),
        ('["One.", "Two."]', ["One.", "Two."]),
        ('```json\n{"lines": ["One.", "Two."]}\n```', ["One.", "Two."]),
        ('["One.", 2]', []),
        ("Just a line.", []),
        ("", []),
    ],
)
def test_reading_a_list(text: str, lines: list[str]) -> None:
    assert read_list(text) == lines


def test_of_a_list_that_was_cut_the_last_line_is_dropped() -> None:
    assert read_list("1. One.\n2. Two.\n3. Thr", cut=True) == ["One.", "Two."]


class Script(Recorder):
    def __init__(self, *answers: str | Reply) -> None:
        super().__init__()
        self.answers = list(answers)

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.asked.extend(requests)
        replies = []
        for index, request in enumerate(requests):
            answer = self.answers.pop(0)
            replies.append(answer if isinstance(answer, Reply) else read(answer, "end_turn", request, Usage(1)))
            if on_reply is not None:
                on_reply(index, replies[-1])
        return replies


def test_lines_refusals_and_failures_are_told_apart() -> None:
    client = Script(
        "1. One.\n2. Two.\n3. Three.\n4. Four.",
        Reply(error="refusal"),
        "I'm sorry, I can't joke about that.",
        "What a meeting!",
        "1. Sorry is all I can say of this meeting.\n2. Not appropriate for glaciers.",
        Reply("1. Whole.\n2. Ha", error="cut"),
        Reply(error="unreachable"),
    )
    teacher = LanguageModelTeacher(client, licence="CC0-1.0", name="mine")
    made = list(teacher(PROMPTS[:7]))
    assert [(d.prompt.id, d.text) for d in made] == [
        ("p0", "One."),
        ("p0", "Two."),
        ("p0", "Three."),
        ("p4", "Sorry is all I can say of this meeting."),
        ("p4", "Not appropriate for glaciers."),
        ("p5", "Whole."),
    ]
    assert teacher.counts == {"lines": 6, "refused": 2, "unreadable": 1, "short": 2, "failed": 1}
    assert {(d.source, d.licence) for d in made} == {("mine", "CC0-1.0")}
    assert "Write 3 creative" in client.asked[0].system
    assert client.asked[0].data == {"task": "paraphrase", "input": PROMPTS[0].text}


def test_several_samples_and_no_line_twice_for_a_prompt() -> None:
    client = Script("1. One.\n2. Two.\n3. One.", "1. Two.\n2. New.\n3. Newer.")
    teacher = LanguageModelTeacher(client, samples=2)
    assert [d.text for d in teacher(PROMPTS[:1])] == ["One.", "Two.", "New.", "Newer."]
    assert [r.sample for r in client.asked] == [0, 1]


def test_collecting_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    with running() as server:
        spec = f"anthropic:claude-haiku-4-5@{server.url}"
        ledger = tmp_path / "l.sqlite"
        first = LanguageModelTeacher(spec, ledger=ledger, batch=4)
        taken = list(islice(first(PROMPTS), 13))  # the consumer stops in the second batch
        assert server.stats()["calls"] == 8
        with pytest.raises(BudgetExceeded):
            list(LanguageModelTeacher(spec, ledger=ledger, budget={"max_calls": 2})(PROMPTS))
        whole = list(LanguageModelTeacher(spec, ledger=ledger)(PROMPTS))
        assert server.stats()["calls"] == 12
        assert whole[:13] == taken
        assert len(whole) == 36
        assert LanguageModelTeacher(spec, ledger=ledger).estimate([*PROMPTS, Prompt("q", "New.")]).calls == 1


def test_options_out_of_range() -> None:
    with pytest.raises(InvalidOption):
        LanguageModelTeacher(Script(), n=0)
