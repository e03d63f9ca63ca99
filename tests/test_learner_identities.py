"""What every learner from scores must do, as identities: which policy is compared with which, what is left out, cut
off, rescaled. A tiny student takes single steps; what the learner hands to its own loss is caught on the way."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from tiny import letters_critic, prompts, stir, student, vector_env

from humor_env.agents import grpo, ppo, rloo
from humor_env.agents.feedback.rollout import collect
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling, draw_uniforms
from humor_env.agents.student.token_rows import TokenRows
from humor_env.agents.update.minibatch import Minibatch, Part, encode_pairs, my_examples, pairs_together
from humor_env.agents.update.on_policy import OnPolicyStep, chance, check_first_ratio
from humor_env.errors import InvalidOption, TrainingStopped
from humor_env.types import Demonstration, Judgement, Preference

SHORT = Sampling(max_new_tokens=6)
LEARNERS = {
    "ppo": (ppo, ppo.PPOConfig, "ppo_loss"),
    "grpo": (grpo, grpo.GRPOConfig, "grpo_loss"),
    "rloo": (rloo, rloo.RLOOConfig, "rloo_loss"),
}
# Where each loss takes them: PPO and GRPO by place, RLOO too.
PLACES = {"ppo": ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "mask", "count")}
PLACES["grpo"] = ("logprobs", "old_logprobs", "advantages", "ref_logprobs", "mask", "count", "lines")
PLACES["rloo"] = ("logprobs", "old_logprobs", "advantages", "mask", "lines")


class Memory:
    def __init__(self):
        self.rows = []

    def metrics(self, step, numbers):
        self.rows.append(dict(numbers))

    def jokes(self, step, jokes, judgements):
        pass

    def rewind(self, step):
        pass


def run(name, monkeypatch, critic=None, *, one=None, attempts=1, more=None, **changes):
    """One learner's steps on a stirred policy; the rollouts, what its loss was given each time, and the log."""
    module, config_class, loss_name = LEARNERS[name]
    settings = {"steps": 1, "batch_size": 8, "sampling": SHORT, "learning_rate": 0.0, "kl_limit": 1e9}
    config = config_class(**(settings | ({} if name == "ppo" else {"siblings": 4}) | changes))
    if one is None:
        one = student()
        stir(one, POLICY, size=0.3)
    given, rollouts, log = [], [], Memory()
    loss, honest = getattr(module, loss_name), OnPolicyStep.collect

    def caught(*args, **options):
        named = dict(zip(PLACES[name], args, strict=True)) | options
        given.append(SimpleNamespace(**named))
        return loss(*args, **options)

    def collected(self, **options):
        rollouts.append(honest(self, **options))
        return rollouts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(module, loss_name, caught)
        patch.setattr(OnPolicyStep, "collect", collected)
        env = vector_env(config.batch_size, critic, attempts=attempts)
        result = module.train(config, env, one, log, prompts=prompts(), **(more or {}))
    assert result.steps == len(log.rows) == config.steps
    assert all(row["update/ratio"] > 0 and row["update/grad_norm"] >= 0 for row in log.rows), "what it did is logged"
    # Gradients go through the policy that learns, and not through the one that wrote.
    assert all(one.logprobs.requires_grad and not one.old_logprobs.requires_grad for one in given)
    return SimpleNamespace(rollouts=rollouts, given=given, log=log.rows, student=one, config=config)


def distances(rollout, one, temperature=1.0):
    """log pi(line) - log ref(line), each scored afresh by its own adapter."""
    policy, reference = (
        one.score_in_batches(rollout.rows, adapter=name, temperature=temperature).logprobs.sum(-1)
        for name in (POLICY, IMITATION)
    )
    return policy - reference


def far_student():
    """Its policy is far from its imitation: an output layer of the usual random size could hardly prefer a token."""
    one = student()
    one.base.get_output_embeddings().weight.data *= 10
    stir(one, POLICY, size=0.3)
    return one


def alike(jokes):
    return [Judgement("alike", 0.5) for _ in jokes]


def every_third_fails(jokes):
    return [
        Judgement("flaky", None, error="away") if i % 3 == 1 else Judgement("flaky", (i % 5) / 4)
        for i, _ in enumerate(jokes)
    ]


# -- the KL -----------------------------------------------------------------------------------------------------------


def test_ppo_pays_a_line_less_the_further_it_moved_from_the_imitation(monkeypatch):
    """gamma = lam = 1 and values taken off: a line's first return is its score - kl_weight x (log pi - log ref)."""
    seen = run("ppo", monkeypatch, kl_weight=0.25, gamma=1.0, lam=1.0, whiten_advantages=False)
    rollout = seen.rollouts[0]
    far = distances(rollout, seen.student)
    assert far.abs().min() > 1e-3, "the policy is another one"
    (given,) = seen.given
    # The loss sees rows in the order of their lengths: compare as sets of numbers.
    expected = rollout.rewards - 0.25 * far
    caught = given.returns[torch.arange(len(given.returns)), given.mask.long().argmax(-1)]
    assert torch.allclose(caught.sort().values, expected.sort().values, atol=1e-4)
    assert given.kl_weight == 0.0, "paid once, not twice"


def test_ppo_with_the_kl_in_the_loss_leaves_the_rewards_alone(monkeypatch):
    seen = run("ppo", monkeypatch, kl_weight=0.25, kl_in="loss", gamma=1.0, lam=1.0, whiten_advantages=False)
    (given,) = seen.given
    caught = given.returns[torch.arange(len(given.returns)), given.mask.long().argmax(-1)]
    assert torch.allclose(caught.sort().values, seen.rollouts[0].rewards.sort().values, atol=1e-5)
    assert given.kl_weight == 0.25
    reference = seen.student.score_in_batches(seen.rollouts[0].rows, adapter=IMITATION).logprobs
    assert torch.allclose(given.ref_logprobs.sum(-1).sort().values, reference.sum(-1).sort().values, atol=1e-4)


def test_rloo_takes_the_kl_of_the_line_off_its_reward(monkeypatch):
    """Of four siblings, a line's advantage is 4/3 of its distance from their mean of score - w (log pi - log ref)."""
    seen = run("rloo", monkeypatch, kl_weight=0.25)
    rollout = seen.rollouts[0]
    paid = (rollout.rewards - 0.25 * distances(rollout, seen.student)).reshape(2, 4)
    expected = ((paid - paid.mean(-1, keepdim=True)) * 4 / 3).flatten()
    (given,) = seen.given
    assert torch.allclose(given.advantages.sort().values, expected.sort().values, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ppo", {"kl_in": "reward", "whiten_advantages": False, "value_weight": 0.0}),
        ("ppo", {"kl_in": "loss", "whiten_advantages": False, "value_weight": 0.0}),
        ("grpo", {"unbiased_kl": True}),
        ("grpo", {"unbiased_kl": False}),
    ],
)
def test_the_kl_alone_pulls_the_policy_back(name, changes, monkeypatch):
    """With all lines scored alike nothing but the KL is left to learn from: the distance to the imitation shrinks.

    RLOO, which knows the KL as a part of rewards only, shrinks it too noisily in few steps: see its advantages above.
    """
    settings = {"learning_rate": 1e-2, "kl_weight": 1.0, "steps": 6, "batch_size": 16} | changes
    log = run(name, monkeypatch, alike, one=far_student(), **settings).log
    assert log[0]["kl/per_token"] > 0.1
    assert log[-1]["kl/per_token"] < 0.8 * log[0]["kl/per_token"]


def test_the_weight_of_the_kl_is_steered_by_the_kl_of_a_line(monkeypatch):
    """Weights of the second step are those that the first left: 0.25 x (1 + 0.2 x 8 / 80)."""
    one = far_student()
    settings = {"one": one, "kl_weight": 0.25, "kl_in": "loss", "kl_horizon": 80.0}
    seen = run("ppo", monkeypatch, **settings, kl_target=1e-6, steps=2)
    assert [given.kl_weight for given in seen.given] == pytest.approx([0.25, 0.255])
    line = sum(float(distances(rollout, seen.student).sum()) for rollout in seen.rollouts[:1]) / 8
    assert seen.log[0]["kl/per_line"] == pytest.approx(line, abs=1e-3)
    near = run("ppo", monkeypatch, **settings, kl_target=line / 1.1, steps=2)
    assert near.log[1]["kl/weight"] == pytest.approx(0.25 * (1 + 0.1 * 8 / 80), rel=1e-4)


@pytest.mark.parametrize(("stop", "passes"), [(1e-12, 2), (1e9, 3), (None, 3)])
def test_passes_end_at_the_kl_of_the_step_being_taken(stop, passes, monkeypatch):
    """The first pass is scored before it moves anything, the second sees the move: with a low bound it is the last."""
    seen = run("ppo", monkeypatch, epochs=3, kl_stop=stop, learning_rate=1e-2)
    assert len(seen.given) == passes


def test_the_kl_at_which_passes_end_is_a_mean_over_the_tokens_of_the_pass():
    step = OnPolicyStep(SimpleNamespace(config=None, step=0))
    step.pass_sums = {"approx_kl": 3.0, "tokens": 12.0}
    assert step.approx_kl == 0.25
    step.pass_sums = {"approx_kl": 0.0, "tokens": 0.0}
    assert step.approx_kl == 0.0


def log_of(*rows):
    """Log-probabilities of tokens from their probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


ONES = torch.ones(2, 2, dtype=torch.float64)
# Two lines: the first has gone from 1/4 and 1/2 to 1/2 and 1/2, the second from 1/2 to 1/8; it has one token only.
NEW, OLD = log_of((0.5, 0.5), (0.125, 0.9)), log_of((0.25, 0.5), (0.5, 0.1))
KEPT = torch.tensor([[1, 1], [1, 0]])


def hand(name, advantages, **changes):
    """What each learner's loss says of these two lines: the loss, and its sums."""
    advantages = torch.tensor(advantages, dtype=torch.float64)
    if name == "ppo":
        zero = 0 * ONES
        given = {"clip": 0.2, "value_clip": 0.2, "value_weight": 0.0} | changes
        loss, sums = ppo.ppo_loss(NEW, OLD, advantages[:, None] * ONES, zero, zero, zero, KEPT, 3.0, **given)
    elif name == "grpo":
        given = {"clip": 0.2, "clip_high": 0.3, "kl_weight": 0.0, "unbiased_kl": False, "loss": "dapo", "longest": 9}
        reference = changes.pop("ref_logprobs", None)
        loss, sums = grpo.grpo_loss(NEW, OLD, advantages, reference, KEPT, 3.0, 2.0, **(given | changes))
    else:
        loss, sums = rloo.rloo_loss(NEW, OLD, advantages, KEPT, 2.0, **({"clip": 0.2} | changes))
    return float(loss), {n: float(s) for n, s in sums.items()}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_distance_of_the_step_being_taken_is_from_old_to_new(name):
    """k3 of the old line's samples: new/old - 1 - log(new/old) over three tokens: ratios 2, 1 and 1/4."""
    _, sums = hand(name, [1.0, 1.0])
    k3 = [r - 1 - math.log(r) for r in (2.0, 1.0, 0.25)]
    assert sums["approx_kl"] == pytest.approx(sum(k3), abs=1e-9)


def test_losses_and_shares_of_all_three_by_hand():
    """Ratios 2, 1 | 1/4 of tokens; 2 | 1/4 of lines. Up is cut at 1.2 (1.3 in GRPO), down at 0.8 where it is punished:
    a better line gains min(2 A, 1.2 A), a worse one loses max(1/4, 0.8)."""
    loss, sums = hand("ppo", [1.0, -1.0])
    assert loss == pytest.approx(-(1.2 + 1.0 - 0.8) / 3)
    assert (sums["ratio"], sums["clip_share"]) == pytest.approx((3.25, 2.0))
    assert sums["ratio_deviation"] == pytest.approx(1.0 + 0.75)
    assert sums["policy_loss"] == pytest.approx(-(1.2 + 1.0 - 0.8))
    loss, sums = hand("grpo", [1.0, -1.0])
    assert loss == pytest.approx(-(1.3 + 1.0 - 0.8) / 3)
    assert (sums["ratio"], sums["clip_share"]) == pytest.approx((3.25, 2.0))
    assert hand("grpo", [1.0, -1.0], clip=0.9)[1]["clip_share"] == 1.0
    assert hand("grpo", [1.0, -1.0], clip_high=1.5)[1]["clip_share"] == 1.0
    loss, sums = hand("rloo", [1.0, -1.0])
    assert loss == pytest.approx(-(1.2 - 0.8) / 2)
    # Sums over tokens: the first line has two of them.
    assert (sums["ratio"], sums["clip_share"]) == pytest.approx((4.25, 3.0))
    assert sums["policy_loss"] == pytest.approx(-(1.2 + 1.2 - 0.8))
    same = rloo.rloo_loss(OLD, OLD, torch.ones(2, dtype=torch.float64), KEPT, 2.0, clip=0.2)[1]
    assert (float(same["ratio"]), float(same["clip_share"])) == (3.0, 0.0)  # a policy that has not moved
    # What is punished on its way up and praised on its way down is not cut.
    assert hand("ppo", [-1.0, 1.0])[0] == pytest.approx(-(-2.0 - 1.0 + 0.25) / 3)
    assert hand("rloo", [-1.0, 1.0])[0] == pytest.approx(-(-2.0 + 0.25) / 2)
    assert hand("grpo", [-1.0, 1.0])[0] == pytest.approx(-(-2.0 - 1.0 + 0.25) / 3)


def test_the_kl_in_a_loss_is_that_of_the_policy_from_the_imitation():
    """Against a reference of 1/4 everywhere: ref/new is 1/2, 1/2 and 2; its k3 times the ratio, or alone."""
    reference = (ONES / 4).log()
    k3 = [r - 1 - math.log(r) for r in (0.5, 0.5, 2.0)]
    weighted = 2.0 * k3[0] + 1.0 * k3[1] + 0.25 * k3[2]
    assert hand("ppo", [0.0, 0.0], ref_logprobs=reference, kl_weight=0.5)[0] == pytest.approx(0.5 * weighted / 3)
    given = {"ref_logprobs": reference, "kl_weight": 0.5}
    assert hand("grpo", [0.0, 0.0], **given)[0] == pytest.approx(0.5 * sum(k3) / 3)
    assert hand("grpo", [0.0, 0.0], **given, unbiased_kl=True)[0] == pytest.approx(0.5 * weighted / 3)
    assert hand("grpo", [0.0, 0.0], **given, loss="grpo")[0] == pytest.approx(0.5 * ((k3[0] + k3[1]) / 2 + k3[2]) / 2)
    assert hand("grpo", [0.0, 0.0], **given, loss="dr_grpo")[0] == pytest.approx(0.5 * sum(k3) / (2 * 9))
    for name in ("ppo", "grpo"):  # a weight without a reference, and a reference without a weight, are nothing
        assert hand(name, [0.0, 0.0], kl_weight=0.5)[0] == 0.0
        assert hand(name, [0.0, 0.0], ref_logprobs=reference)[0] == 0.0


def test_the_entropy_of_the_policy_is_praised():
    entropy = torch.tensor([[1.0, 2.0], [3.0, 99.0]], dtype=torch.float64)
    assert hand("ppo", [0.0, 0.0], entropy=entropy, entropy_weight=0.5)[0] == pytest.approx(-0.5 * 6 / 3)
    assert hand("ppo", [0.0, 0.0], entropy=entropy)[0] == 0.0
    assert hand("ppo", [0.0, 0.0], entropy_weight=0.5)[0] == 0.0
    assert hand("ppo", [0.0, 0.0], entropy=entropy)[1]["entropy"] == 6.0
    assert "entropy" not in hand("ppo", [0.0, 0.0])[1]


def test_what_learners_do_unless_told_otherwise():
    """Settings that nobody gives are part of every published run: a change of one is a change for the user."""
    shared = {
        **{"micro_batch": 32, "learning_rate": 1e-3, "warmup_steps": 0, "decay": "constant", "max_grad_norm": 1.0},
        **{"checkpoint_every": 10, "evaluate_every": 0, "seed": 0, "steps": 100, "batch_size": 64, "epochs": 1},
        **{
            "minibatches": 1,
            "kl_limit": 5.0,
            "missing_end_penalty": 0.0,
            "max_failure_share": 0.5,
            "max_flip_share": 0.5,
        },
    }
    own = {
        "ppo": {
            **{"siblings": 1, "value_learning_rate": 1e-2, "gamma": 1.0, "lam": 0.95, "clip": 0.2, "value_clip": 0.2},
            **{"value_weight": 0.5, "detach_values": True, "value_warmup": 0, "entropy_weight": 0.0, "kl_weight": 0.05},
            **{"kl_in": "reward", "kl_target": None, "kl_horizon": 10_000.0, "kl_stop": None, "scale_rewards": False},
            **{"whiten_advantages": True, "imitation_weight": 0.0, "imitation_decay": 0.99},
        },
        "grpo": {
            **{"siblings": 8, "clip": 0.2, "clip_high": 0.2, "loss": "dapo", "scale_by_group": True},
            **{"kl_weight": 0.05, "unbiased_kl": True},
        },
        "rloo": {"siblings": 4, "clip": 0.2, "kl_weight": 0.05},
    }
    for name, (_, config_class, _) in LEARNERS.items():
        found = {n: v for n, v in vars(config_class()).items() if n != "sampling"}
        assert found == shared | own[name], name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": -1}, "steps must be a number of at least 0"),
        ({"learning_rate": math.inf}, "learning_rate must be a number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number, found nan"),
        ({"kl_weight": -0.1}, "kl_weight must be a number of at least 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"gamma": 1.01}, "gamma must be between 0 and 1"),
        ({"lam": -0.01}, "lam must be between 0 and 1"),
        ({"decay": "fast"}, "decay must be 'constant'"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"batch_size": 6, "siblings": 4}, "multiple of siblings x processes = 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(InvalidOption, match=says):
        ppo.PPOConfig(**wrong)


def test_the_edges_of_settings_are_allowed():
    ppo.PPOConfig(steps=0, learning_rate=0.0, kl_weight=0.0, gamma=0.0, lam=1.0, micro_batch=1, warmup_steps=0)
    ppo.PPOConfig(batch_size=8, siblings=8, checkpoint_every=1, kl_limit=math.inf, clip=math.inf)
    assert ppo.PPOConfig().one_pass
    assert not ppo.PPOConfig(epochs=2).one_pass
    assert not ppo.PPOConfig(minibatches=2).one_pass
    for config_class in (grpo.GRPOConfig, rloo.RLOOConfig):
        config_class(batch_size=8, siblings=2, minibatches=4)
        with pytest.raises(InvalidOption, match="at least 2 siblings, found 1"):
            config_class(batch_size=8, siblings=1)
        with pytest.raises(InvalidOption, match="minibatches x processes = 16"):
            config_class(batch_size=8, siblings=2, minibatches=8)


# -- what a line is worth ---------------------------------------------------------------------------------------------


def test_ppo_divides_scores_by_the_deviation_of_all_so_far(monkeypatch):
    seen = run(
        *("ppo", monkeypatch),
        scale_rewards=True,
        **{"steps": 2, "kl_weight": 0.0, "gamma": 1.0, "lam": 1.0, "whiten_advantages": False},
    )
    scores = []
    for rollout, given in zip(seen.rollouts, seen.given, strict=True):
        scores += rollout.rewards.tolist()
        caught = given.returns[torch.arange(len(given.returns)), given.mask.long().argmax(-1)]
        expected = rollout.rewards / statistics.stdev(scores)
        assert torch.allclose(caught.sort().values, expected.sort().values, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_lines_that_nobody_judged_are_left_out_of_everything(name, monkeypatch):
    """Their tokens are masked, they get no advantage, their siblings' mean and the count of lines are without them."""
    seen = run(name, monkeypatch, every_third_fails, kl_weight=0.0)
    rollout = seen.rollouts[0]
    (given,) = seen.given
    assert 0 < int(rollout.valid.sum()) < 8
    assert int(given.mask.any(-1).sum()) == int(rollout.valid.sum())
    assert int(given.mask.sum()) == int(rollout.action_mask[rollout.valid].sum())
    if name == "ppo":
        assert not given.advantages[~given.mask.bool()].any()
        return
    assert float(given.lines) == int(rollout.valid.sum())
    expected = torch.zeros(8)
    for group in (slice(0, 4), slice(4, 8)):
        kept = rollout.rewards[group][rollout.valid[group]]
        apart = kept - kept.mean()
        apart = apart / (kept.std() + 1e-4) if name == "grpo" else apart * len(kept) / (len(kept) - 1)
        expected[group][rollout.valid[group]] = apart
    assert torch.allclose(given.advantages.sort().values, expected.sort().values, atol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_cut_off_line_is_worth_less_to_those_without_values_too(name, monkeypatch):
    """All are scored alike; the penalty alone tells lines apart, and those that ended get the positive advantage."""
    sampling = Sampling(max_new_tokens=24)
    one = student()
    one.base.get_output_embeddings().weight.data *= 4
    seen = run(name, monkeypatch, alike, one=one, kl_weight=0.0, missing_end_penalty=0.5, sampling=sampling, seed=3)
    rollout = seen.rollouts[0]
    penalty = -0.5 * (~rollout.finished).float().reshape(2, 4)
    apart = penalty - penalty.mean(-1, keepdim=True)
    expected = apart / (penalty.std(-1, keepdim=True) + 1e-4) if name == "grpo" else apart * 4 / 3
    (given,) = seen.given
    assert torch.allclose(given.advantages.sort().values, expected.flatten().sort().values, atol=1e-4)


def test_a_value_warm_up_trains_the_head_alone_and_then_the_policy(monkeypatch):
    for steps, moves in ((1, False), (2, True)):
        one = student()
        before = {n: t.clone() for n, t in one.state().items()}
        run("ppo", monkeypatch, one=one, steps=steps, value_warmup=1, learning_rate=1e-2)
        moved = {n.partition("/")[0] for n, t in one.state().items() if not torch.equal(t, before[n])}
        assert moved == ({POLICY, "value_head"} if moves else {"value_head"})


@pytest.mark.parametrize(
    "options",
    [
        {"imitation_weight": 0.5},
        {"detach_values": False},
        {"entropy_weight": 0.5},
        {"kl_in": "loss", "kl_weight": 0.5},
    ],
    ids=str,
)
def test_nothing_moves_the_policy_in_a_value_warm_up(options, monkeypatch):
    """Imitation and values that are not detached moved it."""
    one = student()
    stir(one, POLICY)
    before = {n: t.clone() for n, t in one.state().items()}
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
    run(
        "ppo",
        monkeypatch,
        one=one,
        more={"demonstrations": lines},
        steps=2,
        value_warmup=2,
        learning_rate=1e-2,
        **options,
    )
    moved = {n.partition("/")[0] for n, t in one.state().items() if not torch.equal(t, before[n])}
    assert moved == {"value_head"}


def test_the_logged_weight_of_the_kl_is_the_one_that_was_used(monkeypatch):
    """It was the next step's, which the step's own KL decides."""
    one, used = student(), []
    stir(one, POLICY, size=0.3)
    whole = ppo.ppo_loss
    monkeypatch.setattr(ppo, "ppo_loss", lambda *a, **k: used.append(k["kl_weight"]) or whole(*a, **k))
    options = {"kl_in": "loss", "kl_weight": 0.05, "kl_target": 1e-3, "kl_horizon": 16.0, "kl_limit": 1e9}
    seen = run("ppo", monkeypatch, one=one, steps=3, **options)
    assert len(set(used)) == 3
    assert [row["kl/weight"] for row in seen.log] == used


def test_imitation_fades_by_its_decay_each_step(monkeypatch):
    """With nothing else to learn from, the gradient of step n is decay^n times that of the teacher's lines."""
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
    options = {"imitation_weight": 2.0, "imitation_decay": 0.5, "kl_weight": 0.0, "value_weight": 0.0, "steps": 3}
    options |= {"max_grad_norm": 1e9, "gamma": 0.0, "lam": 0.0}
    one = student()
    with torch.no_grad():
        for parameter in one.value_head.parameters():
            parameter.zero_()
    nothing = lambda jokes: [Judgement("zero", 0.0) for _ in jokes]  # noqa: E731
    seen = run("ppo", monkeypatch, nothing, one=one, more={"demonstrations": lines}, value_learning_rate=0.0, **options)
    norms = [row["update/grad_norm"] for row in seen.log]
    # Each step takes all eight lines, so that its gradient is the same but for the weight.
    assert norms[0] > 1e-3
    assert norms[1:] == pytest.approx([norms[0] / 2, norms[0] / 4], rel=1e-3)


# -- temperature, chance, clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
def test_old_log_probabilities_are_those_of_the_temperature_that_was_sampled_at(fresh):
    sampling = Sampling(max_new_tokens=6, temperature=2.0)
    one = student()
    stir(one, POLICY, size=0.5)
    uniforms = lambda _, n: torch.rand(4, n, generator=torch.Generator().manual_seed(1))  # noqa: E731
    rollout = collect(vector_env(4), one, sampling, prompts(4), uniforms, old_logprobs=fresh, values=True)
    hot, plain = (one.score_in_batches(rollout.rows, adapter=POLICY, temperature=t, values=True) for t in (2.0, 1.0))
    assert torch.allclose(rollout.logprobs, hot.logprobs, atol=1e-4)
    assert not torch.allclose(rollout.logprobs, plain.logprobs, atol=1e-2)
    assert torch.allclose(rollout.values, hot.values, atol=1e-4)
    reference = one.score_in_batches(rollout.rows, adapter=IMITATION, temperature=2.0).logprobs
    assert torch.allclose(rollout.ref_logprobs, reference, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"epochs": 2}, {"minibatches": 2}])
def test_the_update_scores_at_the_temperature_that_was_sampled_at(changes, monkeypatch):
    """At the first update the ratio is 1; at another temperature it is not."""
    sampling = Sampling(max_new_tokens=6, temperature=3.0)
    one = student()
    one.base.get_output_embeddings().weight.data *= 20
    seen = run("ppo", monkeypatch, one=one, sampling=sampling, **changes)
    assert seen.log[0]["update/first_mismatch"] < 1e-4
    for given in seen.given:
        assert torch.allclose(given.logprobs * given.mask, given.old_logprobs * given.mask, atol=1e-4)
        assert not given.old_logprobs.requires_grad
        assert given.logprobs.requires_grad


def test_what_a_row_draws_depends_on_its_seed_step_attempt_and_place_alone():
    whole = slice(0, 6)
    drawn = chance(0, 0, 6, whole)(0, 4)
    assert torch.equal(drawn, chance(0, 0, 6, whole)(0, 4))
    assert torch.equal(drawn[2:4], chance(0, 0, 6, slice(2, 4))(0, 4)), "one of three processes"
    others = [chance(1, 0, 6, whole)(0, 4), chance(0, 1, 6, whole)(0, 4), chance(0, 0, 6, whole)(1, 4)]
    others += [chance(1, 2, 6, whole)(0, 4), chance(2, 1, 6, whole)(0, 4), chance(0, 1, 6, whole)(2, 4)]
    others += [chance(0, 2, 6, whole)(1, 4)]
    for i, one in enumerate([drawn, *others]):
        for other in [drawn, *others][:i]:
            assert not torch.equal(one, other)
    assert drawn.shape == draw_uniforms(6, 4, torch.Generator().manual_seed(0)).shape


def test_each_attempt_and_each_step_has_chances_of_its_own(monkeypatch):
    seen = run("ppo", monkeypatch, lambda jokes: [Judgement("z", 0.0) for _ in jokes], attempts=2, steps=2)
    texts = [[joke.text for joke in rollout.jokes] for rollout in seen.rollouts]
    assert len(texts[0]) == 16
    assert texts[0][:8] != texts[0][8:]
    assert texts[0] != texts[1]


def test_minibatches_part_the_rows_anew_in_each_pass_and_step():
    def parts(index, epoch, **changes):
        step = OnPolicyStep(SimpleNamespace(config=ppo.PPOConfig(batch_size=12, **changes), step=index))
        return [part.tolist() for part in step._random_rows(12, epoch)]

    assert parts(0, 0, minibatches=1) == [list(range(12))]
    # Of 12 rows, chunks of equal size would be 3, 3, 3, 3 for five, and 2 each for seven.
    assert [len(part) for part in parts(0, 0, minibatches=5)] == [3, 3, 2, 2, 2]
    assert [len(part) for part in parts(0, 0, minibatches=7)] == [2, 2, 2, 2, 2, 1, 1]
    assert [len(part) for part in parts(0, 0, minibatches=12)] == [1] * 12
    with pytest.raises(InvalidOption, match=r"Each of 13 minibatches needs a line.*batch_size 12"):
        ppo.PPOConfig(batch_size=12, minibatches=13)
    three = parts(0, 0, minibatches=3)
    assert [len(part) for part in three] == [4, 4, 4]
    assert sorted(row for part in three for row in part) == list(range(12))
    assert three == parts(0, 0, minibatches=3)
    others = [parts(0, 1, minibatches=3), parts(1, 0, minibatches=3), parts(0, 0, minibatches=3, seed=1)]
    assert all(other != three for other in others)
    assert others[0] != others[1], "step 0, pass 1 is not step 1, pass 0"


@pytest.mark.parametrize(("bound", "length"), [(0.01, 0.01), (1e6, None)])
def test_the_gradient_is_cut_to_its_longest_allowed_length(bound, length):
    """Plain descent with rate 1 moves the weights by the gradient: by no more than the bound, and by less where it is
    shorter. What is logged is the length before."""
    one = student()
    stir(one, POLICY)
    policy = list(one.adapter_parameters(POLICY).values())
    one.activate(POLICY)
    one.train_only(policy)
    rows = one.rows_from_text(["The meeting was slow."] * 2, ["Glaciers overtook it.", "It was."])
    batch = Minibatch(one, torch.optim.SGD(policy, lr=1.0), rows, [torch.tensor([0, 1])])
    before = [p.detach().clone() for p in policy]
    for part in batch:
        loss = -(part.logprobs * part.mask).sum() / batch.tokens
        loss.backward()
        part.record({"loss": loss})
    whole = torch.cat([p.grad.flatten() for p in policy]).norm().item()
    batch.clip_and_step(bound)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(policy, before, strict=True)]).norm().item()
    assert batch.norm == pytest.approx(whole, rel=1e-5)
    assert whole > 0.05
    assert moved == pytest.approx(length or whole, rel=1e-3)
    assert batch.sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert int(batch.tokens) == int(rows.action_mask.sum())
    # The next pass begins from no gradient.
    for part in batch:
        assert all(p.grad is None for p in policy)
        part.logprobs.sum().backward()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learners_gradient_is_cut_too(name, monkeypatch):
    bounds = []
    honest = Minibatch.clip_and_step
    monkeypatch.setattr(Minibatch, "clip_and_step", lambda self, bound: (bounds.append(bound), honest(self, bound)))
    run(name, monkeypatch, max_grad_norm=0.125, minibatches=2, epochs=2)
    assert bounds == [0.125] * 4


def test_how_far_sampler_and_update_may_differ():
    assert check_first_ratio(0, {"mismatch": 0.5, "tokens": 10.0}) == 0.05
    assert check_first_ratio(0, {"mismatch": 0.0, "tokens": 0.0}) == 0.0
    assert check_first_ratio(0, {"mismatch": 0.1, "tokens": 1.0}) == 0.1
    assert check_first_ratio(0, {"mismatch": 0.4, "tokens": 1.0}, 0.25) == 0.4  # rounding of logits four times as large
    with pytest.raises(TrainingStopped, match=r"at most 0\.2 can"):
        check_first_ratio(0, {"mismatch": 0.21, "tokens": 1.0}, 0.5)
    with pytest.raises(TrainingStopped, match=r"at most 0\.1 can"):
        check_first_ratio(0, {"mismatch": 0.11, "tokens": 1.0}, 2.0)
    for wrong in (1.2, float("nan")):
        with pytest.raises(TrainingStopped, match="At step 4 "):
            check_first_ratio(3, {"mismatch": wrong, "tokens": 10.0})


def test_lines_are_counted_with_their_tokens(monkeypatch):
    """Tokens, lines and what was recorded add up over micro-batches and minibatches."""
    sums = []
    honest = OnPolicyStep.log

    def log(self, *numbers):
        sums.append((dict(self.sums), dict(self.pass_sums), list(self.norms), int(self.rollout.mask.sum())))
        honest(self, *numbers)

    monkeypatch.setattr(OnPolicyStep, "log", log)
    run("ppo", monkeypatch, letters_critic(), micro_batch=3, minibatches=2, epochs=2)
    ((total, last_pass, norms, tokens),) = sums
    assert total["tokens"] == 2 * tokens
    assert last_pass["tokens"] == tokens
    assert (total["lines"], last_pass["lines"]) == (16, 8)
    assert len(norms) == 4
    assert total["ratio"] == pytest.approx(2 * tokens, rel=1e-4)


# -- rows of pairs ----------------------------------------------------------------------------------------------------


def rows_of(*lengths):
    width = max(lengths)
    attention = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    action = attention.clone()
    action[:, 0] = 0
    return TokenRows(torch.arange(len(lengths) * width).reshape(len(lengths), width), attention, action)


def test_the_lines_of_an_example_are_never_parted():
    """Three pairs whose longer lines have 3, 5 and 4 tokens: the longest first, both lines of each together."""
    rows = rows_of(2, 3, 5, 1, 4, 4)
    every = torch.tensor([0, 1, 2])
    lists = lambda parts: [part.tolist() for part in parts]  # noqa: E731
    assert lists(pairs_together(rows, every, 2, 4)) == [[2, 3, 4, 5], [0, 1]]
    assert lists(pairs_together(rows, every, 2, 5)) == [[2, 3, 4, 5], [0, 1]]
    assert lists(pairs_together(rows, every, 2, 1)) == [[2, 3], [4, 5], [0, 1]]
    assert lists(pairs_together(rows, torch.tensor([0, 2]), 2, 4)) == [[4, 5, 0, 1]]
    assert lists(pairs_together(rows, torch.tensor([0, 1]), 3, 6)) == [[0, 1, 2, 3, 4, 5]]
    assert lists(pairs_together(rows_of(2, 2, 2, 3, 3, 3), torch.tensor([0, 1]), 3, 3)) == [[3, 4, 5], [0, 1, 2]]


def test_chosen_and_rejected_lines_stand_in_turn():
    one = student()
    preferences = [Preference(p, f"Good {i}.", f"Bad {i}.", 0.9, "people") for i, p in enumerate(prompts(2))]
    rows = encode_pairs(one, preferences)
    texts = [one.decode(rows.tokens[i][rows.action_mask[i].bool()].tolist()) for i in range(4)]
    assert texts == ["Good 0.", "Bad 0.", "Good 1.", "Bad 1."]
    before = [one.decode(rows.tokens[i][(rows.attention[i] > rows.action_mask[i])].tolist()) for i in range(4)]
    assert before == [prompts(2)[i // 2].text for i in range(4)]


def test_a_line_that_was_cut_off_has_no_end_to_learn():
    one, p = student(), prompts(1)[0]
    both = {"chosen": "Good.", "rejected": "Bad.", "probability": 0.9, "source": "people"}
    for chosen_ended, rejected_ended in ((True, False), (False, True)):
        rows = encode_pairs(one, [Preference(p, **both, chosen_ended=chosen_ended, rejected_ended=rejected_ended)])
        texts = [rows.tokens[i][rows.action_mask[i].bool()].tolist() for i in range(2)]
        assert [t[-1] == one.end_token for t in texts] == [chosen_ended, rejected_ended]
        assert [one.decode(t) for t in texts] == ["Good.", "Bad."]
        assert rows.attention.sum(-1).tolist() == [
            len(one.encode_prompt(p.text)) + len(one.encode_response(line, ended))
            for line, ended in (("Good.", chosen_ended), ("Bad.", rejected_ended))
        ]


def test_examples_of_this_process_are_all_where_it_is_the_only_one():
    assert my_examples(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_part_takes_its_rows_and_columns_of_any_table():
    rows = rows_of(2, 4, 3)
    part = Part(torch.tensor([2, 0]), 3, rows.attention, *[torch.zeros(0)] * 3, {})
    assert part(rows.tokens).tolist() == [[8, 9, 10], [0, 1, 2]]
    assert part(torch.tensor([5.0, 6.0, 7.0])).tolist() == [7.0, 5.0]
    part.record({"a": torch.tensor(2.0)})
    part.record({"a": torch.tensor(3.0), "b": torch.tensor(1.0)})
    assert {n: float(v) for n, v in part.sums.items()} == {"a": 5.0, "b": 1.0}


def test_a_minibatch_without_rows_counts_nothing_and_divides_by_nothing():
    one = student()
    rows = one.rows_from_text(["x"], ["y"])
    optimizer = torch.optim.SGD(list(one.adapter_parameters(POLICY).values()), lr=1.0)
    empty = Minibatch(one, optimizer, rows, [])
    assert float(empty.tokens) == 1.0
    assert list(empty) == []
    assert float(empty.examples) == 0.0
    some = Minibatch(one, optimizer, rows, [torch.tensor([0])], mask=torch.zeros_like(rows.action_mask), examples=3)
    assert (float(some.tokens), float(some.examples)) == (1.0, 3.0)


def test_as_many_prompts_as_the_environments_have_rows():
    one = student()
    envs = [vector_env(2), vector_env(1)]
    uniforms = lambda _, n: torch.full((3, n), 0.5)  # noqa: E731
    rollout = collect(envs, one, SHORT, prompts(3), uniforms, reference=False)
    assert [joke.prompt.id for joke in rollout.jokes] == ["p0", "p1", "p2"]
    assert rollout.group.tolist() == [0, 1, 2]
    assert not rollout.has_reference
    assert set(rollout.seconds) == {"generate", "judge_wait", "judge", "reference"}
    twins = [prompts(2)[0], prompts(2)[1], prompts(2)[0]]
    assert collect(envs, one, SHORT, twins, uniforms, reference=False).group.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="2 prompts for environments of 3 rows"):
        collect(envs, one, SHORT, prompts(2), uniforms)
