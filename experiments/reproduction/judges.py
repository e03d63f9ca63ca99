"""The judges: the training critic, the outside judge, people (or a substitute), and the paper's cloze critic.

    judge = make_judge(spec, spec.critic, "critic", seed=0, out=folder, part="humor")
    people = make_people("ratings.jsonl", "overall")    # or "exact"
    ClozeJudge(model, "humor")(pairs)                   # perplexity of a template that claims that the line is funny

`part` is the question: "overall" (the prompt for training and measuring), "humor" or "consistency" alone.
"""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from humor_env import pocket, registry
from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.reproduction.spec import ClozeTable, JudgeTable, ScaleSpec
from humor_env.rewards.pocket import PocketJudge
from humor_env.shared.control_tokens import as_text
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.json_lines import read_lines
from humor_env.shared.precision import device_for
from humor_env.shared.streams import stream_seed
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Judge, Verdict

if TYPE_CHECKING:
    import torch

Pair = tuple[Joke, Joke]
PARTS = ("overall", "humor", "consistency")
EXACT = {"overall": "score", "humor": "humor", "consistency": "meaning"}
LEDGER = "ledger.sqlite"
SCOPE = "reproduction"


def make_judge(
    spec: ScaleSpec, table: JudgeTable, role: str, *, seed: int, out: Path, part: str = "overall"
) -> Judge | None:
    """The judge of a role; None if the scale does not say how to ask it about that part alone.

    A judge with a random taste (`seed`) has a different one in each role and for each seed of the run."""
    changes: Mapping[str, Any] = {} if part == "overall" else getattr(table, part)
    if part != "overall" and not changes:
        return None
    arguments = {**table.options, **changes}
    parameters = inspect.signature(registry.judges.resolve(table.judge)).parameters
    if "seed" in parameters:
        arguments.setdefault("seed", stream_seed(seed, role))
    if "ledger" in parameters:
        arguments.setdefault("ledger", str(out / LEDGER))
    limits = budget_of(spec)
    if "budget" in parameters and limits:
        arguments.setdefault("budget", limits)
    return cast(Judge, registry.judges.make(table.judge, **arguments))


def budget_of(spec: ScaleSpec) -> dict[str, Any]:
    names = ("max_calls", "max_tokens", "max_cost", "requests_per_minute", "tokens_per_minute")
    limits = {name: getattr(spec.budget, name) for name in names}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return {**limits, "scope": SCOPE} if limits else {}


def make_people(who: str | None, part: str) -> Judge | None:
    """People's verdicts on one question."""
    if who is None:
        return None
    return PocketJudge(EXACT[part]) if who == "exact" else RatedJudge(who, part)


class RatedJudge:
    """People's verdicts from a file: one JSON object a line with `prompt` (an id), `first` and `second` (the texts),
    and "first", "second" or "tie" for `humor`, `consistency` and `overall`. Several raters of a pair are averaged; a
    pair that nobody rated has no verdict."""

    name = "people"

    def __init__(self, path: str | Path, part: str) -> None:
        self.answers: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        values = {"first": 1.0, "second": 0.0, "tie": 0.5}
        try:
            lines = read_lines(user_path(path))
        except OSError as problem:
            raise PromptError(f"The ratings '{path}' cannot be read: {problem.strerror}.") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = (str(row["prompt"]), str(row["first"]), str(row["second"]))
                answer = row.get(part)
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                raise PromptError(
                    f"{path}, line {number}: not a rating ({type(problem).__name__}: {problem}). Expected an object "
                    "with prompt, first, second and the answers humor, consistency, overall."
                ) from None
            if answer in (None, ""):
                continue
            if answer not in values:
                raise PromptError(f"{path}, line {number}: '{part}' is 'first', 'second' or 'tie', found {answer!r}.")
            self.answers[key].append(values[answer])

    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        return [self._verdict(a, b) for a, b in pairs]

    def _verdict(self, a: Joke, b: Joke) -> Verdict:
        answers = list(self.answers.get((a.prompt.id, a.text, b.text), []))
        answers += [1 - p for p in self.answers.get((a.prompt.id, b.text, a.text), [])]
        if not answers:
            return Verdict(self.name, None, error="nobody rated this pair")
        return Verdict(self.name, sum(answers) / len(answers), tie=sum(p == 0.5 for p in answers) / len(answers))


CLAIMS = {
    "overall": '"{line}" is the funny paraphrase of "{input}"',
    "humor": '"{line}" is a funny thing to say',
    "consistency": '"{line}" is a paraphrase of "{input}"',
}


class ClozeJudge:
    """The line whose claim has the lower perplexity under a language model wins. The order does not matter.

    The paper names the method but not its templates; these are ours.
    """

    name = "cloze"

    def __init__(self, table: ClozeTable, part: str, *, batch: int = 32) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        if table.model is None:
            raise InvalidOption("The cloze critic needs a language model: set cloze.model.")
        self.claim, self.batch = CLAIMS[part], batch
        service, _, name = table.model.partition(":")
        path = pocket.path(name) if service == "pocket" else table.model
        if AutoConfig.from_pretrained(path, trust_remote_code=False).is_encoder_decoder:
            raise InvalidOption(f"The cloze critic needs a causal language model; '{table.model}' has an encoder.")
        place = device_for(table.device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        family: Any = AutoModelForCausalLM
        loaded = family.from_pretrained(path, dtype=table.dtype, use_safetensors=True, trust_remote_code=False)
        self.model: Any = share_weights(loaded.to(place).eval())

    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        perplexities = self.perplexities([joke for pair in pairs for joke in pair])
        return [
            Verdict(self.name, 0.5 if a == b else float(a < b), tie=float(a == b), flipped=False)
            for a, b in zip(perplexities[::2], perplexities[1::2], strict=True)
        ]

    def perplexities(self, jokes: Sequence[Joke]) -> list[float]:
        """The mean of -log p over the tokens of each claim: the logarithm of its perplexity."""
        import torch

        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        claims = [self.claim.replace("{input}", j.prompt.text).replace("{line}", j.text) for j in jokes]
        claims = [as_text(self.tokenizer, claim) for claim in claims]
        ids = [[start, *self.tokenizer(c, add_special_tokens=False)["input_ids"]] for c in claims]
        means: list[float] = []
        for begin in range(0, len(ids), self.batch):
            part = ids[begin : begin + self.batch]
            width = max(map(len, part))
            tokens = torch.full((len(part), width), start)
            mask = torch.zeros(len(part), width, dtype=torch.bool)
            for i, row in enumerate(part):
                tokens[i, : len(row)] = torch.tensor(row)
                mask[i, : len(row)] = True
            with torch.no_grad():
                # Padding is on the right, where the causal mask hides it.
                logits = self.model(input_ids=tokens.to(self.model.device)).logits[:, :-1].float().cpu()
            means += self._means(logits, tokens[:, 1:], mask[:, 1:])
        return means

    def _means(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> list[float]:
        nll = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
        return [float(x) for x in (nll * mask).sum(-1) / mask.sum(-1)]
