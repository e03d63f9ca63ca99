"""TRL trains over OpenEnv: its real GRPOTrainer, our served pocket world on loopback, and the code of the docs page."""

import json
import re
import warnings
from pathlib import Path

import pytest

pytest.importorskip("openenv.core.generic_client", reason="openenv is not installed: pip install 'humor-env[openenv]'")

import torch
import trl
from test_openenv import Served, task
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from humor_env.prompts import load_prompts
from humor_env.rewards.pocket import PocketCritic
from humor_env.teacher import pocket_lines

ROOT = Path(__file__).resolve().parent.parent
PROMPT = load_prompts("pocket").split("train")[0]


def save_caller(folder, lines):
    """A model of one table: after "assistant" it calls the tool with one of these lines, each as likely, then ends."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    calls = [
        f"<tool_call>\n{json.dumps({'name': 'tell', 'arguments': {'line': line}})}\n</tool_call>" for line in lines
    ]
    tokenizer.add_tokens([AddedToken(call, special=False, normalized=False) for call in calls])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    tokenizer.save_pretrained(folder)
    [newline] = tokenizer.encode("\n")
    end, spoken = tokenizer.eos_token_id, [tokenizer.convert_tokens_to_ids(call) for call in calls]
    # Eight numbers a token: only these few mean anything, and a prompt with its tools, byte by byte, is long.
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=4096, n_embd=8, n_layer=1, n_head=1, eos_token_id=end,
                   bos_token_id=end, tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" not in name:
                weight.zero_()
        for place, token in enumerate([newline, *spoken]):
            model.transformer.wte.weight[token, place] = 10.0
        model.lm_head.weight[spoken, 0] = 6.0
        model.lm_head.weight[end, 1 : len(spoken) + 1] = 10.0
    model.save_pretrained(folder)
    return newline, spoken


def likely(model, newline, spoken):
    """The probability of each of the lines."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[newline]])).logits[0, -1]
    return logits.softmax(-1)[spoken].tolist()


def page(model, url, **settings):
    """The page's code with this model, this server and these settings; the prompt is one, eight rollouts a step."""
    text = (ROOT / "docs" / "openenv.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "GRPOTrainer" in block]
    for old, new in (
        ("Qwen/Qwen3-0.6B", str(model)),
        ("http://127.0.0.1:8000", url),
        ('.split("train")', '.split("train")[:1]'),
        ('"grpo", max_steps=200,', '"grpo", **given,'),
    ):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    given = {
        "max_steps": 2,
        "num_generations": 8,
        "per_device_train_batch_size": 8,
        "max_completion_length": 512,
        "learning_rate": 0.05,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3,
    }
    return code, {"given": given | settings}


@pytest.mark.slow
def test_trl_trains_a_tiny_student_over_openenv(tmp_path, monkeypatch):
    """Its rewards are the critic's own numbers, and the teacher's line becomes the likelier one."""
    monkeypatch.chdir(tmp_path)
    lines = [pocket_lines(1).lines_for(PROMPT.id)[0], PROMPT.text, "It was slow."]
    newline, spoken = save_caller(tmp_path / "model", lines)
    world = task("pocket")
    judged = []
    judge = world.judge

    def remembering(jokes):
        said = judge(jokes)
        judged.extend(zip(jokes, said, strict=True))
        return said

    world.judge = remembering
    with Served(world) as served, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, names = page(tmp_path / "model", served.url)
        exec(code, names)
    trainer = names["trainer"]
    before = likely(GPT2LMHeadModel.from_pretrained(tmp_path / "model"), newline, spoken)
    after = likely(trainer.model, newline, spoken)
    assert len(judged) == 16 and {joke.prompt.id for joke, _ in judged} == {PROMPT.id}
    assert {joke.text for joke, _ in judged} <= set(lines)
    own = {joke.text: PocketCritic()([joke])[0].score for joke, _ in judged}
    assert all(own[joke.text] == one.score for joke, one in judged)
    steps = [row for row in trainer.state.log_history if "reward" in row]
    assert len(steps) == 2
    mean = sum(one.score for _, one in judged) / 16
    assert sum(row["rewards/Stage/mean"] for row in steps) / 2 == pytest.approx(mean, abs=1e-6)
    assert before == pytest.approx([1 / 3] * 3, abs=0.01) and after[0] > before[0] + 0.05
