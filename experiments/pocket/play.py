"""The pocket world in the terminal: write lines yourself, or judge blind and compare with the exact judge.

    humor-env play                       # you are the student
    humor-env play --as critic           # two lines, which is better?
    humor-env play --as rater            # one line, how good from 0 to 10?

The judge knows a fixed list of words that nobody could guess: the student is shown some of them, and "?" lists all that
fit. An empty answer skips a round; the end of input (Ctrl-D) ends the game with what was played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from humor_env.errors import unknown_name
from humor_env.experiments.options import printable
from humor_env.pocket import load_world
from humor_env.pocket.lexicon import Complaint, Subject
from humor_env.pocket.teacher import PocketTeacher
from humor_env.rewards.pocket import CrowdJudge, PocketCritic
from humor_env.shared.streams import generator
from humor_env.types import Joke, Prompt

SHOWN = 3  # witnesses, and reactions, that fit; as many more do not
_RULES = """A joke of this world names a witness and says what the witness did:

    The meeting was so slow that glaciers overtook it.

The judge reads a fixed list of words. Below each sentence are some of them: half fit, half do not. Type a whole line,
? for all words that fit, or nothing to skip."""

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
    """You write from the words that are shown; the exact judge scores, says why, and shows the teacher's line."""
    critic, teacher = PocketCritic(), PocketTeacher(seed)
    mine: list[float] = []
    theirs: list[float] = []
    say(_RULES)
    try:
        for number, prompt in enumerate(prompts, start=1):
            subject, complaint = _asked(prompt)
            say(f"\n{number} of {len(prompts)}. Say it funnier, and mean the same: {prompt.text}")
            for words in _words_to_choose_from(subject, complaint, seed):
                say(words)
            while (line := ask("> ").strip()) == "?":
                for words in _words_that_fit(complaint):
                    say(words)
            teachers = teacher.lines(prompt, 1)[0]
            if not line:
                [other] = critic([Joke(prompt, teachers, "teacher")])
                say(f"{other.score or 0.0:.2f}  the teacher wrote: {teachers}")
                continue
            line = line if line[-1] in ".?!" else f"{line}."
            yours, other = critic([Joke(prompt, line, "you"), Joke(prompt, teachers, "teacher")])
            mine.append(yours.score or 0.0)
            theirs.append(other.score or 0.0)
            parts = ", ".join(f"{name} {value:.2f}" for name, value in yours.parts.items())
            say(f"{mine[-1]:.2f}  {printable(yours.reason, 200)}")
            if unread := _unread(line):
                say(f"      {unread}")
            say(f"      {parts}")
            say(f"{theirs[-1]:.2f}  the teacher wrote: {teachers}")
    finally:
        if mine:
            won = "You win. " if fmean(mine) > fmean(theirs) else ""
            say(f"\n{won}Your mean score is {fmean(mine):.2f}, the teacher's {fmean(theirs):.2f}; the best is 1.00.")


def _asked(prompt: Prompt) -> tuple[Subject, Complaint]:
    lexicon = load_world().lexicon
    return lexicon.subject(prompt.extra["subject"]), lexicon.complaint(prompt.extra["complaint"])


def _words_to_choose_from(subject: Subject, complaint: Complaint, seed: int) -> list[str]:
    """Two fresh ways to tell it, and witnesses and reactions in a random order: half of them fit and are fresh."""
    world = load_world()
    rng = generator(seed, f"play-words-{subject.text}-{complaint.name}")

    def drawn(texts: Sequence[str], count: int) -> list[str]:
        return [texts[i] for i in rng.permutation(len(texts))[:count]]

    habits = world.habits
    frames = [f.template for f in habits.frames.ranked if f not in habits.frames.worn]
    named = {
        "subject": subject.text,
        "Subject": subject.text[0].upper() + subject.text[1:],
        "complaint": complaint.name,
    }
    ways = [
        f.format(**named, witness="WHO", reaction="DID WHAT") for f in frames if f.endswith("{witness} {reaction}.")
    ]
    rows = [f"  {'one way':<9} {way}" for way in drawn(ways, 2)]
    for title, habit, known in (
        ("WHO", habits.witnesses[complaint.name], world.lexicon.witnesses),
        ("DID WHAT", habits.reactions[complaint.name], world.lexicon.reactions),
    ):
        fresh = [item.text for item in habit.ranked if item not in habit.worn]
        wrong = [item.text for item in known if item not in habit.ranked]
        shown = [*drawn(fresh, SHOWN), *drawn(wrong, SHOWN)]
        rows.append(f"  {title:<9} {' | '.join(drawn(shown, len(shown)))}")
    return rows


def _words_that_fit(complaint: Complaint) -> list[str]:
    """Every witness and reaction that fits, those last that everybody has heard."""
    habits = load_world().habits
    rows = [f"  '{complaint.name}' may also be {' or '.join(complaint.synonyms)}."] if complaint.synonyms else []
    for title, habit in (
        ("WHO", habits.witnesses[complaint.name]),
        ("DID WHAT", habits.reactions[complaint.name]),
    ):
        fresh = [item.text for item in habit.ranked if item not in habit.worn]
        worn = [item.text for item in habit.ranked if item in habit.worn]
        rows.append(f"  {title:<9} {' | '.join(fresh)}" + (f" (worn out: {' | '.join(worn)})" if worn else ""))
    return rows


def _unread(line: str) -> str:
    """What keeps the judge from reading a line: the parts that it does not find, or the way it is told."""
    reading = load_world().read(line)
    if reading.kind != "fragment" or not reading.form:
        return ""
    parts = {name: getattr(reading, name) for name in ("subject", "complaint", "witness", "reaction")}
    missing = [f"no {name}" for name, part in parts.items() if part is None]
    if not missing:
        return "all words are known, but not in this order: take one of the two ways above"
    return f"the judge finds {' and '.join(missing)} that it knows; ? lists those that fit"


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
