"""What there is, by name: the lists behind `humor-env critics`, `judges`, `envs`, `learners`, `prompts` and `specs`.

rows("critics")[0]          # {"name": "diversity", "summary": "how new a line is ...", "origin": "built in"}
"""

from __future__ import annotations

from humor_env import registry
from humor_env.errors import unknown_name

_ENVS = {
    "humor_env/Paraphrase-v0": "a literal sentence in, a humorous one with the same meaning out",
    "humor_env/OneLiner-v0": "a topic, a headline or two words in, a one-liner out",
    "humor_env/Revise-v0": "several attempts at one prompt, each after the critic's reason",
    "humor_env/Tokens-v0": "one token at a time, for agents that choose tokens",
}


def rows(kind: str) -> list[dict[str, str]]:
    """Name, one line, and where it is from. Nothing heavy is imported."""
    if kind == "envs":
        return _envs()
    if kind == "specs":
        return _specs()
    registries = {
        "critics": registry.critics,
        "judges": registry.judges,
        "learners": registry.learners,
        "prompts": registry.prompts,
    }
    if kind not in registries:
        raise unknown_name("list", kind, [*registries, "envs", "specs"])
    entries = registries[kind].entries()
    return [{"name": n, "summary": entries[n].summary, "origin": entries[n].origin} for n in sorted(entries)]


def _envs() -> list[dict[str, str]]:
    import gymnasium

    import humor_env

    found = []
    for name, spec in sorted(gymnasium.registry.items()):
        if spec.namespace == "humor_env":
            origin = "built in" if name in humor_env.ENV_IDS else "registered"
            found.append({"name": name, "summary": _ENVS.get(name, str(spec.entry_point)), "origin": origin})
    return found


def _specs() -> list[dict[str, str]]:
    from humor_env.experiments.spec import bundled, bundled_text

    found = []
    for name in bundled():
        # The comment at the top says what a spec is; its first sentence is the list's line.
        comment = " ".join(line.lstrip("# ") for line in bundled_text(name).split("\n\n")[0].splitlines())
        found.append({"name": name, "summary": comment.split(". ")[0].rstrip("."), "origin": "built in"})
    return found


def known_env(name: str) -> str:
    """The id, or an error that says which there are."""
    import gymnasium

    if ":" not in name and name not in gymnasium.registry:
        raise unknown_name(
            "environment", name, [row["name"] for row in _envs()], "For another package's, write module:id."
        )
    return name
