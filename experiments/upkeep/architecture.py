"""The layers of the code in docs/architecture.md, drawn from the import statements.

    python -m humor_env.experiments.upkeep.architecture            # rewrites them
    python -m humor_env.experiments.upkeep.architecture --check    # says whether they are out of date

They are between `<!-- floors -->` and `<!-- end -->`. Imports inside functions count, except one that would make a
cycle of two folders: it raises no floor and is shown in brackets.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import humor_env
from humor_env.errors import InvalidOption

ROOT = Path(humor_env.__file__).resolve().parent.parent
PAGE = "docs/architecture.md"
BEGIN, END = "<!-- floors -->\n", "<!-- end -->"
FOLDERS = ("experiments", "agents", "rewards", "humor_env")

Room = tuple[str, str]  # a folder of FOLDERS, and a folder in it or "" for the files directly in it


def imported(source: str) -> Iterator[tuple[str, bool]]:
    """Each module or name that a file imports, and whether only inside a function or for types."""

    def inside(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                yield from ((f"{child.module}.{name.name}", late) for name in child.names)
            elif isinstance(child, ast.Import):
                yield from ((name.name, late) for name in child.names)
            else:
                for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                in_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from inside(child, late or for_types or in_function)

    yield from inside(ast.parse(source), False)


def rooms(root: Path) -> dict[Room, list[Path]]:
    """The files of each room."""
    files: dict[Room, list[Path]] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).parts[:-1]
            files.setdefault((folder, inner[0] if inner else ""), []).append(path)
    return files


def arrows(files: Mapping[Room, Sequence[Path]]) -> dict[Room, dict[Room, bool]]:
    """What each room imports from others, and whether only late."""
    to: dict[Room, dict[Room, bool]] = {room: {} for room in files}
    for room, paths in files.items():
        for path in paths:
            for name, late in imported(path.read_text(encoding="utf-8")):
                target = _room_of(name, files)
                if target is not None and target != room:
                    to[room][target] = late and to[room].get(target, True)
    return to


def _room_of(name: str, files: Mapping[Room, object]) -> Room | None:
    parts = name.split(".")
    if parts[0] != "humor_env" or len(parts) == 1:
        return None
    folder, inner = (parts[1], parts[2:]) if parts[1] in FOLDERS else ("humor_env", parts[1:])
    return (folder, inner[0]) if inner and (folder, inner[0]) in files else (folder, "")


def floors(to: Mapping[Room, Mapping[Room, bool]]) -> dict[Room, int]:
    """How many floors of its folder are below each room. Rooms that import each other share one."""
    below = {
        room: {t for t, late in targets.items() if t[0] == room[0] and not (late and room in to[t])}
        for room, targets in to.items()
    }
    reach = {room: _reached(room, below) for room in below}

    def floor(room: Room) -> int:
        return max((floor(other) + 1 for other in reach[room] if room not in reach[other]), default=0)

    return {room: floor(room) for room in below}


def _reached(start: Room, below: Mapping[Room, set[Room]]) -> set[Room]:
    reached: set[Room] = set()
    waiting = [start]
    while waiting:
        new = below[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def picture(root: Path) -> str:
    """One block of text: the folders from the top layer to the lowest, their layers, and what imports what."""
    files = rooms(root)
    to, floor = arrows(files), floors(arrows(files))
    rows: list[str] = []
    for folder in FOLDERS:
        inside = [room for room in files if room[0] == folder]
        others = {t[0] for room in inside for t in to[room]} - {folder}
        below = " and ".join(other + "/" for other in FOLDERS if other in others)
        rows.append(f"{folder}/   imports {below or 'none of the others'}")
        for room in sorted(inside, key=lambda room: (-floor[room], room[1])):
            names = []
            for target in sorted((t for t in to[room] if t[0] == folder), key=lambda t: (-floor[t], t[1])):
                upwards = floor[target] > floor[room]
                names.append(f"({_name(target)})" if upwards else _name(target))
            rows.append(f"  {floor[room]}  {_name(room):<18} {', '.join(names) or '–'}")
        rows.append("")
    return "```text\n" + "\n".join(rows).rstrip() + "\n```\n"


def _name(room: Room) -> str:
    return f"{room[1]}/" if room[1] else f"{room[0]}/*.py"


def rewrite(root: Path, *, check: bool) -> bool:
    """Whether the page was out of date; with `check` nothing is written."""
    page = root / PAGE
    before = page.read_text(encoding="utf-8")
    if before.count(BEGIN) != 1 or END not in before.partition(BEGIN)[2]:
        raise InvalidOption(f"{PAGE} needs one `{BEGIN.strip()}` with `{END}` below it, to put the picture between.")
    head, _, rest = before.partition(BEGIN)
    after = f"{head}{BEGIN}\n{picture(root)}\n{END}{rest.partition(END)[2]}"
    if after != before and not check:
        page.write_text(after, encoding="utf-8")
    return after != before


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.upkeep.architecture", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the picture is out of date")
    options = parser.parse_args(arguments)
    try:
        stale = rewrite(ROOT, check=options.check)
    except InvalidOption as problem:
        print(problem, file=sys.stderr)
        return 2
    print(f"{'out of date' if options.check else 'rewritten'}: {PAGE}" if stale else "Up to date.")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
