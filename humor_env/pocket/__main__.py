"""Measure every number that the documentation gives about the pocket world.

python -m humor_env.pocket                # sizes, room for creativity, the teacher's rates, speed
python -m humor_env.pocket --worn-out     # the clichés, by complaint, as a table
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from humor_env.pocket import FOLDER, load_world
from humor_env.pocket.lexicon import load_lexicon
from humor_env.pocket.teacher import PocketTeacher
from humor_env.pocket.world import PocketWorld
from humor_env.types import Demonstration, Joke


def worn_out_table(world: PocketWorld) -> list[str]:
    """The teacher's clichés as rows of a Markdown table."""
    rows = ["| complaint | worn-out witnesses | worn-out reactions |", "|---|---|---|"]
    for complaint in world.lexicon.complaints:
        witnesses, reactions = world.habits.witnesses[complaint.name], world.habits.reactions[complaint.name]
        cells = [", ".join(x.text for x in habit.ranked if x in habit.worn) for habit in (witnesses, reactions)]
        rows.append(f"| {complaint.name} | {cells[0]} | {cells[1]} |")
    return rows


def sizes(world: PocketWorld) -> list[str]:
    lexicon = world.lexicon
    plain = sum(way.style == "plain" for way in lexicon.literals)
    rows = [
        f"words: {len(lexicon.subjects)} subjects, {len(lexicon.complaints)} complaints "
        f"({sum(len(c.adjectives) for c in lexicon.complaints)} adjectives), {len(lexicon.witnesses)} witnesses, "
        f"{len(lexicon.reactions)} reactions, {plain} plain and {len(lexicon.literals) - plain} conversational "
        f"phrasings, {len(lexicon.frames)} frames",
        f"pairs: {len(world.pairs())}, of them {len(world.held_out_pairs())} held out",
    ]
    for task in ("paraphrase", "oneliner"):
        count = Counter(p.split for p in world.prompts(task))
        rows.append(f"{task} prompts: " + ", ".join(f"{split} {count[split]:,}" for split in count))
    return rows


def teacher_rates(world: PocketWorld, buffer: list[Demonstration]) -> list[str]:
    scores = world.judge_many([Joke(d.prompt, d.text) for d in buffer])
    right = [s for s in scores if s.parts["meaning"] == s.parts["resolution"] == 1.0]
    good = {d.text for d, s in zip(buffer, scores, strict=True) if s.score >= 0.8}
    room = world.enumerate_count(0.8)
    return [
        f"distinct jokes that score at least 0.8: {room:,}; 1.0: {world.enumerate_count(1.0):,}",
        f"the same without counting frames and synonyms: {world.enumerate_count(0.8, ideas=True):,}; "
        f"1.0: {world.enumerate_count(1.0, ideas=True):,}",
        f"teacher's buffer: {len(buffer):,} lines, {len(good):,} distinct ones of at least 0.8 "
        f"({len(good) / room:.3%} of what there is)",
        f"teacher: mean score {fmean(s.score for s in scores):.3f}; "
        f"perfect {fmean(s.score == 1.0 for s in scores):.1%}; "
        f"meaning and punchline right {len(right) / len(scores):.1%}, their mean {fmean(s.score for s in right):.3f}",
        f"teacher's faults: meaning lost {fmean(s.parts['meaning'] < 1 for s in scores):.1%}, "
        f"punchline half right {fmean(s.parts['resolution'] == 0.3 for s in scores):.1%}, "
        f"all wrong {fmean(s.parts['resolution'] == 0.0 for s in scores):.1%}, "
        f"something worn out {fmean(s.parts['freshness'] < 1 for s in scores):.1%}",
    ]


def speeds(world: PocketWorld, buffer: list[Demonstration]) -> list[str]:
    start = time.perf_counter()
    PocketWorld(load_lexicon(FOLDER))
    load = time.perf_counter() - start
    jokes = [Joke(d.prompt, d.text) for d in buffer]
    distinct = len({joke.text for joke in jokes}) / len(jokes)
    start = time.perf_counter()
    world.judge_many(jokes)
    rate = len(jokes) / (time.perf_counter() - start)
    prompts = [p for p in world.prompts() if p.split == "train"]
    teacher = PocketTeacher(seed=1)
    start = time.perf_counter()
    count = sum(len(teacher.lines(prompt, 3)) for prompt in prompts)
    taught = count / (time.perf_counter() - start)
    return [
        f"world read and checked in {load:.3f} s; {rate:,.0f} judgements/s on one core ({distinct:.1%} of the texts "
        f"distinct); {taught:,.0f} teacher lines/s"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m humor_env.pocket", description="Numbers of the pocket world.")
    parser.add_argument("--worn-out", action="store_true", help="print the clichés instead")
    world = load_world()
    if parser.parse_args(arguments).worn_out:
        print("\n".join(worn_out_table(world)))
        return
    buffer = PocketTeacher().demonstrations([p for p in world.prompts() if p.split == "train"], 3)
    print("\n".join([*sizes(world), *teacher_rates(world, buffer), *speeds(world, buffer)]))


if __name__ == "__main__":
    main()
