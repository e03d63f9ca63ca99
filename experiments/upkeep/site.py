"""Builds the documentation site: strictly (a link that leads nowhere ends it), and readable without a network.

    python -m humor_env.experiments.upkeep.site                  # from the checkout; the site is in site/index.html

The API reference is read from docstrings without importing anything. A static reader cannot know that `agents/`,
`rewards/` and `experiments/` are parts of the package, so it is shown a folder of links in which they are.
"""

from __future__ import annotations

import argparse
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


def build_site(root: Path, out: Path, *, docs: Path | None = None) -> str:
    """Build the site of the checkout `root` into `out`; what the generator said. Raises where it found a fault."""
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
        shutil.copy(root / CONFIG, place / CONFIG)
        shutil.copytree(docs or root / "docs", place / "docs")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
            cwd=place,
            env=os.environ | {"NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = (done.stdout + done.stderr).strip()
        if done.returncode:
            raise InvalidOption(f"The site was not built.\n{said}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(place / "site", out)
    return said


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
    print(f"Open {options.out / 'index.html'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
