"""A page of lines of the pocket world: the same sentences by the base model, the teacher and a perfect student.

python -m humor_env.experiments.pocket.gallery --out docs/gallery.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from humor_env import pocket
from humor_env.pocket.teacher import PocketTeacher
from humor_env.shared.streams import generator
from humor_env.types import Joke, Prompt

COMMAND = "python -m humor_env.experiments.pocket.gallery --out docs/gallery.md"
PARTS = ("form", "meaning", "resolution", "incongruity", "freshness")


def gallery(count: int = 30, seed: int = 0) -> str:
    """The page as Markdown: `count` test and out-of-distribution prompts, each with three lines and their parts."""
    from humor_env.agents.student import Student

    world = pocket.load_world()
    candidates = [p for p in world.prompts() if p.split in ("test", "ood")]
    order = generator(seed, "gallery").permutation(len(candidates))
    prompts = [candidates[i] for i in order[:count]]
    student = Student.load(pocket.path("causal"))
    base = student.generate([p.text for p in prompts], seed=seed, adapter=None).texts
    teacher = PocketTeacher(seed=seed)
    lines = [
        "# Gallery of the pocket world",
        "",
        f"{count} sentences that no student trained on, drawn with seed {seed}, with the judge's parts and reasons.",
        "The *base* writes plain sentences. The *teacher* is often funny, but repeats itself and makes mistakes.",
        "The *best* line is one of many with the highest score.",
        "",
        f"Regenerate with `{COMMAND}`.",
        "",
    ]
    for number, (prompt, line) in enumerate(zip(prompts, base, strict=True), start=1):
        rows = (("base", line), ("teacher", teacher.lines(prompt, 1)[0]), ("best", world.best(prompt)))
        lines += _entry(number, prompt, rows)
    return "\n".join(lines)


def _entry(number: int, prompt: Prompt, rows: Sequence[tuple[str, str]]) -> list[str]:
    world = pocket.load_world()
    head = f"## {number}. {_plain(prompt.text)}"
    table = [
        "| who | line | score | " + " | ".join(PARTS) + " | why |",
        "|---|---|---:|" + "---:|" * len(PARTS) + "---|",
    ]
    for who, text in rows:
        score = world.judge_many([Joke(prompt, text, who)])[0]
        parts = " | ".join(f"{score.parts[name]:.2f}" for name in PARTS)
        table.append(f"| {who} | {_plain(text)} | **{score.score:.2f}** | {parts} | {_plain(score.reason)} |")
    return [head, "", *table, ""]


def _plain(text: str) -> str:
    """A model's text, escaped so that nothing in it is Markdown or HTML."""
    escaped = text.translate({ord(mark): f"&#{ord(mark)};" for mark in "\\`*_{}[]<>|#&"})
    return " ".join(escaped.split())


def main(
    out: Path = typer.Option(..., help="Where the Markdown page is written."),
    count: int = typer.Option(30, help="How many prompts."),
    seed: int = typer.Option(0, help="Seed that chooses the prompts and lines."),
) -> None:
    out.write_text(gallery(count, seed), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
