import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from humor_env.errors import InvalidOption, MissingExtra, PromptError
from humor_env.shared.line_file import LineFile
from humor_env.teacher import Teacher, TeacherBuffer, everyday_lines, fill, open_lines, pocket_lines
from humor_env.types import Demonstration, Joke, Judgement, Prompt

P = Prompt("p", "The meeting was slow.", extra={"words": ["glacier"]})
Q = Prompt("q", "The soup was cold.", split="test")


def demo(text, prompt=P, **more):
    return Demonstration(prompt, text, "t", "CC0-1.0", **more)


def test_what_was_added_is_read_again_in_order(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    given = [demo("one", score=0.25), demo("zwei \ud83d \u2028 三\x00", Q), demo("two")]
    assert TeacherBuffer(path).add(given) == 3
    again = TeacherBuffer(path)
    assert list(again) == given
    assert again.lines_for("p") == ["one", "two"]
    assert again.lines_for("nobody") == []
    assert again.prompts() == [P, Q]
    assert again.splits() == {"train": 2, "test": 1}
    assert ("p" in again, "nobody" in again, len(again), again.dropped_bytes) == (True, False, 3, 0)
    assert len(path.read_bytes().split(b"\n")) == 4  # a line each, and the break at the end


def test_the_same_line_is_kept_once_and_blank_ones_never(tmp_path):
    buffer = TeacherBuffer(tmp_path / "lines.jsonl")
    assert buffer.add([demo("One  line"), demo("one line "), demo(" "), demo("One line", Q)]) == 2
    assert buffer.add([demo("ONE LINE")]) == 0
    assert TeacherBuffer(buffer.path).lines_for("p") == ["One  line"]
    assert len(buffer.path.read_bytes().splitlines()) == 2


@pytest.mark.filterwarnings("ignore:.*dropped a last line that was cut off")
def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path):
    """By whoever adds to the file; reading it changes nothing."""
    path = tmp_path / "lines.jsonl"
    TeacherBuffer(path).add([demo("one"), demo("two")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        path.write_bytes(whole[:cut])
        buffer = TeacherBuffer(path)
        assert buffer.lines_for("p") == ["one"]
        assert buffer.dropped_bytes == 0
        assert path.read_bytes() == whole[:cut]
        assert buffer.add([demo("three")]) == 1
        assert buffer.dropped_bytes == cut - first
        assert TeacherBuffer(path).lines_for("p") == ["one", "three"]


def test_a_whole_last_line_without_its_break_is_kept(tmp_path):
    path = tmp_path / "lines.jsonl"
    TeacherBuffer(path).add([demo("one"), demo("two")])
    path.write_bytes(path.read_bytes()[:-1])
    buffer = TeacherBuffer(path)
    assert buffer.lines_for("p") == ["one", "two"]
    assert buffer.dropped_bytes == 0
    other = TeacherBuffer(path)
    assert other.add([demo("three")]) == 1
    assert buffer.refresh() == 1
    buffer.add([demo("four")])
    assert TeacherBuffer(path).lines_for("p") == buffer.lines_for("p") == ["one", "two", "three", "four"]
    with open(path, "ab") as file:
        file.write(b"broken\n")
    with pytest.raises(PromptError, match="Line 5 of"):
        buffer.refresh()


def test_a_line_torn_while_the_buffer_was_open_is_not_written_onto(tmp_path):
    path = tmp_path / "lines.jsonl"
    buffer = TeacherBuffer(path)
    buffer.add([demo("one")])
    with open(path, "ab") as other:
        other.write(b'{"prompt": {"id": "p"')
    with pytest.warns(UserWarning, match="dropped a last line that was cut off"):
        assert buffer.add([demo("two")]) == 1
    assert TeacherBuffer(path).lines_for("p") == ["one", "two"]
    assert buffer.dropped_bytes == 21


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    for content in (b"my only copy", b"my only copy\n", b"[1, 2", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(PromptError, match="Line 1 of the teacher buffer"):
            TeacherBuffer(path)
        assert path.read_bytes() == content


def test_a_file_that_may_only_be_read_is_read_and_left_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    TeacherBuffer(path).add([demo("one"), demo("two")])

    def read_only(path, mode, **options):  # a mode bit would not stop root
        if mode != "rb":
            raise PermissionError(13, "Permission denied")
        return open(path, mode, **options)

    monkeypatch.setattr("humor_env.shared.line_file.open", read_only, raising=False)
    for end, seen in ((b'{"torn', ["one", "two"]), (b"", ["one", "two"])):
        content = path.read_bytes()[:-1] + b"\n" + end
        path.write_bytes(content)
        buffer = TeacherBuffer(path)
        assert buffer.lines_for("p") == seen
        assert (buffer.refresh(), buffer.dropped_bytes) == (0, 0)
        assert path.read_bytes() == content
        path.write_bytes(content.removesuffix(end))
    path.write_bytes(path.read_bytes()[:-1])  # whole, but without its break
    assert TeacherBuffer(path).lines_for("p") == ["one", "two"]
    with pytest.raises(PermissionError):
        TeacherBuffer(path).add([demo("three")])


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "lines.jsonl"
    TeacherBuffer(path).add([demo("one")])
    good = path.read_bytes()
    for bad in (b"not json", b'{"text": "x"}', b'{"prompt": {"id": 1, "text": "x"}, "text": "y"}', b"[]", b'"x"'):
        content = good + b"\n" + bad + b"\n" + good
        path.write_bytes(content)
        with pytest.raises(PromptError, match="Line 3 of the teacher buffer"):
            TeacherBuffer(path)
        assert path.read_bytes() == content
    path.write_bytes(good[:-2] + b', "score": "high"}\n')
    with pytest.raises(PromptError, match="score must be a number"):
        TeacherBuffer(path)


def test_files_by_hand_may_be_short_of_fields_and_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('\ufeff{"prompt": {"id": "p", "text": "x", "note": 1}, "text": "y"}\r\n\r\n', encoding="utf-8")
    [found] = TeacherBuffer(path)
    assert found == Demonstration(Prompt("p", "x"), "y", "unknown", "unknown", None)


def _append(path, worker, count):
    buffer = TeacherBuffer(path)
    for i in range(count):
        buffer.add([demo(f"worker {worker} line {i}"), demo(f"common {i}")])


def test_processes_that_append_together_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(path, w, 25)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    lines = TeacherBuffer(path).lines_for("p")
    assert len(lines) == len(set(lines)) == 4 * 25 + 25
    assert len(path.read_bytes().splitlines()) == 125


def test_two_open_buffers_see_each_others_lines(tmp_path):
    one, two = TeacherBuffer(tmp_path / "x.jsonl"), TeacherBuffer(tmp_path / "x.jsonl")
    one.add([demo("one")])
    assert two.refresh() == 1
    assert two.refresh() == 0
    assert two.add([demo("one"), demo("two")]) == 1
    assert one.refresh() == 1
    assert one.lines_for("p") == two.lines_for("p") == ["one", "two"]


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys; from humor_env.teacher import TeacherBuffer; from humor_env.types import *\n"
        "b = TeacherBuffer(sys.argv[1]); i = 0\n"
        "while True:\n"
        "    b.add([Demonstration(Prompt('p', 'x'), f'{i} ' + 'w' * 3000, 't')]); i += 1\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    seen = 0
    for line in process.stdout:
        seen = int(line)
        if seen == 20:
            process.kill()
            break
    process.wait()
    process.stdout.close()
    buffer = TeacherBuffer(path)
    assert len(buffer) >= 20
    assert [d.text.split()[0] for d in buffer] == [str(i) for i in range(len(buffer))]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    buffer = TeacherBuffer(path)
    buffer.add([demo("one")])
    before = path.read_bytes()

    def full(file, payload):
        file.write(payload[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("humor_env.shared.line_file._write_all", full)
        with pytest.raises(OSError, match="No space"):
            buffer.add([demo("two")])
    assert path.read_bytes() == before
    assert buffer.lines_for("p") == ["one"]
    assert buffer.add([demo("two")]) == 1
    assert TeacherBuffer(path).lines_for("p") == ["one", "two"]


def test_one_id_stays_one_prompt_and_splits_do_not_share_texts(tmp_path):
    buffer = TeacherBuffer(tmp_path / "lines.jsonl", [demo("one")])
    before = buffer.path.read_bytes()
    with pytest.raises(PromptError, match="id 'p' is already"):
        buffer.add([demo("fine"), demo("two", Prompt("p", "Another text."))])
    with pytest.raises(PromptError, match="must not be tested on"):
        buffer.add([demo("two", Prompt("other", P.text, split="test"))])
    with pytest.raises(PromptError, match="id 'n' is already"):
        buffer.add([demo("one", Prompt("n", "x")), demo("two", Prompt("n", "y"))])
    with pytest.raises(PromptError, match="must not be tested on"):
        buffer.add([demo("one", Prompt("n", "x")), demo("two", Prompt("m", "x", split="dev"))])
    assert buffer.path.read_bytes() == before
    assert len(buffer) == 1


def test_what_is_not_plain_data_is_refused_before_anything_is_written(tmp_path):
    buffer = TeacherBuffer(tmp_path / "lines.jsonl", [demo("one")])
    for bad in (demo("x", Prompt("n", "x", extra={"f": object()})), demo("y", score=float("nan"))):
        with pytest.raises(InvalidOption, match="cannot be written as JSON"):
            buffer.add([demo("fine"), bad])
    assert len(buffer.path.read_bytes().splitlines()) == 1
    assert buffer.lines_for("p") == ["one"]


def test_split_and_select():
    buffer = TeacherBuffer(None, [demo("one"), demo("two", Q)])
    assert [d.text for d in buffer.split("test")] == ["two"]
    assert len(buffer.split("ood")) == 0
    with pytest.raises(InvalidOption, match="No split is called 'tset'"):
        buffer.split("tset")
    assert [d.text for d in buffer.select(lambda d: d.prompt.id == "p")] == ["one"]


class ByLength:
    name = "by-length"

    def __init__(self):
        self.batches = []

    def __call__(self, jokes):
        self.batches.append(len(jokes))
        assert all(isinstance(j, Joke) and j.author == "teacher" for j in jokes)
        return [
            Judgement(self.name, None, error="refused") if j.text == "?" else Judgement(self.name, len(j.text) / 10)
            for j in jokes
        ]


def test_filter_keeps_what_a_critic_scores_and_leaves_out_failures():
    asked = Prompt("q", P.text)  # requires no word
    buffer = TeacherBuffer(None, [demo("a" * n, asked) for n in (2, 5, 8)] + [demo("?", asked)])
    critic = ByLength()
    scored = buffer.scored(critic, batch_size=3)
    assert critic.batches == [3, 1]
    assert [d.score for d in scored] == [0.2, 0.5, 0.8, None]
    assert [d.score for d in buffer] == [None] * 4
    assert [len(d.text) for d in buffer.filter(ByLength(), at_least=0.5)] == [5, 8]
    assert [len(d.text) for d in scored.filter(at_least=0.6)] == [8]
    assert len(buffer.filter()) == 0  # nothing has a score yet
    assert len(TeacherBuffer(None, [demo("The meeting was so slow 😂")]).filter("rules")) == 0
    with pytest.raises(InvalidOption):
        buffer.filter("rules", min_ratoi=1)


class Parrot:
    """Numbers its lines; refuses some prompts; counts what it is asked."""

    name = "parrot"
    licence = "CC0-1.0"

    def __init__(self, refuses=()):
        self.refuses, self.asked = set(refuses), []

    def lines(self, prompt, n):
        self.asked.append((prompt.id, n))
        return [] if prompt.id in self.refuses else [f" {prompt.text} {i} " for i in range(n + 2)] + [""]


def test_fill_asks_only_for_what_is_missing_and_can_go_on(tmp_path):
    prompts = [Prompt(str(i), f"text {i}") for i in range(5)]
    teacher = Parrot(refuses={"3"})
    assert isinstance(teacher, Teacher)
    buffer = TeacherBuffer(tmp_path / "lines.jsonl")
    assert fill(buffer, teacher, prompts[:2], n=2).added == 4
    steps = []
    report = fill(buffer, teacher, [*prompts, prompts[0]], n=3, batch_size=2, progress=lambda *s: steps.append(s))
    assert (report.asked, report.added, report.short) == (5, 1 + 1 + 3 + 0 + 3, ("3",))
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert buffer.lines_for("0") == ["text 0 0", "text 0 1", "text 0 2"]
    assert {(d.source, d.licence) for d in buffer} == {("parrot", "CC0-1.0")}
    asked = len(teacher.asked)
    assert fill(buffer, teacher, prompts, n=3).asked == 1
    assert teacher.asked[asked:] == [("3", 3)]
    with pytest.raises(InvalidOption):
        fill(buffer, teacher, prompts, n=0)


def test_a_teacher_that_answers_many_at_once_is_asked_in_batches(tmp_path):
    class Choir(Parrot):
        def lines_batch(self, prompts, n):
            self.asked.append([p.id for p in prompts])
            return [[f"{p.id} {i}" for i in range(n)] for p in prompts]

    choir = Choir()
    buffer = TeacherBuffer()
    fill(buffer, choir, [Prompt(str(i), f"text {i}") for i in range(3)], n=2, batch_size=2, licence="mine")
    assert choir.asked == [["0", "1"], ["2"]]
    assert buffer.lines_for("2") == ["2 0", "2 1"]
    assert next(iter(buffer)).licence == "mine"
    choir.lines_batch = lambda prompts, n: []
    with pytest.raises(InvalidOption, match="answered 0"):
        fill(buffer, choir, [Prompt("9", "nine")])


def test_a_teacher_that_yields_demonstrations_fills_a_buffer_too():
    from humor_env.llm.protocol import Reply
    from humor_env.teacher_llm import LanguageModelTeacher
    from humor_env.types import Usage

    class Model:
        name, probabilities, asked = "model", False, 0

        def __call__(self, requests, on_reply=None):
            replies = []
            for index, request in enumerate(requests):
                self.asked += 1
                refused = "text 1" in request.user_text
                text = "" if refused else f"1. One {self.asked}.\n2. Two {self.asked}.\n3. Three {self.asked}."
                replies.append(
                    Reply(text, stop_reason="end_turn", error="refusal" if refused else None, usage=Usage(1))
                )
                if on_reply is not None:
                    on_reply(index, replies[-1])
            return replies

        def close(self):
            pass

    model, buffer = Model(), TeacherBuffer()
    teacher = LanguageModelTeacher(model, licence="mine")
    report = fill(buffer, teacher, [Prompt(str(i), f"text {i}") for i in range(3)], n=2)
    assert (report.added, report.short) == (4, ("1",))
    assert buffer.lines_for("2") == ["One 3.", "Two 3."]
    assert {(d.source, d.licence) for d in buffer} == {("model", "mine")}


def test_the_dataset_has_the_columns_that_trainers_expect():
    dataset = TeacherBuffer(None, [demo("one", score=0.5), demo("two \ud83d", Q)]).to_dataset()
    assert dataset.column_names == [
        "prompt", "completion", "prompt_id", "task", "split", "source", "licence", "score",
    ]  # fmt: skip
    assert dataset[0]["prompt"] == P.text
    assert dataset[0]["completion"] == "one"
    assert dataset[1] == {
        "prompt": Q.text,
        "completion": "two \ufffd",
        "prompt_id": "q",
        "task": "paraphrase",
        "split": "test",
        "source": "t",
        "licence": "CC0-1.0",
        "score": None,
    }
    assert len(TeacherBuffer().to_dataset()) == 0


@pytest.mark.parametrize("data_format", ["arrow", "hdf5"])
def test_minari_episodes_come_back_as_they_went(data_format, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    if data_format == "hdf5":
        pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffer = TeacherBuffer(None, [demo("one \ud83d", score=0.5), demo("zwei ä", Q, score=1.0)])
    dataset = buffer.to_minari("humor/test-v0", data_format)
    found = list(dataset.iterate_episodes())
    assert [(e.observations[0], e.actions[0], float(e.rewards[0])) for e in found] == [
        (P.text, "one \ufffd", 0.5),
        (Q.text, "zwei ä", 1.0),
    ]
    assert all(e.terminations[-1] and not e.truncations[-1] for e in found)
    with pytest.raises(InvalidOption, match="1 of 1 demonstrations have no score"):
        TeacherBuffer(None, [demo("one")]).to_minari("humor/none-v0", data_format)
    with pytest.raises(PromptError, match="empty buffer"):
        TeacherBuffer().to_minari("humor/none-v0", data_format)


def test_without_minari_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtra, match=r"humor-env\[minari\]"):
        TeacherBuffer(None, [demo("one", score=1.0)]).to_minari("humor/test-v0")


def test_bundled_lines_and_names(tmp_path):
    everyday = everyday_lines()
    assert all(len(everyday.lines_for(p.id)) == 3 for p in everyday.prompts())
    pocket = pocket_lines()
    assert open_lines("pocket") is pocket
    assert all(len(pocket.lines_for(p.id)) == 3 for p in pocket.prompts()[:200])
    assert len(open_lines("everyday").lines_for(everyday.prompts()[0].id)) == 3
    assert open_lines(everyday) is everyday
    path = TeacherBuffer(tmp_path / "x.jsonl", [demo("one")]).path
    assert open_lines(str(path)).lines_for("p") == ["one"]
    with pytest.raises(PromptError, match="no teacher buffer"):
        open_lines(tmp_path / "typo.jsonl")
    assert not Path(tmp_path / "typo.jsonl").exists()


def test_a_line_file_numbers_lines_across_reads(tmp_path):
    seen = []
    file = LineFile(tmp_path / "a.jsonl", lambda number, line: seen.append((number, json.loads(line))))
    file.read_new()
    file.append(lambda: [b"1", b"2"])
    file.path.write_bytes(file.path.read_bytes() + b"\n3\n")
    file.read_new()
    file.append(lambda: [])
    assert seen == [(4, 3)]  # what one wrote oneself is not taken again
