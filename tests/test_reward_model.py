import json
import math

import pytest

torch = pytest.importorskip("torch")

from humor_env.errors import InvalidOption  # noqa: E402
from humor_env.registry import critics  # noqa: E402
from humor_env.rewards.reward_model import Calibration, RewardModelCritic, encode  # noqa: E402
from humor_env.rewards.trained.scoring_head import Reading, read  # noqa: E402
from humor_env.types import Joke, Prompt  # noqa: E402

P = Prompt("p", "the meeting was slow")
TEXTS = [
    "the meeting was so slow",
    "",
    "slow",
    "glaciers overtook the meeting " * 30,
    "emoji 😂 and \ud83d a lone surrogate",
    "the meeting was so slow that glaciers overtook it",
]
WORDS = [
    "the",
    "meeting",
    "was",
    "so",
    "slow",
    "that",
    "glaciers",
    "overtook",
    "it",
    "emoji",
    "and",
    "a",
    "lone",
    "surrogate",
    "\n",
]


def tokenizer(pairs, pad=True):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[UNK]", "[CLS]", "[SEP]", "[EOS]"] + (["[PAD]"] if pad else [])
    vocab = {word: i for i, word in enumerate([*specials, *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pairs:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
    names = {"unk_token": "[UNK]", "eos_token": "[EOS]"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if pairs else {}
    names |= {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def encoder(folder, pad=True):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    made = tokenizer(pairs=True)
    config = BertConfig(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    return _save(BertForSequenceClassification(config), made, folder)


def decoder(folder, pad=True):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    made = tokenizer(pairs=False, pad=pad)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, pad_token_id=made.pad_token_id if pad else None,
    )  # fmt: skip
    return _save(LlamaForSequenceClassification(config), made, folder)


def _save(model, made, folder):
    # Random heads are nearly constant: spread them, so that a mix-up of rows would be seen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def alone(model, rows):
    """Each joke by itself, without padding: the number that batching must not change."""
    out = []
    for row in rows:
        types = {"token_type_ids": torch.tensor([row.types])} if "ert" in type(model).__name__ else {}
        with torch.no_grad():
            out.append(float(model(input_ids=torch.tensor([row.ids]), **types).logits))
    return out


def naive(folder, jokes, max_length):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return alone(model, encode(AutoTokenizer.from_pretrained(folder), jokes, max_length))


@pytest.mark.parametrize("make", [encoder, decoder])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batches_and_their_order_change_nothing(make, batch_size, tmp_path):
    folder = make(tmp_path)
    jokes = [Joke(P, t) for t in TEXTS]
    critic = RewardModelCritic(folder, batch_size=batch_size, max_length=40)
    found = critic(jokes)
    wanted = naive(folder, jokes, 40)
    assert min(abs(a - b) for i, a in enumerate(wanted) for b in wanted[:i]) > 1e-3
    assert [j.parts["logit"] for j in found] == pytest.approx(wanted, abs=1e-5)
    assert [j.score for j in found] == pytest.approx([1 / (1 + math.exp(-x)) for x in wanted], abs=1e-5)
    back = critic(jokes[::-1])
    assert [j.score for j in back[::-1]] == [j.score for j in found]
    assert critic([]) == []


@pytest.mark.parametrize("make", [decoder])
def test_a_decoder_without_a_padding_token_agrees_too(make, tmp_path):
    folder = make(tmp_path, pad=False)
    jokes = [Joke(P, t) for t in TEXTS]
    assert RewardModelCritic(folder, max_length=40).logits(jokes) == pytest.approx(naive(folder, jokes, 40), abs=1e-5)


HIDDEN = ("the mee\u200bting was sl\u2060ow", "\u202ethe meeting was slow\u202c", "the meeting was slow\x1b")


@pytest.mark.parametrize("make", [encoder, decoder])
def test_hidden_characters_change_no_score(make, tmp_path):
    critic = RewardModelCritic(make(tmp_path), max_length=40)
    plain, *others = critic.logits([Joke(P, text) for text in ("the meeting was slow", *HIDDEN)])
    assert others == pytest.approx([plain] * 3, abs=1e-6)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_scoring_model_reads_no_hidden_characters_in_prompt_or_line(pairs):
    prompt = "the meeting was so slow"
    jokes = [Joke(Prompt("p", prompt), "the meeting was slow")]
    jokes += [Joke(Prompt("p", f"\u2066{prompt}\u2069"), text) for text in HIDDEN]
    for form in ("edit", "pair"):
        plain, *others = read(tokenizer(pairs), jokes, Reading(form=form), 64)
        assert others == [plain] * 3


def test_texts_are_cut_to_what_the_model_can_read(tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    made = tokenizer(pairs=True)
    config = RobertaConfig(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, type_vocab_size=2, num_labels=1, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    folder = _save(RobertaForSequenceClassification(config), made, tmp_path)
    jokes = [Joke(P, "slow " * 100), Joke(P, "slow")]
    # Positions 0 to 4 are before and at the padding's id, so 15 of 20 are left.
    assert RewardModelCritic(folder).logits(jokes) == pytest.approx(naive(folder, jokes, 15), abs=1e-5)


def test_the_calibration_beside_the_model_is_used(tmp_path):
    folder = encoder(tmp_path)
    jokes = [Joke(P, t) for t in TEXTS]
    logits = RewardModelCritic(folder).logits(jokes)
    Calibration(scale=2.0, shift=-0.5).save(folder)
    scores = [j.score for j in critics.make("reward-model", folder=str(folder))(jokes)]
    assert scores == pytest.approx([1 / (1 + math.exp(-(2 * x - 0.5))) for x in logits])
    assert Calibration.load(folder) == Calibration(2.0, -0.5)


def test_extreme_logits_stay_in_the_unit_interval():
    assert Calibration().score(1e6) == 1.0
    assert Calibration().score(-1e6) == 0.0
    assert Calibration().score(0.0) == 0.5


def test_a_number_that_is_none_is_a_failure(tmp_path):
    folder = encoder(tmp_path)
    critic = RewardModelCritic(folder)
    critic(jokes := [Joke(P, "slow")])
    with torch.no_grad():
        critic._loaded[0].classifier.bias.fill_(float("nan"))
    [judgement] = critic(jokes)
    assert judgement.failed
    assert "nan" in judgement.error


def test_an_adapter_folder_is_the_base_and_the_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = decoder(tmp_path / "base")
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    ).eval()
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.mul_(-2.0)
    model.save_pretrained(tmp_path / "adapter")
    jokes = [Joke(P, t) for t in TEXTS]
    found = RewardModelCritic(tmp_path / "adapter", max_length=40).logits(jokes)
    wanted = alone(model, encode(tokenizer(pairs=False), jokes, 40))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found != pytest.approx(naive(base, jokes, 40), abs=1e-2)


@pytest.mark.parametrize("pairs", [True, False])
def test_the_longer_of_prompt_and_joke_is_cut(pairs):
    made = tokenizer(pairs)
    the, slow, it = (made.convert_tokens_to_ids(w) for w in ("the", "slow", "it"))
    cls, sep = ([1], [2]) if pairs else ([], [])
    length = 13 if pairs else 10  # room for ten words either way

    def ids(prompt, text):
        [row] = encode(made, [Joke(Prompt("p", prompt), text)], length)
        assert len(row.types) == len(row.ids) <= length
        return row.ids

    assert ids("the " * 100, "slow " * 5) == cls + [the] * 5 + sep + [slow] * 5 + sep
    assert ids("the " * 100, "slow it") == cls + [the] * 8 + sep + [slow, it] + sep
    assert ids("the", "slow " * 100) == cls + [the] + sep + [slow] * 9 + sep
    assert ids("the " * 100, "slow " * 100) == cls + [the] * 5 + sep + [slow] * 5 + sep


def test_the_tokens_around_a_single_text_stay_whole():
    from tokenizers import processors

    made = tokenizer(pairs=False)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [EOS]", special_tokens=[("[CLS]", 1), ("[EOS]", 3)]
    )
    the = made.convert_tokens_to_ids("the")
    [row] = encode(made, [Joke(Prompt("p", "the " * 9), "the " * 9)], 8)
    assert row.ids == [1] + [the] * 6 + [3]


def test_bad_folders_and_options_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match="has no reward model"):
        RewardModelCritic(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for options in ({"batch_size": 0}, {"max_length": 4}, {"dtype": "int8"}):
        with pytest.raises(InvalidOption):
            RewardModelCritic(tmp_path, **options)
    for bad in ("nothing", '{"scale": 1}', '{"scale": 0, "shift": 0}', json.dumps({"scale": 1, "shift": math.inf})):
        (tmp_path / "calibration.json").write_text(bad)
        with pytest.raises(InvalidOption, match=r"calibration|scale"):
            RewardModelCritic(tmp_path)
