"""From names to objects: built in, registered, written out, installed; and what a wrong name is told."""

import pytest

from humor_env import registry
from humor_env.errors import InvalidOption, UnknownName
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
    with pytest.raises(InvalidOption, match="It accepts: taste"):
        fresh().make("dry", tast=1)


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


@pytest.mark.parametrize("kind", ["critics", "judges", "prompts", "learners"])
def test_every_built_in_name_leads_to_an_object(kind):
    names = getattr(registry, kind)
    for name in names.names():
        assert callable(names.resolve(name)), name
        assert names.entries()[name].origin == "built in"
