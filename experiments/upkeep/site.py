"""Builds the documentation site: strictly (a broken link is an error), and readable without a network.

    python -m humor_env.experiments.upkeep.site                  # from the checkout; the site is in site/index.html

The API reference is read from docstrings without importing anything. A static reader cannot know that `agents/`,
`rewards/` and `experiments/` are parts of the package, so it reads a folder of links that puts them there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import humor_env
from humor_env.errors import InvalidOption

CONFIG = "zensical.toml"
PARTS = ("agents", "rewards", "experiments")
GROWING = ("algorithms", "cards")  # folders of docs/ with a page for each learner or card


def with_all_pages(config: str, docs: Path) -> str:
    """The settings, with the pages of `GROWING` that the navigation lacks added after those that it has."""
    lines = config.splitlines(keepends=True)
    for folder in GROWING:
        page_lines = [number for number, line in enumerate(lines) if f'"{folder}/' in line]
        pages = [page for page in sorted((docs / folder).glob("*.md")) if f'"{folder}/{page.name}"' not in config]
        if page_lines:
            indent = lines[page_lines[-1]].partition("{")[0]
            added = [f'{indent}{{ {json.dumps(_title(page))} = "{folder}/{page.name}" }},\n' for page in pages]
            lines[page_lines[-1] + 1 : page_lines[-1] + 1] = added
    return "".join(lines)


def _title(page: Path) -> str:
    heading = page.read_text(encoding="utf-8").partition("\n")[0]
    return heading.lstrip("# ").removeprefix("Critic card: ").replace("`", "")


def build_site(root: Path, out: Path, *, docs: Path | None = None) -> str:
    """Build the site of the checkout `root` into `out`; return the generator's output. Raises if it found a fault."""
    if not (root / CONFIG).is_file():
        raise InvalidOption(f"There is no {CONFIG} in '{root}': the site is built from a checkout of the repository.")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        package = place / "lib" / "humor_env"
        package.mkdir(parents=True)
        for entry in (root / "humor_env").iterdir():
            (package / entry.name).symlink_to(entry)
        for part in PARTS:
            (package / part).symlink_to(root / part)
        shutil.copytree(docs or root / "docs", place / "docs")
        config = with_all_pages((root / CONFIG).read_text(encoding="utf-8"), place / "docs")
        (place / CONFIG).write_text(config, encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
            cwd=place,
            env=os.environ | {"NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        output = (process.stdout + process.stderr).strip()
        if process.returncode:
            raise InvalidOption(f"The site was not built.\n{output}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(place / "site", out)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.upkeep.site", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("site"))
    options = parser.parse_args(arguments)
    try:
        build_site(Path(humor_env.__file__).resolve().parent.parent, options.out)
    except InvalidOption as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"Open {options.out / 'index.html'}. Its search box needs a server: python -m http.server -d {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
