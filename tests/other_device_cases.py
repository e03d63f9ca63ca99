"""All that a GPU is used for, on the device of `other_device`: what mixes devices fails here too, on any machine.

Everything is done twice, on the CPU and on the device, and must come out alike.
"""

import copy
import dataclasses
import gc
import itertools
import json
import weakref
from collections import Counter

import pytest
import tiny
import torch
from other_device import NoCompiler, make
from questions import Questions
from safetensors.torch import load_file, save_file
from test_reward_model import decoder, encoder
from test_run import text, world  # noqa: F401 - fixtures
from test_train_critic import synthetic
from tiny import letters_critic, prompts, stir, student, vector_env

from humor_env import pocket, registry
from humor_env.agents import (
    best_of_n,
    brio,
    brio_dpo,
    dpo,
    ppo,
    reinforce_pp,
    sft,
)
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import OnPolicyConfig
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.log import RunLog
from humor_env.agents.session.memory import RowLength, step_memory
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.session.session import Session
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, draw_uniforms, makes_masks, sample
from humor_env.agents.student.static_writer import StaticWriter
from humor_env.agents.update import advantages
from humor_env.agents.update.minibatch import Minibatch
from humor_env.experiments.reproduction.judges import ClozeJudge
from humor_env.experiments.reproduction.spec import ClozeTable
from humor_env.experiments.runs.evaluate import evaluate
from humor_env.experiments.runs.run import run as run_spec
from humor_env.experiments.specs.learner_settings import config_class
from humor_env.experiments.specs.spec import parse_spec
from humor_env.llm.clients.local import LocalClient
from humor_env.llm.protocol import Request
from humor_env.rewards.likelihood.fit import FitCritic
from humor_env.rewards.reward_model import RewardModelCritic, RewardModelJudge
from humor_env.rewards.trained.state_reader import StateReader
from humor_env.rewards.trained.train_critic import TrainCriticConfig
from humor_env.rewards.trained.train_critic import train as train_critic
from humor_env.shared import frozen_weights
from humor_env.types import Demonstration, Joke, Prompt

SHORT = Sampling(max_new_tokens=6)
FAMILIES = ["causal", "seq2seq"]
TEXTS = ["The meeting was slow.", "My soup", "A much longer sentence about the meeting that was slow."]
LINES = ["Glaciers overtook it.", "So cold.", "x"]

STEPS = {"steps": 2, "batch_size": 8, "sampling": SHORT, "micro_batch": 3, "checkpoint_every": 1}
GROUPS = STEPS | {"siblings": 4}
PAIRED = {
    "epochs": 2,
    "batch_size": 4,
    "micro_batch": 4,
    "pairs": PairConfig(candidates=3, sampling=SHORT, length_filter="off"),
    "checkpoint_every": 1,
}
FROM_SCORES = {
    "ppo": ppo.PPOConfig(**STEPS, imitation_weight=0.5, minibatches=2),
    "reinforce++": reinforce_pp.ReinforcePPConfig(**STEPS),
}
FROM_PAIRS = {
    "brio": brio.BRIOConfig(**PAIRED, imitation_batch_size=4),
    "brio-dpo": brio_dpo.BRIODPOConfig(
        brio.BRIOConfig(**PAIRED | {"epochs": 1}, pairs_of="teacher"), dpo.DPOConfig(**PAIRED | {"epochs": 1})
    ),
}
OTHERS = {"sft": sft.SFTConfig(epochs=2, batch_size=8, micro_batch=3), "best-of-n": best_of_n.BestOfNConfig(n=3)}
for name in registry.learners.names():  # a learner that is not named above takes the plain settings
    if name not in FROM_SCORES | FROM_PAIRS | OTHERS and not name.startswith("trl-"):
        made = config_class(registry.learners.resolve(name), name)
        if issubclass(made, OnPolicyConfig):
            FROM_SCORES[name] = made(**GROUPS)
        else:
            FROM_PAIRS[name] = made(**PAIRED)
CONFIGS = FROM_SCORES | FROM_PAIRS | OTHERS
TEACHER = [Demonstration(p, f"{line} {p.id}", "t") for p in prompts() for line in LINES[:2]]


@pytest.fixture(scope="session")
def other(pytestconfig, tmp_path_factory):
    cache = getattr(pytestconfig, "cache", None)
    try:
        return make(cache.mkdir("other_device") if cache else tmp_path_factory.mktemp("other_device"))
    except NoCompiler as problem:
        pytest.skip(f"the test device is missing: {problem}")


@pytest.fixture
def places(other):
    return torch.device("cpu"), other


def warm_student(device, family="causal") -> Student:
    one = student(family, device=device)
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    return one


def learn(learner, one, folder=None, log=None, control=None):
    config, train = CONFIGS[learner], registry.learners.resolve(learner)
    if learner == "best-of-n":
        return train(config, letters_critic(), one, log, control=control)
    more = {"checkpoints": None if folder is None else CheckpointStore(folder / "checkpoints"), "control": control}
    if learner == "sft":
        return train(config, one, TEACHER, TEACHER[:3], log, **more)
    if learner in ("ppo", "brio", "brio-dpo"):
        more["demonstrations"] = TEACHER
    source = vector_env(8) if learner in FROM_SCORES else CriticAsJudge(letters_critic())
    return train(config, source, one, log, prompts=prompts(), **more)


def assert_alike(first, second, tolerance=1e-4):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value.cpu(), second[name].cpu(), atol=tolerance), name


# The device itself


def test_mixing_devices_is_an_error_as_on_cuda(other):
    """What CUDA refuses is refused, in its words; what it allows is allowed."""
    here, there = torch.arange(3), torch.arange(3, device=other)
    refused = {
        "sum of both": lambda: here + there,
        "index on the device, tensor not": lambda: here[there],
        "write through an index on the device": lambda: torch.zeros(3).index_put_((there,), torch.ones(3)),
        "values to write not on the device": lambda: there.index_put_((here,), here),
        "result on the CPU": lambda: here.add_(there),
        "number written on the CPU": lambda: torch.tensor(0).add_(there.sum()),
        "numbers of both in one tensor": lambda: torch.stack([there.sum(), torch.tensor(0)]),
        "mask of the CPU": lambda: there.masked_fill(here > 1, 0),
        "embedding": lambda: torch.nn.functional.embedding(here, torch.ones(3, 2, device=other)),
    }
    for name, mix in refused.items():
        with pytest.raises(RuntimeError, match="same device"):
            pytest.fail(f"{name}: {mix()}")
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=other, generator=torch.Generator())
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        there.numpy()
    assert (there + torch.tensor(2)).tolist() == [2, 3, 4]
    assert there[here[1:]].tolist() == there[here > 0].tolist() == there[there > 0].tolist() == [1, 2]
    assert there[1:].device == there.to("cpu").to(other).device == other
    assert torch.equal(there.cpu(), here)


def test_tensors_of_the_device_are_copied_saved_and_grow(other, tmp_path):
    weight = torch.nn.Linear(3, 2).to(other)
    twin = copy.deepcopy(weight)
    with torch.no_grad():
        weight.weight.zero_()
    assert twin.weight.device == other
    assert twin.weight.abs().sum() > 0, "a copy has memory of its own"
    column = twin.weight.detach().t()[1:]  # a view with strides and an offset
    save_file({"column": column.contiguous()}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["column"], column.cpu())
    assert torch.equal(copy.deepcopy(column).cpu(), column.cpu())
    assert torch.empty(0, device=other).resize_(5).fill_(2).tolist() == [2.0] * 5


# Students


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_lines_are_those_of_the_cpu(family, places, tmp_path):
    found = []
    for device in places:
        one = warm_student(device, family)
        uniforms = draw_uniforms(len(TEXTS), 6, torch.Generator().manual_seed(0))
        out = sample(one, TEXTS, SHORT, uniforms=uniforms, values=True)
        rows = one.rows_from_text(TEXTS, LINES)
        scored = one.score_in_batches(rows, adapter=POLICY, micro_batch=2, values=True, entropy=True)
        assert scored.logprobs.device == device
        best = beams(one, TEXTS, width=4, groups=2, max_new_tokens=5)
        found.append((out.texts, best, {"logprobs": scored.logprobs, "entropy": scored.entropy, "old": out.logprobs}))
    assert found[0][:2] == found[1][:2]
    assert_alike(found[0][2], found[1][2])


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1] * 2 + ["The meetinx was slow."]], ids=["unequal", "equal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_asks_the_device_at_every_eighth_token(family, texts, other):
    """Transformers asked at every token whether the mask hides anything."""
    one, asked = warm_student(other, family), []
    assert makes_masks(one)  # tried out once, which asks
    one.end_tokens = (len(one.tokenizer) + 1,)  # lines of full length
    for length in (1, 15, 31):
        uniforms = torch.full((len(texts), length), 0.4)
        with Questions() as questions:
            sample(one, texts, Sampling(max_new_tokens=length), uniforms=uniforms)
        asked.append(questions.total)
    assert asked == [1, 2, 4]  # and once at the end


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_saved_merged_and_loaded(family, places, tmp_path):
    cpu, other = places
    one = warm_student(other, family)
    one.save_pretrained(tmp_path / "s")
    for device in places:
        again = Student.load(tmp_path / "s", device=device)
        assert_alike(one.state(), again.state(), 0)
        assert {p.device for p in again.model.parameters()} == {device}
    merged = one.merge()
    assert {p.device for p in merged.parameters()} == {other}
    one.load_state(warm_student(cpu, family).state())
    assert {t.device for t in one.state().values()} == {other}


def test_advantages_stay_on_their_device(places):
    rewards, mask = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 2.0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    group, valid = torch.tensor([0, 0]), torch.tensor([True, True])
    found = []
    for device in places:
        here = [tensor.to(device) for tensor in (rewards, mask, group, valid)]
        learned, returns = advantages.gae(here[0], here[0] / 2, here[1], gamma=0.9, lam=0.9)
        found.append(
            {
                "gae": learned,
                "returns": returns,
                "whitened": advantages.whiten(here[0], here[1]),
                "placed": advantages.place_on_last_token(here[0][:, 0], here[1]),
                "grouped": advantages.group_advantages(here[0].sum(1), here[2], here[3], scale=True),
                "left out": advantages.leave_one_out(here[0].sum(1), here[2], here[3]),
            }
        )
        assert {tensor.device for tensor in found[-1].values()} == {device}
    assert_alike(*found, tolerance=1e-6)


# Learners


def test_every_learner_of_our_own_is_here():
    assert set(CONFIGS) == {name for name in registry.learners.names() if not name.startswith("trl-")}


class PullThePlug(Exception):
    pass


class Fragile(RunLog):
    last_step = 2

    def metrics(self, step, numbers):
        super().metrics(step, numbers)
        if step == self.last_step:
            raise PullThePlug


@pytest.mark.parametrize("learner", [name for name in CONFIGS if name != "best-of-n"])
def test_a_learner_learns_the_same_on_either_device_and_resumes(learner, places, tmp_path):
    """At 14f325d no learner ran on CUDA: a step indexed the rows' places, a tensor of the CPU, with one of the GPU."""
    states, logs = [], []
    for device in places:
        one, folder = warm_student(device), tmp_path / device.type
        before = {n: t.clone() for n, t in one.state().items()}
        learn(learner, one, folder, RunLog(folder))
        assert any(not torch.equal(before[n], t) for n, t in one.state().items())
        assert {t.device for t in one.state().values()} == {device}
        states.append(one.state())
        logs.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert_alike(*states, tolerance=1e-3)
    for here, there in zip(*logs, strict=True):
        if abs(there.get("update/margin", 1)) < 1e-5:  # DPO's first update: rounding decides which line leads
            del here["update/ranked_right"], there["update/ranked_right"]
        assert here == pytest.approx(there, abs=1e-3, nan_ok=True)
    log = Fragile(tmp_path / "cut")
    log.last_step = 3 if learner == "sft" else 2  # imitation is saved at an epoch's end, after step 2
    with pytest.raises(PullThePlug):
        learn(learner, warm_student(device), tmp_path / "cut", log)
    resumed = warm_student(device)
    learn(learner, resumed, tmp_path / "cut")
    assert_alike(states[1], resumed.state(), 0)


@pytest.mark.parametrize("learner", [name for name in CONFIGS if name not in ("best-of-n", "brio-dpo")])
def test_a_learner_asks_the_device_only_between_its_updates(learner, other, monkeypatch):
    """PPO's step of ten micro-batches asked 237 times, GRPO's of three 112 times: each micro-batch for its lengths, its
    mask and its equal prompts, and numbers for the log one by one. With prompts of unequal length, each token as well:
    whether the mask hides anything."""

    def unequal(count=8):
        return [dataclasses.replace(p, text=p.text + " So cold." * (i % 3)) for i, p in enumerate(prompts(count))]

    monkeypatch.setattr(tiny, "prompts", unequal)
    one, questions, calls = warm_student(other), Questions(), Counter()
    assert one.passes.prompts_can_be_shared and makes_masks(one)  # tried out once, which asks

    def during(phase, owner, name):
        whole = getattr(owner, name)

        def counted(*arguments, **options):
            calls[phase] += 1
            with questions.during(phase):
                return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    during("score", Student, "score")
    during("layout", Student, "score_in_batches")
    during("step", Minibatch, "clip_and_step")
    during("finish", Session, "finish_step")
    with questions:
        learn(learner, one)
    found = Counter()
    for name, count in questions.counts.items():
        found[name.rpartition(": ")[0]] += count
    assert calls["score"] >= calls["step"] > 0
    assert not {phase: count for phase, count in found.items() if "score" in phase or "layout" in phase}
    assert found["step"] == calls["step"]  # all sums in one question
    assert found["finish"] == calls["finish"]  # whether all weights are finite
    assert found[""] <= 5 * max(2, calls["finish"]), questions.counts


def test_imitation_of_all_weights(places):
    states = []
    for device in places:
        one = warm_student(device)
        sft.train(sft.SFTConfig(epochs=1, batch_size=4, full=True), one, TEACHER[:8], TEACHER[:2])
        states.append(dict(one.base.named_parameters()))
    assert_alike(*states, tolerance=1e-3)


def test_models_from_one_source_have_their_frozen_weights_once(other):
    def weights(model):
        return {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in model.named_parameters()}

    request = Request("Which is better?", {"1": "so cold", "2": "glaciers"}, choices=("1", "2"))
    alone = LocalClient(pocket.path("causal"), device=str(other))
    expected = alone([request])[0].probabilities
    one, two = (Student.load(pocket.path("causal"), device=other) for _ in range(2))
    judge = LocalClient(pocket.path("causal"), device=str(other))
    first, second, third = weights(one.model), weights(judge.model), weights(two.model)
    assert len(second) > 20
    for name, weight in second.items():
        assert weight.data_ptr() == first[name].data_ptr() == third[name].data_ptr(), name
    adapters = [name for name in first if "lora_" in name]
    assert adapters and all(first[n].data_ptr() != third[n].data_ptr() for n in adapters)

    # An adapter that is merged, and weights that are trained, belong to their student alone.
    stir(one, POLICY)
    with one.merged(POLICY):
        assert judge([request])[0].probabilities == expected
    sft.train(sft.SFTConfig(epochs=1, batch_size=4, full=True), one, TEACHER[:8], TEACHER[:2])
    assert not torch.equal(*(next(p for n, p in weights(s.model).items() if "lora_" not in n) for s in (one, two)))
    assert judge([request])[0].probabilities == expected
    assert LocalClient(pocket.path("causal"), device=str(other)).name == alone.name

    kept = weakref.ref(next(iter(second.values())))
    del alone, one, two, judge, first, second, third, weight
    gc.collect()
    assert kept() is None and not frozen_weights._shared


def test_the_best_of_several_lines(places):
    written = [learn("best-of-n", warm_student(device)).writer.write(prompts(4)) for device in places]
    assert written[0] == written[1]


def test_monitor_and_limits(places):
    checks = []
    for device in places:
        monitor = Monitor(
            MonitorConfig(every=1, lines=4, action="slow"),
            prompts(4),
            training=letters_critic(),
            held_out=letters_critic("o"),
            sampling=SHORT,
        )
        control = RunControl(Limits(samples=8), monitor)
        learn("ppo", warm_student(device), control=control)
        assert control.samples == 8
        checks.append(monitor.get_state())
    assert checks[0] == checks[1]


def test_evaluation(places):
    found = [evaluate(warm_student(device), prompts(), letters_critic(), sampling=SHORT, batch=3) for device in places]
    assert found[0].jokes == found[1].jokes
    assert found[0].mean == found[1].mean


def test_a_whole_run(text, other, tmp_path):  # noqa: F811 - the fixture
    short = [f"student.device='{other}'", "eval.limit=2", "learner.steps=1", "teacher.imitation.epochs=1"]
    [result] = run_spec(parse_spec(text, short), tmp_path / "run")
    assert result.steps == 1
    assert set(result.stages) >= {"base", "imitation", "ppo"}


@pytest.mark.parametrize("family", FAMILIES)
def test_how_much_memory_a_step_takes(family, places):
    here, there = (step_memory(warm_student(device, family), RowLength(9, 6), rows=4) for device in places)
    assert (here.training, here.writing) == (there.training, there.writing)
    assert there.weights >= here.weights  # of an encoder-decoder, embeddings that are one come apart when moved there
    assert there.row == pytest.approx(here.row, rel=0.5)  # attention may be another there


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_in_a_cache_of_fixed_size_write_the_same(family, places):
    found = []
    for device in places:
        one = warm_student(device, family)
        one.instruction = "Rewrite the sentence so that it is funny. "
        uniforms = draw_uniforms(10, 12, torch.Generator().manual_seed(0))
        observations = [f"{start} {i}" for i in range(5) for start in TEXTS[:2]]
        found.append(StaticWriter(one).generate(observations, Sampling(max_new_tokens=12), uniforms, values=True))
        eager = sample(one, observations, Sampling(max_new_tokens=12), uniforms=uniforms)
        assert found[-1].responses == eager.responses
    assert found[0].responses == found[1].responses
    assert torch.allclose(found[0].logprobs, found[1].logprobs.cpu(), atol=1e-4)
    assert torch.allclose(found[0].values, found[1].values.cpu(), atol=1e-4)


# Critics


@pytest.mark.parametrize("build", [encoder, decoder])
def test_a_reward_model_says_the_same(build, places, tmp_path):
    jokes = [
        Joke(Prompt("p", "the meeting was slow"), line) for line in ("the meeting was so slow", "slow", "glaciers")
    ]
    folder = build(tmp_path / "m")
    scores = [[j.score for j in RewardModelCritic(folder, 2, device=str(d))(jokes)] for d in places]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    pairs = list(itertools.pairwise(jokes))
    verdicts = [[v.probability for v in RewardModelJudge(folder, device=str(d))(pairs)] for d in places]
    assert verdicts[0] == pytest.approx(verdicts[1], abs=1e-5)


def test_the_perplexity_of_a_claim_is_the_same(places):
    jokes = [Joke(Prompt("p", "The meeting was slow."), line) for line in ("Glaciers overtook it.", "So slow.", "Slow")]
    tables = [ClozeTable(model="pocket:causal", device=str(device)) for device in places]
    found = [ClozeJudge(table, "overall").perplexities(jokes) for table in tables]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("form", ["pair", "edit"])
def test_how_well_a_line_fits_is_the_same(form, places):
    jokes = [Joke(Prompt("p", "The meeting was slow."), line) for line in ("The meeting was soup.", "Glaciers!", "")]
    scores = [[j.score for j in FitCritic("pocket:causal", form, batch_size=2, device=str(d))(jokes)] for d in places]
    assert len({round(score, 3) for score in scores[0]}) > 1
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_the_states_that_grades_are_read_from_are_the_same(places):
    jokes = [Joke(Prompt(sentence, sentence), line) for sentence in TEXTS for line in (*LINES, "")]
    model, instruction = pocket.path("causal"), "Rewrite the sentence so that it is funny."
    here, there = (StateReader(model, 2, instruction, batch_size=5, device=str(d)).states(jokes) for d in places)
    assert here.device == there.device == torch.device("cpu")
    assert here.std(0).max() > 0.1
    assert torch.allclose(here, there, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_critic_is_trained(rank, precision, places, tmp_path):
    rows, scores = synthetic(12), []
    jokes = [rating.joke for rating in rows.ratings[:6]]
    for device in places:
        out = tmp_path / device.type
        config = TrainCriticConfig(
            str(encoder(tmp_path / "base")),
            epochs=1,
            batch_size=8,
            lora_rank=rank,
            dropout=0.0,
            evaluations=1,
            precision=precision,
            device=str(device),
            dev_share=0.3,
        )
        train_critic(config, [rows], out)
        scores.append(RewardModelCritic(out, device=str(device)).logits(jokes))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3 if precision == "float32" else 0.1)
