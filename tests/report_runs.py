"""A run's folder as `humor-env train` leaves it, made of formulas: quick, and every number is known."""

import json
import math
from pathlib import Path

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    '<svg onload="window.hacked = 3"> & "quoted" {{ 7 * 7 }} <!-- it never ends'
)
EMOJI = "The taco was so flimsy that butterflies wrapped it in bubble wrap \U0001f602\U0001f602."
STAGES = {"base": 0.1, "imitation": 0.4, "ppo": 0.7, "teacher": 0.6}


def score_of(stage, seed, number):
    """In [0, 1], different for every prompt, with the stage's mean."""
    return round(STAGES[stage] + 0.09 * math.sin(1.7 * number + seed), 4)


def text_of(stage, number):
    if stage == "ppo" and number == 3:
        return HOSTILE
    if stage == "ppo" and number == 5:
        return EMOJI
    return f"The {stage} line says that thing number {number} was so slow that glaciers overtook it."


def held_out(seed, stage, prompts):
    return [
        {
            "step": 0,
            "prompt_id": f"some/test/{number:04d}",
            "prompt": f"Thing number {number} was slow.",
            "text": text_of(stage, number),
            "author": stage,
            "stop_reason": "end",
            "critic": "pocket",
            "score": score_of(stage, seed, number),
            "parts": {"form": 1.0, "meaning": 0.5},
            "reason": f"reason of {stage} {number}" + (" <img src=x>" if text_of(stage, number) == HOSTILE else ""),
            "error": None,
        }
        for number in range(prompts)
    ]


def training_reward(step, steps):
    return 0.4 + 0.4 * step / steps


def held_out_on_the_way(step, steps):
    """Best at half the way, then falling."""
    return 0.4 + 0.2 * (step if step <= steps / 2 else steps - step) / (steps / 2)


def metrics(seed, steps, parts):
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "reward/mean": training_reward(step, steps) + 0.001 * seed,
            "kl/per_line": 0.05 * step,
            "length/tokens": 20 + 0.1 * step,
            "text/distinct_2": 0.8 - 0.002 * step,
            "text/self_overlap": 0.1 + 0.001 * step,
            "text/commonest_share": 0.1,
            "failures/share": 0.0,
            "critic/calls": 2.0,
            "critic/cost": 0.01,
        }
        row |= {f"reward/part/{name}": 0.5 + 0.001 * step * (i + 1) for i, name in enumerate(parts)}
        if step % 10 == 0:
            middle = held_out_on_the_way(step, steps)
            row |= {"eval/score": middle, "eval/low": middle - 0.02, "eval/high": middle + 0.02}
        rows.append(row)
    return rows


def write_lines(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, *, seeds=2, prompts=30, steps=60, training=40, parts=("form", "meaning")) -> Path:
    """Every file of a finished run. Seed folders are seed-0, seed-1 and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.toml").write_text(
        'name = "some"\nseeds = [0]\n\n[env]\nid = "humor_env/Paraphrase-v0"\n\n[student]\nmodel = "pocket:causal"\n\n'
        '[[critic]]\ncritic = "win-tie"\n\n[learner]\nname = "ppo"\nsteps = 60\n\n[[eval.critic]]\ncritic = "pocket"\n'
    )
    record = {
        "repeat": f"humor-env train {folder}/spec.toml",
        "versions": {"torch": "2"},
        "commit": "abc",
        "device": "cpu",
    }
    (folder / "run.json").write_text(json.dumps(record))
    for seed in range(seeds):
        own = folder / f"seed-{seed}"
        write_lines(own / "metrics.jsonl", metrics(seed, steps, parts))
        timing = {"seconds/generate": 2.0, "seconds/judge": 9.0, "seconds/judge_wait": 0.5, "seconds/update": 1.0}
        timing |= {"seconds/step": 4.0, "tokens_per_second": 100.0}
        write_lines(
            own / "timings.jsonl", [{"step": s, "seconds/spent": 4.0 * s} | timing for s in range(1, steps + 1)]
        )
        sft = [{"step": s, "sft/loss": 3 / s} for s in range(1, 20)] + [{"step": 19, "sft/dev_loss": 0.4}]
        write_lines(own / "imitation" / "metrics.jsonl", sft)
        stages = {stage: held_out(seed, stage, prompts) for stage in STAGES}
        for stage, rows in stages.items():
            write_lines(own / f"evaluation-{stage}.jsonl", rows)
        written = held_out(seed, "ppo", training)
        write_lines(
            own / "jokes.jsonl", [row | {"step": 1 + i // 8, "author": "student"} for i, row in enumerate(written)]
        )
        numbers = {stage: {"score": sum(r["score"] for r in rows) / len(rows)} for stage, rows in stages.items()}
        results = {
            "seed": seed,
            "steps": steps,
            "stopped": False,
            "stages": numbers,
            "seconds": {"imitation": 9.0, "ppo": 40.0},
        }
        (own / "results.json").write_text(json.dumps(results))
    return folder


def make_benchmark(folder: Path, prompts=20) -> Path:
    """The files of a finished pocket-mini: its bundled spec, rows and curves made of formulas, and its cells."""
    from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec
    from humor_env.experiments.runs.run_folder import write_text

    folder.mkdir(parents=True)
    spec = load_benchmark_spec("pocket-mini")
    write_text(folder / "spec.toml", spec.to_toml())
    rows, curves = [], []
    learners = {"ppo": 0.7, "dpo": 0.5, "best-of-8": 0.6}
    for seed in spec.seeds:
        start = folder / "cells" / "imitation" / f"seed-{seed}"
        for stage in ("base", "imitation", "teacher"):
            name = "sft" if stage == "imitation" else stage
            write_lines(start / f"seed-{seed}" / f"evaluation-{name}.jsonl", held_out(seed, stage, prompts))
        for system, mean in ({"base": 0.1, "teacher": 0.6, "imitation": 0.4} | learners).items():
            scores = [mean + 0.05 * math.sin(n + seed) for n in range(prompts)]
            flat = dict.fromkeys(("wins", "ties", "wins_held_out", "ties_held_out", "longer"), [0.5] * prompts)
            row = {
                "system": system,
                "feedback": "crowd",
                "seed": seed,
                "score": sum(scores) / prompts,
                "part/form": 1.0,
            }
            row |= {"feedback_score": 0.5, "win_tie": 0.5, "win_tie_by_feedback": 0.5, "distinct_2": 0.5, "failures": 0}
            row |= {"self_overlap": 0.1, "teacher_copies": 0.0, "length_ratio": 1.0, "scores": scores} | flat
            if system in learners:
                row |= {"spent/samples": 640.0, "ended": ""}
                curves += [
                    f"{system},crowd,{seed},{k},{64 * k},{64 * k},{9 * k},{k / 9},{mean * k / 4},0.5,0.4"
                    for k in range(1, 5)
                ]
                own = folder / "cells" / system / "crowd" / f"seed-{seed}"
                lines = [line | {"author": system} for line in held_out(seed, "ppo", prompts)]
                write_lines(own / f"seed-{seed}" / f"evaluation-{system}.jsonl", lines)
                (own / "result.json").write_text("{}")
            rows.append(row)
    write_lines(folder / "results.jsonl", rows)
    (folder / "curves.csv").write_text(
        "\n".join(
            ["system,feedback,seed,step,samples,judgements,seconds,kl,score,feedback_score,held_out_wins", *curves]
        )
        + "\n"
    )
    record = {"failures": {"dpo/crowd/seed-7": "it <b>broke</b>"}, "commit": "abc", "versions": {"torch": "2"}}
    record |= {"cells": 8, "cpu_seconds": 60.0, "prompts": [f"some/test/{n:04d}" for n in range(prompts)]}
    (folder / "run.json").write_text(json.dumps(record))
    return folder
