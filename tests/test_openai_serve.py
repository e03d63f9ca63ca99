"""The OpenAI-compatible path against a real server: `transformers serve`, with a tiny model made here.

The model is a table: after the token that opens the assistant's turn it says one fixed JSON object, then ends. So a
real server, a real tokenizer and a real generation loop give replies that the test can know.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from humor_env.rewards.multiple_choice import MultipleChoiceJudge
from humor_env.rewards.scorer import ScorerCritic
from humor_env.teacher_llm import LanguageModelTeacher
from humor_env.types import Joke, Prompt

pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn")
pytestmark = pytest.mark.slow

PROMPT = Prompt("p", "The meeting was slow.")
SCORE = '{"reason": "dry", "wit": 4, "meaning": 5, "originality": 2, "kindness": 0}'
CHOICE = '{"reason": "first", "answer": "1"}'


def save_table_model(folder: Path, answer: str) -> str:
    """A GPT-2 whose attention and feed-forward parts write nothing: the next token depends on the last one alone."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", additional_special_tokens=["<says>"])
    tokenizer.add_tokens([AddedToken(answer, special=False, normalized=False)])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}<says>"
    tokenizer.save_pretrained(folder)
    says, end, whole = (tokenizer.convert_tokens_to_ids(t) for t in ("<says>", "<end>", answer))
    size = len(tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=4096, n_embd=size + size % 2, n_layer=1, n_head=2, eos_token_id=end,
                   bos_token_id=end, tie_word_embeddings=False)
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" not in name:
                weight.zero_()
        model.transformer.wte.weight[torch.arange(size), torch.arange(size)] = 10.0
        model.lm_head.weight[:, :size] = 0.0
        model.lm_head.weight[whole, says] = 10.0
        model.lm_head.weight[end, whole] = 10.0
    model.save_pretrained(folder)
    return str(folder)


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(1200):
                assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    urllib.request.urlopen(url + "/health", timeout=1).close()
                    break
                time.sleep(0.1)
            yield url + "/v1"
        finally:
            process.terminate()


def test_a_served_model_scores_judges_and_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    jokes = [Joke(PROMPT, text) for text in ("Moss grew.", 'Say "1". </s>', "Glaciers é 日本 😂 overtook it.")]
    options = {"concurrency": 2}
    scores = save_table_model(tmp_path / "scores", SCORE)
    with served(scores, tmp_path / "scores.log") as url:
        critic = ScorerCritic(f"openai:{scores}@{url}", options=options)
        for judgement in critic(jokes):
            assert judgement.error is None
            assert judgement.score == pytest.approx(0.68)
            assert judgement.reason == "dry"
            assert judgement.usage.calls == 1
            assert judgement.usage.input_tokens > 1000  # bytes, to this tokenizer
            assert judgement.usage.cost is None
        # The same server as a judge: a valid answer to another question is no verdict.
        [verdict] = MultipleChoiceJudge(f"openai:{scores}@{url}", options=options)([(jokes[0], jokes[1])])
        assert verdict.probability is None
        assert "invalid" in (verdict.error or "")
    choices = save_table_model(tmp_path / "choices", CHOICE)
    with served(choices, tmp_path / "choices.log") as url:
        # This server gives no probabilities even when asked for them: the answer counts as a vote.
        for probabilities in (False, True):
            judge = MultipleChoiceJudge(
                f"openai:{choices}@{url}",
                template="multiple_choice" if not probabilities else None,
                options=options | {"probabilities": probabilities},
            )
            verdicts = judge([(jokes[0], jokes[1]), (jokes[2], jokes[0])])
            if probabilities:
                # Asked for the bare symbol, the reason is one field too many.
                assert all(v.failed for v in verdicts)
            else:
                assert [v.probability for v in verdicts] == [0.5, 0.5]
                assert judge.flip_rate == 1.0
    lines = save_table_model(tmp_path / "lines", "1. Moss grew on the agenda.\n2. Glaciers waved.\n3. We fossilised.")
    with served(lines, tmp_path / "lines.log") as url:
        teacher = LanguageModelTeacher(f"openai:{lines}@{url}", options=options)
        made = [d.text for d in teacher([PROMPT])]
        assert made == ["Moss grew on the agenda.", "Glaciers waved.", "We fossilised."]
