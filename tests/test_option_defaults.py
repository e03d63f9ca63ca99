"""What every command does where nothing is said, and which numbers it takes: a table beside which a change is seen."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from humor_env.experiments.commands.cli import app

# Of each number that a command bounds: what it is where nothing is said, the least and the most.
NUMBERS = {
    "evaluate": {
        "limit": (None, 1, None),
        "lines": (None, 1, None),
        "max_new_tokens": (None, 1, None),
        "temperature": (None, 0, None),
        "seed": (None, 0, None),
    },
    "judge": {
        "max_calls": (None, 0, None),
        "max_tokens": (None, 0, None),
        "max_cost": (None, 0, None),
        "chunk": (256, 1, None),
    },
    "rescore": {
        "max_calls": (None, 0, None),
        "max_tokens": (None, 0, None),
        "max_cost": (None, 0, None),
        "chunk": (256, 1, None),
    },
    "teach": {
        "lines": (3, 1, None),
        "limit": (None, 1, None),
        "max_calls": (None, 0, None),
        "max_tokens": (None, 0, None),
        "max_cost": (None, 0, None),
    },
    "play": {"rounds": (5, 1, None), "seed": (0, 0, None)},
    "arena": {"per_rater": (100, 1, None), "port": (8765, 0, 65535), "forget": (None, 1, None), "seed": (0, 0, None)},
    "benchmark": {"workers": (2, 1, None), "threads": (1, 1, None)},
    "reproduce": {"seeds": (None, 1, None), "workers": (None, 1, None), "threads": (None, 1, None)},
    "gallery": {"count": (30, 1, None), "seed": (0, 0, None)},
    "audit": {
        "limit": (None, 1, None),
        "context": (4, 0, None),
        "seed": (0, 0, None),
        "examples": (0, 0, None),
        "max_calls": (None, 0, None),
        "max_tokens": (None, 0, None),
        "max_cost": (None, 0, None),
    },
    "probes": {"max_calls": (None, 0, None), "max_tokens": (None, 0, None), "max_cost": (None, 0, None)},
    "card": {"max_calls": (None, 0, None), "max_tokens": (None, 0, None), "max_cost": (None, 0, None)},
    "train-critic": {"epochs": (2.0, 0.01, None), "members": (1, 1, None), "seed": (0, 0, None)},
    "serve": {
        "attempts": (1, 1, None),
        "max_chars": (1000, 1, None),
        "sessions": (64, 1, None),
        "port": (8000, 0, 65535),
    },
    "check critic": {"tolerance": (1e-09, 0, None)},
    "check judge": {"tolerance": (1e-09, 0, None)},
}
# What is used where nothing is said, of other options; those that are not here are off or empty.
OTHERS = {
    "evaluate": {"adapter": "policy"},
    "teach": {"teacher": "pocket", "prompts": "pocket"},
    "play": {"as_": "student", "prompts": "pocket"},
    "arena": {
        "store": Path("arena.sqlite"),
        "raters": "1",
        "mode": "pairs",
        "repeats": 0.1,
        "overlap": 0.3,
        "choose": "adaptive",
        "title": "Which is funnier?",
    },
    "benchmark": {"launcher": "local"},
    "reproduce": {"scale": "pocket", "launcher": "local"},
    "audit": {"surprisal": "unigram"},
    "probes": {"prompts": "pocket"},
    "train-critic": {"model": "minilm"},
    "serve": {"critic": "pocket", "prompts": "pocket", "split": "train", "host": "127.0.0.1"},
    "export": {"form": "jsonl"},
    "check critic": {"prompts": "pocket"},
    "check judge": {"prompts": "pocket"},
}


def commands(of: typer.Typer, before: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for each in of.registered_commands:
        assert each.callback is not None
        yield before + (each.name or each.callback.__name__.replace("_", "-")), each.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{before}{group.name} ")


def test_every_default_and_bound_is_in_the_table():
    numbers: dict[str, dict[str, tuple[Any, Any, Any]]] = {}
    others: dict[str, dict[str, Any]] = {}
    for command, function in commands(app):
        hints = typing.get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            [told, *_] = getattr(hints.get(name), "__metadata__", [None])
            least, most = getattr(told, "min", None), getattr(told, "max", None)
            if least is not None or most is not None:
                numbers.setdefault(command, {})[name] = (parameter.default, least, most)
            elif parameter.default not in (None, False, inspect.Parameter.empty):
                others.setdefault(command, {})[name] = parameter.default
    assert numbers == NUMBERS
    assert others == OTHERS
