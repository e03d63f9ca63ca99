"""The tutorial notebook: runs its cells, saves their output, and makes a page of the documentation from it.

    python -m humor_env.experiments.upkeep.pages.tutorial run     # runs all cells, rewrites docs/tutorial.ipynb and .md
    python -m humor_env.experiments.upkeep.pages.tutorial page    # rewrites docs/tutorial.md from the notebook as it is

Neither needs Jupyter: cells run in order in this process, and only what they print is saved. Progress bars and
warnings, which go to standard error, are not, since they differ between machines. The page always matches the notebook:
a test regenerates it and compares.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import humor_env

ROOT = Path(humor_env.__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
PAGE = NOTEBOOK.with_suffix(".md")
STUDENT = "HUMOR_ENV_TUTORIAL_STUDENT"  # the variable that the notebook reads the student's name from
VARIES = "varies"  # the tag of a cell whose output depends on the machine, in its last digits or its words

Notebook = dict[str, Any]
Cell = Mapping[str, Any]


def load(path: Path = NOTEBOOK) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def dump(notebook: Mapping[str, Any]) -> str:
    """The notebook as Jupyter writes it, so that saving it there changes nothing else."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def printed(cell: Cell) -> str:
    return "".join(line for output in cell.get("outputs", ()) for line in output["text"])


def code_cells(notebook: Mapping[str, Any]) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: Mapping[str, Any], *, name: str = "docs/tutorial.ipynb") -> Notebook:
    """The notebook with what its cells print now. A failing cell raises its own error."""
    executed: Notebook = copy.deepcopy(dict(notebook))
    names: dict[str, Any] = {"__name__": "tutorial"}
    for number, cell in enumerate(code_cells(executed), start=1):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source(cell), f"{name}, cell {number}", "exec"), names)
        lines = output.getvalue().splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    return executed


def page(notebook: Mapping[str, Any]) -> str:
    """Markdown: texts unchanged, code and its output as blocks."""
    parts = []
    for cell in notebook["cells"]:
        text = source(cell).strip("\n")
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        if output := printed(cell).strip("\n"):
            parts.append(f"```text\n{output}\n```")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.upkeep.pages.tutorial", description=__doc__.split("\n")[0]
    )
    parser.add_argument("what", choices=("run", "page"))
    options = parser.parse_args(arguments)
    notebook = load()
    if options.what == "run":
        notebook = run(notebook)
        NOTEBOOK.write_text(dump(notebook), encoding="utf-8")
    PAGE.write_text(page(notebook), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
