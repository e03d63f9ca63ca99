"""Settings with limits are written once, where they are used; a spec's tables are made from them, without torch."""

import dataclasses
import typing

import pytest

from humor_env.agents.session.monitor_config import MonitorConfig
from humor_env.agents.student.settings import Lora, Sampling, ServerSettings
from humor_env.errors import InvalidOption
from humor_env.experiments.specs.spec import BackendSpec, LoraSpec, MonitorSpec, SamplingSpec

MIRRORS = [(MonitorSpec, MonitorConfig), (SamplingSpec, Sampling), (LoraSpec, Lora), (BackendSpec, ServerSettings)]


@pytest.mark.parametrize(("table", "settings"), MIRRORS, ids=lambda c: c.__name__)
def test_a_table_has_the_fields_limits_and_defaults_of_its_settings(table, settings):
    hints = typing.get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        known = table.model_fields[field.name]
        assert known.is_required() == (field.default is dataclasses.MISSING)
        assert known.is_required() or known.default == field.default
        assert known.metadata == list(getattr(hints[field.name], "__metadata__", ()))


def test_reading_a_spec_class_loads_no_torch(run_python):
    loaded = run_python(
        "import sys, humor_env.experiments.specs.spec; print([m for m in ('torch', 'peft') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; found 0."),
        ({"temperature": -0.1}, "temperature must be at least 0; found -0.1."),
        ({"temperature": float("nan")}, "temperature must be at least 0; found nan."),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1; found 0.0."),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1; found 1.1."),
        ({"top_k": -1}, "top_k must be at least 0; found -1."),
    ],
)
def test_a_value_outside_its_limits_is_refused(settings, sentence):
    with pytest.raises(InvalidOption) as problem:
        Sampling(**settings)
    assert str(problem.value) == sentence
