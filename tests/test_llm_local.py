"""The local model: exact probabilities of the answer's symbols, checked against a naive computation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from humor_env.errors import InvalidOption
from humor_env.llm import Ledger, LedgeredClient, Request, make_client
from humor_env.llm.clients.local import ANSWER_PREFIX, LocalClient
from humor_env.rewards.multiple_choice import MultipleChoiceJudge
from humor_env.rewards.scorer import ScorerCritic, symbol_schema
from humor_env.shared.frozen_weights import sample
from humor_env.types import Joke, Prompt

TEXTS = ("Moss grew.", "Glaciers overtook the meeting, twice, and waved.", "A é 日 😂 “line”.")


def save_tokenizer(folder: Path, merges: list[tuple[str, str]], **special: Any) -> int:
    """A byte-level tokenizer with a few merges; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(a + b for a, b in merges)]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", **special)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("causal")
    # The merge joins a symbol with the quote before it: the trap that tokenizing the parts apart falls into.
    size = save_tokenizer(folder, [('"', "1"), ("t", "i")])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size, n_positions=2048, n_embd=16, n_layer=2, n_head=2, eos_token_id=size - 1,
                        bos_token_id=size - 1)  # fmt: skip
    model = GPT2LMHeadModel(config)
    for weight in model.parameters():
        weight.data.mul_(8)  # far from uniform, so that a wrong position shows
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("encoder_decoder")
    size = save_tokenizer(folder, [], pad_token="<pad>")
    torch.manual_seed(0)
    config = BartConfig(vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=2048,
                        pad_token_id=size - 1, eos_token_id=size - 2, bos_token_id=size - 2,
                        decoder_start_token_id=size - 2, forced_eos_token_id=None)  # fmt: skip
    model = BartForConditionalGeneration(config)
    for weight in model.parameters():
        weight.data.mul_(5)
    model.save_pretrained(folder)
    return str(folder)


def test_inputs_go_where_the_model_is(causal):
    """They went to the device "cuda", which in a critic's thread is the student's GPU and not the model's."""
    client = LocalClient(causal, device="cpu")
    client.model = SimpleNamespace(device=torch.device("meta"))
    assert [tensor.device.type for tensor in client._padded([[1, 2], [3]])] == ["meta", "meta"]


def request(text: str, *symbols: str) -> Request:
    return Request("Which is better?", {"1": text, "2": "x" * 7}, symbol_schema(symbols), 16, symbols)


def naive(client: LocalClient, asked: Request) -> dict[str, float]:
    """One text at a time, whole logits, a full softmax, the product over the tokens that spell each symbol."""
    joined = {s: client.tokenizer(client.prompt_text(asked, ANSWER_PREFIX + s))["input_ids"] for s in asked.choices}
    same = 0
    while len({ids[same] for ids in joined.values()}) == 1:
        same += 1
    weights = {}
    for symbol, ids in joined.items():
        with torch.no_grad():
            shares = client.model(torch.tensor([ids])).logits[0].double().softmax(-1)
        weights[symbol] = 1.0
        for position in range(same, len(ids)):
            weights[symbol] *= float(shares[position - 1, ids[position]])
    return {symbol: weight / sum(weights.values()) for symbol, weight in weights.items()}


@pytest.mark.parametrize(
    "symbols", [("1", "2"), ("1", "2", "0"), ("0", "1", "2", "3", "4", "5"), ("left", "tie", "right")]
)
def test_probabilities_equal_the_naive_computation(causal: str, symbols: tuple[str, ...]) -> None:
    client = LocalClient(causal, batch_size=3)
    asked = [request(text, *symbols) for text in TEXTS]
    for reply, one in zip(client(asked), asked, strict=True):
        expected = naive(client, one)
        assert reply.probabilities == pytest.approx(expected, abs=1e-5)
        assert sum(reply.probabilities.values()) == pytest.approx(1.0)
        assert max(expected.values()) - min(expected.values()) > 0.05
        assert reply.data == {"answer": max(expected, key=lambda s: expected[s])}
        assert reply.usage.calls == 1
        assert reply.usage.cost == 0.0


def test_symbols_that_begin_alike_are_refused(causal: str) -> None:
    with pytest.raises(InvalidOption, match="'tie' is the beginning of another"):
        LocalClient(causal)([request(TEXTS[0], "left", "tie", "ties!")])


def test_company_in_the_batch_changes_nothing(causal: str) -> None:
    asked = [request(text, "1", "2") for text in TEXTS]
    together = LocalClient(causal, batch_size=8)(asked)
    alone = [LocalClient(causal, batch_size=1)([one])[0] for one in asked]
    for a, b in zip(together, alone, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_an_encoder_decoder_gives_the_same_as_the_naive_computation(encoder_decoder: str) -> None:
    client = LocalClient(encoder_decoder)
    assert client.encoder_decoder
    asked = [request(text, "1", "2", "0") for text in TEXTS]
    for reply, one in zip(client(asked), asked, strict=True):
        source = torch.tensor([client.tokenizer(client.prompt_text(one))["input_ids"]])
        start = client.model.config.decoder_start_token_id
        begun = torch.tensor([[start, *client.tokenizer(ANSWER_PREFIX)["input_ids"]]])
        with torch.no_grad():
            shares = client.model(input_ids=source, decoder_input_ids=begun).logits[0, -1].double().softmax(-1)
        weights = {s: float(shares[client.tokenizer(s)["input_ids"][0]]) for s in one.choices}
        expected = {s: w / sum(weights.values()) for s, w in weights.items()}
        assert reply.probabilities == pytest.approx(expected, abs=1e-5)


def test_it_judges_and_scores(causal: str) -> None:
    prompt = Prompt("p", "The meeting was slow.")
    a, b = Joke(prompt, TEXTS[0]), Joke(prompt, TEXTS[1])
    judge = MultipleChoiceJudge(f"local:{causal}")
    forth, back = judge([(a, b), (b, a)])
    assert forth.probability == pytest.approx(1 - (back.probability or 0.0), abs=1e-6)
    assert 0 < (forth.probability or 0.0) < 1
    client = judge.ledgered.client
    assert isinstance(client, LocalClient)
    first, second = (naive(client, judge.requests(pair)[0])["1"] for pair in ((a, b), (b, a)))
    assert forth.probability == pytest.approx((first + 1 - second) / 2, abs=1e-5)
    [judgement] = ScorerCritic(f"local:{causal}")([a])
    assert judgement.score is not None
    assert judgement.usage.calls == 4


def test_other_weights_are_another_model(causal: str, tmp_path: Path) -> None:
    client = LocalClient(causal)
    name = client.name
    assert name == LocalClient(causal).name
    client.model.get_input_embeddings().weight.data[0, 0] += 1
    client.model.save_pretrained(tmp_path / "causal")
    client.tokenizer.save_pretrained(tmp_path / "causal")
    assert LocalClient(str(tmp_path / "causal")).name != name
    assert name.startswith("local:") and "/" not in name


def test_another_chat_template_is_another_prompt(causal: str, tmp_path: Path) -> None:
    """Replies to prompts without the template, or with another, were replayed: weights alone named the model."""
    ledger, question = Ledger(), request("Moss grew.", "1", "2")
    folder = str(shutil.copytree(causal, tmp_path / "model"))
    client = LocalClient(folder)
    [reply] = LedgeredClient("q", client, ledger=ledger).ask([question])
    names, shares = {client.name}, {reply.probabilities["1"]}
    for role in ("{{m['role']}}: ", ">> "):
        client.tokenizer.chat_template = f"{{% for m in messages %}}{role}{{{{m['content']}}}}\n{{% endfor %}}Reply: "
        client.tokenizer.save_pretrained(folder)
        # What an earlier version stored may be of any template: it is told, and not used.
        with pytest.warns(
            UserWarning, match="has 1 of these replies without the chat template that made their prompts"
        ):
            [reply] = LedgeredClient("q", LocalClient(folder), ledger=ledger).ask([question])
        assert not reply.replayed
        other = LocalClient(folder)
        [again] = LedgeredClient("q", other, ledger=ledger).ask([question])
        assert again.replayed and again.probabilities == reply.probabilities
        names.add(other.name)
        shares.add(reply.probabilities["1"])
    assert len(names) == len(shares) == 3


def test_greedy_writing_is_the_naive_argmax_and_stops_at_the_limit(causal: str) -> None:
    client = LocalClient(causal)
    asked = [Request("Write.", {"input": text}, None, 5) for text in TEXTS]
    for reply, one in zip(client(asked), asked, strict=True):
        ids = client.tokenizer(client.prompt_text(one))["input_ids"]
        for _ in range(5):
            with torch.no_grad():
                ids = [*ids, int(client.model(torch.tensor([ids])).logits[0, -1].argmax())]
        written = ids[-5:]
        if client.tokenizer.eos_token_id not in written:
            assert (reply.error, reply.text) == ("cut", client.tokenizer.decode(written))
            assert reply.usage.output_tokens == 5


def test_sampling_depends_on_the_request_alone(causal: str) -> None:
    state = torch.get_rng_state()
    asked = [Request("Write.", {"input": TEXTS[0]}, None, 8, (), n) for n in range(4)]
    client = LocalClient(causal, temperature=1.5)
    replies = client(asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({r.text for r in replies}) > 1
    assert client(asked[2:3])[0].text == replies[2].text
    assert LocalClient(causal, temperature=1.5, seed=1)(asked)[0].text != replies[0].text


def test_options(causal: str) -> None:
    with pytest.raises(InvalidOption, match="batch_size"):
        make_client(f"local:{causal}", batch_size=0)
    with pytest.raises(InvalidOption, match="Did you mean 'batch_size'"):
        make_client(f"local:{causal}", batchsize=1)
    with pytest.raises(InvalidOption, match="needs a folder"):
        make_client("local:")


def test_the_data_is_not_touched_by_a_template(causal: str) -> None:
    client = LocalClient(causal)
    client.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim | upper }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    one = Request("Judge.", {"line": "  kept as it is {{ m }}  "})
    text = client.prompt_text(one, "ANSWER")
    assert text.startswith("[system]JUDGE.[user]{")
    assert text.endswith("[assistant]ANSWER")
    assert json.loads(text.removeprefix("[system]JUDGE.[user]").removesuffix("[assistant]ANSWER")) == one.data


def test_a_template_that_refuses_a_system_turn_gets_the_instructions_in_the_user_turn(causal: str) -> None:
    """Gemma 2 and Mistral 7B v0.1: a raw jinja2.TemplateError. A template that repeats the user's message left a
    literal placeholder in the prompt."""
    client = LocalClient(causal)
    client.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    assert client.prompt_text(Request("Judge.", {"line": "x"})) == '[user]Judge.\n\n{"line": "x"}'
    for broken in ("{{ m['content'] }}{{ m['content'] }}", "{{ m['content'] | replace('-', '') }}"):
        client.tokenizer.chat_template = "{% for m in messages %}" + broken + "{% endfor %}"
        with pytest.raises(InvalidOption, match="expected once"):
            client.prompt_text(Request("Judge.", {"line": "x"}))
    client.tokenizer.chat_template = "{% for m in messages | reverse %}{{ m['content'] }}|{% endfor %}"
    assert client.prompt_text(Request("Judge.", {"line": "x"})) == 'Judge.\n\n{"line": "x"}|', "never the data first"
    with pytest.raises(InvalidOption, match="cannot be loaded"):
        LocalClient("/nope")


def test_a_weight_is_sampled_at_its_start_middle_and_end():
    """By these numbers the ledger knows a local model: one that was changed in any of them is another."""
    weight = torch.arange(1000.0)
    whole = sample(weight)
    assert whole == torch.cat([weight[:64], weight[500:564], weight[936:]]).numpy().tobytes()
    for place in (0, 63, 500, 563, 936, 999):
        changed = weight.clone()
        changed[place] += 1
        assert sample(changed) != whole
    assert sample(torch.arange(3.0)) == torch.tensor([0.0, 1, 2, 1, 2, 0, 1, 2]).numpy().tobytes()
