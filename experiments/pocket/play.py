"""The pocket world in the terminal: write lines yourself, or judge blind and see how the exact judge did.

    humor-env play                       # you are the student
    humor-env play --as critic           # two lines, which is better?
    humor-env play --as rater            # one line, how good from 0 to 10?

An empty answer passes a round; the end of input (Ctrl-D) ends the game with what was played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from humor_env.errors import unknown_name
from humor_env.experiments.options import printable
from humor_env.pocket import load_world
from humor_env.pocket.teacher import PocketTeacher
from humor_env.rewards.pocket import CrowdJudge, PocketCritic
from humor_env.shared.streams import generator
from humor_env.types import Joke, Prompt

Ask = Callable[[str], str]
Say = Callable[[str], None]
ROLES = ("student", "critic", "rater")


def play(role: str, rounds: int, seed: int, ask: Ask = input, say: Say = print) -> None:
    """Play `rounds` prompts of the test split, drawn by the seed."""
    if role not in ROLES:
        raise unknown_name("role to play", role, ROLES)
    held_out = [p for p in load_world().prompts("paraphrase") if p.split == "test"]
    order = generator(seed, "play").permutation(len(held_out))[:rounds]
    prompts = [held_out[i] for i in order]
    try:
        {"student": _student, "critic": _critic, "rater": _rater}[role](prompts, seed, ask, say)
    except EOFError:
        say("")


def _student(prompts: Sequence[Prompt], seed: int, ask: Ask, say: Say) -> None:
    """You write; the exact judge scores, says why, and shows the teacher's line."""
    critic, teacher = PocketCritic(), PocketTeacher(seed)
    mine: list[float] = []
    theirs: list[float] = []
    try:
        for number, prompt in enumerate(prompts, start=1):
            say(f"\n{number} of {len(prompts)}. Say it funnier, and mean the same: {prompt.text}")
            line = ask("> ").strip()
            if not line:
                continue
            teachers = teacher.lines(prompt, 1)[0]
            yours, other = critic([Joke(prompt, line, "you"), Joke(prompt, teachers, "teacher")])
            mine.append(yours.score or 0.0)
            theirs.append(other.score or 0.0)
            parts = ", ".join(f"{name} {value:.2f}" for name, value in yours.parts.items())
            say(f"{mine[-1]:.2f}  {printable(yours.reason, 200)}")
            say(f"      {parts}")
            say(f"{theirs[-1]:.2f}  the teacher wrote: {teachers}")
    finally:
        if mine:
            say(f"\nYour mean score is {fmean(mine):.2f}, the teacher's {fmean(theirs):.2f}; a perfect line has 1.00.")


def _critic(prompts: Sequence[Prompt], seed: int, ask: Ask, say: Say) -> None:
    """You choose blind between two lines; then the exact judge and a fallible crowd are shown."""
    good, beginner = PocketTeacher(seed), PocketTeacher(seed + 1, wrong_complaint_rate=0.5, lost_meaning_rate=0.25)
    exact, crowd = PocketCritic(), CrowdJudge(seed=seed)
    sides = generator(seed, "play-sides").integers(2, size=len(prompts))
    right = crowd_right = decided = 0
    try:
        for number, (prompt, side) in enumerate(zip(prompts, sides, strict=True), start=1):
            lines = [good.lines(prompt, 1)[0], beginner.lines(prompt, 1)[0]]
            pair = [Joke(prompt, line, "hidden") for line in (lines if side == 0 else lines[::-1])]
            say(f"\n{number} of {len(prompts)}. {prompt.text}\n  1  {pair[0].text}\n  2  {pair[1].text}")
            choice = _one_of(ask, "Which is better, 1 or 2? ", ("1", "2"))
            scores = [judgement.score or 0.0 for judgement in exact(pair)]
            reasons = [judgement.reason for judgement in exact(pair)]
            [verdict] = crowd([(pair[0], pair[1])])
            crowds = "1" if (verdict.probability or 0.0) > 0.5 else "2"
            for place in (0, 1):
                say(f"  {place + 1}  {scores[place]:.2f}  {reasons[place]}")
            if scores[0] == scores[1]:
                say("  The exact judge finds them equally good.")
            elif choice:
                better = "1" if scores[0] > scores[1] else "2"
                decided += 1
                right += choice == better
                crowd_right += crowds == better
                say(f"  You {'agree' if choice == better else 'disagree'}; the crowd judge chose {crowds}.")
    finally:
        if decided:
            say(f"\nYou agreed with the exact judge {right} times of {decided}, the crowd judge {crowd_right} times.")


def _rater(prompts: Sequence[Prompt], seed: int, ask: Ask, say: Say) -> None:
    """You rate one line at a time; then the exact score is shown."""
    beginner, exact = PocketTeacher(seed, wrong_complaint_rate=0.5, lost_meaning_rate=0.25), PocketCritic()
    apart: list[float] = []
    try:
        for number, prompt in enumerate(prompts, start=1):
            line = beginner.lines(prompt, 1)[0]
            say(f"\n{number} of {len(prompts)}. {prompt.text}\n  {line}")
            answer = _one_of(ask, "How good, from 0 to 10? ", tuple(map(str, range(11))))
            [judgement] = exact([Joke(prompt, line, "hidden")])
            score = judgement.score or 0.0
            say(f"  {10 * score:.1f}  {judgement.reason}")
            if answer:
                apart.append(abs(int(answer) - 10 * score))
    finally:
        if apart:
            say(f"\nYou were {fmean(apart):.1f} points from the exact judge on average, over {len(apart)} lines.")


def _one_of(ask: Ask, question: str, answers: Sequence[str]) -> str:
    """One of the answers, or "" to pass; anything else is asked again."""
    while (answer := ask(question).strip()) not in ("", *answers):
        question = f"One of {', '.join(answers)}, or nothing to pass: "
    return answer
