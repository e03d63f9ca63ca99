"""Prompt files: instructions read from disk, with slots filled in one pass.

    fill(load("humor_env.rewards", "multiple_choice"), words=20)      # templates/multiple_choice.txt

A slot is written `{{name}}`. Inserted values are not scanned again, so a value with braces stays as it is. Only *our*
options are filled in; jokes and prompts travel as data (see protocol.py).
"""

from __future__ import annotations

import re
from importlib.resources import files

from humor_env.errors import InvalidOption, unknown_name
from humor_env.shared.json_lines import read_text
from humor_env.shared.user_path import user_path

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def load(package: str, name: str) -> str:
    """The template `name` of a package's `templates` folder, or the text of a file given by its path."""
    if "/" in name or "\\" in name or name.endswith(".txt"):
        path = user_path(name)
        if not path.is_file():
            raise InvalidOption(f"There is no prompt file '{name}'. Give a path to a text file, or a built-in name.")
        return read_text(path)
    folder = files(package) / "templates"
    template = folder / f"{name}.txt"
    if not template.is_file():
        names = [entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")]
        raise unknown_name("prompt template", name, names, "For your own, give the path of a .txt file.")
    return template.read_text(encoding="utf-8")


def fill(template: str, **values: object) -> str:
    """The template with every slot filled; a slot without a value is an error, a value without a slot is not."""
    missing = sorted(set(_SLOT.findall(template)) - set(values))
    if missing:
        raise InvalidOption(
            f"The prompt template has slots that nothing fills: {', '.join(missing)}. Known: {', '.join(values)}."
        )
    return _SLOT.sub(lambda slot: str(values[slot[1]]), template).strip()
