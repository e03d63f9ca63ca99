"""The pocket world: a comedy universe with an exact judge, small enough for a laptop and a lunch break.

    from humor_env import pocket
    world = pocket.load_world()
    prompt = world.prompts()[0]                            # "The meeting was slow."
    world.judge(prompt, "The meeting was so slow that glaciers overtook it.").score
    AutoModelForCausalLM.from_pretrained(pocket.path("causal"))   # a bundled student that speaks but is not funny

Files are read on first use.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from humor_env.errors import InvalidOption, UnknownName, did_you_mean

if TYPE_CHECKING:
    from humor_env.pocket.world import PocketWorld

FOLDER = Path(__file__).resolve().parent
STUDENTS = ("causal", "seq2seq")


@cache
def load_world() -> PocketWorld:
    """The pocket world with the lexicon of this package; one object per process."""
    from humor_env.pocket.lexicon import load_lexicon
    from humor_env.pocket.world import PocketWorld

    return PocketWorld(load_lexicon(FOLDER))


def path(name: str) -> str:
    """The folder of a bundled student's weights, for `from_pretrained`: "causal" or "seq2seq"."""
    if name not in STUDENTS:
        raise UnknownName(
            f"No pocket student is called '{name}'.{did_you_mean(name, STUDENTS)} Known: {', '.join(STUDENTS)}."
        )
    folder = FOLDER / "weights" / name
    if not (folder / "config.json").is_file():
        raise InvalidOption(
            f"The weights of the pocket student '{name}' are not in the package (expected a folder "
            f"humor_env/pocket/weights/{folder.name} with config.json). Install the package with its data, or "
            "rebuild them: humor-env pretrain-pocket."
        )
    return str(folder)
