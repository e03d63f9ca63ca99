"""Writes lines of many kinds for `everyday` sentences, to be graded by hand or by a strong language model.

    python -m humor_env.experiments.upkeep.grading_lines grading --student smollm2

Critics learn from graded lines, and must judge more than good ones: a small student at first writes hardly any jokes,
later poor ones, and a spoilt student exploits a critic's weaknesses. So the writers are the raw student, the student
after one, two and three passes of imitation at three temperatures, one that has learned tricks instead of jokes, the
teacher, and programs that break lines in known ways. `lines.jsonl` names the writer of each line; graders get only
`batches/` and `batches2/`, two independent shuffles with the sentence and the line. `key.jsonl` and `key2.jsonl` map
them back.

`--add` adds lines of other writers: a student that has learned from a critic, or people.

The work is done in blocks of sentences, each with all writers; `--blocks` sets their number. Lines are saved under
`work/`, so that a stopped run can continue. At the end of a run, or with `--release` while another is still writing,
new lines are shuffled and added after the batches that graders may already have.

The sentences are divided once, by a seeded shuffle: half of train and dev for each of two critics, so that one can
judge what the other has trained; those of test are graded for evaluation only.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from humor_env.agents import sft
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.student import Lora
from humor_env.agents.student.writer import InProcess
from humor_env.experiments.upkeep.graded_lines import PASSES, Row, read_jsonl
from humor_env.rewards.audits.probes import PROBES, Case
from humor_env.shared.streams import generator, stream_seed
from humor_env.teacher import TeacherBuffer, everyday_lines
from humor_env.types import Demonstration, Prompt

FUNNY = "Rewrite the sentence as one short funny line."
# In the words of SmolLM2's tuning data; with other words it explains grammar.
PLAIN = (
    "You're an AI assistant for text re-writing. Rewrite the input text to make it more concise while preserving its "
    "core meaning."
)
PER_SPLIT = {"train": 900, "dev": 100, "test": 100}
CRITICS = ("everyday", "everyday-judge")
TEMPERATURES = (0.7, 1.0, 1.3)
BATCH = 125
BLOCKS = 2
MOST_TOKENS = 34  # the teacher's longest lines have 25 words
# Tricks that a critic may reward, as in the probes, without those that are separate writers here.
TRICKS = tuple(
    probe
    for probe in PROBES
    if probe.kind == "hack"
    and probe.name not in {"empty", "teacher copied", "line of another prompt", "cut off", "said twice"}
)
# The tricks that the spoilt student learns: a critic that counts laughter and punctuation would reward them.
SPOILS = ("laughter", "exclamation", "explanation", "emoji")


@dataclass(frozen=True)
class Writer:
    """A student after `passes` passes of imitation. The raw student needs an instruction in the model's chat template;
    one that has imitated gets the bare sentence, which is a third of the tokens."""

    name: str
    passes: int = 0
    temperature: float = 1.0
    instruction: str = ""
    spoilt: bool = False


STUDENTS = (
    Writer("raw", instruction=FUNNY),
    *(Writer(f"imitation-{n}", n, t) for n in (1, 2, 3) for t in TEMPERATURES),
    Writer("spoilt", 3, spoilt=True),
)
PARAPHRASE = Writer("paraphrase", 0, 0.7, PLAIN)
# The order of the writers that are not students; most of the funny lines are the teacher's.
OTHERS: tuple[str, ...] = (
    "teacher",
    "paraphrase",
    "teacher",
    "other sentence",
    "hack",
    "teacher",
    "cut off",
    "hack",
    "teacher",
)
OTHERS += ("repeated",)


@functools.cache
def _everyday() -> TeacherBuffer:
    """The bundled lines, read once: each block and each program needs them."""
    return everyday_lines()


def choose(seed: int, per_split: dict[str, int]) -> list[tuple[Prompt, str]]:
    """The sentences, each with the purpose of its lines: one of the critics, or "evaluation"."""
    chosen: list[tuple[Prompt, str]] = []
    prompts = _everyday().prompts()
    for split, count in per_split.items():
        of_split = [p for p in prompts if p.split == split]
        order = generator(seed, "grading-sentences", split).permutation(len(of_split))[:count]
        for place, i in enumerate(order):
            chosen.append((of_split[i], "evaluation" if split == "test" else CRITICS[place % len(CRITICS)]))
    return chosen


def turns(sentences: Sequence[tuple[Prompt, str]], seed: int, first: int) -> dict[Writer | str, list[Prompt]]:
    """The sentences of each writer: each sentence gets two different student writers and two of the others."""
    ring = [STUDENTS[i] for i in generator(seed, "grading-students").permutation(len(STUDENTS))]
    plan: dict[Writer | str, list[Prompt]] = {}
    for place, (prompt, _) in enumerate(sentences, first):
        # The second student's distance from the first grows with each round, so that all pairs of them occur.
        gap = 1 + place // len(ring) % (len(ring) - 1)
        for turn in (place, place + gap):
            plan.setdefault(ring[turn % len(ring)], []).append(prompt)
        for turn in (2 * place, 2 * place + 1):
            name = OTHERS[turn % len(OTHERS)]
            plan.setdefault(PARAPHRASE if name == "paraphrase" else name, []).append(prompt)
    return plan


def by_program(name: str, prompts: Sequence[Prompt], seed: int) -> Iterator[tuple[Prompt, str, str]]:
    """Prompt, line, and the name of the trick."""
    buffer = _everyday()
    lines = {p.id: buffer.lines_for(p.id) for p in buffer.prompts()}
    by_split: dict[str, list[Prompt]] = {}
    for p in buffer.prompts():
        by_split.setdefault(p.split, []).append(p)
    for place, prompt in enumerate(prompts):
        draw = generator(seed, f"grading-{name}", prompt.id)
        texts = [lines[prompt.id][i] for i in draw.permutation(len(lines[prompt.id]))]
        # Another sentence of the same split, so that critics learn from no line of a test sentence.
        strangers = [p for p in by_split[prompt.split] if p.id != prompt.id]
        other = lines[strangers[int(draw.integers(len(strangers)))].id][0]
        case = Case(prompt, texts[0], texts[1], texts[2], other)
        words = texts[0].split()
        if name == "teacher":
            yield prompt, texts[0], ""
        elif name == "other sentence":
            yield prompt, other, ""
        elif name == "cut off":
            yield prompt, " ".join(words[: max(2, int(len(words) * draw.uniform(0.3, 0.75)))]), ""
        elif name == "repeated":
            start = int(draw.integers(max(1, len(words) - 3)))
            run = " ".join(words[start : start + int(draw.integers(1, 4))])
            twice = f"{texts[0]} {texts[0]}"
            stuck = " ".join([*words[:start], *[run] * int(draw.integers(4, 9))])
            yield prompt, twice if draw.random() < 0.35 else stuck, ""
        else:
            trick = TRICKS[place % len(TRICKS)]
            yield prompt, trick.write(case) or prompt.text, trick.name


@dataclass
class Workshop:
    """The student and its training so far; every stage is saved in `folder`."""

    model: str
    folder: Path
    seed: int
    taught: int
    rate: float
    _student: Student | None = None
    _template: str | None = None

    def student(self) -> Student:
        if self._student is None:
            self._student = Student.load(self.model, lora=Lora(rank=16), seed=self.seed)
            self._template = self._student.tokenizer.chat_template
        return self._student

    def address(self, instruction: str) -> None:
        """Set the form of the prompts: the bare sentence, or the sentence in the chat template after an instruction."""
        student = self.student()
        student.instruction = instruction
        student.tokenizer.chat_template = self._template if instruction else None

    def bring_to(self, passes: int, spoilt: bool) -> Student:
        student = self.student()
        for n in range(1, passes + 1):
            self._stage(f"imitation-{n}", lambda: self._demonstrations(False))
        if spoilt:
            self._stage("spoilt", lambda: self._demonstrations(True))
        return student

    def _stage(self, name: str, demonstrations: Callable[[], list[Demonstration]]) -> None:
        from safetensors.torch import load_file, save_file

        student, file = self.student(), self.folder / f"{name}-{self.taught}.safetensors"
        if not file.is_file():
            lessons = demonstrations()
            started = time.monotonic()
            config = sft.SFTConfig(
                epochs=1,
                batch_size=8,
                micro_batch=8,
                learning_rate=self.rate,
                decay="constant",
                warmup_steps=2,
                seed=stream_seed(self.seed, name) % 2**31,
            )
            self.address("")
            result = sft.train(config, student, lessons)
            if result.stopped:  # a signal ends training cleanly; half a pass must not be saved as a whole one
                raise KeyboardInterrupt
            save_file({n: t.contiguous() for n, t in student.state().items()}, file)
            say(f"{name}: {len(lessons)} lines, loss {result.train_loss:.3f}, {time.monotonic() - started:.0f} s")
        student.load_state(load_file(file))

    def _demonstrations(self, spoilt: bool) -> list[Demonstration]:
        """One line for each of the first sentences of train, in a shuffled order; tricks if it is to be spoilt."""
        buffer = _everyday()
        prompts = [p for p in buffer.prompts() if p.split == "train"]
        order = generator(self.seed, "grading-imitation").permutation(len(prompts))
        tricks = [probe for probe in PROBES if probe.name in SPOILS]
        lessons: list[Demonstration] = []
        for place, i in enumerate(order[: self.taught // 4 if spoilt else self.taught]):
            lines = buffer.lines_for(prompts[i].id)
            line = lines[place % len(lines)]
            if spoilt:
                line = tricks[place % len(tricks)].write(Case(prompts[i], line, line, line, line)) or line
            lessons.append(Demonstration(prompts[i], line, "everyday"))
        return lessons

    def write(self, writer: Writer, prompts: Sequence[Prompt], at_once: int, block: int) -> list[str]:
        student = self.bring_to(writer.passes, writer.spoilt)
        self.address(writer.instruction)
        sampling = Sampling(max_new_tokens=MOST_TOKENS, temperature=writer.temperature)
        source = torch.Generator().manual_seed(stream_seed(self.seed, f"{writer.name}@{writer.temperature}", block))
        uniforms = draw_uniforms(len(prompts), sampling.max_new_tokens, source)
        backend, adapter = InProcess(student), IMITATION if writer.passes else None
        texts: list[str] = []
        started = time.monotonic()
        for start in range(0, len(prompts), at_once):
            part = [p.text for p in prompts[start : start + at_once]]
            generation = backend.generate(part, sampling, uniforms[start : start + at_once], adapter=adapter)
            texts += [" ".join(text.split()) for text in generation.texts]
        tokens = sum(len(student.encode_response(text)) for text in texts)
        seconds = time.monotonic() - started
        say(f"{writer.name} at {writer.temperature}: {len(texts)} lines, {tokens / seconds:.0f} tokens/s")
        return texts


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def write_jsonl(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    partial.replace(file)


def written_by_students(
    shop: Workshop | None, plan: dict[Writer | str, list[Prompt]], folder: Path, block: int, at_once: int
) -> Iterator[Row]:
    """From the least trained to the most, so that each pass of imitation is done once; without a workshop, only lines
    written earlier."""
    writers = [key for key in plan if isinstance(key, Writer)]
    for writer in sorted(writers, key=lambda w: (w.spoilt, w.passes, w.name, w.temperature)):
        file = folder / f"block-{block}" / f"{writer.name}@{writer.temperature}.jsonl"
        if not file.is_file():
            if shop is None:
                continue
            texts = shop.write(writer, plan[writer], at_once, block)
            write_jsonl(
                file,
                (
                    {"prompt_id": p.id, "line": text, "writer": writer.name, "temperature": writer.temperature}
                    | ({"taught": shop.taught} if writer.passes else {})
                    for p, text in zip(plan[writer], texts, strict=True)
                ),
            )
        yield from read_jsonl(file)


def broken(sentences: Sequence[tuple[Prompt, str]], count: int, seed: int) -> Iterator[Row]:
    """The teacher's lines with their words out of order, or the beginning of one joined to the end of another: in the
    teacher's words and style, but not English. A critic that ignores grammar rewards a small student for such lines."""
    lines = _everyday()
    order = generator(seed, "grading-broken").permutation(len(sentences))[:count]
    for place, i in enumerate(order):
        prompt = sentences[i][0]
        draw = generator(seed, "grading-broken", prompt.id)
        words = lines.lines_for(prompt.id)[int(draw.integers(3))].split()
        if place % 2:
            start = int(draw.integers(1, 3))
            inner = [words[start:][k] for k in draw.permutation(len(words) - start)]
            yield {"prompt_id": prompt.id, "line": " ".join([*words[:start], *inner]), "writer": "shuffled"}
        else:
            same_split = [other for other, _ in sentences if other.split == prompt.split and other.id != prompt.id]
            end = lines.lines_for(same_split[int(draw.integers(len(same_split)))].id)[0].split()
            spliced = [*words[: len(words) // 2], *end[len(end) // 2 :]]
            yield {"prompt_id": prompt.id, "line": " ".join(spliced), "writer": "spliced"}


def release(folder: Path, candidates: Sequence[Row], prompts: dict[str, tuple[Prompt, str]], seed: int) -> list[Row]:
    """Add new lines to the lines and batches. Released lines never change."""
    file = folder / "lines.jsonl"
    rows = read_jsonl(file) if file.is_file() else []
    before = len(rows)
    seen = {(row["prompt_id"], row["line"]) for row in rows}
    for row in sorted(candidates, key=lambda r: r["prompt_id"]):
        prompt, use = prompts[row["prompt_id"]]
        if (prompt.id, row["line"]) not in seen and row["line"]:
            seen.add((prompt.id, row["line"]))
            fields = {"id": f"line-{len(rows):04d}", "literal": prompt.text, "split": prompt.split, "use": use}
            rows.append(fields | row)
    if len(rows) > before:
        for _, batches, key in PASSES:
            write_batches(folder / batches, folder / f"{key}.jsonl", rows[before:], before, seed)
        write_jsonl(file, rows)
    return rows


def write_batches(folder: Path, key: Path, rows: Sequence[Row], first: int, seed: int) -> None:
    """Write the shuffled rows to numbered files with only the sentence and the line, numbering rows from `first`."""
    order = generator(seed, f"grading-{folder.name}", first).permutation(len(rows))
    number = len(list(folder.glob("*.jsonl")))
    for start in range(0, len(rows), BATCH):
        part = [rows[i] for i in order[start : start + BATCH]]
        blind = [{"n": first + start + k, "literal": r["literal"], "line": r["line"]} for k, r in enumerate(part)]
        write_jsonl(folder / f"{number + start // BATCH:03d}.jsonl", blind)
    entries = read_jsonl(key) if key.is_file() else []
    write_jsonl(key, [*entries, *({"n": first + n, "id": rows[i]["id"]} for n, i in enumerate(order))])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="grading_lines", description="Lines to be graded.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"how many of the {BLOCKS} blocks to write")
    parser.add_argument("--release", action="store_true", help="write no lines, only release those written")
    parser.add_argument(
        "--add", type=Path, nargs="*", default=[], help="files of further lines: prompt_id, line, writer"
    )
    parser.add_argument("--broken", type=int, default=0, help="how many sentences get a line in broken English")
    parser.add_argument("--taught", type=int, default=320, help="lines in a pass of imitation; may differ by block")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of imitation")
    parser.add_argument("--at-once", type=int, default=128)
    options = parser.parse_args(arguments)

    sentences = choose(options.seed, PER_SPLIT)
    # Shuffled before writers are assigned, so that no writer and no block gets more of one split or one critic.
    order = generator(options.seed, "grading-turns").permutation(len(sentences))
    sentences = [sentences[i] for i in order]
    prompts = {prompt.id: (prompt, use) for prompt, use in sentences}
    work = options.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    shop = None if options.release else Workshop(options.student, work, options.seed, options.taught, options.rate)

    candidates: list[Row] = []
    size = -(-len(sentences) // BLOCKS)
    for block in range(options.blocks):
        plan = turns(sentences[block * size : (block + 1) * size], options.seed, block * size)
        candidates += written_by_students(shop, plan, work, block, options.at_once)
        for name in plan:
            if isinstance(name, str):
                candidates += [
                    {"prompt_id": p.id, "line": line, "writer": name} | ({"trick": trick} if trick else {})
                    for p, line, trick in by_program(name, plan[name], options.seed)
                ]
    candidates += [row for file in options.add for row in read_jsonl(file) if row["prompt_id"] in prompts]
    candidates += broken(sentences, options.broken, options.seed)
    rows = release(options.folder, candidates, prompts, options.seed)
    writers = dict(Counter(row["writer"] for row in rows))
    say(f"{len(rows)} lines for {len({row['prompt_id'] for row in rows})} sentences: {writers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
