"""What all tests share: no network but loopback, one thread per process, small prompts, critic and tokenizer."""

# ruff: noqa: E402

from __future__ import annotations

import os

# Before any library reads them: several test processes share few cores, and nothing may be fetched.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ[_name] = _value

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from humor_env.prompts import PromptSet
from humor_env.shared.streams import stream_seed
from humor_env.types import Joke, Judgement, Prompt

ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "")


def _is_local(address: Any) -> bool:
    return not isinstance(address, tuple) or str(address[0]) in _LOOPBACK or str(address[0]).startswith("127.")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out fails at once and says where to, instead of passing on a machine with a network."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address: Any) -> None:
        raise RuntimeError(f"a test tried to reach {address!r}: tests use nothing but loopback")

    def guarded_connect(self: socket.socket, address: Any) -> Any:
        return connect(self, address) if _is_local(address) else refuse(address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> Any:
        return connect_ex(self, address) if _is_local(address) else refuse(address)

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        return look_up(host, *rest, **options) if host is None or _is_local((host,)) else refuse(host)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several test processes each is given a stretch of the list and takes from the others' when it is done. The
    long tests come first in the stretches of two, so that none of them is begun when everything else is over. Those of
    a file that share a fixture stay together: apart, each process made the fixture (the site, the wheel) for itself."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    halves: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
    half_of: dict[str, list[pytest.Item]] = {}
    for item in slow:
        shorter = min(halves, key=len)
        half_of.setdefault(_what_shares(item), shorter).append(item)
    middle = len(quick) // 2
    items[:] = [*halves[0], *quick[:middle], *halves[1], *quick[middle:]]


def _what_shares(item: pytest.Item) -> str:
    """The file of a test that uses a fixture of the whole file, else the test itself."""
    found = getattr(item, "_fixtureinfo", None)  # a doctest has none
    definitions = found.name2fixturedefs.values() if found else ()
    return str(item.path) if any(each[-1].scope == "module" for each in definitions) else item.nodeid


class TapeCritic:
    """Scores by a hash of prompt and text, so that equal jokes score alike and others differ; remembers its calls.

    A text that contains "fail" is not judged; "raise" makes it raise.
    """

    name = "tape"

    def __init__(self) -> None:
        self.calls: list[list[Joke]] = []

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        self.calls.append(list(jokes))
        return [self._judge(joke) for joke in jokes]

    def _judge(self, joke: Joke) -> Judgement:
        if "raise" in joke.text:
            raise ConnectionError("the critic's line is dead")
        if "fail" in joke.text:
            return Judgement(self.name, None, error="no answer")
        score = self.score(joke.prompt.id, joke.text)
        parts = {"form": score / 2} if len(joke.text) % 3 == 0 else {"form": score, "meaning": 1.0}
        return Judgement(self.name, score, parts, f"{len(joke.text)} characters")

    @staticmethod
    def score(prompt_id: str, text: str) -> float:
        return (stream_seed(0, prompt_id, ascii(text)) % 1000) / 1000


def some_prompts() -> list[Prompt]:
    sizes = {"train": 12, "dev": 4, "test": 4, "ood": 3}
    return [
        Prompt(f"{split}-{i}", f"The {split} thing number {i} was slow.", "paraphrase", split)
        for split, size in sizes.items()
        for i in range(size)
    ]


@pytest.fixture
def prompts() -> PromptSet:
    return PromptSet("some", some_prompts())


@pytest.fixture
def critic() -> TapeCritic:
    return TapeCritic()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A word-level Hugging Face tokenizer, saved: the vocabulary of `some_prompts` and a few words for jokes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for p in some_prompts() for w in p.text.replace(".", " .").split()})
    words += ["so", "that", "glaciers", "overtook", "it", "fail", "raise", "walrus"]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    model.decoder = decoders.WordPiece(prefix="##")
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Run code in a fresh interpreter, as a user would, and get what it printed."""

    def run(code: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


def _fixed_work() -> float:
    """Processor seconds that a fixed piece of Python takes: 0.023 on the two cores that the bounds were set on."""
    began = time.process_time()
    counts: dict[str, int] = {}
    for number in range(60_000):
        key = str(number % 977)
        counts[key] = counts.get(key, 0) + len(key)
    return time.process_time() - began


@pytest.fixture
def slowness() -> Callable[[], float]:
    """How much slower than those cores this machine is just now: bounds on speed are about our code, not about it.

    Ask for it beside each timing, since a neighbour on the same processor comes and goes.
    """

    def measure() -> float:
        return max(1.0, min(_fixed_work() for _ in range(3)) / 0.023)

    return measure
