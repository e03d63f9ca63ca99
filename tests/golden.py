"""What small runs compute, to the digit: recorded once, so that a change of the code that must change no number can be
checked against it.

    python tests/golden.py --record            # writes tests/golden.json; test_golden.py compares with it
    python tests/golden.py --record ppo dpo    # only these, where a change of numbers is meant: say so in the commit
    python tests/golden.py                     # the same runs, compared; exit status 1 where a number differs

Each run goes through what a user calls (a spec's TOML, the command line, a cell of a benchmark) and reads what it
leaves in its folder, so that a record outlives moved files and renamed functions. A record is a flat table: a metric's
values step by step, hashes of the lines and of the student's tensors, the measures of each stage. Metrics that come
later are not compared; one that gets a new name is entered in `RENAMED`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import humor_env  # noqa: F401 - a name in a spec leads only to modules that hold something of humor_env

FILE = Path(__file__).with_name("golden.json")
RENAMED: dict[str, str] = {}  # a recorded key -> what it is called now
CLOSE = 1e-3  # relative, of the first step, where another processor does the sums
SIGNS = ("ranked_right",)  # how many margins are above 0: before the first update they are 0, and rounding decides
SMALL = 1e-5  # what counts as 0 there: a KL of a policy that has not moved is all rounding

Value = Any  # a number, None, a text, or a list of these
Record = dict[str, Value]

# The world: a few of the pocket world's sentences and lines, and feedback that every line differs in.

STOP_AT: list[int] = []  # the calls of the training critic at which the user presses Ctrl-C
CALLS: list[int] = []


def letters(jokes: Sequence[Any]) -> list[Any]:
    """The training critic: a number that differs from line to line, with two parts."""
    from humor_env.types import Judgement

    CALLS.append(len(jokes))
    if len(CALLS) in STOP_AT:
        os.kill(os.getpid(), signal.SIGINT)
    return [
        Judgement("letters", min(1.0, 4 * _share(j.text, "e")), {"a": _share(j.text, "a"), "t": _share(j.text, "t")})
        for j in jokes
    ]


def more_letters(pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
    """The judge: the line with more of the letter e, surer the more it has."""
    from humor_env.types import Verdict

    edges = [_share(a.text, "e") - _share(b.text, "e") for a, b in pairs]
    return [Verdict("more-letters", max(0.0, min(1.0, 0.5 + 2 * edge))) for edge in edges]


def _share(text: str, letter: str) -> float:
    return text.count(letter) / max(1, len(text))


def make_world(folder: Path) -> None:
    from humor_env.prompts import load_prompts
    from humor_env.teacher import TeacherBuffer, pocket_lines

    world, lines = load_prompts("pocket"), pocket_lines(2)
    chosen = [p for split, count in (("train", 16), ("dev", 4), ("test", 6)) for p in world.split(split)[:count]]
    rows = [{"id": p.id, "text": p.text, "split": p.split} for p in chosen]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    TeacherBuffer(folder / "lines.jsonl", [d for p in chosen for d in lines.demonstrations_for(p.id)])


SPEC = """
name = "golden"
[env]
prompts = {prompts}
[student]
model = "pocket:causal"
lora = {{ rank = 4, alpha = 8 }}
[teacher]
lines = {lines}
per_prompt = 2
imitate = false
[teacher.imitation]
epochs = 1
batch_size = 8
[[critic]]
critic = "golden:letters"
[judge]
judge = "golden:more_letters"
[[eval.critic]]
critic = "pocket"
[eval]
sampling = {{ max_new_tokens = 12 }}
"""

# The runs

ONLINE = """
steps = 3
batch_size = 8
micro_batch = 4
learning_rate = 5e-3
kl_limit = 1e9
[learner.sampling]
max_new_tokens = 12
"""
PAIRS = """
candidates = 3
length_filter = "off"
sampling = { max_new_tokens = 12 }
"""
OFFLINE = """
epochs = 2
batch_size = 6
micro_batch = 8
learning_rate = 5e-3
"""
WARM, EPOCH = "teacher.imitate=true", "learner.epochs=1"

Run = Callable[[Path, Path], Record]  # (the world's folder, an empty one) -> what was computed


@dataclass(frozen=True)
class SpecRun:
    """One `humor-env train`: a learner's table, and what is set over it."""

    learner: str
    table: str = ""
    changes: tuple[str, ...] = ()

    def load(self, world: Path) -> Any:
        from humor_env.experiments.specs.spec import load_spec

        places = {name: json.dumps(str(world / f"{name}.jsonl")) for name in ("prompts", "lines")}
        path = world / "spec.toml"
        path.write_text(SPEC.format(**places) + f'[learner]\nname = "{self.learner}"\n{self.table}', encoding="utf-8")
        return load_spec(path, self.changes)

    def __call__(self, world: Path, folder: Path) -> Record:
        from humor_env.experiments.runs.run import run

        run(self.load(world), folder)
        return read_run(folder)


@dataclass(frozen=True)
class Resumed(SpecRun):
    """The same, stopped by Ctrl-C in its second step and then resumed."""

    def __call__(self, world: Path, folder: Path) -> Record:
        from humor_env.experiments.runs.run import run

        CALLS.clear()
        STOP_AT.append(2)
        try:
            [stopped] = run(self.load(world), folder)
        finally:
            STOP_AT.clear()
        assert (stopped.stopped, stopped.steps) == (True, 2)
        run(self.load(world), folder, resume=True)
        return read_run(folder)


def ppo(*changes: str) -> SpecRun:
    return SpecRun("ppo", ONLINE, changes)


def siblings(learner: str, *changes: str) -> SpecRun:
    return SpecRun(learner, ONLINE.replace("steps", "siblings = 4\nsteps"), changes)


def pairs(learner: str, *changes: str) -> SpecRun:
    return SpecRun(learner, f"{OFFLINE}[learner.pairs]{PAIRS}", changes)


def _quickstart(world: Path, folder: Path) -> Record:
    """The bundled spec with its own settings, cut short."""
    from humor_env.experiments.runs.run import run
    from humor_env.experiments.specs.spec import load_spec

    cut = [
        *("learner.steps=2", "learner.batch_size=16", "learner.sampling.max_new_tokens=24", "eval.limit=8"),
        *(f"env.prompts={json.dumps(str(world / 'prompts.jsonl'))}", "teacher.imitation.epochs=1"),
    ]
    run(load_spec("pocket-quickstart", cut), folder)
    return read_run(folder)


def _evaluate(world: Path, folder: Path) -> Record:
    """`humor-env evaluate` of a run's student and of its base."""
    from typer.testing import CliRunner

    from humor_env.experiments.commands.cli import app

    SpecRun("ppo", ONLINE, ("learner.steps=1",))(world, folder / "run")
    found: Record = {}
    for adapter in ("policy", "base"):
        out = folder / f"{adapter}.jsonl"
        # Recorded when `evaluate` knew no run's own prompts and critic: what it took then is asked for by name.
        command = ["evaluate", str(folder / "run"), "--limit", "12", "--adapter", adapter, "--max-new-tokens", "16"]
        command += ["--prompts", "pocket", "--critic", "pocket", "--split", "test"]
        done = CliRunner().invoke(app, [*command, "--seed", "3", "--json", "--out", str(out)])
        assert done.exit_code == 0, done.output
        numbers = next(line for line in done.output.splitlines() if line.startswith("{"))
        found |= flat(json.loads(numbers), adapter) | {f"{adapter}/lines": digest_lines(read_lines(out))}
    return found


def _benchmark(world: Path, folder: Path) -> Record:
    """The warm start and one learner of a benchmark."""
    from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec

    path = folder / "bench.toml"
    prompts, lines = (json.dumps(str(world / f"{name}.jsonl")) for name in ("prompts", "lines"))
    path.write_text(
        f"""
name = "golden"
seeds = [0]
budget = {{ samples = 24, judgements = 24, evaluations = 2 }}
held_out = {{ critic = "pocket" }}
[shared.env]
prompts = {prompts}
[shared.teacher]
lines = {lines}
per_prompt = 2
[shared.teacher.imitation]
epochs = 1
batch_size = 8
[shared.eval]
sampling = {{ max_new_tokens = 12 }}
[learner]
batch_size = 8
sampling = {{ max_new_tokens = 12 }}
[[feedback]]
name = "crowd"
judge = "pocket-crowd"
critic_options = {{ max_lines = 1 }}
[[learners]]
name = "grpo"
settings = {{ siblings = 4 }}
""",
        encoding="utf-8",
    )
    return _cells(load_benchmark_spec(path).cells(folder))


def _reproduction(world: Path, folder: Path) -> Record:
    """The warm start and one system of the reproduction of a paper."""
    from humor_env.experiments.reproduction.cells import make_cells
    from humor_env.experiments.reproduction.spec import load_scale

    cut = [
        *("data.pocket_train=24", "data.pocket_dev=4", "data.pocket_test=3", "data.pocket_ood=2"),
        *("warm_start.epochs=1", "feedback.share=0.5", "feedback.epochs=2"),
        *("writing.beams=2", "writing.max_new_tokens=12"),
    ]
    cells = make_cells(load_scale("pocket", cut), folder, [0])
    return _cells([cell for cell in cells if cell.name in ("seed-0/warm-3", "seed-0/brio-dpo")])


def _cells(cells: Sequence[Any]) -> Record:
    """Cells of work, done here one after the other."""
    from humor_env.experiments.compare.jobs import execute

    found: Record = {}
    for cell in cells:
        outcome = execute(cell, 1)
        assert outcome.error is None, outcome.error
        found |= flat(outcome.result, f"{cell.name}: result")
        for seed in (cell.folder, *cell.folder.glob("seed-*")):
            found |= {f"{cell.name}: {key}": value for key, value in read_seed(seed).items()}
    return found


RUNS: dict[str, Run] = {
    "sft": SpecRun("sft", "epochs = 2\nbatch_size = 8\nmicro_batch = 4\n"),
    "sft-full": SpecRun("sft", "epochs = 1\nbatch_size = 8\nfull = true\nweight_decay = 0.01\n"),
    "ppo": ppo(WARM, "learner.evaluate_every=2"),
    "ppo-minibatches": ppo("learner.epochs=2", "learner.minibatches=2", "learner.batch_size=16"),
    "ppo-kl-in-loss": ppo("learner.kl_in=loss", "learner.epochs=2", "learner.kl_weight=0.5"),
    "ppo-kl-target": ppo("learner.kl_target=0.5", "learner.kl_horizon=100"),
    "ppo-kl-stop": ppo("learner.epochs=3", "learner.kl_stop=0.002", "learner.micro_batch=8"),
    "ppo-scaled-rewards": ppo("learner.scale_rewards=true", "learner.missing_end_penalty=0.3", "learner.gamma=0.9"),
    "ppo-imitation": ppo("learner.imitation_weight=0.5", "learner.warmup_steps=2", "learner.decay=linear"),
    "ppo-entropy": ppo("learner.entropy_weight=0.1", "learner.whiten_advantages=false", "learner.value_warmup=1"),
    "ppo-siblings": ppo("learner.siblings=2", "learner.detach_values=false", "env.groups=2"),
    "ppo-revise": ppo("env.id=humor_env/Revise-v0", "env.attempts=2"),
    "ppo-seq2seq": ppo("student.model=pocket:seq2seq"),
    "ppo-resumed": Resumed("ppo", ONLINE, ("learner.checkpoint_every=1", "learner.kl_target=0.5")),
    "ppo-monitored": ppo(
        *("monitor.action=slow", "monitor.every=1", "monitor.lines=4", "monitor.window=1"),
        *("monitor.shorter=1.5", "budget.max_samples=16"),
    ),
    "grpo": siblings("grpo"),
    "grpo-minibatches": siblings(
        "grpo", "learner.loss=grpo", "learner.epochs=2", "learner.minibatches=2", "learner.unbiased_kl=false"
    ),
    "grpo-dr": siblings("grpo", "learner.loss=dr_grpo", "learner.scale_by_group=false", "learner.clip_high=0.28"),
    "grpo-seq2seq": siblings("grpo", "student.model=pocket:seq2seq"),
    "rloo": siblings("rloo"),
    "rloo-epochs": siblings("rloo", "learner.epochs=2", "learner.minibatches=2", "learner.kl_weight=0.2"),
    "reinforce++": SpecRun("reinforce++", ONLINE, ("learner.epochs=2",)),
    "reinforce++-baseline": siblings("reinforce++", "learner.group_baseline=true"),
    "expert-iteration": siblings("expert-iteration", WARM),
    "expert-iteration-epochs": siblings("expert-iteration", "learner.keep=2", "learner.epochs=2"),
    "dpo": pairs("dpo", WARM, "learner.evaluate_every=2"),
    "dpo-rounds": pairs("dpo", "learner.rounds=2", "learner.prompts_per_round=8", "learner.label_smoothing=0.1"),
    "dpo-ipo-beams": pairs(
        "dpo", "learner.loss=ipo", "learner.pairs.how=beams", "learner.epochs=1", "learner.prompts_per_round=6"
    ),
    "brio": pairs("brio", "learner.rounds=2", "learner.prompts_per_round=8", "learner.imitation_batch_size=8"),
    "brio-teacher": pairs(
        "brio", "learner.pairs_of=teacher", "learner.imitation_weight=0.5", "learner.imitation_batch_size=8", EPOCH
    ),
    "brio-dpo": SpecRun(
        "brio-dpo",
        f"[learner.brio]\npairs_of = 'teacher'\nimitation_batch_size = 8{OFFLINE}[learner.brio.pairs]{PAIRS}"
        f"[learner.dpo]{OFFLINE}[learner.dpo.pairs]{PAIRS}",
        ("learner.brio.epochs=1", "learner.dpo.epochs=1"),
    ),
    "sd": pairs("sd", "learner.rounds=2", "learner.prompts_per_round=8"),
    "best-of-n": SpecRun("best-of-n", "n = 3\nsampling = { max_new_tokens = 12 }\n"),
    "quickstart": _quickstart,
    "evaluate": _evaluate,
    "benchmark-cell": _benchmark,
    "reproduction-cell": _reproduction,
}

# What a run has left


def read_run(folder: Path) -> Record:
    return read_seed(folder / "seed-0")


def read_seed(folder: Path) -> Record:
    """Metrics, lines, measures and tensors of one seed's folder; "imitation" before a key is the warm start's."""
    found: Record = {}
    for stage in (".", *sorted(p.parent.name for p in folder.glob("*/metrics.jsonl"))):
        title = "" if stage == "." else f"{stage}: "
        for name, values in columns(read_lines(folder / stage / "metrics.jsonl")).items():
            found[f"{title}{name}"] = values
        by_step: dict[int, list[Any]] = {}
        for row in read_lines(folder / stage / "jokes.jsonl"):
            by_step.setdefault(row["step"], []).append(row)
        if by_step:
            found[f"{title}lines"] = [digest_lines(rows) for _, rows in sorted(by_step.items())]
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem.startswith(("evaluation-", "lines-")):
            found[path.stem] = digest_lines(read_lines(path))
    found |= {f"drift: {name}": values for name, values in columns(read_lines(folder / "drift.jsonl")).items()}
    if (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        found |= flat({key: results[key] for key in ("steps", "stopped", "why", "stages")}, "results")
    for path in sorted((folder / "student").glob("**/*.safetensors")):
        found[f"tensors of {path.relative_to(folder / 'student').as_posix()}"] = digest_tensors(path)
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Value]]:
    """Rows turned into a list for each name, None where a row lacks it. What measures the clock is left out."""
    from humor_env.agents.session.log import is_timing

    names = sorted({name for row in rows for name in row if not is_timing(name)})
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def flat(table: Any, title: str) -> Record:
    if isinstance(table, Mapping):
        return {k: v for name, inner in table.items() for k, v in flat(inner, f"{title}/{name}").items()}
    return {} if "seconds" in title else {title: _plain(table)}


def _plain(value: Any) -> Value:
    """As JSON gives it back, NaN as a text: it equals itself."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if "seconds" not in str(k)}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def digest_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of which line was written for which prompt, and its score."""
    kept = [[row.get("prompt_id") or row.get("prompt"), row["text"], row.get("score")] for row in rows]
    return _digest(json.dumps(kept).encode())


def digest_tensors(path: Path) -> str:
    """Of names, shapes and contents; not of the file, whose header may change."""
    from safetensors.torch import load_file

    tensors = sorted(load_file(path).items())
    return _digest(*(part for n, t in tensors for part in (f"{n} {tuple(t.shape)}".encode(), t.numpy().tobytes())))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


# Doing and comparing


def fingerprint() -> str:
    """Of this machine's arithmetic: equal ones give equal digits."""
    import torch
    import transformers

    with one_thread():
        source = torch.Generator().manual_seed(0)
        a, b = (torch.randn(67, 131, generator=source) for _ in range(2))
        wide = torch.randn(300, 515, generator=source)  # past what a small cache holds at once
        query = torch.randn(1, 4, 33, 16, generator=source)
        found = [
            *(
                a @ b.T,
                wide @ wide.T,
                a.exp(),
                a.softmax(-1),
                a.log_softmax(-1),
                a.tanh(),
                (a * b).sum(),
                a.mean(0),
                a.norm(),
            ),
            *(torch.nn.functional.silu(a), torch.nn.functional.gelu(a), torch.rsqrt(a.abs() + 1)),
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True),
        ]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{versions}, arithmetic {_digest(*(t.contiguous().numpy().tobytes() for t in found))}"


@contextmanager
def one_thread() -> Any:
    """The order of a sum depends on how many threads share it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute(run: Run, world: Path | None = None) -> Record:
    """What a run gives here and now."""
    with tempfile.TemporaryDirectory() as place, one_thread():
        root = Path(place)
        if world is None:
            world = root / "world"
            world.mkdir()
            make_world(world)
        folder = root / "run"
        folder.mkdir()
        return json.loads(json.dumps(run(world, folder), allow_nan=False))


def difference(recorded: Record, found: Record, *, exact: bool) -> str:
    """The first thing that differs, in words; empty where nothing does. Metrics come before what follows from them."""
    for key, before in recorded.items():
        now_called = RENAMED.get(key, key)
        if now_called not in found:
            return f"'{now_called}' is missing"
        now = found[now_called]
        if exact and now != before:
            return f"'{now_called}' {_first_unequal(before, now)}"
        if not exact and _is_metric(key, before) and not (now and _is_close(before[0], now[0])):
            return f"'{now_called}' began with {before[0]!r}, now with {now[:1]!r}"
    return ""


def _is_metric(key: str, values: Value) -> bool:
    """Whether it is a number of each step. A result comes after all steps: elsewhere one other word can change it."""
    if not isinstance(values, list) or not values or "result" in key or key.endswith(SIGNS):
        return False
    return isinstance(values[0], int | float)


def _is_close(before: float, now: Value) -> bool:
    return isinstance(now, int | float) and math.isclose(before, now, rel_tol=CLOSE, abs_tol=SMALL)


def _first_unequal(before: Value, now: Value) -> str:
    if not isinstance(before, list) or not isinstance(now, list):
        return f"was {before!r}, now {now!r}"
    if len(before) != len(now):
        return f"had {len(before)} values, now {len(now)}"
    place = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
    return f"was {before[place]!r} in row {place + 1}, now {now[place]!r}"


def read_recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write golden.json instead of comparing with it")
    parser.add_argument("names", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all where none is given")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in RUNS]
    if unknown:
        parser.error(f"No run is called '{unknown[0]}'. Known: {', '.join(RUNS)}.")
    whole = read_recorded() if FILE.is_file() else {"fingerprint": fingerprint(), "runs": {}}
    if given.record and given.names and whole["fingerprint"] != fingerprint():
        parser.error("The other runs were recorded with other arithmetic: record all of them, without names.")
    exact, failed = whole["fingerprint"] == fingerprint(), 0
    runs = {} if given.record and not given.names else whole["runs"]
    for name in given.names or RUNS:
        began = time.perf_counter()
        found = compute(RUNS[name])
        took = f"{time.perf_counter() - began:.1f} s"
        if given.record:
            runs[name] = found
            print(f"{name}: recorded, {took}", flush=True)
            continue
        wrong = difference(runs[name], found, exact=exact) if name in runs else "not recorded"
        failed += bool(wrong)
        print(f"{name}: {wrong or ('equal' if exact else 'close')}, {took}", flush=True)
    if given.record:
        ordered = {name: runs[name] for name in RUNS if name in runs}
        text = json.dumps({"fingerprint": fingerprint(), "runs": ordered}, indent=0, allow_nan=False)
        FILE.write_text(text + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import golden  # the module that specs name: critics and their state must not be there twice

    sys.exit(golden.main())
