"""The cells of a reproduction: the teacher, the systems that imitate or learn from feedback, and the verdicts.

    cells = make_cells(spec, out, seeds=[0, 1, 2])
    run_cells(cells, workers=2)              # experiments/compare/jobs.py: nothing is done twice

OUT/cells/teacher/              sentences and the teacher's lines (if the teacher is a language model)
OUT/cells/seed-0/warm-3/        imitation of all data; every other system of the seed starts from such a student
OUT/cells/seed-0/brio/          a system: its student, its lines on each split, and the judges' verdicts
OUT/cells/seed-0/people/        the critic and the systems compared with people: Tables 1 and 6
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from humor_env import registry
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import Student
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.writer import write_jokes
from humor_env.experiments.compare.jobs import Cell
from humor_env.experiments.reproduction.judges import PARTS, ClozeJudge, budget_of, make_judge, make_people
from humor_env.experiments.reproduction.sentences import read_sentences
from humor_env.experiments.reproduction.spec import SFT, ScaleSpec
from humor_env.experiments.reproduction.systems import SYSTEMS, System, by_name
from humor_env.experiments.runs.ingredients import load_student
from humor_env.experiments.runs.run_folder import read_json, write_json
from humor_env.experiments.specs.learner_settings import check_table
from humor_env.experiments.specs.spec import StudentSpec
from humor_env.pocket.teacher import PocketTeacher
from humor_env.prompts import load_prompts
from humor_env.rewards.win_tie import WinTieCritic
from humor_env.shared import json_lines
from humor_env.shared.streams import generator, stream_seed
from humor_env.teacher import TeacherBuffer, fill
from humor_env.teacher_llm import LanguageModelTeacher
from humor_env.types import SPLITS, Critic, Demonstration, Joke, Judge, Prompt, Verdict

MODULE = "humor_env.experiments.reproduction.cells"
# Settings that do not affect results: where they are computed, and what they may cost.
_FREE = ("name", "about", "seeds", "workers", "threads", "budget", "people", "cloze")
ALLOWANCE = "allowance.json"


def make_cells(spec: ScaleSpec, out: Path, seeds: Sequence[int]) -> list[Cell]:
    """All cells, each after those it needs; the long ones first, so that no worker is left with one at the end."""
    record = spec.record()
    common = {k: v for k, v in record.items() if k not in _FREE}
    home = out / "cells"
    cells: list[Cell] = []
    first: tuple[str, ...] = ()
    if spec.teacher.teacher != "pocket":
        teacher_job: dict[str, Any] = {k: common[k] for k in ("data", "teacher") if k in common}
        cells.append(Cell("teacher", home / "teacher", f"{MODULE}:teach", teacher_job))
        first = ("teacher",)
    for system in SYSTEMS:
        for seed in seeds:
            name = f"seed-{seed}/{system.name}"
            needs = first if system.starts_from is None else (f"seed-{seed}/{system.starts_from}",)
            job = {"system": system.name, "scale": _what_decides(common, system)}
            cells.append(Cell(name, home / name, f"{MODULE}:train", job, seed, needs))
    if spec.people.who is not None:
        people_job = {k: record[k] for k in ("people", "cloze") if k in record} | {"scale": _what_decides(common, None)}
        if spec.people.who != "exact":
            people_job["ratings"] = hashlib.sha256(Path(spec.people.who).read_bytes()).hexdigest()[:16]
        for seed in seeds:
            needs = tuple(f"seed-{seed}/{s.name}" for s in SYSTEMS if s.people)
            cells.append(
                Cell(
                    f"seed-{seed}/people", home / f"seed-{seed}/people", f"{MODULE}:ask_people", people_job, seed, needs
                )
            )
    return cells


def _what_decides(common: Mapping[str, Any], system: System | None) -> dict[str, Any]:
    """The settings that a cell depends on, so that changing one learner's does not invalidate the others' results."""
    kind = system.kind if system else ""
    settings = {k: v for k, v in common.items() if k not in ("more_imitation", "feedback", "learners")}
    if kind == "ft":
        settings["more_imitation"] = common["more_imitation"]
    elif kind not in ("warm", ""):
        settings |= {"feedback": common["feedback"], "learners": {kind: common["learners"].get(kind, {})}}
    return settings


def write_allowance(spec: ScaleSpec, out: Path) -> None:
    """Write the limits on cost outside the cells, since they may change between two starts."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ALLOWANCE, spec.budget.model_dump(mode="json", exclude_none=True))


def _open(record: Mapping[str, Any], out: Path, **others: Any) -> ScaleSpec:
    """The scale, read in the process of a cell."""
    budget = read_json(out / ALLOWANCE) if (out / ALLOWANCE).is_file() else {}
    spec = check_table(ScaleSpec, {"name": "cell", **record, **others, "budget": budget})
    assert isinstance(spec, ScaleSpec)
    return spec


# Sentences and the teacher's lines


@dataclass(frozen=True)
class Material:
    """Prompts by split, and the teacher's lines for them. Prompts that the teacher refused are left out."""

    prompts: Mapping[str, tuple[Prompt, ...]]
    buffer: TeacherBuffer

    def demonstrations(self, prompts: Sequence[Prompt], count: int) -> list[Demonstration]:
        return [d for p in prompts for d in self.buffer.demonstrations_for(p.id)[:count]]


def teach(record: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The cell of the teacher: sample the sentences and have lines written for each, once for all seeds."""
    out = folder.parents[1]
    critic = {"judge": "pocket"}
    spec = _open({**record, "critic": critic, "outside": critic}, out)
    sentences = read_sentences(spec.data)
    budget = budget_of(spec)
    options: dict[str, Any] = ({"budget": budget} if budget else {}) | spec.teacher.options
    teacher = LanguageModelTeacher(
        spec.teacher.teacher,
        n=spec.teacher.lines,
        licence=spec.teacher.licence,
        ledger=out / "ledger.sqlite",
        **options,
    )
    buffer = TeacherBuffer(folder / "lines.jsonl")
    try:
        fill(buffer, teacher, [p for prompts in sentences.values() for p in prompts], spec.teacher.lines)
    finally:
        teacher.close()
    write_json(folder / "prompts.json", {split: [asdict(p) for p in prompts] for split, prompts in sentences.items()})
    without = {s: sum(p.id not in buffer for p in prompts) for s, prompts in sentences.items()}
    return {
        "sentences": {s: len(prompts) for s, prompts in sentences.items()},
        "without a line": without,
        "lines": len(buffer),
        "replies": dict(teacher.counts),
        "usage": _usage(teacher.ledgered),
    }


def open_material(spec: ScaleSpec, seed: int, out: Path) -> Material:
    if spec.teacher.teacher == "pocket":
        world = load_prompts("pocket")
        prompts = {split: world.split(split)[: getattr(spec.data, f"pocket_{split}")] for split in SPLITS}
        teacher = PocketTeacher(seed=seed)
        everything = [p for of_split in prompts.values() for p in of_split]
        return Material(prompts, TeacherBuffer(None, teacher.demonstrations(everything, spec.teacher.lines)))
    home = out / "cells" / "teacher"
    buffer = TeacherBuffer(home / "lines.jsonl")
    by_split = {s: [Prompt(**row) for row in rows] for s, rows in read_json(home / "prompts.json").items()}
    return Material({s: tuple(p for p in of_split if p.id in buffer) for s, of_split in by_split.items()}, buffer)


def training_prompts(material: Material, system: System, seed: int) -> list[Prompt]:
    """The system's share of the training inputs. A smaller share is part of a larger one."""
    prompts = material.prompts["train"]
    order = generator(seed, "reproduction-data").permutation(len(prompts))
    return [prompts[i] for i in order[: len(prompts) * system.thirds // 3]]


# Systems


def train(record: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The cell of a system: train it from its warm start, write its lines, and judge them."""
    system, out = by_name(record["system"]), folder.parents[2]
    spec = _open(record["scale"], out)
    material = open_material(spec, seed, out)
    prompts = training_prompts(material, system, seed)
    if system.starts_from is None:
        student = load_student(spec.student, seed)
    else:
        start = StudentSpec(
            model=str(folder.parent / system.starts_from / "student"),
            device=spec.student.device,
            dtype=spec.student.dtype,
        )
        student = load_student(start, seed)
    judge = make_judge(spec, spec.critic, "critic", seed=seed, out=out)
    assert judge is not None
    numbers: dict[str, float] = {}
    log = RunLog(folder, echo=lambda _, metrics: numbers.update(metrics), keep_jokes=False, device=student.device)
    store = CheckpointStore(folder / "checkpoints", keep_last=1)
    if system.kind in ("warm", "ft"):
        stage: Literal["warm_start", "more_imitation"] = "warm_start" if system.kind == "warm" else "more_imitation"
        config = spec.imitation_config(stage, seed)
        dev = material.demonstrations(material.prompts.get("dev", ()), 1)
        learn = registry.learners.resolve(SFT)
        result = learn(
            config, student, material.demonstrations(prompts, spec.teacher.lines), dev, log, checkpoints=store
        )
    else:
        # Feedback is given on some of the imitated prompts, with their teacher's lines; in the paper, on all.
        prompts = prompts[: max(1, round(len(prompts) * spec.feedback.share))]
        extras: dict[str, Any] = {"prompts": prompts, "checkpoints": store}
        if system.kind in ("brio", "brio-dpo"):
            extras["demonstrations"] = material.demonstrations(prompts, spec.teacher.lines)
        learn = registry.learners.resolve(system.kind)
        result = learn(spec.learner_config(system.kind, seed, **protocol(spec, system)), judge, student, log, **extras)
    if result.stopped:
        raise KeyboardInterrupt
    _save(spec, system, student, folder)
    measured = {split: _measure(spec, seed, out, material, student, judge, split, folder) for split in system.splits}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    feedback = {n.removeprefix("feedback/"): v for n, v in numbers.items() if n.startswith("feedback/")}
    return {"steps": result.steps, "prompts": len(prompts), "feedback": feedback, "splits": measured}


def protocol(spec: ScaleSpec, system: System) -> dict[str, Any]:
    """The learner's settings in the paper's grid, which override those of the scale."""
    settings = spec.learners.get(system.kind, {})

    def phase(table: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        pairs = {**table.get("pairs", {}), "length_filter": "after" if system.filtered else "off"}
        return {**table, "epochs": spec.feedback.epochs, "pairs": pairs, **more}

    if system.kind == "brio-dpo":
        brio = phase(settings.get("brio", {}), pairs_of="teacher")
        return {"brio": brio, "dpo": phase(settings.get("dpo", {}))}
    return phase(settings, rounds=system.rounds)


def _save(spec: ScaleSpec, system: System, student: Student, folder: Path) -> None:
    """Save the student, with its base weights only if they are its own."""
    base: str | None = None
    start = None if system.starts_from is None else folder.parent / system.starts_from / "student"
    full = getattr(spec.imitation_config("warm_start", 0), "full", False)
    if system.kind != "ft" and start is not None and (start / "base").is_dir():
        base = str((start / "base").resolve())
    elif not full and not spec.student.model.startswith("pocket:"):
        base = spec.student.model
    student.save_pretrained(folder / "student", base=base)


# Lines and verdicts


def write_lines(spec: ScaleSpec, student: Student, prompts: Sequence[Prompt], name: str) -> list[Joke]:
    """One line for each prompt, the best of a beam search."""
    writing, lines = spec.writing, list[str]()
    for start in range(0, len(prompts), writing.batch):
        texts = [p.text for p in prompts[start : start + writing.batch]]
        best_lines = beams(student, texts, width=writing.beams, max_new_tokens=writing.max_new_tokens)
        lines += [best[0].text for best in best_lines]
    return [Joke(p, line, name) for p, line in zip(prompts, lines, strict=True)]


def sample_lines(spec: ScaleSpec, student: Student, prompts: Sequence[Prompt], name: str, seed: int) -> list[Joke]:
    """One line for each prompt, sampled at temperature 1, as in training; beam search hides these."""
    writing = spec.writing
    uniforms = draw_uniforms(len(prompts), writing.max_new_tokens, generator_for(seed))
    how = Sampling(max_new_tokens=writing.max_new_tokens)
    return write_jokes(student, prompts, how, uniforms, author=name, at_once=writing.batch)


def generator_for(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, "reproduction-lines"))


def _measure(
    spec: ScaleSpec,
    seed: int,
    out: Path,
    material: Material,
    student: Student,
    critic: Judge,
    split: str,
    folder: Path,
) -> dict[str, Any]:
    """For each way of writing: each judge's win-tie value for each prompt, and the length of the lines."""
    prompts = material.prompts[split]
    outside = make_judge(spec, spec.outside, "outside", seed=seed, out=out)
    ways: dict[str, Callable[[], list[Joke]]] = {
        "beams": lambda: write_lines(spec, student, prompts, folder.name),
    }
    if spec.writing.sampled:
        ways["sampled"] = lambda: sample_lines(spec, student, prompts, folder.name, seed)
    by_way: dict[str, Any] = {}
    for way, write in ways.items():
        jokes = write()
        _keep_lines(folder / f"lines-{split}-{way}.jsonl", jokes)
        values: dict[str, list[float | None]] = {
            role: win_ties(jokes, judge, material.buffer)
            for role, judge in (("training", critic), ("outside", outside))
        }
        values["length ratio"] = [round(len(j.text) / len(j.prompt.text), 4) for j in jokes]
        if spec.teacher.teacher == "pocket":
            exact: Critic = registry.critics.make("pocket")
            values["exact score"] = [_rounded(judgement.score) for judgement in exact(jokes)]
        by_way[way] = values
    return by_way


def win_ties(jokes: Sequence[Joke], judge: Judge | None, buffer: TeacherBuffer) -> list[float | None]:
    """For each line, the share of the two orders in which it wins or ties against the teacher's first line."""
    assert judge is not None
    critic = WinTieCritic(buffer, judge=judge, max_lines=1, ties="win")
    return [_rounded(judgement.score) for judgement in critic(jokes)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _keep_lines(path: Path, jokes: Sequence[Joke]) -> None:
    rows = [json.dumps({"prompt": j.prompt.id, "text": j.text}) for j in jokes]
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path, prompts: Sequence[Prompt], author: str) -> list[Joke]:
    by_id = {p.id: p for p in prompts}
    rows = [json.loads(line) for line in json_lines.read_lines(path)]
    return [Joke(by_id[row["prompt"]], row["text"], author) for row in rows]


def _usage(ledgered: Any) -> dict[str, Any]:
    return asdict(ledgered.usage)


# People


def people_pairs(spec: ScaleSpec, material: Material, folder: Path) -> dict[str, list[tuple[Joke, Joke]]]:
    """The pairs shown to people: each system's line and the teacher's, blind, on the first test prompts.

    Half of the pairs show the system first, chosen by a hash of the texts."""
    prompts = material.prompts["test"]
    prompts = prompts[: spec.people.prompts or len(prompts)]
    ids = {p.id for p in prompts}
    pairs: dict[str, list[tuple[Joke, Joke]]] = {}
    for system in (s for s in SYSTEMS if s.people):
        lines = read_lines(folder / system.name / "lines-test-beams.jsonl", material.prompts["test"], system.name)
        pairs[system.name] = [
            _blind(line, Joke(line.prompt, material.buffer.lines_for(line.prompt.id)[0], "teacher"))
            for line in lines
            if line.prompt.id in ids
        ]
    return pairs


def _blind(mine: Joke, theirs: Joke) -> tuple[Joke, Joke]:
    return (mine, theirs) if stream_seed(0, "blind", f"{mine.text}\x1f{theirs.text}") % 2 else (theirs, mine)


def ask_people(record: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The cell of Tables 1 and 6: people's verdicts on the systems' lines, compared with each critic's."""
    out = folder.parents[2]
    spec = _open(record["scale"], out, **{k: record[k] for k in ("people", "cloze") if k in record})
    material = open_material(spec, seed, out)
    by_system = people_pairs(spec, material, folder.parent)
    people = {part: make_people(spec.people.who, part) for part in PARTS}
    rates = {
        name: {part: _rates(jokes, _asked(people[part], jokes)) for part in PARTS} for name, jokes in by_system.items()
    }
    pairs = [pair for jokes in by_system.values() for pair in jokes]
    truth = {part: _asked(people[part], pairs) for part in PARTS}
    rows: dict[str, dict[str, list[float | None]]] = {}
    for part in PARTS:
        judge = make_judge(spec, spec.critic, "critic", seed=seed, out=out, part=part)
        if judge is not None:
            rows[f"mcp/{part}"] = compare(pairs, judge(pairs), truth, part)
        ask = getattr(judge, "ask", None)
        if ask is not None:
            rows[f"mcp in one order/{part}"] = compare(pairs, ask(pairs), truth, part)
        if spec.cloze.model is not None:
            rows[f"cloze/{part}"] = compare(pairs, ClozeJudge(spec.cloze, part)(pairs), truth, part)
    return {"critics": rows, "systems": rates, "pairs": len(pairs)}


def _rates(pairs: Sequence[tuple[Joke, Joke]], verdicts: Sequence[Verdict]) -> list[float | None]:
    return [_rounded(_win_or_tie(pair, verdict)) for pair, verdict in zip(pairs, verdicts, strict=True)]


def _asked(judge: Judge | None, pairs: Sequence[tuple[Joke, Joke]]) -> list[Verdict]:
    assert judge is not None
    return list(judge(pairs))


def _win_or_tie(pair: tuple[Joke, Joke], verdict: Verdict) -> float | None:
    """The student's share, in whichever place it was shown."""
    if verdict.probability is None:
        return None
    p = verdict.probability if pair[0].author != "teacher" else 1 - verdict.probability
    return min(1.0, p + verdict.tie / 2)


def compare(
    pairs: Sequence[tuple[Joke, Joke]], verdicts: Sequence[Verdict], truth: Mapping[str, Sequence[Verdict]], part: str
) -> dict[str, list[float | None]]:
    """A critic compared with people, one value for each pair; None if there is nothing to compare.

    Agreement is over pairs on which people prefer one line. A critic that cannot decide such a pair disagrees. Length
    bias: of the pairs on which people decided the question that the critic was asked, those on which people prefer the
    shorter line and the critic the longer one.
    """
    columns: dict[str, list[float | None]] = {
        "agree humor": [],
        "agree consistency": [],
        "position bias": [],
        "length bias": [],
    }
    for index, (pair, verdict) in enumerate(zip(pairs, verdicts, strict=True)):
        side = _side(verdict)
        for name in ("humor", "consistency"):
            right = _side(truth[name][index])
            is_asked = part in ("overall", name) and side is not None
            columns[f"agree {name}"].append(float(side == right) if is_asked and right else None)
        flipped = verdict.flipped
        columns["position bias"].append(None if flipped is None else float(flipped))
        right, longer = _side(truth[part][index]), _longer(pair)
        wrong = right is not None and side == longer != 0 and right == -longer
        columns["length bias"].append(float(wrong) if right and side is not None else None)
    return columns


def _side(verdict: Verdict) -> int | None:
    """1 for the first line, -1 for the second, 0 for neither."""
    p = verdict.probability
    return None if p is None else (p > 0.5) - (p < 0.5)


def _longer(pair: tuple[Joke, Joke]) -> int:
    a, b = len(pair[0].text), len(pair[1].text)
    return (a > b) - (a < b)
