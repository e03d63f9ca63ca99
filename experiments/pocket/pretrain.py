"""Rebuild the bundled pocket students from the lexicon: tokenizer, pretraining, weights and a record of the recipe.

    python -m humor_env.experiments.pocket.pretrain --student causal --out weights/causal

The students are trained on the pocket language without its jokes (`humor_env.pocket.corpus`): they write sentences and
know what glaciers are known for, but are not funny. The folder holds what `from_pretrained` needs and `recipe.json`:
the recipe, the steps done, the losses, the measurements, and the fingerprint of the training lexicon.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from humor_env import pocket
from humor_env.agents.session.processes import keep_freed_memory
from humor_env.errors import InvalidOption
from humor_env.pocket.corpus import Corpus, Line, fingerprint, spellings
from humor_env.shared.streams import generator, stream_seed

PAD, BOS, EOS, SAYS = "<pad>", "<s>", "</s>", "<|says|>"
SPECIAL = (PAD, BOS, EOS, SAYS)  # ids 0 to 3
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] + '</s>' }}{% else %}{{ message['content'] + '<|says|>' }}{% endif %}{% endfor %}"
)
REPLY_TOKENS = 64  # longest reply that generation allows by default; the longest sentence is well below


@dataclass(frozen=True)
class Recipe:
    """How a student is made. The defaults are the bundled ones; `steps` is fixed so that a rebuild is the same."""

    student: str = "causal"
    seed: int = 0
    steps: int = 2000
    batch_tokens: int = 1792
    lr: float = 1.5e-2  # AdamW: embeddings, norms, biases
    matrix_lr: float = 0.02  # Muon: the other matrices, in half the steps that AdamW needs for them
    warmup: float = 0.05
    weight_decay: float = 0.02
    vocabulary: int = 1472
    threads: int = 1  # so that both students train side by side on two cores


def make_tokenizer(corpus: Corpus, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any Unicode text encodes. Trained on the corpus and on the words that only jokes use."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    lines = corpus.block(recipe.seed, 0, size=12_000, name="pocket-tokenizer")
    # Pieces that are in no line of the corpus (joke frames) are repeated to count as much as words of the facts.
    texts = [text for line in lines for text in (line.source, line.target)] + 20 * list(spellings(corpus.lexicon))
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if recipe.student == "seq2seq":
        bpe.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[SAYS],
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    if recipe.student == "causal":
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.padding_side = "left"
    return tokenizer


def make_model(recipe: Recipe, size: int) -> PreTrainedModel:
    """An untrained student for a vocabulary of `size`, its weights drawn from the recipe's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(recipe.seed, f"pocket-weights-{recipe.student}"))
        model: PreTrainedModel = _causal(size) if recipe.student == "causal" else _seq2seq(size)
    model.generation_config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=None if recipe.student == "causal" else 1,
        max_new_tokens=REPLY_TOKENS,
    )
    return model


def _causal(size: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _seq2seq(size: int) -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=size,
            d_model=160,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            max_position_embeddings=256,
            dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            init_std=0.03,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,  # BART itself starts from the end token; a separate start token is easier to read
            forced_bos_token_id=None,  # type: ignore[call-arg]
            forced_eos_token_id=None,
        )
    )


def encode(lines: Sequence[Line], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """(source, target) token lists as the student sees them: the chat's, or BART's with its end tokens."""
    sources = tokenizer([line.source for line in lines], add_special_tokens=False)["input_ids"]
    targets = tokenizer([line.target for line in lines], add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template:
        return [([1, *s, 3], [*t, 2]) for s, t in zip(sources, targets, strict=True)]
    return [([*s, 2], [*t, 2]) for s, t in zip(sources, targets, strict=True)]


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, name: str = "pocket-corpus", start: int = 0
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Endless batches of about `batch_tokens` tokens, with rows of similar length together, in shuffled order."""
    index = start
    while True:
        rows = sorted(encode(corpus.block(recipe.seed, index, name=name), tokenizer), key=lambda r: len(r[0] + r[1]))
        cut: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if len(cut[-1]) * len(row[0] + row[1]) > recipe.batch_tokens:
                cut.append([])
            cut[-1].append(row)
        for place in generator(recipe.seed, f"{name}-order", index).permutation(len(cut)):
            yield cut[place]
        index += 1


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def token_loss(model: PreTrainedModel, batch: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, int]:
    """Summed cross-entropy of the targets and their number of tokens; logits exist for those tokens only."""
    labels = _padded([target for _, target in batch])
    if model.config.is_encoder_decoder:
        source = _padded([source for source, _ in batch])
        shifted = torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1]], 1)
        hidden = model.model(input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=shifted)[0]
        spoken = labels != 0
    else:
        # Right padding, so no mask is needed: no real token attends to its right.
        tokens = _padded([s + t for s, t in batch])
        labels = _padded([[0] * (len(s) - 1) + t for s, t in batch])
        hidden = model.model(input_ids=tokens[:, :-1])[0]
        spoken = labels != 0
    logits = model.lm_head(hidden[spoken])
    return F.cross_entropy(logits, labels[spoken], reduction="sum"), int(spoken.sum())


def dev_loss(model: PreTrainedModel, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> float:
    """Mean loss per token, in nats, on lines about pairs that are not in the training data."""
    total, count = 0.0, 0
    with torch.no_grad():
        for _, batch in zip(range(24), batches(corpus, tokenizer, recipe, name="pocket-corpus-dev"), strict=False):
            loss, tokens = token_loss(model, batch)
            total, count = total + float(loss), count + tokens
    return total / count


def make_optimisers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest. After 250 steps: loss 1.15 instead of 1.97."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "shared" not in name]
    matrices = set(map(id, inside))
    outside = [p for p in model.parameters() if id(p) not in matrices]
    return [
        torch.optim.Muon(inside, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(outside, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def make_corpora() -> tuple[Corpus, Corpus]:
    """The training corpus, and the one for the dev loss: pairs that only out-of-distribution prompts have.

    The dev and test sentences of the training pairs are left out.
    """
    world = pocket.load_world()
    prompts = world.prompts()
    pairs = [[(p.extra["subject"], p.extra["complaint"]) for p in prompts if p.split == s] for s in ("train", "ood")]
    unread = frozenset(p.text for p in prompts if p.split != "train")
    return Corpus(world.lexicon, pairs[0], unread), Corpus(world.lexicon, pairs[1])


def pretrain(
    recipe: Recipe, out: Path, seconds: float | None = None, report: Callable[[int, float, float], None] | None = None
) -> dict[str, Any]:
    """Train and save a student; return the record in `recipe.json`. `seconds` ends it sooner, fully annealed."""
    if recipe.student not in pocket.STUDENTS:
        raise InvalidOption(f"A pocket student is one of {', '.join(pocket.STUDENTS)}; found '{recipe.student}'.")
    keep_freed_memory()
    corpus, unseen = make_corpora()
    tokenizer = make_tokenizer(corpus, recipe)
    model = make_model(recipe, len(tokenizer)).train()
    optimisers = make_optimisers(model, recipe)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    began, step, mean = time.monotonic(), 0, math.nan
    try:
        for batch in batches(corpus, tokenizer, recipe):
            # Progress is the larger of two clocks, so that the rate reaches zero whichever runs out first.
            progress = step / recipe.steps
            if seconds is not None:
                progress = max(progress, (time.monotonic() - began) / seconds)
            if progress >= 1:
                break
            share = min((step + 1) / (recipe.warmup * recipe.steps), 1.0) * (1.0 - progress)
            for rate, group in zip(rates, (g for o in optimisers for g in o.param_groups), strict=True):
                group["lr"] = rate * share
            loss, count = token_loss(model, batch)
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            model.zero_grad(set_to_none=True)
            value = float(loss.detach()) / count
            if not math.isfinite(value):
                raise InvalidOption(f"The loss became {value} at step {step}. Lower the learning rate ({recipe.lr}).")
            mean = value if math.isnan(mean) else 0.98 * mean + 0.02 * value
            step += 1
            if report is not None:
                report(step, progress, mean)
        spent = time.monotonic() - began
        model.eval()
        record = {
            "recipe": asdict(recipe),
            "command": f"python -m humor_env.experiments.pocket.pretrain --student {recipe.student} --out DIR"
            + (f" --seed {recipe.seed}" if recipe.seed else ""),
            "lexicon": fingerprint(pocket.FOLDER),
            "steps": step,
            "parameters": sum(p.numel() for p in model.parameters()),
            "final_loss": round(mean, 4),
            "dev_loss": round(dev_loss(model, unseen, tokenizer, recipe), 4),
            "seconds": round(spent, 1),
            "torch": torch.__version__.split("+")[0],
            "measured": measure(model, tokenizer, recipe.seed),
        }
    finally:
        torch.set_num_threads(threads)
    save(model, tokenizer, out, record)
    return record


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, Any]) -> None:
    """Save half-precision tensors (half the download), with `float32` in the config, so that they load as such."""
    out.mkdir(parents=True, exist_ok=True)
    # Tied weights stay one tensor: each storage is halved once, and the file holds it once.
    halves: dict[int, Tensor] = {}
    tensors = {k: halves.setdefault(v.data_ptr(), v.half()) for k, v in model.state_dict().items()}
    model.save_pretrained(out, state_dict=tensors)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def speak(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], seed: int, batch: int = 64
) -> list[str]:
    """One line for each text, sampled at temperature 1."""
    lines: list[str] = []
    speaker: Any = model  # the library's types do not say that a model generates
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(stream_seed(seed, "pocket-speak"))
        for at in range(0, len(texts), batch):
            part = list(texts[at : at + batch])
            if tokenizer.chat_template:
                part = [
                    str(
                        tokenizer.apply_chat_template(
                            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
                        )
                    )
                    for text in part
                ]
            inputs = tokenizer(part, padding=True, return_tensors="pt").to(model.device)
            out = speaker.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            lines += tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
    return lines


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 256
) -> dict[str, float]:
    """On dev prompts, which it never saw: how often lines are plain and keep the meaning, and how funny they are."""
    world = pocket.load_world()
    prompts = [p for p in world.prompts() if p.split == "dev"]
    chosen = [prompts[i] for i in generator(seed, "pocket-measure").permutation(len(prompts))[:count]]
    lines = speak(model, tokenizer, [p.text for p in chosen], seed)
    readings = [world.grammar.read(line) for line in lines]
    plain = [r.kind == "literal" for r in readings]
    kept = [
        r.kind == "literal"
        and (r.subject and r.subject.text, r.complaint and r.complaint.name)
        == (p.extra["subject"], p.extra["complaint"])
        for r, p in zip(readings, chosen, strict=True)
    ]
    scores = [world.judge(p, line).score for p, line in zip(chosen, lines, strict=True)]
    return {
        "plain": round(sum(plain) / len(plain), 4),
        "kept": round(sum(kept) / len(kept), 4),
        "exact": round(sum(scores) / len(scores), 4),
    }


def main(argv: Sequence[str] | None = None) -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Rebuild a bundled pocket student from the lexicon.")
    parser.add_argument("--student", choices=pocket.STUDENTS, default=defaults.student)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, created if it does not exist")
    parser.add_argument(
        "--seconds", type=float, help="stop earlier than the recipe's steps, with the same learning-rate schedule"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    options = parser.parse_args(argv)
    if options.threads < 1 or options.steps < 1:
        parser.error("--threads and --steps must be at least 1")
    recipe = replace(defaults, student=options.student, seed=options.seed, steps=options.steps, threads=options.threads)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"pretraining {recipe.student}", total=1.0, loss=math.nan)
        record = pretrain(
            recipe, options.out, options.seconds, lambda step, done, loss: bar.update(task, completed=done, loss=loss)
        )
    json.dump({key: value for key, value in record.items() if key != "recipe"}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
