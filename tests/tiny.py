"""Tiny random models and a byte-level tokenizer, made on the spot: the real classes, small enough for a unit test."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from humor_env.agents.student import Lora, Student
from humor_env.prompts import PromptSet
from humor_env.types import Judgement, Prompt
from humor_env.vector import HumorVectorEnv

SENTENCES = ["The meeting was slow.", "Glaciers overtook it.", "My soup was so cold that penguins asked for blankets."]


@functools.cache
def _bpe() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 5, trainer)
    return tokenizer.to_str()


def tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()), pad_token=pad, bos_token="<s>", eos_token="</s>"
    )


def llama(vocabulary: int = 320, seed: int = 0, context: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=context,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def bart(vocabulary: int = 320, seed: int = 0) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=vocabulary,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_bos_token_id=None,
            forced_eos_token_id=None,
        )
    )


def student(
    family: str = "causal",
    *,
    pad: str | None = "<pad>",
    rank: int = 4,
    seed: int = 0,
    device: str | torch.device = "cpu",
    context: int = 128,
) -> Student:
    words = tokenizer(pad)
    model = llama(len(words), context=context) if family == "causal" else bart(len(words))
    return Student(model, words, lora=Lora(rank=rank, alpha=2 * rank), seed=seed, device=device)


def stir(one: Student, adapter: str, seed: int = 1, size: float = 0.2) -> None:
    """Move an adapter away from zero, so that it does something."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in one.adapter_parameters(adapter).values():
            parameter.add_((torch.randn(parameter.shape, generator=source) * size).to(parameter.device))


def letters_critic(letter: str = "e"):
    """A critic that can be learned: the share of one letter in the line."""

    def share_of_letter(jokes):
        return [
            Judgement("letters", j.text.count(letter) / max(1, len(j.text)), {"length": min(1.0, len(j.text) / 100)})
            for j in jokes
        ]

    return share_of_letter


def prompts(count: int = 8) -> list[Prompt]:
    return [Prompt(f"p{i}", f"The meeting number {i} was slow.") for i in range(count)]


def vector_env(num_envs: int, critic=None, *, count: int = 8, **options) -> HumorVectorEnv:
    return HumorVectorEnv(PromptSet("tiny", prompts(count)), critic or letters_critic(), num_envs=num_envs, **options)
