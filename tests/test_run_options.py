"""What a spec can ask of a run beside the learner's settings: a server that writes, preferences, a monitor."""

import json
from dataclasses import asdict

import pytest
from test_backend import address, server  # noqa: F401
from test_run import lines, text, world  # noqa: F401

from humor_env.agents.session.monitor import MonitorConfig
from humor_env.errors import CredentialError, InvalidOption
from humor_env.experiments.runs.ingredients import Ingredients
from humor_env.experiments.runs.run import run
from humor_env.experiments.specs.preference_file import read_preferences
from humor_env.experiments.specs.spec import MonitorSpec, load_spec, parse_spec
from humor_env.types import Prompt


@pytest.mark.parametrize("learner", ["ppo", "reinforce++", "expert-iteration"])
def test_a_server_writes_the_lines_of_a_run(learner, text, server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("A_KEY", "a-key")
    monkeypatch.setenv("HUMOR_ENV_ALLOW_KEY_HOSTS", "127.0.0.1")
    extra = f'[student.backend]\nurl = "{address(server)}"\nbase = "served"\nkey_env = "A_KEY"\n'
    begin, end = text.split("[learner]\n")
    end = end.replace('name = "ppo"', f'name = "{learner}"\nsiblings = 2')
    spec = parse_spec(begin + extra + "[learner]\n" + end, ["learner.steps=2"])
    run(spec, tmp_path / "run")
    asked = [body for path, body, _ in server.seen if path == "/v1/completions"]
    learned, measured = asked[: 2 * 4], asked[2 * 4 :]
    assert {body["model"] for body in learned} == {"policy-1", "policy-2"}, "the second step's come from the new policy"
    assert [body["model"] for body in measured] == ["policy-3"] * 4, "the trained policy is measured by the server too"
    assert {key for _, _, key in server.seen} == {"Bearer a-key"}
    assert server.adapters == {}, "nothing is left loaded"
    assert load_spec(tmp_path / "run" / "spec.toml") == spec
    monkeypatch.delenv("A_KEY")
    with pytest.raises(CredentialError, match="A_KEY, which is not set"):
        Ingredients(spec, tmp_path / "other").check()


def test_a_spec_cannot_post_a_variable_to_a_server_of_its_choice(text, server, tmp_path, monkeypatch):  # noqa: F811
    """key_env = "AWS_SECRET_ACCESS_KEY" sent that to whatever address the spec named."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret99")
    extra = f'[student.backend]\nurl = "{address(server)}"\nkey_env = "AWS_SECRET_ACCESS_KEY"\n'
    begin, end = text.split("[learner]\n")
    spec = parse_spec(begin + extra + "[learner]\n" + end)
    with pytest.raises(CredentialError, match=r"only to hosts that you allow.*HUMOR_ENV_ALLOW_KEY_HOSTS=127\.0\.0\.1:"):
        run(spec, tmp_path / "run")
    assert server.seen == []


DPO = '[learner]\nname = "dpo"\nepochs = 2\nbatch_size = 4\n'


def test_a_learner_learns_from_preferences_in_a_file(text, tmp_path):  # noqa: F811
    file = tmp_path / "choices.jsonl"
    rows = [{"prompt_id": f"train-{i}", "chosen": "Glaciers overtook it.", "rejected": "It ended."} for i in range(5)]
    rows.append({"prompt": "A prompt of its own.", "chosen": "a", "rejected": "b", "probability": 0.75})
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    begin = text.split("[[critic]]")[0] + text[text.index("[[eval.critic]]") :]
    spec = parse_spec(begin + DPO + f"preferences = {str(file)!r}\n")
    [result] = run(spec, tmp_path / "run")
    found = lines(tmp_path / "run" / "seed-0" / "metrics.jsonl")
    assert result.steps == len(found) == 4
    assert {r["feedback/round_preferences"] for r in found} == {6.0}
    assert {r["spent/judgements"] for r in found} == {0.0}
    assert found[-1]["update/margin"] > 0
    assert load_spec(tmp_path / "run" / "spec.toml") == spec


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 2 is not JSON"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "'rejected' is the text of a line"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.3}, "between 0.5 and 1, found 0.3"),
        ({"prompt_id": "x", "chosen": "a", "rejected": "b"}, "the run's prompts have no 'x'"),
        ({"chosen": "a", "rejected": "b"}, "needs 'prompt_id' or 'prompt'"),
        ({"prompt": "p", "better": "a"}, "expected an object with the keys"),
    ],
)
def test_a_wrong_line_is_named(row, told, tmp_path):
    file = tmp_path / "choices.jsonl"
    good = json.dumps({"prompt_id": "p", "chosen": "a", "rejected": "b"})
    file.write_text(good + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(InvalidOption, match="line 2") as found:
        read_preferences(file, [Prompt("p", "text")])
    assert told in str(found.value)


def test_options_that_a_learner_does_not_take_are_refused(text, tmp_path):  # noqa: F811
    extra = '[student.backend]\nurl = "http://127.0.0.1:1"\n[learner]\n'
    sft = text.split("[learner]")[0] + extra + 'name = "sft"\n'
    with pytest.raises(InvalidOption, match=r"'sft' takes no backend: leave \[student.backend\] out"):
        Ingredients(parse_spec(sft), tmp_path).check()
    with pytest.raises(InvalidOption, match=r"'ppo' takes no preferences: leave \[learner\] preferences out"):
        Ingredients(parse_spec(text, ["learner.preferences=x.jsonl"]), tmp_path).check()


MONITOR = '\n[monitor]\naction = "stop"\nevery = 1\nlines = 3\nshorter = 0.0\nlonger = 0.001\n'


def test_a_monitor_watches_and_ends_a_run_that_is_then_measured(text, tmp_path):  # noqa: F811
    spec = parse_spec(text + MONITOR)
    [result] = run(spec, tmp_path)
    # Any line is longer than a thousandth of the first check's.
    assert (result.steps, result.stopped) == (1, False)
    assert result.why.startswith("the monitor saw the run drift: lines are ")
    assert "ppo" in result.stages
    seen = lines(tmp_path / "seed-0" / "drift.jsonl")
    assert [r["step"] for r in seen] == [0, 1]
    assert [[m["limit"] for m in r["marks"]] for r in seen] == [[], ["longer"]]
    assert {"drift/held_out", "drift/training"} <= set(seen[0])
    assert load_spec(tmp_path / "spec.toml") == spec
    # With other limits the same run goes on.
    [longer] = run(parse_spec(text + MONITOR, ["monitor.longer=0.0"]), tmp_path, resume=True)
    assert (longer.steps, longer.why) == (4, "")
    assert [r["step"] for r in lines(tmp_path / "seed-0" / "drift.jsonl")] == [0, 1, 2, 3, 4]


def test_the_training_critic_is_never_its_own_control(text, tmp_path):  # noqa: F811
    alone = text[: text.index("[[eval.critic]]")] + MONITOR
    parts = Ingredients(parse_spec(alone), tmp_path)
    assert parts.watching_critic is None
    same = alone + '[[monitor.critic]]\ncritic = "test_run:share_of_e"\n'
    assert Ingredients(parse_spec(same), tmp_path).watching_critic is None
    other = alone + '[[monitor.critic]]\ncritic = "test_run:share_of_o"\n'
    assert Ingredients(parse_spec(other), tmp_path).watching_critic is not None
    with pytest.raises(InvalidOption, match=r"no critic is called 'pokcet'\. Did you mean 'pocket'"):
        parse_spec(alone + '[[monitor.critic]]\ncritic = "pokcet"\n')


def test_the_spec_has_the_monitors_own_settings_and_defaults():
    assert MonitorSpec().model_dump(exclude={"critic", "split"}) == asdict(MonitorConfig())
