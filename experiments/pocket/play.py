"""A game in the terminal: write lines yourself, or judge blind and compare with the exact judge.

    humor-env play                       # you are the student, in the pocket world
    humor-env play --as critic           # two lines, which is better?
    humor-env play --as rater            # one line, how good from 0 to 10?
    humor-env play --prompts everyday    # you are the student, in real English

The pocket judge knows a fixed list of words that nobody could guess: the student is shown some of them, and "?" lists
all that fit. Real sentences may use any words; the critic `everyday` scores them, which needs a model but no key. An
empty answer skips a round; the end of input (Ctrl-D) ends the game and shows the score so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from humor_env.errors import InvalidOption, unknown_name
from humor_env.experiments.options import printable
from humor_env.pocket import load_world
from humor_env.pocket.lexicon import Complaint, Subject
from humor_env.pocket.teacher import PocketTeacher
from humor_env.registry import critics
from humor_env.rewards.pocket import CrowdJudge, PocketCritic
from humor_env.shared.streams import generator
from humor_env.teacher import everyday_lines
from humor_env.types import Critic, Joke, Judgement, Prompt

SHOWN = 3  # witnesses, and reactions, that fit; as many more do not
_RULES = """A joke of this world names a witness and says what the witness did:

    The meeting was so slow that glaciers overtook it.

The judge reads a fixed list of words. Below each sentence are some of them: half fit, half do not. Type a whole line,
? for all words that fit, or nothing to skip."""

_EVERYDAY_RULES = """Write any line that says the same and is funnier. The score is how funny it is, times how well it
keeps the meaning, according to the critic 'everyday': a small model that picks the better of two lines for a sentence
in about 77 % of cases. Type a line, ? for somebody else's line, or nothing to skip."""

Ask = Callable[[str], str]
Say = Callable[[str], None]
ROLES = ("student", "critic", "rater")
PROMPTS = ("pocket", "everyday")


@dataclass(frozen=True)
class _Setting:
    """What differs between the two worlds if you are the student: `words` are shown before you write, `help` by "?",
    and `remark` with your line's score."""

    rules: str
    prompts: Sequence[Prompt]
    critic: Critic
    teacher: Callable[[Prompt], str]
    words: Callable[[Prompt], list[str]]
    help: Callable[[Prompt], list[str]]
    remark: Callable[[str, Judgement], list[str]]


def play(role: str, rounds: int, seed: int, ask: Ask = input, say: Say = print, prompts: str = "pocket") -> None:
    """Play `rounds` prompts of the test split, drawn by the seed."""
    if role not in ROLES:
        raise unknown_name("role to play", role, ROLES)
    if prompts not in PROMPTS:
        raise unknown_name("set of prompts to play", prompts, PROMPTS)
    if prompts == "everyday" and role != "student":
        raise InvalidOption(
            f"With --prompts everyday you write; --as {role} is for the pocket world, whose judge is exact. To judge "
            "lines in real English, use humor-env arena."
        )
    try:
        if role == "student":
            _student(_pocket(seed) if prompts == "pocket" else _everyday(seed), rounds, seed, ask, say)
        else:
            chosen = _drawn([p for p in load_world().prompts("paraphrase") if p.split == "test"], rounds, seed)
            {"critic": _critic, "rater": _rater}[role](chosen, seed, ask, say)
    except EOFError:
        say("")


def _drawn(held_out: Sequence[Prompt], rounds: int, seed: int) -> list[Prompt]:
    return [held_out[i] for i in generator(seed, "play").permutation(len(held_out))[:rounds]]


def _pocket(seed: int) -> _Setting:
    """You write with the words that are shown; the exact judge gives reasons."""
    teacher = PocketTeacher(seed)

    def remark(line: str, judgement: Judgement) -> list[str]:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in judgement.parts.items())
        unread = _unread(line)
        return [printable(judgement.reason, 200), *([unread] if unread else []), parts]

    return _Setting(
        rules=_RULES,
        prompts=[p for p in load_world().prompts("paraphrase") if p.split == "test"],
        critic=PocketCritic(),
        teacher=lambda prompt: teacher.lines(prompt, 1)[0],
        words=lambda prompt: _words_to_choose_from(*_asked(prompt), seed),
        help=lambda prompt: _words_that_fit(_asked(prompt)[1]),
        remark=remark,
    )


def _everyday(seed: int) -> _Setting:
    """You write what you like. Of the three lines written for a sentence, the seed draws one as the teacher's, and "?"
    shows another."""
    lines = everyday_lines().split("test")
    prompts = lines.prompts()

    def drawn(prompt: Prompt) -> list[str]:
        texts = lines.lines_for(prompt.id)
        return [texts[i] for i in generator(seed, "play-lines", prompt.id).permutation(len(texts))]

    critic = critics.make("everyday")
    critic([Joke(prompts[0], drawn(prompts[0])[0], "teacher")])  # loads its model, or reports it missing, now
    return _Setting(
        rules=_EVERYDAY_RULES,
        prompts=prompts,
        critic=critic,
        teacher=lambda prompt: drawn(prompt)[0],
        words=lambda prompt: [],
        help=lambda prompt: [f"  somebody else wrote: {drawn(prompt)[-1]}"],
        remark=lambda line, judgement: [", ".join(f"{name} {value:.2f}" for name, value in judgement.parts.items())],
    )


def _student(setting: _Setting, rounds: int, seed: int, ask: Ask, say: Say) -> None:
    """You write, the critic scores, and the teacher's line is shown with its score."""
    prompts = _drawn(setting.prompts, rounds, seed)
    your_scores: list[float] = []
    teacher_scores: list[float] = []
    say(setting.rules)
    try:
        for number, prompt in enumerate(prompts, start=1):
            say(f"\n{number} of {len(prompts)}. Say it funnier, and mean the same: {prompt.text}")
            for words in setting.words(prompt):
                say(words)
            while (line := ask("> ").strip()) == "?":
                for words in setting.help(prompt):
                    say(words)
            teachers = setting.teacher(prompt)
            if not line:
                [other] = setting.critic([Joke(prompt, teachers, "teacher")])
                say(f"{other.score or 0.0:.2f}  the teacher wrote: {teachers}")
                continue
            line = line if line[-1] in ".?!" else f"{line}."
            yours, other = setting.critic([Joke(prompt, line, "you"), Joke(prompt, teachers, "teacher")])
            your_scores.append(yours.score or 0.0)
            teacher_scores.append(other.score or 0.0)
            remark = setting.remark(line, yours)
            say(f"{your_scores[-1]:.2f}  {remark[0]}")
            for sentence in remark[1:]:
                say(f"      {sentence}")
            say(f"{teacher_scores[-1]:.2f}  the teacher wrote: {teachers}")
    finally:
        if your_scores:
            won = "You win. " if fmean(your_scores) > fmean(teacher_scores) else ""
            say(
                f"\n{won}Your mean score is {fmean(your_scores):.2f}, the teacher's {fmean(teacher_scores):.2f}; "
                "the best is 1.00."
            )


def _asked(prompt: Prompt) -> tuple[Subject, Complaint]:
    lexicon = load_world().lexicon
    return lexicon.subject(prompt.extra["subject"]), lexicon.complaint(prompt.extra["complaint"])


def _words_to_choose_from(subject: Subject, complaint: Complaint, seed: int) -> list[str]:
    """Two fresh sentence frames, and witnesses and reactions in random order, half of which fit and are fresh."""
    world = load_world()
    rng = generator(seed, f"play-words-{subject.text}-{complaint.name}")

    def drawn(texts: Sequence[str], count: int) -> list[str]:
        return [texts[i] for i in rng.permutation(len(texts))[:count]]

    habits = world.habits
    frames = [f.template for f in habits.frames.ranked if f not in habits.frames.worn]
    slots = {
        "subject": subject.text,
        "Subject": subject.text[0].upper() + subject.text[1:],
        "complaint": complaint.name,
    }
    ways = [
        f.format(**slots, witness="WHO", reaction="DID WHAT") for f in frames if f.endswith("{witness} {reaction}.")
    ]
    rows = [f"  {'one way':<9} {way}" for way in drawn(ways, 2)]
    for title, habit, items in (
        ("WHO", habits.witnesses[complaint.name], world.lexicon.witnesses),
        ("DID WHAT", habits.reactions[complaint.name], world.lexicon.reactions),
    ):
        fresh = [item.text for item in habit.ranked if item not in habit.worn]
        wrong = [item.text for item in items if item not in habit.ranked]
        choices = [*drawn(fresh, SHOWN), *drawn(wrong, SHOWN)]
        rows.append(f"  {title:<9} {' | '.join(drawn(choices, len(choices)))}")
    return rows


def _words_that_fit(complaint: Complaint) -> list[str]:
    """Every witness and reaction that fits, the worn-out ones last."""
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
    """Why the judge cannot read a line: the parts that it does not find, or the order of the words."""
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
            say(f"\nYou agreed with the exact judge in {right} of {decided} rounds, the crowd judge in {crowd_right}.")


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
    """One of the answers, or "" to pass; asks again after anything else."""
    while (answer := ask(question).strip()) not in ("", *answers):
        question = f"One of {', '.join(answers)}, or nothing to pass: "
    return answer
