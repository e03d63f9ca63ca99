"""Who may import whom, and what `import humor_env` may cost: read from the source, measured in fresh interpreters."""

import ast
import collections
import configparser
import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# folder: (imported as, what of ours it may import)
FOLDERS = {
    "humor_env": ("humor_env", set()),
    "rewards": ("humor_env.rewards", {"humor_env"}),
    "agents": ("humor_env.agents", {"humor_env"}),
    "experiments": ("humor_env.experiments", {"humor_env", "humor_env.rewards", "humor_env.agents"}),
}
SUBPACKAGES = {"humor_env.rewards", "humor_env.agents", "humor_env.experiments"}
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# The floors of each folder, lowest first. A sub-folder imports from lower floors only, never from one beside it;
# "" are the files that lie in the folder itself (the algorithms, the critics, `options.py`).
FLOORS = {
    "humor_env.agents": [{"student"}, {"session"}, {"feedback"}, {"update"}, {"", "trl"}],
    "humor_env.rewards": [{"shared", "rated"}, {"likelihood"}, {"", "audits"}, {"trained", "cards"}],
    "humor_env.experiments": [
        *({"", "drawing"}, {"specs"}, {"runs"}, {"compare", "checking"}, {"reports", "reproduction", "sharing"}),
        *({"pocket", "arena"}, {"upkeep", "commands"}),
    ],
}
# (a file, what it imports from a higher floor): why.
UPWARDS = {
    ("humor_env.rewards.reward_model", "humor_env.rewards.trained.scoring_head"): (
        "the critic loads, once it is asked, what the training wrote; no other file knows how to read it"
    ),
    ("humor_env.rewards.everyday", "humor_env.rewards.trained.state_reader"): "as above: its head was fitted there",
}
# Circles of files, lazy imports included, that no small move ends: why each stays.
CIRCLES = {
    ("budget", "ledger"): "an account reads the ledger it is given, for its type only; a ledger's rows are accounts",
    ("page", "report"): "an audit's report prints itself",
    ("card", "page"): "a card saves itself as a page",
    (
        "sampling",
        "static_writer",
        "student",
        "student",
        "writer",
    ): "`Student.generate` is the short way to the writer, which needs a student",
    ("human_pairs", "prompts"): "`load_prompts` knows the forms of its sets; the sets are made of prompt sets",
    ("jobs", "launchers"): "`run_cells` picks a launcher by name; a launcher executes cells",
    ("benchmark", "benchmark_tables"): "a benchmark writes its page; the page's types are a benchmark's",
}

# Loaded only where they are used, so that `import humor_env` stays light.
HEAVY = {"torch", "transformers", "anthropic", "openai", "datasets", "peft", "trl", "accelerate", "scipy", "pydantic"}
HEAVY |= {"trackio", "tensorboard", "wandb", "openenv", "inspect_ai"}


def imports(path):
    """(module, line, at the top of the file) for each import statement, `from a import b` as a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno, id(node) not in guarded
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            yield node.module, node.lineno, id(node) not in guarded
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno, id(node) not in guarded


def owner(module):
    """Which of our four parts a module belongs to, or None."""
    if module != "humor_env" and not module.startswith("humor_env."):
        return None
    return next((part for part in SUBPACKAGES if (module + ".").startswith(part + ".")), "humor_env")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    me, allowed = FOLDERS[folder]
    for module, line, _ in imports(path):
        assert module.split(".")[0] not in {"rewards", "agents", "experiments", "tests"}, (
            f"{path.name}:{line}: {module}"
        )
        part = owner(module)
        assert part in {None, me, *allowed}, f"{path.name}:{line}: {me} may not import {module}"


def module_of(path):
    """The name a file is imported by."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder][0], *(part for part in rest if part != "__init__")])


MODULES = {module_of(path): path for path in FILES}


def ours(path):
    """(module, line) for each file of ours that a file imports; a name in a module counts as the module."""
    found = {(module, line) for module, line, _ in imports(path)}
    for module, line in sorted(found):
        # `from a.b import c` comes as a.b and as a.b.c: where c is a file, a.b is only on the way to it.
        if any((m, line) in found for m in MODULES if m.rpartition(".")[0] == module):
            continue
        target = module if module in MODULES else module.rpartition(".")[0]
        if target in MODULES and target != module_of(path):
            yield target, line


def room(module):
    """The sub-folder of its part that a module lies in, "" for none."""
    path = MODULES[module].relative_to(ROOT).parts[1:]
    return path[0] if len(path) > 1 else ""


@pytest.mark.parametrize("part", FLOORS)
def test_each_folder_imports_only_from_lower_floors(part):
    floor = {name: number for number, names in enumerate(FLOORS[part]) for name in names}
    inside = [module for module in MODULES if owner(module) == part]
    assert {room(module) for module in inside} == set(floor), "a sub-folder without a floor"
    upwards = set()
    for module in inside:
        for target, line in ours(MODULES[module]):
            if owner(target) != part or target == part or room(target) == room(module):
                continue
            if floor[room(target)] >= floor[room(module)]:
                upwards.add((module, target))
                assert (module, target) in UPWARDS, f"{module}, line {line}: imports {target} from a floor not below it"
    assert upwards == {pair for pair in UPWARDS if owner(pair[0]) == part}, "an exception that is no longer needed"


def circles(arrows):
    """The sets of modules from which each can be reached from each other."""

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = arrows[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {module: reached(module) for module in arrows}
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in arrows if a in reach[a]}


def test_there_are_no_new_circles_of_files():
    arrows = {module: {target for target, _ in ours(path)} for module, path in MODULES.items()}
    # `import humor_env` promises the public names of the whole package, from anywhere inside it.
    arrows["humor_env"] = set()
    found = {tuple(sorted(module.rpartition(".")[2] for module in circle)) for circle in circles(arrows)}
    assert found == set(CIRCLES)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}


def test_no_file_is_too_long_to_read():
    """Past 450 lines a second subject has moved in: give it a file of its own."""
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_no_function_is_too_long_to_read():
    """A learner's `train` is to be read on one screen or two."""
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path.relative_to(ROOT)}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: length for name, length in lengths.items() if length > 110} == {}
    for learner, most in {"ppo": 100, "grpo": 60, "rloo": 55, "dpo": 60}.items():
        assert lengths[f"agents/{learner}.py: train"] <= most


def test_no_folder_has_too_many_files():
    """A list of 25 names does not say which of them belong together: past 16 some need a folder of their own."""
    named = [path for path in FILES if path.name != "__init__.py"]
    counts = collections.Counter(str(path.parent.relative_to(ROOT)) for path in named)
    assert {folder: count for folder, count in counts.items() if count > 16} == {}


def test_every_folder_is_installed():
    """In a checkout a folder that setup.cfg forgets is imported all the same; from a wheel it is missing."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    assert sorted(listed) == sorted(module_of(path) for path in FILES if path.name == "__init__.py")


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(ROOT).parts[0] == "humor_env"], ids=lambda path: path.name
)
def test_nothing_heavy_at_the_top_of_a_file(path):
    for module, line, at_top in imports(path):
        assert not (at_top and module.split(".")[0] in HEAVY), f"{path.name}:{line}: import {module} where it is used"


def test_the_table_is_read_rightly(tmp_path):
    sample = tmp_path / "sample.py"
    sample.write_text(
        "import torch\nfrom humor_env import agents\nif TYPE_CHECKING:\n    import peft\n"
        "def f():\n    from humor_env.rewards.rules import RulesCritic\n"
    )
    assert list(imports(sample)) == [
        ("torch", 1, True),
        ("humor_env", 2, True),
        ("humor_env.agents", 2, True),
        ("peft", 4, False),
        ("humor_env.rewards.rules", 6, False),
        ("humor_env.rewards.rules.RulesCritic", 6, False),
    ]
    assert owner("humor_env.agents") == owner("humor_env.agents.ppo") == "humor_env.agents"
    assert owner("humor_env.agentsx") == "humor_env"
    assert owner("humor_environment") is None


def test_playing_an_episode_loads_nothing_heavy(run_python):
    loaded = run_python(
        "import sys, json, gymnasium as gym, humor_env\n"
        "env = gym.make('humor_env/Paraphrase-v0'); env.reset(seed=0); env.step('a line')\n"
        "envs = gym.make_vec('humor_env/Paraphrase-v0', num_envs=2); envs.reset(seed=0); envs.step(['a', 'b'])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert not HEAVY & set(json.loads(loaded))


def test_import_time(run_python, slowness):
    """At most 0.3 s more than Gymnasium. The middle of five, each in an interpreter of its own."""

    def seconds():
        code = (
            "import time, gymnasium\nbegan = time.process_time()\nimport humor_env\nprint(time.process_time() - began)"
        )
        return float(run_python(code))

    assert statistics.median(seconds() for _ in range(5)) < 0.3 * slowness()


def test_public_names_resolve():
    import humor_env

    for name in humor_env.__all__:
        assert getattr(humor_env, name) is not None
        assert name in dir(humor_env)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = humor_env.nonsense
