"""The exact judge of the pocket world: five parts of a line, one score, and a reason in words.

    score = form × meaning × (0.1 + resolution × (0.4 + 0.15 × incongruity + 0.35 × freshness))

| part        | 1                                           | in between                         | 0                   |
|-------------|---------------------------------------------|------------------------------------|---------------------|
| form        | parses, character for character             | to 0.4: the neighbours that fit    | empty, long, lines  |
| meaning     | the prompt's subject and complaint are kept | 0.3: only one of them              | neither             |
| resolution  | the complaint fits witness *and* reaction   | 0.3: only one of them              | neither             |
| incongruity | the witness is from a far corner of life    | 0.5: from a related one            | the subject's own   |
| freshness   | nothing worn out                            | less 0.5 witness, 0.3 reaction,    | all worn out, or no |
|             |                                             | 0.2 frame, where worn out          | punchline           |

So a plain paraphrase gets 0.1, a correct punchline at least 0.5, a correct and fresh one at least 0.85, and a text that
does not parse at most 0.4. A punchline must fit the *prompt's* complaint, not whatever the line claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from humor_env.pocket.grammar import Grammar, Reading
from humor_env.pocket.habits import Habits
from humor_env.pocket.lexicon import Complaint, Lexicon, Subject

PARTS = ("form", "meaning", "resolution", "incongruity", "freshness")
HALF = 0.3  # meaning or resolution with one of two right: half a joke is much less than half as good
WORN_WITNESS, WORN_REACTION, WORN_FRAME = 0.5, 0.3, 0.2


@dataclass(frozen=True, slots=True)
class PocketScore:
    """The score of one line and its parts, all in [0, 1], and the reason."""

    score: float
    parts: Mapping[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a prompt asks for. Complaint None: any that the line's subject permits."""

    subject: Subject | None
    complaint: Complaint | None
    words: tuple[str, ...] = ()
    kind: str = "paraphrase"


def combine(form: float, meaning: float, resolution: float, incongruity: float, freshness: float) -> float:
    """The score from five parts; monotone in each."""
    punch = resolution * (0.4 + 0.15 * incongruity + 0.35 * freshness)
    return round(form * meaning * (0.1 + punch), 6)


class ExactJudge:
    """Scores a text against a request. Stateless: the same text always gets the same score."""

    def __init__(self, lexicon: Lexicon, grammar: Grammar, habits: Habits) -> None:
        self._grammar = grammar
        names = [d.name for d in lexicon.domains]
        self._distance = {(a, b): lexicon.distance(a, b) for a in names for b in names}
        self._worn_witnesses = {name: {w.text for w in habit.worn} for name, habit in habits.witnesses.items()}
        self._worn_reactions = {name: {r.text for r in habit.worn} for name, habit in habits.reactions.items()}
        self._worn_frames = {frame.template for frame in habits.frames.worn}

    def __call__(self, request: Request, text: str) -> PocketScore:
        reading = self._grammar.read(text)
        form = reading.form
        meaning, lost = self._meaning(request, reading, text)
        complaint = request.complaint or reading.complaint
        witness, reaction = reading.witness, reading.reaction
        resolution = incongruity = freshness = 0.0
        if complaint is None or (witness is None and reaction is None):
            punchline = "there is no punchline"
        else:
            name = complaint.name
            fits = witness is not None and name in witness.traits
            shows = reaction is not None and name in reaction.implies
            resolution = 1.0 if fits and shows else HALF if fits or shows else 0.0
            punchline = _punchline(name, reading, fits, shows)
            subject = reading.subject or request.subject
            if witness is not None and subject is not None:
                incongruity = self._distance[witness.domain, subject.domain]
                if incongruity < 1.0:
                    punchline += ", which is close to home" if incongruity == 0.0 else ", which is not far away"
            worn = []
            freshness = 1.0
            if witness is None or witness.text in self._worn_witnesses[name]:
                freshness -= WORN_WITNESS
                worn += [witness.text] if witness is not None else []
            if reaction is None or reaction.text in self._worn_reactions[name]:
                freshness -= WORN_REACTION
                worn += [f"'{reaction.text}'"] if reaction is not None else []
            if reading.frame is None or reading.frame.template in self._worn_frames:
                freshness -= WORN_FRAME
                worn += ["the way it is told"] if reading.frame is not None else []
            freshness = round(freshness, 6)
            if worn:
                punchline += "; worn out: " + ", ".join(worn)
        parts = {
            "form": round(form, 6),
            "meaning": meaning,
            "resolution": resolution,
            "incongruity": incongruity,
            "freshness": freshness,
        }
        reason = "; ".join(part for part in (reading.trouble, lost, punchline) if part)
        return PocketScore(combine(form, meaning, resolution, incongruity, freshness), parts, reason)

    def _meaning(self, request: Request, reading: Reading, text: str) -> tuple[float, str]:
        """How much of the request is kept, and a description of what is lost."""
        subject, complaint = reading.subject, reading.complaint
        if request.words:
            words = self._grammar.words(text)
            missing = [word for word in request.words if word not in words]
            if missing:
                return (HALF if len(missing) < len(request.words) else 0.0), f"without {' and '.join(missing)}"
            if subject is not None and complaint is not None and complaint.name in subject.complaints:
                return 1.0, ""
            return HALF, "nobody would say that of it"
        same_subject = subject is not None and subject is request.subject
        if request.complaint is None:
            if not same_subject:
                return 0.0, f"not about {request.subject.text if request.subject else 'it'}"
            if subject is not None and complaint is not None and complaint.name in subject.complaints:
                return 1.0, ""
            return HALF, "nobody would say that of it"
        same_complaint = complaint is request.complaint
        if same_subject and same_complaint:
            return 1.0, ""
        subject_text = request.subject.text if request.subject else "the subject"
        if same_complaint:
            return HALF, f"{subject_text} was lost" if subject is None else f"{subject_text} became {subject.text}"
        name = request.complaint.name
        if same_subject:
            return HALF, f"'{name}' was lost" if complaint is None else f"'{name}' became '{complaint.name}'"
        return 0.0, f"neither {subject_text} nor '{name}' was kept"


def _punchline(name: str, reading: Reading, fits: bool, shows: bool) -> str:
    witness, reaction = reading.witness, reading.reaction
    if witness is None:
        return f"nobody '{reaction.text}'" + (f", which would show '{name}'" if shows else "") if reaction else ""
    if reaction is None:
        return f"'{name}' {'fits' if fits else 'does not fit'} {witness.text}, but nothing happens"
    if fits and shows:
        return f"'{name}' fits {witness.text}, and '{reaction.text}' shows it"
    if fits:
        return f"'{name}' fits {witness.text}, but '{reaction.text}' does not show it"
    if shows:
        return f"'{reaction.text}' shows '{name}', but that does not fit {witness.text}"
    return f"'{name}' fits neither {witness.text} nor '{reaction.text}'"
