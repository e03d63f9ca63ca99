"""TRL's trainers as learners here: the same student, the same budget.

    result = train_grpo(TRLConfig(steps=60, siblings=8), critic, student, log, prompts=prompts)

A peer trains a copy of the student's base with the `policy` adapter; its reference is a copy of the `imitation`
adapter (by default TRL would take the policy itself). The trained adapter is copied back into the student. Checkpoints
are TRL's own, in the store's folder: a stopped run resumes, but unlike with our own learners a kill during saving may
damage them.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from humor_env.agents.feedback.pairs import PairConfig, preference_record, read_preference, student_pairs
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import check_bounds
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent
from humor_env.agents.session.processes import is_main_process, process_count
from humor_env.agents.session.schedule import learning_rate_share
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.trl.formats import (
    demonstrations_dataset,
    make_trl_reward,
    preferences_dataset,
    prompts_dataset,
    without_added_ends,
)
from humor_env.episodes.critic_memory import show, with_memory
from humor_env.errors import InvalidOption, StudentError
from humor_env.types import Critic, Demonstration, Joke, Judge, Judgement, Preference, Prompt

OURS = "humor_env.json"  # file in a TRL checkpoint with the state that its trainer does not save
ASKING = ("GRPO", "RLOO")  # peers whose every step generates and judges lines


@dataclass(frozen=True)
class TRLConfig:
    """One configuration for all peers. `options` go to TRL's own config class as they are and take precedence."""

    steps: int = 100
    batch_size: int = 64  # per step, over all processes: lines (GRPO, RLOO), pairs (DPO) or demonstrations (SFT)
    siblings: int = 8  # lines per prompt (GRPO, RLOO)
    sampling: Sampling = field(default_factory=Sampling)
    pairs: PairConfig = field(default_factory=PairConfig)  # DPO
    micro_batch: int = 32  # rows in memory at once
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    kl_weight: float = 0.05  # GRPO, RLOO
    beta: float = 0.1  # DPO
    max_failure_share: float = 0.5
    max_flip_share: float = 0.5
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(self, "steps", "batch_size", "siblings", "micro_batch", "checkpoint_every")
        if self.batch_size % process_count():
            raise InvalidOption(f"batch_size {self.batch_size} does not divide among {process_count()} processes.")
        if self.rows_here % min(self.micro_batch, self.rows_here):
            raise InvalidOption(
                f"Each process's share of batch_size {self.batch_size}, {self.rows_here} rows, must be a multiple of "
                f"micro_batch {self.micro_batch}."
            )
        if self.decay not in ("constant", "linear", "cosine"):
            raise InvalidOption(f"decay must be 'constant', 'linear' or 'cosine', found '{self.decay}'.")

    @property
    def rows_here(self) -> int:
        """This process's share of the batch, which is how TRL counts."""
        return self.batch_size // process_count()

    def arguments(self, folder: Path, device: torch.device) -> dict[str, Any]:
        """Arguments that all of TRL's config classes share."""
        rows = min(self.micro_batch, self.rows_here)
        return {
            "output_dir": str(folder),
            "max_steps": self.steps,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": self.rows_here // rows,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "weight_decay": 0.0,
            "max_grad_norm": self.max_grad_norm,
            "save_strategy": "steps",
            "save_steps": self.checkpoint_every,
            "save_total_limit": 2,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device.type == "cpu",
            "bf16": False,
            "gradient_checkpointing": False,
            "seed": self.seed,
            "data_seed": self.seed,
        }

    def online_arguments(self) -> dict[str, Any]:
        if self.batch_size % self.siblings or self.siblings < 2:
            raise InvalidOption(
                f"batch_size {self.batch_size} must be a multiple of siblings, and siblings at least 2; "
                f"found {self.siblings}."
            )
        return {
            "num_generations": self.siblings,
            "max_completion_length": self.sampling.max_new_tokens,
            **self.sampling.how(),
            "beta": self.kl_weight,
        }


def train_grpo(
    config: TRLConfig,
    critic: Critic,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """TRL's GRPO on the student's `policy` adapter. Behaviour as in `ppo.train`, but for its checkpoints."""
    return _train_online("GRPO", config, critic, student, log, prompts, checkpoints, evaluate, control or RunControl())


def train_rloo(
    config: TRLConfig,
    critic: Critic,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """TRL's RLOO on the student's `policy` adapter. Behaviour as in `ppo.train`, but for its checkpoints."""
    return _train_online("RLOO", config, critic, student, log, prompts, checkpoints, evaluate, control or RunControl())


def _train_online(
    kind: str,
    config: TRLConfig,
    critic: Critic,
    student: Student,
    log: Log | None,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore | None,
    evaluate: Callable[[Student], Mapping[str, float]] | None,
    control: RunControl,
) -> TrainResult:
    log = log or Silent()

    remembering = with_memory([critic])  # each process its own lines only, and not in TRL's checkpoints

    def record_batch(step: int, jokes: list[Joke], judgements: list[Judgement]) -> None:
        show(remembering, jokes)
        control.count(len(jokes) * process_count(), len(judgements) * process_count())
        log.jokes(step + 1, jokes, judgements)

    reward = make_trl_reward(
        critic,
        max_failure_share=config.max_failure_share,
        max_flip_share=config.max_flip_share,
        on_jokes=record_batch,
    )
    more = {"reward_funcs": reward, "train_dataset": prompts_dataset(prompts, student)}
    return _run(kind, config, config.online_arguments(), more, student, POLICY, log, checkpoints, evaluate, control)


def train_dpo(
    config: TRLConfig,
    judge: Judge | None,
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt] = (),
    preferences: Sequence[Preference] = (),
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """TRL's DPO on one round of pairs, or on `preferences`. Behaviour as in `dpo.train`, but for its checkpoints."""
    log, control = log or Silent(), control or RunControl()
    file = None if checkpoints is None else checkpoints.folder / "preferences.json"
    if not preferences and file is not None and file.is_file():
        saved = json.loads(file.read_text())
        preferences = [read_preference(record) for record in saved["preferences"]]
        control.set_state(saved["watch"], 0.0)
    if not preferences:
        if judge is None:
            raise InvalidOption("DPO learns from preferences: give a judge, or existing preferences.")
        feedback = student_pairs(student, judge, prompts, config.pairs, seed=config.seed)
        preferences = feedback.preferences
        control.count(feedback.samples, feedback.judged)
        if file is not None and is_main_process():
            file.parent.mkdir(parents=True, exist_ok=True)
            records = [preference_record(p) for p in preferences]
            file.write_text(json.dumps({"watch": control.get_state(), "preferences": records}))
    more = {"train_dataset": preferences_dataset(preferences, student)}
    return _run("DPO", config, {"beta": config.beta}, more, student, POLICY, log, checkpoints, evaluate, control)


def train_sft(
    config: TRLConfig,
    student: Student,
    demonstrations: Sequence[Demonstration],
    dev: Sequence[Demonstration] = (),
    log: Log | None = None,
    *,
    checkpoints: CheckpointStore | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """TRL's imitation on the `imitation` adapter, which is then copied to `policy`. `dev` is ignored."""
    more = {"train_dataset": demonstrations_dataset(demonstrations, student)}
    arguments = {"completion_only_loss": True}
    control = control or RunControl()
    result = _run("SFT", config, arguments, more, student, IMITATION, log or Silent(), checkpoints, None, control)
    student.start_policy_from_imitation()
    return result


def _run(
    kind: str,
    config: TRLConfig,
    arguments: Mapping[str, Any],
    more: Mapping[str, Any],
    student: Student,
    adapter: str,
    log: Log,
    checkpoints: CheckpointStore | None,
    evaluate: Callable[[Student], Mapping[str, float]] | None,
    control: RunControl,
) -> TrainResult:
    import trl

    if student.is_seq2seq:
        raise StudentError(f"TRL's {kind}Trainer takes causal models only; this student is an encoder-decoder.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if checkpoints is None else checkpoints.folder
        shared = config.arguments(folder, student.device)
        if checkpoints is None:
            shared["save_strategy"] = "no"
        settings = getattr(trl, f"{kind}Config")(**{**shared, **arguments, **config.options})
        model = _copy_with_adapter(student, adapter)
        trainer = getattr(trl, f"{kind}Trainer")(
            model=model,
            args=settings,
            processing_class=copy.deepcopy(student.tokenizer),  # trainers change its padding
            **more,
        )
        if kind == "DPO":
            trainer.train_dataset = without_added_ends(trainer.train_dataset, student.end_tokens)
        if not {"lr_scheduler_type", "lr_scheduler_kwargs"} & config.options.keys():
            _schedule_as_ours(trainer, config.decay)
        if "ref" in model.peft_config:
            _copy_weights(student.adapter_parameters(IMITATION), _adapter_parameters(model, "ref"))
        last = get_last_checkpoint(str(folder)) if checkpoints is not None and folder.is_dir() else None
        reporter = _Reporter(
            student, adapter, model, log, config.evaluate_every, evaluate, control, asks=kind in ASKING
        )
        steps = reporter.resume(last, rewind=checkpoints is not None)
        trainer.add_callback(reporter)
        if control.ending and last is not None:  # TRL would take one more step before checking whether to stop
            set_peft_model_state_dict(model, load_peft_weights(last), adapter_name="default")
        else:
            with control:
                trainer.train(resume_from_checkpoint=last)
            steps = int(trainer.state.global_step)
        _copy_weights(_adapter_parameters(model, "default"), student.adapter_parameters(adapter))
        saved = get_last_checkpoint(str(folder)) if checkpoints is not None else None
    done = steps >= config.steps
    why = "" if done or control.by_user else control.ending
    return TrainResult(steps, control.by_user and not done, reporter.evaluations, Path(saved) if saved else None, why)


def _schedule_as_ours(trainer: Any, decay: str) -> None:
    """Our learners' learning rates: Transformers' schedules begin the warm-up at a rate of 0, and fall to 0."""
    steps = int(trainer.args.max_steps)
    warmup = int(trainer.args.get_warmup_steps(steps))
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: learning_rate_share(step, steps, warmup=warmup, decay=decay)
    )


def _copy_with_adapter(student: Student, adapter: str) -> PeftModel:
    """The base with one adapter, called "default" as TRL wants it."""
    model = get_peft_model(student.plain_base(), student._lora_config())
    _copy_weights(student.adapter_parameters(adapter), _adapter_parameters(model, "default"))
    return model


def _adapter_parameters(model: PeftModel, adapter: str) -> dict[str, torch.nn.Parameter]:
    marker = f".{adapter}."
    return {n.replace(marker, "."): p for n, p in model.named_parameters() if marker in n and "lora_" in n}


@torch.no_grad()
def _copy_weights(source: Mapping[str, torch.nn.Parameter], target: Mapping[str, torch.nn.Parameter]) -> None:
    for name, parameter in target.items():
        parameter.copy_(source[name])


class _Reporter(TrainerCallback):
    """Sends metrics to our log, evaluates the student, and stops cleanly on Ctrl-C."""

    def __init__(
        self,
        student: Student,
        adapter: str,
        model: PeftModel,
        log: Log,
        evaluate_every: int,
        evaluate: Callable[[Student], Mapping[str, float]] | None,
        control: RunControl,
        *,
        asks: bool,
    ) -> None:
        self.student, self.adapter, self.model, self.log = student, adapter, model, log
        self.evaluate_every, self.evaluate = evaluate_every, evaluate
        self.control, self.asks = control, asks
        self.evaluations: list[dict[str, float]] = []
        self.evaluation: dict[str, float] = {}
        self.seen: dict[str, float] = {}

    def resume(self, checkpoint: str | None, *, rewind: bool) -> int:
        step = 0
        if checkpoint is not None:
            step = int(checkpoint.rsplit("-", 1)[1])
            file = Path(checkpoint) / OURS
            if file.is_file():
                saved = json.loads(file.read_text())
                self.evaluations = saved["evaluations"]
                self.control.set_state(saved["watch"], saved["seconds"])
                self.control.check(asks=self.asks)
        if rewind:
            self.log.rewind(step)
        self.control.start(step, self.student, self.adapter)
        return step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.evaluation = {}
        step = int(state.global_step)
        is_due = self.evaluate is not None and self.evaluate_every and step % self.evaluate_every == 0
        if is_due or self.control.monitor is not None:
            _copy_weights(_adapter_parameters(self.model, "default"), self.student.adapter_parameters(self.adapter))
        self.seen = self.control.measure_drift(step, self.student, self.adapter)
        if is_due and self.evaluate is not None:
            with self.control.paused():
                self.evaluation = dict(self.evaluate(self.student))
            self.evaluations.append({"step": float(step)} | self.evaluation)
        self.control.check(asks=self.asks)
        if self.control.ending:
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not logs or "train_runtime" in logs:  # the final summary repeats earlier logs
            return
        numbers = {_metric(n): float(v) for n, v in logs.items() if isinstance(v, (int, float))}
        numbers |= {f"eval/{n}": v for n, v in self.evaluation.items()} | self.control.numbers() | self.seen
        self.log.metrics(int(state.global_step), numbers)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not is_main_process():
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        record = {"evaluations": self.evaluations, "watch": self.control.get_state(), "seconds": self.control.seconds}
        (folder / OURS).write_text(json.dumps(record))


def _metric(name: str) -> str:
    """Our name for TRL's metric; `step_time` is a timing, which our log keeps apart."""
    return "seconds/step" if name == "step_time" else f"trl/{name}"
