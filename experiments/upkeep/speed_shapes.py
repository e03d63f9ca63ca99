"""The speed of a step with a real model's shape, compared with TRL's and with the best that the device could do.

    python -m humor_env.experiments.upkeep.speed --shape 135m --device cpu --lines 64 --tokens 24
    python -m humor_env.experiments.upkeep.speed --shape 0.5b --device cuda --lines 256 --tokens 64

The weights are random, in bfloat16 on a GPU and in float32 on a CPU. A prompt has 50 tokens, of which all prompts share
the first 33, as with an instruct model's system prompt and template. The floor is the time of the step's products at
the speed of one large product, or of its weights at the speed of one large copy, whichever is longer, both measured in
the same run: no program can be faster, and one that stores keys and values, normalises and samples is slower.
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from humor_env.errors import InvalidOption

COMMON, OWN, GROUP, RANK = 33, 17, 8, 16  # a prompt's shared tokens, its own tokens, lines a prompt (GRPO), LoRA's rank
WARM_UP = 1  # steps that are not counted


@dataclass(frozen=True)
class Shape:
    """A decoder whose output layer is tied to its embedding."""

    family: str  # "llama" or "qwen2"
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int

    @property
    def block_weights(self) -> int:
        """The weights of all layers."""
        keys = self.width // self.heads * self.key_heads
        return self.layers * (2 * self.width**2 + 2 * self.width * keys + 3 * self.width * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width


@dataclass(frozen=True)
class Load:
    """The work of one step: the number of lines, the tokens of each, and the lines of one micro-batch."""

    lines: int
    tokens: int
    micro_batch: int

    def check(self) -> None:
        if self.lines < 32 or self.lines % 32:
            raise InvalidOption(f"--lines must be a multiple of 32, found {self.lines}.")
        if self.micro_batch < GROUP or self.lines % self.micro_batch:
            raise InvalidOption(
                f"--micro-batch must be at least {GROUP} and divide the {self.lines} lines, found {self.micro_batch}."
            )


SHAPES = {
    "tiny": Shape("llama", 512, 32, 64, 2, 4, 2),  # for trying out this script
    "135m": Shape("llama", 49152, 576, 1536, 30, 9, 3),  # SmolLM2-135M
    "0.5b": Shape("qwen2", 151936, 896, 4864, 24, 14, 2),  # Qwen2.5-0.5B
    "1b": Shape("llama", 128256, 2048, 8192, 16, 32, 8),  # Llama-3.2-1B
}


def check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise InvalidOption(f"--device must be cpu or cuda, found '{device}'.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidOption("--device cuda needs a GPU that torch can use, but found none. Leave it out for the CPU.")


def shape_of(name: str) -> Shape:
    if name not in SHAPES:
        raise InvalidOption(f"--shape must be one of {', '.join(SHAPES)}, found '{name}'.")
    return SHAPES[name]


def whole_words(vocabulary: int) -> Any:
    """A tokenizer with this many words, including three special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>"] + [f"w{i}" for i in range(vocabulary - 3)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make_model(shape: Shape, device: str) -> tuple[Any, Any]:
    """A model with random weights, and a tokenizer of whole words whose chat template starts with COMMON tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = whole_words(shape.vocabulary)
    head = " ".join(["<s>", *(f"w{i}" for i in range(COMMON - 1))])
    tokenizer.chat_template = head + " {% for m in messages %}{{ m['content'] }}{% endfor %} w1"
    configs: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    config_class, model_class = configs[shape.family]
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    return (model.bfloat16() if device == "cuda" else model).to(device), tokenizer


def load_made(shape: Shape, device: str, folder: str) -> tuple[Any, Any]:
    """`make_model`, saved in a folder and loaded from it: vLLM loads the model from the place that TRL names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    random_model, tokenizer = make_model(shape, "cpu")
    # In the precision of the run, which vLLM takes from the file.
    (random_model.bfloat16() if device == "cuda" else random_model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.to(device), AutoTokenizer.from_pretrained(folder)


def make_prompts(count: int, words: int) -> list[str]:
    return [" ".join(f"w{(37 * i + 11 * j) % words}" for j in range(OWN - 1)) for i in range(count)]


def some_reward(text: str) -> float:
    return (sum(map(ord, text)) % 97) / 96


def run_ours(algorithm: str, shape: Shape, device: str, load: Load, steps: int) -> dict[str, Any]:
    from humor_env.agents import grpo, ppo
    from humor_env.agents.student import Student
    from humor_env.agents.student.sampling import Sampling
    from humor_env.prompts import PromptSet
    from humor_env.types import Judgement, Prompt
    from humor_env.vector import HumorVectorEnv

    model, tokenizer = make_model(shape, device)
    student = Student(model, tokenizer, device=device)
    texts = make_prompts(load.lines, shape.vocabulary - 100)
    prompts = PromptSet("speed", [Prompt(f"p{i}", text) for i, text in enumerate(texts)])
    env = HumorVectorEnv(
        prompts,
        lambda jokes: [Judgement("some", some_reward(j.text)) for j in jokes],
        num_envs=load.lines,
        max_chars=10_000,
    )
    timings: list[dict[str, float]] = []

    class Timings:
        def metrics(self, step: int, numbers: Mapping[str, Any]) -> None:
            names = ("length/tokens", "update/first_mismatch")
            timings.append({n: v for n, v in numbers.items() if n.startswith("seconds/") or n in names})

        def jokes(self, *_: Any) -> None: ...

        def rewind(self, step: int) -> None: ...

    common: dict[str, Any] = {"sampling": Sampling(max_new_tokens=load.tokens), "kl_limit": 1e9}
    common |= {"steps": steps + WARM_UP, "batch_size": load.lines, "micro_batch": load.micro_batch}
    before = _memory(device)
    learn: Callable[..., Any]
    config: Any
    if algorithm == "ppo":
        config, learn = ppo.PPOConfig(**common), ppo.train
    else:
        config, learn = grpo.GRPOConfig(siblings=GROUP, **common), grpo.train
    learn(config, env, student, Timings(), prompts=prompts.split("train"))
    phases = timings[WARM_UP:]
    return {"steps": [t["seconds/step"] for t in phases], "phases": phases, **_memory(device, before)}


def run_trl(shape: Shape, device: str, load: Load, steps: int, vllm: bool) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    texts = make_prompts(load.lines, shape.vocabulary - 100)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])
    with tempfile.TemporaryDirectory() as folder:
        model_and_tokenizer = load_made(shape, device, folder)
        before = _memory(device)
        seconds = seconds_by_trl(
            (GRPOConfig, GRPOTrainer),
            model_and_tokenizer,
            rows,
            lines=load.lines,
            micro_batch=load.micro_batch,
            device=device,
            max_steps=steps + WARM_UP,
            max_completion_length=load.tokens,
            use_vllm=vllm,
            vllm_mode="colocate",
        )
        return {"steps": seconds[WARM_UP:], "phases": [], **_memory(device, before)}


def seconds_by_trl(
    classes: tuple[Any, Any],
    model_and_tokenizer: tuple[Any, Any],
    rows: Any,
    *,
    lines: int,
    micro_batch: int,
    device: str = "cpu",
    **settings: Any,
) -> list[float]:
    """The seconds of each step of one of TRL's trainers. `classes` are its config and trainer, such as
    (GRPOConfig, GRPOTrainer); `settings` are more fields of the config."""
    from peft import LoraConfig
    from transformers import TrainerCallback

    model, tokenizer = model_and_tokenizer
    config_class, trainer_class = classes
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                import torch

                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    def rewards(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [some_reward(c if isinstance(c, str) else c[0]["content"]) for c in completions]

    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=lines // micro_batch,
            num_generations=GROUP,
            beta=0.05,
            learning_rate=1e-3,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            seed=0,
            **settings,
        )
        trainer = trainer_class(
            model=model,
            reward_funcs=rewards,
            args=config,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        began = time.perf_counter()
        trainer.train()
    return [b - a for a, b in zip([began, *marks], marks, strict=False)]


def contenders(device: str) -> list[str]:
    with_vllm = device == "cuda" and importlib.util.find_spec("vllm") is not None
    return ["ours-ppo", "ours-grpo", "trl-grpo", *(["trl-grpo-vllm"] if with_vllm else [])]


def run_one(name: str, shape: str, device: str, load: Load, steps: int) -> dict[str, Any]:
    who, algorithm, *more = name.split("-")
    if who == "ours":
        return run_ours(algorithm, shape_of(shape), device, load, steps)
    return run_trl(shape_of(shape), device, load, steps, "vllm" in more)


def _memory(device: str, before: Mapping[str, float] | None = None) -> dict[str, float]:
    """The peak memory so far, beyond that `before`, in MiB. Of a GPU it is what was reserved, and beside it what was
    allocated, which no longer counts a graph's memory after its capture."""
    if device == "cuda":
        import torch

        peaks = {"memory": torch.cuda.max_memory_reserved() / 2**20}
        peaks["allocated"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        peaks = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return {name: peak - (before or {}).get(name, 0.0) for name, peak in peaks.items()}


def device_peaks(device: str) -> dict[str, float]:
    """GFLOP/s of a large product and GB/s of a large copy, both in the precision of the run."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device).to(dtype)
    source = torch.zeros(1 << (30 if device == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return {
        "gflops": 2 * size**3 / best(lambda: a @ a) / 1e9,
        "gigabytes": 2 * source.numel() / best(lambda: target.copy_(source)) / 1e9,
    }


def floor(
    shape: Shape, device: str, lines: int, tokens: int, siblings: int, peaks: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by phase. Tokens shared by prompts or siblings are counted once."""
    prompts = COMMON + lines // siblings * OWN
    block, head = 2 * shape.block_weights / 1e9, 2 * shape.head_weights / 1e9  # GFLOP a token
    adapters = block * RANK * _adapter_share(shape)
    weights = (shape.block_weights + shape.head_weights) * (2 if device == "cuda" else 4) / 1e9  # GB

    def seconds(gflop: float, gigabytes: float) -> float:
        return max(gflop / peaks["gflops"], gigabytes / peaks["gigabytes"])

    read = prompts + lines * (tokens - 1)
    forward = read * block + lines * tokens * head
    # The backward pass needs only the input's gradient in a frozen layer, and both in an adapter; the output layer is
    # run once more, for the gradient of each log-probability.
    update = 2 * read * block + 3 * read * adapters + 2 * lines * tokens * head
    return {
        "generate": seconds(prompts * block, weights)
        + lines * tokens * head / peaks["gflops"]
        + (tokens - 1) * seconds(lines * block, weights),
        "reference": seconds(forward, weights),
        "update": seconds(update, 3 * weights),
    }


def _adapter_share(shape: Shape) -> float:
    """The weights of a rank-1 adapter divided by the weights of the blocks."""
    keys = shape.width // shape.heads * shape.key_heads
    adapter_weights = 2 * 2 * shape.width + 2 * (shape.width + keys) + 3 * (shape.width + shape.inner)
    return shape.layers * adapter_weights / shape.block_weights


def show(
    shape: str,
    device: str,
    load: Load,
    timings: Mapping[str, Sequence[Mapping[str, Any]]],
    peaks: Mapping[str, float],
    failed: Mapping[str, str] | None = None,
) -> None:
    """`timings` holds each contender's rounds; `failed` says why another has none."""
    console, lines, tokens = Console(width=120), load.lines, load.tokens
    measured = f"{peaks['gflops']:.0f} GFLOP/s and {peaks['gigabytes']:.0f} GB/s measured in this run"
    console.print(
        f"{shape} on {device}: {lines} lines of {tokens} tokens after prompts of {COMMON + OWN} tokens, {COMMON} of "
        f"them common to all; GRPO with {GROUP} lines a prompt; {load.micro_batch} lines at once in an update; "
        f"{measured}"
    )
    medians = {name: statistics.median(s for each in rounds for s in each["steps"]) for name, rounds in timings.items()}
    peer = medians.get("trl-grpo")
    table = Table("contender", "seconds a step", "tokens a second", "vs TRL's GRPO", "memory beyond the model, MiB")
    for name, rounds in timings.items():
        table.add_row(
            name,
            f"{medians[name]:.3f}",
            f"{lines * tokens / medians[name]:.0f}",
            f"{peer / medians[name]:.2f}x" if peer and name.startswith("ours") else "",
            _shown_memory(rounds),
        )
    console.print(table)
    for name, why in (failed or {}).items():
        console.print(f"{name} failed: {why}", markup=False)
    for name, rounds in timings.items():
        phases = [p for each in rounds for p in each["phases"]]
        if not phases:
            continue
        least = floor(SHAPES[shape], device, lines, tokens, 1 if name.endswith("ppo") else GROUP, peaks)
        phase_texts = []
        for phase, seconds in least.items():
            seconds_taken = statistics.median(p[f"seconds/{phase}"] for p in phases)
            phase_texts.append(f"{phase} {seconds_taken:.3f} s (floor {seconds:.3f})")
        mismatch = max(p["update/first_mismatch"] for p in phases)
        console.print(f"{name}: " + "; ".join(phase_texts) + f"; the largest update/first_mismatch {mismatch:.4f}")


def _shown_memory(rounds: Sequence[Mapping[str, Any]]) -> str:
    most = {kind: max(each[kind] for each in rounds) for kind in ("memory", "allocated") if kind in rounds[0]}
    if "allocated" in most:
        return f"{most['allocated']:.0f} allocated, {most['memory']:.0f} reserved"
    return f"{most['memory']:.0f}"
