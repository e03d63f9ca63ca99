"""constraints.txt pins all that `make` installs: a package that it does not name changes under us from day to day."""

import configparser
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = {"pip", "setuptools", "wheel"}  # what builds packages: `pip freeze` leaves them out as well


def lines(text):
    return [line for line in text.splitlines() if line]


def needed():
    """name -> installed version, of all that the dev extra needs on this machine, with what that needs in turn."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: lines(text) for name, text in setup["options.extras_require"].items()}
    [whole] = [line for line in extras["dev"] if line.startswith("humor-env[")]
    wanted = lines(setup["options"]["install_requires"]) + [line for line in extras["dev"] if line != whole]
    wanted += [line for extra in re.findall(r"[\w-]+", whole.partition("[")[2]) for line in extras[extra]]
    todo, found, seen = [Requirement(line) for line in wanted], {}, set()
    while todo:
        one = todo.pop()
        key = canonicalize_name(one.name), frozenset(one.extras)
        if key in seen or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        distribution = metadata.distribution(one.name)
        found[key[0]] = Version(distribution.version).public
        for line in distribution.requires or []:
            more = Requirement(line)
            chosen = ["", *one.extras]
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in chosen):
                more.marker = None
                todo.append(more)
    return found


def test_all_that_is_installed_for_development_is_pinned():
    pinned = [line.partition("==") for line in lines((ROOT / "constraints.txt").read_text(encoding="utf-8"))]
    versions = {canonicalize_name(name): version for name, _, version in pinned}
    assert len(versions) == len(pinned), "a package is named twice"
    found = needed()
    assert len(found) > 200
    wrong = {name: version for name, version in found.items() if versions.get(name) != version}
    assert {name: version for name, version in wrong.items() if name not in NOT_PINNED} == {}


def test_the_pins_are_in_the_order_of_the_alphabet():
    found = lines((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert found == sorted(found, key=str.lower)
