"""The speed of a training step, compared with TRL's trainers in one run.

    python -m humor_env.experiments.upkeep.speed       # equal dense fp32 work, then our defaults, pocket student
    python -m humor_env.experiments.upkeep.speed --steps 5 --only ours-grpo,trl-grpo
    python -m humor_env.experiments.upkeep.speed --shape 135m --device cuda --lines 256 --tokens 64   # speed_shapes.py

Every contender runs in its own process, in turn and repeatedly, and the median step is taken, so that variations of the
machine's speed affect all of them equally. The settings that are equal are printed with the results. A fair comparison
is with a tuned opponent: "trl-…-tuned" has glibc's allocator thresholds raised through the environment and
micro-batches of 16.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep import speed_shapes
from humor_env.experiments.upkeep.speed_shapes import GROUP, Load, seconds_by_trl, some_reward, whole_words

COMPLETIONS, LENGTH, PROMPT_TOKENS, VOCABULARY = 64, 32, 16, 4096
EQUAL = (
    f"equal for all: 4-layer, 256-wide Llama with {VOCABULARY} tokens, fp32, LoRA r=16 on all linear layers, "
    f"{COMPLETIONS} completions of {LENGTH} tokens, {GROUP} for each prompt of {PROMPT_TOKENS} tokens, KL to the "
    "reference, one pass"
)
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
CRITIC_SECONDS = 0.2
CONTENDERS = ("ours-grpo", "ours-rloo", "ours-ppo", "trl-grpo", "trl-rloo", "trl-grpo-tuned", "trl-rloo-tuned")
POCKET = ("pocket-ours-grpo", "pocket-ours-ppo", "pocket-trl-grpo", "pocket-trl-grpo-tuned")
VARIANTS = (
    "ours-grpo-bf16",
    "pocket-ours-grpo-bf16",
    "ours-ppo-slow",
    "ours-ppo-apart",  # as many prompts as lines, so that no work for a prompt is shared
    "ours-sft",
    "ours-sft-memory",
    "ours-ppo-memory",
)


def dense_model() -> tuple[Any, Any]:
    """The benchmark's random model and a tokenizer of whole words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = whole_words(VOCABULARY)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    return model, tokenizer


def dense_prompts() -> list[str]:
    return [" ".join(f"w{(37 * i + 11 * j) % 4000}" for j in range(PROMPT_TOKENS - 1)) for i in range(64)]


def run_ours(algorithm: str, steps: int, pocket: bool, variant: str) -> dict[str, Any]:
    import resource

    import torch

    from humor_env.agents import grpo, ppo, rloo, sft
    from humor_env.agents.student import Student
    from humor_env.agents.student.sampling import Sampling
    from humor_env.prompts import PromptSet, load_prompts
    from humor_env.types import Demonstration, Joke, Judgement, Prompt
    from humor_env.vector import HumorVectorEnv

    torch.set_num_threads(os.cpu_count() or 1)

    def critic(jokes: Sequence[Joke]) -> list[Judgement]:
        if variant == "slow":
            time.sleep(CRITIC_SECONDS)
        return [Judgement("some", some_reward(j.text)) for j in jokes]

    if pocket:
        from humor_env import pocket as world

        student = Student.load(world.path("causal"), dtype=torch.bfloat16 if variant == "bf16" else torch.float32)
        prompts = load_prompts("pocket")
        env = HumorVectorEnv(prompts, "pocket", num_envs=COMPLETIONS)
        sampling = Sampling(max_new_tokens=48)
    else:
        model, tokenizer = dense_model()
        student = Student(model.bfloat16() if variant == "bf16" else model, tokenizer)
        prompts = PromptSet("dense", [Prompt(f"p{i}", text) for i, text in enumerate(dense_prompts())])
        env = HumorVectorEnv(
            prompts,
            critic,
            num_envs=COMPLETIONS,
            max_chars=10_000,
        )
        sampling = Sampling(max_new_tokens=LENGTH)
    timings: list[dict[str, float]] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    class RunControl:
        def metrics(self, step: int, numbers: Any) -> None:
            timings.append({n: v for n, v in numbers.items() if n.startswith("seconds/") or n == "length/tokens"})

        def jokes(self, *_: Any) -> None: ...

        def rewind(self, step: int) -> None: ...

    common: dict[str, Any] = {"steps": steps, "batch_size": COMPLETIONS, "sampling": sampling, "kl_limit": 1e9}
    learn: Callable[..., Any]
    if algorithm == "sft":
        prompt_list = prompts.split("train")
        lines = [Demonstration(p, dense_prompts()[i % 64] + " w1" * 16, "random") for i, p in enumerate(prompt_list)]
        marks = [time.perf_counter()]

        class Clock(RunControl):
            def metrics(self, step: int, numbers: Any) -> None:
                marks.append(time.perf_counter())

        imitation_config = sft.SFTConfig(epochs=steps, batch_size=COMPLETIONS, micro_batch=32)
        sft.train(imitation_config, student, lines[:COMPLETIONS], (), Clock())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {"steps": [b - a for a, b in itertools.pairwise(marks)], "phases": [], "peak_kb": peak}
    if algorithm == "ppo":
        config: Any = ppo.PPOConfig(siblings=1 if variant in ("apart", "memory") else GROUP, **common)
        learn = ppo.train
    elif algorithm == "grpo":
        config, learn = grpo.GRPOConfig(siblings=GROUP, **common), grpo.train
    else:
        config, learn = rloo.RLOOConfig(siblings=GROUP, **common), rloo.train
    learn(config, env, student, RunControl(), prompts=prompts.split("train"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"steps": [t["seconds/step"] for t in timings], "phases": timings, "peak_kb": peak}


def run_trl(algorithm: str, steps: int, pocket: bool, micro_batch: int) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    if pocket:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from humor_env import pocket as world
        from humor_env.prompts import load_prompts

        model = AutoModelForCausalLM.from_pretrained(world.path("causal"))
        tokenizer = AutoTokenizer.from_pretrained(world.path("causal"))
        prompts = load_prompts("pocket").split("train")
        rows = Dataset.from_list([{"prompt": [{"role": "user", "content": p.text}]} for p in prompts[:512]])
        longest = 48
    else:
        model, tokenizer = dense_model()
        rows = Dataset.from_list([{"prompt": text} for text in dense_prompts()])
        longest = LENGTH
    seconds = seconds_by_trl(
        (GRPOConfig, GRPOTrainer) if algorithm == "grpo" else (RLOOConfig, RLOOTrainer),
        (model, tokenizer),
        rows,
        lines=COMPLETIONS,
        micro_batch=micro_batch,
        max_steps=steps,
        max_completion_length=longest,
    )
    return {"steps": seconds, "phases": []}


def run_one(name: str, steps: int) -> dict[str, Any]:
    pocket = name.startswith("pocket-")
    who, algorithm, *variant = name.removeprefix("pocket-").split("-")
    if who == "ours":
        return run_ours(algorithm, steps, pocket, variant[0] if variant else "")
    return run_trl(algorithm, steps, pocket, 16 if variant else COMPLETIONS)


def matmul_peak() -> float:
    """GFLOP/s of a large fp32 product on all cores."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best / 1e9


def dense_gflop() -> dict[str, float]:
    """Multiply-adds (x2) of the dense step by phase: the least work of any implementation."""
    layers, width, inner, rank = 4, 256, 1024, 16
    weights = layers * (4 * width * width + 3 * width * inner)
    adapters = layers * rank * (4 * 2 * width + 3 * (width + inner))
    tokens, head = COMPLETIONS * (PROMPT_TOKENS + LENGTH), width * VOCABULARY
    scored = COMPLETIONS * LENGTH
    forward = 2 * (tokens * weights + scored * head)
    with_adapters = forward + 2 * tokens * adapters
    # The backward pass needs only the input's gradient in a frozen layer, and both gradients in an adapter.
    backward = forward + 4 * tokens * adapters
    return {"generate": forward / 1e9, "reference": forward / 1e9, "update": (with_adapters + backward) / 1e9}


def in_own_process(name: str, steps: int, *more: str) -> dict[str, Any]:
    env = os.environ | (TUNED if name.endswith("tuned") else {})
    env |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "humor_env.experiments.upkeep.speed", "--one", name, "--steps", str(steps), *more],
        capture_output=True,
        text=True,
        env=env,
    )
    results = [line for line in process.stdout.splitlines() if line.startswith("{")]  # vLLM prints, too
    if process.returncode or not results:
        raise RuntimeError(f"{name} failed:\n{process.stderr[-2000:]}")
    return json.loads(results[-1])


def _why(problem: RuntimeError) -> str:
    """The last line that names an error, or else the last line."""
    lines = str(problem).strip().splitlines()
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])


def main(
    steps: int = typer.Option(8, help="Steps per contender and round; the first two are warm-up."),
    rounds: int = typer.Option(2, help="How often each contender runs."),
    only: str = typer.Option("", help="Comma-separated contenders; default: all."),
    shape: str = typer.Option("", help="A model of this shape instead: 135m, 0.5b or 1b."),
    device: str = typer.Option("cpu", help="With --shape: cpu or cuda."),
    lines: int = typer.Option(64, help="With --shape: lines a step, a multiple of 32."),
    tokens: int = typer.Option(24, help="With --shape: tokens a line."),
    micro_batch: int = typer.Option(0, help="With --shape: lines at once in an update; 0: 32, or all on a GPU."),
    one: str = typer.Option("", hidden=True),
    out: Path | None = typer.Option(None, help="Write the results as JSON here."),
) -> None:
    if shape:
        load = speed_shapes.Load(lines, tokens, micro_batch or (lines if device == "cuda" else 32))
        measure_shape(shape, device, load, steps, rounds, only, one, out)
        return
    if one:
        print(json.dumps(run_one(one, steps)))
        return
    names = only.split(",") if only else [*CONTENDERS, *POCKET, *VARIANTS]
    seconds: dict[str, list[float]] = {n: [] for n in names}
    phases: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name in names:
            timings = in_own_process(name, steps)
            seconds[name] += timings["steps"][2:]
            phases[name] += timings["phases"][2:]
            peaks[name] = timings.get("peak_kb", 0) / 1024
    medians = {n: statistics.median(s) for n, s in seconds.items()}
    peak = matmul_peak()
    show(medians, phases, peak, peaks)
    if out:
        out.write_text(json.dumps({"medians": medians, "peak_gflops": peak, "seconds": seconds}, indent=1) + "\n")


def measure_shape(
    shape: str, device: str, load: Load, steps: int, rounds: int, only: str, way: str, out: Path | None
) -> None:
    """The comparison with a real model's shape. `way` is the contender that this process runs."""
    try:
        speed_shapes.shape_of(shape)
        speed_shapes.check_device(device)
        load.check()
    except InvalidOption as problem:
        raise typer.BadParameter(str(problem)) from None
    if way:
        print(json.dumps(speed_shapes.run_one(way, shape, device, load, steps)))
        return
    options = [f"--shape={shape}", f"--device={device}", f"--lines={load.lines}", f"--tokens={load.tokens}"]
    options.append(f"--micro-batch={load.micro_batch}")
    names = only.split(",") if only else speed_shapes.contenders(device)
    timings: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name in list(timings):
            try:
                timings[name].append(in_own_process(name, steps, *options))
            except RuntimeError as problem:
                failed[name] = _why(problem)
                del timings[name]
    peaks = speed_shapes.device_peaks(device)
    speed_shapes.show(shape, device, load, timings, peaks, failed)
    if out:
        record = {"found": timings, "failed": failed, "peaks": peaks, "options": options}
        out.write_text(json.dumps(record, indent=1) + "\n")


def show(
    medians: dict[str, float], phases: dict[str, list[dict[str, float]]], peak: float, peaks: dict[str, float]
) -> None:
    console = Console(width=110)
    console.print(EQUAL)
    table = Table("contender", "seconds a step", "samples a second", "vs TRL", "vs tuned TRL")
    for name, median in medians.items():
        prefix = "pocket-" if name.startswith("pocket-") else ""
        algorithm = name.removeprefix("pocket-").split("-")[1]
        peer = medians.get(f"{prefix}trl-{'grpo' if algorithm == 'ppo' else algorithm}")
        tuned = medians.get(f"{prefix}trl-{'grpo' if algorithm == 'ppo' else algorithm}-tuned")
        is_ours = "ours" in name
        table.add_row(
            name,
            f"{median:.3f}",
            f"{COMPLETIONS / median:.0f}",
            f"{peer / median:.2f}x" if is_ours and peer else "",
            f"{tuned / median:.2f}x" if is_ours and tuned else "",
        )
    console.print(table)
    work = dense_gflop()
    for name in ("ours-grpo", "ours-rloo", "ours-ppo"):
        if phases.get(name):
            shares = []
            for phase, gflop in work.items():
                seconds = statistics.median(p[f"seconds/{phase}"] for p in phases[name])
                shares.append(f"{phase} {seconds:.3f} s, {gflop / seconds / peak:.0%} of the matmul peak")
            console.print(f"{name}: " + "; ".join(shares))
    if {"ours-ppo", "ours-ppo-slow"} <= medians.keys():
        larger = max(medians["ours-ppo"], CRITIC_SECONDS)
        console.print(
            f"a critic of {CRITIC_SECONDS * 1000:.0f} ms with a step of {medians['ours-ppo']:.3f} s: "
            f"{medians['ours-ppo-slow'] / larger:.2f} x the larger of the two"
        )
    if {"ours-ppo-memory", "ours-sft-memory"} <= peaks.keys():
        ppo, sft = peaks["ours-ppo-memory"], peaks["ours-sft-memory"]
        console.print(
            f"peak memory beyond the loaded model: PPO {ppo:.0f} MiB, imitation {sft:.0f} MiB, {ppo / sft:.2f} x"
        )
    console.print(f"matmul peak {peak:.0f} GFLOP/s (fp32, this run)")


if __name__ == "__main__":
    typer.run(main)
