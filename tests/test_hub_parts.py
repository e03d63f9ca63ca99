"""What a pushed folder is made of, and what the Hub is asked, without the Hub."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.sharing import hub
from humor_env.experiments.sharing.hub import (
    HubError,
    _base,
    _first_line,
    _is_the_hubs,
    _public_spec,
    _without_places,
    listing,
    pull,
    push,
    staged,
)


def refusal(act, error=InvalidOption):
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def enter(what, repo):
    with staged(what, repo):
        pytest.fail("it was staged")


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "owner/", "/", ""])
def test_a_name_on_the_hub_has_an_owner(tmp_path, repo):
    said = refusal(lambda: enter(write(tmp_path / "x.jsonl", {"text": "x"}), repo))
    assert said == f"'{repo}' is not a name on the Hub: expected owner/name."


def test_a_file_of_lines_goes_as_it_is_where_nothing_is_private(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes('{"text":"é  /home/me/x"}\n\n'.encode()[:-1])
    with staged(file, "me/lines") as folder:
        assert (folder / "data.jsonl").read_bytes() == file.read_bytes()
        assert [name for name, _ in listing(folder)] == ["README.md", "data.jsonl"]
        assert "# lines" in (folder / "README.md").read_text()
    assert not folder.exists()


def test_of_private_rows_what_was_asked_and_places_are_left_out(tmp_path):
    row = {"text": "é /home/me/x", "asked": "all of it", "client": "openai:m@http://h/v1", "chosen": "/home/me/y"}
    with staged(write(tmp_path / "x.jsonl", row), "me/lines") as folder:
        assert (folder / "data.jsonl").read_text() == (
            '{"text": "é /home/me/x", "client": "openai:m", "chosen": "/home/me/y"}\n'
        )


@pytest.mark.parametrize("second", ["{", "[]", "3", ""])
def test_a_line_that_is_no_row_is_told_by_its_number(tmp_path, second):
    file = write(tmp_path / "x.jsonl", {"text": "x"}, second, {"text": "y"})
    assert refusal(lambda: enter(file, "me/x")) == (
        f"'{file}', line 2 is not a JSON object: expected a file of lines (JSONL)."
    )


def test_an_empty_file_and_a_folder_without_a_student_are_told(tmp_path):
    file = write(tmp_path / "x.jsonl")
    assert refusal(lambda: enter(file, "me/x")) == f"'{file}' is empty: there is nothing to push."
    assert refusal(lambda: enter(tmp_path, "me/x")).startswith(
        f"There is no run with a finished student in '{tmp_path}': expected the folder of a run, of a seed, or the "
    )


def test_a_base_is_a_folder_of_this_machine_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert _base(None) == (None, None)
    assert _base(str(tmp_path / "model")) == (tmp_path / "model", None)
    assert _base("model") == (Path("model"), None)
    assert _base("owner/name") == (None, "owner/name")
    assert _base("gpt2") == (None, "gpt2")
    (tmp_path / "x.gguf").touch()
    monkeypatch.setattr(hub.students, "source", lambda file: f"{file}-unpacked")
    assert _base("x.gguf") == (Path("x.gguf-unpacked"), None)
    (tmp_path / "file").touch()
    for odd in ("file", str(tmp_path / "gone"), "./gone", "~/gone", "C:\\gone", "a/b/c", "owner/x.gguf"):
        said = refusal(lambda base=odd: _base(base))
        assert said.startswith(f"The student's base model is '{odd}', which others cannot load: it is neither an ")


def test_a_named_student_has_its_name_on_the_hub(monkeypatch):
    monkeypatch.setattr(hub.students, "find", lambda base: "/nowhere/at/all")
    monkeypatch.setattr(hub.students, "NAMED", {"small": SimpleNamespace(hub="x"), "ours": SimpleNamespace(hub=None)})
    monkeypatch.setattr(hub.students, "hub_name", lambda base: f"hub of {base}")
    assert _base("small") == (None, "hub of small")
    assert _base("ours") == (None, "ours")


def test_settings_lose_only_places(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"_name_or_path": "owner/name", "a": "/home/me/x"}')
    before = config.read_bytes()
    _without_places(config)
    assert config.read_bytes() == before
    settings = {"a": "/home/me/x", "name_or_path": "/home/me/model", "vocab_file": "/v/t.json", "file_x": "/y/z"}
    config.write_text(json.dumps(settings))
    _without_places(config)
    assert json.loads(config.read_text()) == settings | {"name_or_path": "model", "vocab_file": "t.json"}
    assert config.read_text().startswith('{\n  "a"') and config.read_text().endswith("}\n")


def test_the_spec_without_what_is_this_machines():
    spec = {
        "name": "mine",
        "student": {"model": "/home/me/model", "backend": {"url": "http://h:1"}},
        "tracking": {"project": "p"},
        "budget": {"ledger": "x"},
        "critic": [{"critic": "scorer", "options": {"client": "openai:m@http://h:1/v1", "note": "asks h:1"}}],
    }
    assert tomllib.loads(_public_spec(spec)) == {
        "name": "mine",
        "student": {"model": "model"},
        "critic": [{"critic": "scorer", "options": {"client": "openai:m", "note": "asks [server]"}}],
    }
    assert spec["student"]["backend"] and spec["tracking"], "the run's own is unchanged"


def test_a_listing_has_every_file_with_its_size(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "x").write_bytes(b"123")
    (tmp_path / "a").write_bytes(b"")
    assert listing(tmp_path) == [("a", 0), ("b/deep/x", 3)]


class Api:
    asked: list = []
    problem: Exception | None = None

    def create_repo(self, *a, **o):
        self.asked.append((a, o))
        if self.problem:
            raise self.problem

    def upload_folder(self, **o):
        self.asked.append(o)
        return SimpleNamespace(repo_url="http://hub/me/it")


@pytest.fixture
def api(monkeypatch):
    made = type("Fresh", (Api,), {"asked": [], "problem": None})
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


@pytest.mark.parametrize(("data", "kind"), [(True, "dataset"), (False, "model")])
@pytest.mark.parametrize("public", [True, False])
def test_a_folder_is_pushed_in_one_commit_and_private_by_default(tmp_path, api, data, kind, public):
    if data:
        (tmp_path / "data.jsonl").touch()
    assert push(tmp_path, "me/it", **({"public": True} if public else {})) == "http://hub/me/it"
    assert api.asked == [
        (("me/it",), {"repo_type": kind, "private": not public, "exist_ok": True}),
        {
            "repo_id": "me/it",
            "repo_type": kind,
            "folder_path": tmp_path,
            "commit_message": "Pushed by humor-env",
            "ignore_patterns": [],
        },
    ]


def test_what_the_hub_refuses_is_told_and_our_own_mistakes_are_not_hidden(tmp_path, api):
    from huggingface_hub.errors import LocalTokenNotFoundError

    api.problem = OSError("no route\nto it")
    assert refusal(lambda: push(tmp_path, "me/it"), HubError) == (
        "The Hub did not accept 'me/it' (OSError: no route). Nothing was changed here."
    )
    api.problem = LocalTokenNotFoundError("x")
    assert refusal(lambda: push(tmp_path, "me/it"), HubError) == (
        "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN."
    )
    api.problem = ValueError("ours")
    assert refusal(lambda: push(tmp_path, "me/it"), ValueError) == "ours"


def test_a_pulled_folder_has_texts_and_weights_and_no_code(tmp_path, monkeypatch):
    asked, out = [], tmp_path / "out"

    def download(repo, **options):
        asked.append((repo, options))
        (out / ".cache" / "x").mkdir(parents=True)
        (out / "a.json").write_text("{}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pull("me/it", out) == [("a.json", 2)]
    allowed = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.toml", "*.jinja", "*.txt", "*.model"]
    assert asked == [("me/it", {"repo_type": "model", "local_dir": out, "allow_patterns": allowed})]
    assert refusal(lambda: pull("me/it", out)) == f"'{out}' is not empty: give another folder."
    (out / "a.json").unlink()
    assert pull("me/it", out, dataset=True) == [("a.json", 2)]
    assert asked[1][1]["repo_type"] == "dataset" and len(asked) == 2


def test_a_pull_that_fails_is_told(tmp_path, monkeypatch):
    def download(*_, **__):
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    problem = OSError("gone")
    assert refusal(lambda: pull("me/it", tmp_path), HubError) == "'me/it' could not be pulled (OSError: gone)."
    problem = ValueError("ours")
    assert refusal(lambda: pull("me/it", tmp_path), ValueError) == "ours"


@pytest.mark.parametrize(
    ("module", "hubs"),
    [
        *(("httpx._exceptions", True), ("httpx2", True), ("requests.x", True), ("huggingface_hub.errors", True)),
        *(("json", False), ("myhttp", False), ("requests2", False)),
    ],
)
def test_errors_of_the_hub_are_known_by_their_package(module, hubs):
    assert _is_the_hubs(type("Odd", (Exception,), {"__module__": module})()) == hubs


def test_errors_of_the_connection_are_the_hubs():
    assert _is_the_hubs(ConnectionError()) and not _is_the_hubs(KeyError())
    assert _first_line(ValueError("a\nb")) == "ValueError: a"
    assert _first_line(ValueError("x" * 300)) == f"ValueError: {'x' * 188}"
