"""From names to objects: built in, registered, written out, installed; and what a wrong name is told."""

import sys
import time

import pytest

from humor_env import registry
from humor_env.env import HumorEnv
from humor_env.errors import InvalidOption, UnknownName, unknown_name
from humor_env.experiments.commands.listings import rows
from humor_env.llm.factory import make_client
from humor_env.registry import Registry


class Dry:
    def __init__(self, taste=1):
        self.taste = taste


def make_wet(depth):
    return ("wet", depth)


def judge_all(jokes):
    return list(jokes)


def fresh():
    return Registry("critic", "humor_env.no_such_group", {"dry": (f"{__name__}:Dry", "understatement")})


def test_classes_and_make_functions_are_called_with_options():
    assert fresh().make("dry", taste=3).taste == 3
    assert fresh().make(f"{__name__}:make_wet", depth=2) == ("wet", 2)


def test_other_objects_are_the_object():
    assert fresh().make(f"{__name__}:judge_all") is judge_all
    with pytest.raises(InvalidOption, match="takes no options, but taste"):
        fresh().make(f"{__name__}:judge_all", taste=1)


def test_live_objects_pass_through_and_take_no_options():
    assert fresh().make(judge_all) is judge_all
    with pytest.raises(InvalidOption, match="taste"):
        fresh().make(judge_all, taste=1)


def test_unknown_names_suggest_and_list():
    with pytest.raises(UnknownName, match=r"No critic is called 'dri'\. Did you mean 'dry'\? Known: dry\."):
        fresh().make("dri")
    assert "Known: ape, bee, cat." in str(unknown_name("animal", "yak", iter(["cat", "ape", "bee"])))
    with pytest.raises(UnknownName, match="no_such_module"):
        fresh().make("no_such_module:Thing")
    with pytest.raises(UnknownName, match="Did you mean 'Dry'"):
        fresh().make(f"{__name__}:Dri")


def test_a_broken_module_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_critic.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        fresh().make("broken_critic:Thing")


def test_wrong_options_name_the_accepted_ones():
    with pytest.raises(InvalidOption, match=r"'dry' has no option 'tast'\. Did you mean 'taste'\? It accepts: taste\."):
        fresh().make("dry", tast=1)
    with pytest.raises(InvalidOption, match=r"'rules' has no option 'colour'\. It accepts: "):
        registry.critics.make("rules", colour=1)
    with pytest.raises(InvalidOption, match=r"The critic 'lift' needs the option 'prompts'\. It accepts: "):
        registry.critics.make("lift")


def test_registering_adds_and_replaces():
    names = fresh()
    names.register("mine", judge_all, "all of them")
    assert names.make("mine") is judge_all
    assert names.entries()["mine"].summary == "all of them"
    names.register("mine", Dry)
    assert isinstance(names.make("mine"), Dry)
    assert names.names() == ["dry", "mine"]
    for bad in ("", "a:b", "a b"):
        with pytest.raises(InvalidOption):
            names.register(bad, Dry)


# --- what a name from a stranger's file may do ---


@pytest.mark.parametrize(
    "path",
    [
        "subprocess:Popen",
        "os:system",
        "shutil:make_archive",
        "antigravity:fly",  # opens a browser when it is imported
        "humor_env.registry:importlib.import_module",  # what our own modules import is not ours
        "humor_env.experiments.runs.run_folder:subprocess.Popen",
        "numpy:savetxt",
        "torch.hub:load",
    ],
)
@pytest.mark.parametrize("kind", ["critics", "judges", "prompts", "learners", "teachers", "clients"])
def test_what_was_not_written_for_this_package_is_neither_called_nor_used(kind, path):
    """`critic = "subprocess:Popen"` in a TOML file ran its command with `train` and with the sum of costs."""
    with pytest.raises(UnknownName, match=r"standard library|imports nothing from humor_env"):
        getattr(registry, kind).resolve(path)


def test_a_command_in_place_of_a_critic_never_runs(tmp_path):
    ran = tmp_path / "ran"
    for make in (
        lambda: HumorEnv(critic="subprocess:Popen", critic_options={"args": ["touch", str(ran)]}),
        lambda: HumorEnv(prompts="subprocess:Popen", prompts_options={"args": ["touch", str(ran)]}),
        lambda: make_client("subprocess:Popen", args=["touch", str(ran)]),
        lambda: registry.critics.make("mix", critics=[{"critic": "subprocess:Popen", "options": {"args": "true"}}]),
    ):
        with pytest.raises(UnknownName, match="standard library"):
            make()
    time.sleep(0.2)
    assert not ran.exists()


def test_a_class_of_ours_of_another_kind_is_not_made(tmp_path):
    """A `Ledger` as a critic would make tables in whatever database the file names."""
    with pytest.raises(UnknownName, match=r"is not a critic: the class Ledger has no __call__\(\)"):
        registry.critics.make("humor_env.llm.ledger:Ledger", path=str(tmp_path / "x.sqlite"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "code", "works"),
    [
        ("critics", "from humor_env import Judgement\ndef it(jokes): return []", True),
        ("critics", "from humor_env import Judgement\nclass C:\n def __call__(self, jokes): return []\nit = C()", True),
        ("critics", "import functools, humor_env\ndef f(x, jokes): return []\nit = functools.partial(f, 1)", True),
        ("critics", "from humor_env.rewards.rules import RulesCritic\nclass it(RulesCritic): pass", True),
        ("critics", "from humor_env.rewards.rules import RulesCritic as it", True),
        ("critics", "import humor_env\nclass it:\n def judge(self, jokes): return []", False),
        ("critics", "def it(jokes): return []", False),
        ("prompts", "it = ['The bus was late.']", True),
        ("prompts", "from humor_env import Prompt\ndef make_it(): return ['The bus was late.']\nit = make_it", True),
        ("prompts", "def make_it(): return ['The bus was late.']\nit = make_it", False),
        ("teachers", "import humor_env\nclass it:\n def lines(self, prompt, n): return []", True),
        ("teachers", "import humor_env\nclass it:\n def line(self, prompt): return []", False),
        ("clients", "import humor_env\nclass it:\n def __call__(self, requests): return []", True),
    ],
)
def test_objects_of_the_users_own_modules(kind, code, works, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    if works:
        getattr(registry, kind).make("own_module:it")
    else:
        with pytest.raises(UnknownName, match=r"import humor_env|has no"):
            getattr(registry, kind).make("own_module:it")


def test_what_the_users_own_code_registers_is_trusted():
    names = fresh()
    names.register("now", "time:monotonic")
    assert names.make("now") is time.monotonic


def test_an_installed_name_is_explained_by_its_docstring(tmp_path, monkeypatch):
    """`humor-env critics` left the line of every installed critic empty."""
    (tmp_path / "dadjokes.py").write_text(
        'class Groan:\n    """How loud the groan is.\n\n    More."""\n\ndef bare(jokes): ...\n'
    )
    info = tmp_path / "dadjokes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dadjokes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[humor_env.critics]\ngroan = dadjokes:Groan\nbare = dadjokes:bare\ngone = dadjokes:Gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told = {row["name"]: row for row in rows("critics")}
    assert told["groan"] == {"name": "groan", "summary": "How loud the groan is", "origin": "dadjokes"}
    assert told["bare"]["summary"] == ""
    assert told["gone"]["summary"].startswith("cannot be imported (AttributeError")
    assert type(registry.critics.make("groan")).__name__ == "Groan"


@pytest.mark.parametrize("kind", ["critics", "judges", "prompts", "learners", "teachers", "clients"])
def test_every_built_in_name_leads_to_an_object(kind):
    names = getattr(registry, kind)
    for name in names.names():
        assert callable(names.resolve(name)), name
        assert names.entries()[name].origin == "built in"


@pytest.mark.parametrize(
    ("kind", "noun"),
    [
        ("critics", "critic"),
        ("judges", "judge"),
        ("prompts", "prompt set"),
        ("learners", "learner"),
        ("teachers", "teacher"),
        ("clients", "language model"),
    ],
)
def test_another_distribution_can_bring_every_kind(kind, noun, tmp_path, monkeypatch):
    (tmp_path / "visitor.py").write_text("def guest(*given): return given\n")
    info = tmp_path / "visitor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: visitor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[humor_env.{kind}]\nguest = visitor:guest\n")
    names = getattr(registry, kind)
    monkeypatch.syspath_prepend(tmp_path)
    assert names.entries()["guest"].origin == "visitor"
    assert names.resolve("guest")(1, 2) == (1, 2)
    with pytest.raises(UnknownName, match=f"No {noun} is called 'geust'. Did you mean 'guest'"):
        names.resolve("geust")
