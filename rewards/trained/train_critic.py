"""Train a critic on human ratings or pairs, or on a paid judge's verdicts, from one or several sets.

    sets = [from_rated(load_rated("humicroedit", ["task-1_train.csv"]))]
    made = train(TrainCriticConfig(model="minilm"), sets, "runs/critic")
    made.dev["pair_accuracy"]                          # on held-out prompts
    critics.make("reward-model", folder="runs/critic")

1. A tenth of the prompts of every set, with all their texts, is held out ("dev").
2. Each set's grades are standardised to mean 0 and deviation 1; a grade's weight depends on its raters' noise.
3. Ratings are fitted by regression, with a second term on the differences between edits of one prompt (what they share
   is the headline, not the joke); pairs by the Bradley-Terry model, with a scale per set of pairs.
4. Twice per epoch the dev pairs are evaluated. The weights with the lowest dev loss are kept, and training stops when
   they have not changed for `patience` evaluations.
5. A temperature is fitted on the dev pairs, so that the difference of two calibrated logits is a probability. The score
   of a joke is then the probability that it beats an average text of the dev part: that is what 0.5 means.

With `members`, several models are trained from different seeds and their scores averaged: slower to train and to call,
but steadier. Batches hold texts of similar length, to reduce padding; siblings stay in one batch. Ctrl-C calibrates and
saves the best weights so far.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from humor_env.errors import InvalidOption, TrainingStopped, did_you_mean
from humor_env.rewards.reward_model import Calibration
from humor_env.rewards.trained import critic_losses as losses
from humor_env.rewards.trained.critic_batches import Example, OtherPrompts, batches, make_examples
from humor_env.rewards.trained.critic_data import (
    CriticSet,
    check_comparisons,
    scale_of,
    split,
    targets,
)
from humor_env.rewards.trained.dev_prompts import DevPrompts
from humor_env.rewards.trained.scoring_head import Reading, ScoringModel, new_model, save_model
from humor_env.shared.precision import check_precision, device_for
from humor_env.shared.streams import stream_seed

RECORD_FILE = "training.json"
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class TrainCriticConfig:
    """`model` is "minilm", a folder, a Hugging Face name, or `package.module:name`. `lora_rank` 0 trains all of it.
    `sibling` weighs the loss on differences within a prompt. `epochs` and `patience` apply to each of the
    `members`, whose scores are averaged. `other_prompts` weighs a loss that makes a good line score higher with its own
    prompt than with another: without it a critic may learn to ignore the prompt (if lines are not edits of their
    prompts, `form` must be "pair"). `layers` is the number of body layers used, 0 for all. `precision` "auto" computes
    in bfloat16 if the CPU or GPU supports it; weights are kept in float32."""

    model: str
    form: str = "edit"
    pool: str = "span"
    hidden: int = 0
    max_length: int = 128
    layers: int = 0
    lora_rank: int = 0
    members: int = 1
    freeze_embeddings: bool = True
    epochs: float = 2.0
    batch_size: int = 32
    lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    warmup: float = 0.06
    sibling: float = 1.0
    other_prompts: float = 0.0
    noise_weights: bool = True
    dev_share: float = 0.1
    evaluations: int = 2
    patience: int = 4
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision, PRECISIONS, name="precision")
        above_zero = ("epochs", "members", "batch_size", "lr", "head_lr", "evaluations")
        not_below_zero = (
            "lora_rank",
            "weight_decay",
            "dropout",
            "warmup",
            "sibling",
            "other_prompts",
            "patience",
            "seed",
        )
        for names, good, word in (
            (above_zero, lambda x: x > 0, "above 0"),
            (not_below_zero, lambda x: x >= 0, "at least 0"),
        ):
            for name in names:
                if not (math.isfinite(getattr(self, name)) and good(getattr(self, name))):
                    raise InvalidOption(f"{name} must be {word}, found {getattr(self, name)}.")
        if self.dropout >= 1 or self.warmup >= 1:
            raise InvalidOption(f"dropout and warmup must be below 1; found {self.dropout} and {self.warmup}.")
        self.reading()

    def reading(self) -> Reading:
        return Reading(self.form, self.pool, self.hidden, self.max_length, self.layers)


def config_of(settings: Mapping[str, Any]) -> TrainCriticConfig:
    """A config from settings by name, such as those of --set, with types checked."""
    types = {field.name: field.type for field in fields(TrainCriticConfig)}
    for name, value in settings.items():
        if name not in types:
            raise InvalidOption(
                f"train-critic has no setting '{name}'.{did_you_mean(name, types)} Known: {', '.join(types)}."
            )
        expected: Any = {"str": str, "int": int, "float": (int, float), "bool": bool}[str(types[name])]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise InvalidOption(f"{name} must be of type {types[name]}; found {value!r}.")
    return TrainCriticConfig(**settings)


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Training progress. `dev` is set after an evaluation of the dev pairs."""

    member: int
    members: int
    step: int
    steps: int
    loss: float
    seconds: float
    dev: dict[str, float] | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class TrainedCritic:
    """The result: the folder, dev metrics, and whether training was stopped by the user. `verdicts` holds, for each
    decided held-out comparison, the model's probability and the target."""

    folder: Path
    dev: dict[str, float]
    calibration: Calibration
    steps: int
    seconds: float
    stopped: bool
    verdicts: tuple[tuple[float, float], ...] = ()


OnProgress = Callable[[TrainProgress], None]


def train(
    config: TrainCriticConfig,
    sets: Sequence[CriticSet],
    folder: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> TrainedCritic:
    """Train, calibrate and save to a folder that `RewardModelCritic` reads."""
    sets = [critic_set for critic_set in sets if len(critic_set)]
    if not sets:
        raise InvalidOption("There is nothing to train on: give at least one set with ratings or pairs.")
    parts, dev = split(sets, config.dev_share, config.seed)
    scales = [scale_of(critic_set) for critic_set in parts]
    for critic_set in parts:
        check_comparisons(critic_set)
    models: list[ScoringModel] = []
    fits: list[_Fit] = []
    began = time.monotonic()
    for member in range(config.members):
        seed = stream_seed(config.seed, "critic member", member) % 2**31
        model = _fresh(config, seed)
        if not models:
            part_targets = [targets(critic_set, scale) for critic_set, scale in zip(parts, scales, strict=True)]
            examples = make_examples(model, parts, part_targets, config.noise_weights)
            kept_aside = DevPrompts(model, dev, 2 * config.batch_size, config.dev_share)
        kept_aside.model = model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fit = _Fit(config, model, examples, kept_aside, len(sets), on_progress, member, seed)
            fit.run()
        models.append(model)
        fits.append(fit)
        kept_aside.remember()
        if fit.stopped:
            break
    calibration = kept_aside.calibrate()
    measured = kept_aside.measure(calibration)
    save_model(models, folder)
    calibration.save(folder)
    steps, stopped = sum(each.step for each in fits), fits[-1].stopped
    seconds = time.monotonic() - began
    critic = TrainedCritic(
        Path(folder), measured, calibration, steps, seconds, stopped, kept_aside.verdicts(calibration)
    )
    record = {
        "config": asdict(config),
        "sets": [
            {"name": critic_set.name, "ratings": len(critic_set.ratings), "comparisons": len(critic_set.comparisons)}
            | ({} if scale is None else asdict(scale))
            for critic_set, scale in zip(parts, scales, strict=True)
        ],
        "dev": measured,
        "evaluations": [each.evaluated for each in fits],
        "steps": steps,
        "seconds": critic.seconds,
        "stopped": stopped,
        "precision": fits[-1].precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    Path(folder, RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return critic


def _fresh(config: TrainCriticConfig, seed: int) -> ScoringModel:
    return new_model(
        config.model,
        config.reading(),
        lora_rank=config.lora_rank,
        dropout=config.dropout,
        seed=seed,
        freeze_embeddings=config.freeze_embeddings,
        device=device_for(config.device),
    )


class _Fit:
    """The training loop: batches, losses, dev evaluations, the best weights so far."""

    def __init__(
        self,
        config: TrainCriticConfig,
        model: ScoringModel,
        examples: Sequence[Example],
        dev: DevPrompts,
        sets: int,
        on_progress: OnProgress | None,
        member: int,
        seed: int,
    ) -> None:
        self.config, self.model, self.examples, self.dev = config, model, examples, dev
        self.on_progress, self.member, self.seed = on_progress, member, seed
        self.device = next(model.head.parameters()).device
        self.precision = _precision(config.precision, self.device)
        # The scale of score differences in the pair loss, one per set.
        self.log_scales = torch.nn.Parameter(torch.zeros(sets, device=self.device))
        body = [p for p in model.body.parameters() if p.requires_grad]
        self.parameters = [*body, *model.head.parameters(), self.log_scales]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": body, "lr": config.lr, "peak": config.lr},
                {"params": [*model.head.parameters()], "lr": config.head_lr, "peak": config.head_lr},
                {"params": [self.log_scales], "lr": config.head_lr, "peak": config.head_lr, "weight_decay": 0.0},
            ],
            weight_decay=config.weight_decay,
        )
        self.other_prompts = OtherPrompts(model, examples, seed) if config.other_prompts else None
        self.per_epoch = len(batches(examples, config.batch_size, seed, 0))
        self.steps = max(1, round(config.epochs * self.per_epoch))
        self.every = max(1, round(self.per_epoch / config.evaluations))
        self.step = 0
        self.began = time.monotonic()
        self.stopped = False
        self.evaluated: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best: dict[str, torch.Tensor] = {}
        self.since_best = 0

    def run(self) -> None:
        try:
            self._run()
        except KeyboardInterrupt:
            self.stopped = True
        if not self.best:
            self._ask_dev(math.nan)
        self._restore()

    def _run(self) -> None:
        self.model.train()
        running: list[float] = []
        epoch = 0
        while True:
            for batch in batches(self.examples, self.config.batch_size, self.seed, epoch):
                running.append(self._update(batch))
                self.step += 1
                done = self.step == self.steps
                if done or self.step % self.every == 0:
                    self._ask_dev(fmean(running))
                    running = []
                    if done or (self.config.patience and self.since_best >= self.config.patience):
                        return
                elif self.step % 10 == 0:
                    self._tell(fmean(running[-50:]))
            epoch += 1

    def _update(self, batch: Sequence[Example]) -> float:
        rate = _rate(self.step, self.steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        loss = self._loss(batch)
        if not math.isfinite(value := float(loss.detach())):
            raise TrainingStopped(f"The loss is {value} at step {self.step + 1}. Lower lr or head_lr.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return value

    def _loss(self, batch: Sequence[Example]) -> torch.Tensor:
        rows = [row for example in batch for row in example.rows]
        places, moved = self.other_prompts.rows(batch, self.step) if self.other_prompts else ([], [])
        with self._autocast():
            scored = self.model([*rows, *moved])
        scores, elsewhere = scored[: len(rows)], scored[len(rows) :]
        values = torch.tensor([example.value for example in batch], device=self.device)
        if len(batch[0].rows) == 2:
            which = torch.tensor([example.set for example in batch], device=self.device)
            scales = self.log_scales[which].exp()
            loss = losses.bradley_terry_loss(scales * scores[0::2], scales * scores[1::2], values)
        else:
            weights = torch.tensor([example.weight for example in batch], device=self.device)
            loss = losses.rating_loss(scores, values, weights)
            if self.config.sibling:
                numbers: dict[tuple[int, str], int] = {}
                groups = [numbers.setdefault((example.set, example.group), len(numbers)) for example in batch]
                siblings = losses.sibling_loss(scores, values, torch.tensor(groups, device=self.device))
                loss = loss + self.config.sibling * siblings
        if places:
            own = scores[torch.tensor(places, device=self.device)]
            loss = loss + self.config.other_prompts * losses.bradley_terry_loss(own, elsewhere, torch.ones_like(own))
        return loss

    def _ask_dev(self, loss: float) -> None:
        dev = self.dev.ask(self._autocast)
        better = dev["loss"] < self.best_loss
        if better or not self.best:
            self.best_loss, self.since_best = dev["loss"], 0
            self.best = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        else:
            self.since_best += 1
        self.evaluated.append({"step": self.step, "loss": loss, **{f"dev_{name}": x for name, x in dev.items()}})
        self._tell(loss, dev, better)

    def _tell(self, loss: float, dev: dict[str, float] | None = None, best: bool = False) -> None:
        if self.on_progress is not None:
            members, seconds = self.config.members, time.monotonic() - self.began
            self.on_progress(TrainProgress(self.member, members, self.step, self.steps, loss, seconds, dev, best))

    def _restore(self) -> None:
        """Restore the best weights, and evaluate the dev part with them as saved."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])
        self.model.eval()
        self.dev.ask(lambda: torch.autocast(self.device.type, enabled=False))

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up from near 0 over the share `warmup`, then linear decay to near 0."""
    rise = max(1.0, warmup * steps)
    return min(1.0, (step + 1) / rise) * (1 - step / steps)


def _precision(dtype: str, device: torch.device) -> str:
    """bfloat16 only if the hardware supports it: elsewhere it is slower than float32."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
