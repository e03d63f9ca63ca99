import copy
import math
import time

import pytest
import torch
from tiny import letters_critic, prompts, stir, student, vector_env

from humor_env.agents.feedback.rollout import collect
from humor_env.agents.ppo import PPOConfig, ppo_loss, train
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.writer import InProcess
from humor_env.errors import InvalidOption, JudgingFailed, PromptError, TrainingStopped
from humor_env.types import Demonstration, Judgement

FAMILIES = ["causal", "seq2seq"]
SHORT = Sampling(max_new_tokens=8)


def config(**changes) -> PPOConfig:
    return PPOConfig(**({"steps": 2, "batch_size": 8, "sampling": SHORT, "micro_batch": 8} | changes))


class Memory:
    """A log that keeps everything."""

    def __init__(self):
        self.rows, self.lines = [], []

    def metrics(self, step, numbers):
        self.rows.append({"step": step} | dict(numbers))

    def jokes(self, step, jokes, judgements):
        self.lines += list(zip(jokes, judgements, strict=True))

    def rewind(self, step):
        self.rows = [r for r in self.rows if r["step"] <= step]


def column(*values: float) -> torch.Tensor:
    return torch.tensor([list(values)], dtype=torch.float64)


def loss_of(**changes):
    given = {
        "logprobs": column(0.0, 0.0),
        "old_logprobs": column(0.0, 0.0),
        "advantages": column(0.0, 0.0),
        "values": column(0.0, 0.0),
        "old_values": column(0.0, 0.0),
        "returns": column(0.0, 0.0),
        "mask": column(1, 1),
        "token_count": 2.0,
        "clip": 0.2,
        "value_clip": 0.2,
        "value_weight": 0.5,
    }
    loss, sums = ppo_loss(**(given | changes))
    return float(loss), {n: float(s) for n, s in sums.items()}


def test_policy_loss_by_hand():
    # ratios 1.5 and 0.5. Advantage +1: min(1.5, 1.2) = 1.2. Advantage -1: min(-0.5, -0.8) = -0.8.
    loss, sums = loss_of(logprobs=column(math.log(1.5), math.log(0.5)), advantages=column(1.0, -1.0))
    assert loss == pytest.approx(-(1.2 - 0.8) / 2, abs=1e-9)
    assert sums["ratio"] == pytest.approx(2.0)
    assert sums["clip_share"] == 2
    # The other signs are not clipped: min(-1.5, -1.2) and min(0.5, 0.8)
    loss, _ = loss_of(logprobs=column(math.log(1.5), math.log(0.5)), advantages=column(-1.0, 1.0))
    assert loss == pytest.approx(-(-1.5 + 0.5) / 2, abs=1e-9)


def test_value_loss_by_hand():
    # value moved from 0 to 1, clipped to 0.2; return 2: errors (1-2)^2 = 1 and (0.2-2)^2 = 3.24, the larger counts.
    loss, sums = loss_of(values=column(1.0, 0.0), returns=column(2.0, 0.0))
    assert sums["value_loss"] == pytest.approx(0.5 * 3.24)
    assert loss == pytest.approx(0.5 * 0.5 * 3.24 / 2)


def test_masked_tokens_and_shares_do_not_count():
    loss, sums = loss_of(
        logprobs=column(0.0, 3.0),
        advantages=column(1.0, 50.0),
        values=column(0, 9.0),
        mask=column(1, 0),
        token_count=1.0,
    )
    assert loss == pytest.approx(-1.0)
    assert sums["ratio"] == 1.0
    assert sums["value_loss"] == 0.0


def test_kl_and_entropy_terms_by_hand():
    # k3 with log(ref/pi) = ln 2: 2 - 1 - ln 2; entropy bonus 0.1 * (3 + 1)
    loss, _ = loss_of(ref_logprobs=column(math.log(2), 0.0), kl_weight=0.3)
    assert loss == pytest.approx(0.3 * (1 - math.log(2)) / 2, abs=1e-9)
    loss, sums = loss_of(entropy=column(3.0, 1.0), entropy_weight=0.1)
    assert loss == pytest.approx(-0.1 * 4 / 2, abs=1e-9)
    assert sums["entropy"] == 4.0


@pytest.mark.parametrize("family", FAMILIES)
def test_first_step_is_plain_policy_gradient(family):
    """At ratio 1 the clipped loss has the gradient of -A log p, and the base gets none."""
    one = student(family)
    stir(one, POLICY)
    policy = list(one.adapter_parameters(POLICY).values())
    one.train_only(policy)
    rollout = collect(vector_env(8), one, SHORT, prompts(8), lambda _, n: torch.rand(8, n))
    advantages = torch.randn(rollout.tokens.shape)
    count = rollout.action_mask.sum().float()

    def gradient(loss):
        for p in policy:
            p.grad = None
        loss.backward()
        assert all(p.grad is None for n, p in one.model.named_parameters() if "lora_" not in n)
        return torch.cat([p.grad.flatten() for p in policy])

    scored = one.score(rollout.rows, values=True)
    zero = torch.zeros_like(advantages)
    loss, sums = ppo_loss(
        scored.logprobs,
        rollout.logprobs,
        advantages,
        scored.values,
        zero,
        zero,
        rollout.action_mask,
        count,
        clip=0.2,
        value_clip=0.2,
        value_weight=0.0,
    )
    assert float(sums["ratio"]) / float(count) == pytest.approx(1.0, abs=1e-6)
    ours = gradient(loss)
    plain = -(advantages * one.score(rollout.rows).logprobs * rollout.action_mask).sum() / count
    assert torch.allclose(ours, gradient(plain), atol=1e-6)
    assert ours.abs().max() > 1e-4


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_do_not_change_the_step(micro_batch):
    finals = []
    for size in (8, micro_batch):
        one = student()
        stir(one, IMITATION)
        one.start_policy_from_imitation()
        train(config(micro_batch=size, entropy_weight=0.01), vector_env(8), one, prompts=prompts())
        finals.append(one.state())
    for name in finals[0]:
        assert torch.allclose(finals[0][name], finals[1][name], atol=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"epochs": 2, "minibatches": 2}, {"kl_in": "loss"}])
def test_training_moves_the_policy_and_the_value_head_only(family, changes):
    one = student(family)
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    before = {n: p.clone() for n, p in one.model.named_parameters()} | {
        f"v.{n}": p.clone() for n, p in one.value_head.named_parameters()
    }
    log = Memory()
    result = train(config(**changes), vector_env(8), one, log, prompts=prompts())
    assert result.steps == 2
    after = dict(one.model.named_parameters()) | {f"v.{n}": p for n, p in one.value_head.named_parameters()}
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    policy = {n for n in before if f".{POLICY}." in n}
    assert policy <= moved
    assert moved - policy <= {n for n in before if n.startswith("v.")}
    assert "v.out.weight" in moved
    first = log.rows[0]
    assert first["update/first_mismatch"] < 1e-4
    assert first["kl/per_token"] == pytest.approx(0.0, abs=1e-5)
    assert first["update/clip_share"] <= 0.5
    # Logged whether or not it is paid: a random student is unsure among all its words.
    assert 0 < first["update/entropy"] <= math.log(one.base.get_output_embeddings().weight.shape[0])


def test_same_seed_same_run_other_seed_other_run():
    def final(seed):
        one, log = student(), Memory()
        train(config(seed=seed), vector_env(8), one, log, prompts=prompts())
        return one.state(), [j.text for j, _ in log.lines]

    (a, texts), (b, same), (c, other) = final(0), final(0), final(1)
    assert texts == same
    assert texts != other
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_training_does_not_need_and_does_not_touch_the_global_generator():
    one = student()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(config(steps=1, epochs=2, minibatches=2), vector_env(8), one, prompts=prompts())
    assert torch.equal(torch.rand(2), expected)


def test_the_letter_the_critic_likes_becomes_commoner():
    for seed in range(2):
        one, log = student(), Memory()
        one.base.get_output_embeddings().weight.data *= 20  # a random output layer of the usual size cannot prefer
        train(
            config(steps=25, batch_size=32, micro_batch=32, learning_rate=5e-3, kl_weight=0.0, kl_limit=1e9, seed=seed),
            vector_env(32),
            one,
            log,
            prompts=prompts(),
        )
        start = sum(r["reward/mean"] for r in log.rows[:3]) / 3
        end = sum(r["reward/mean"] for r in log.rows[-3:]) / 3
        assert end > start + 0.1


def test_order_of_events():
    """Collect, judge, update, log, evaluate, save: once each, in this order, every step."""
    tape = []
    plain = letters_critic()

    def critic(jokes):
        tape.append("judge")
        return plain(jokes)

    class Tape(Memory):
        def metrics(self, step, numbers):
            tape.append(f"log {step}")

    class Store(CheckpointStore):
        def save(self, step, tensors, state, score=None, seconds=0.0):
            tape.append(f"save {step}")

        def latest(self):
            return None

    def evaluate(_):
        tape.append("evaluate")
        return {"score": 1.0}

    result = train(
        config(checkpoint_every=2, evaluate_every=1),
        vector_env(8, critic),
        student(),
        Tape(),
        prompts=prompts(),
        checkpoints=Store("unused"),
        evaluate=evaluate,
    )
    assert tape == ["judge", "evaluate", "log 1", "judge", "evaluate", "log 2", "save 2"]
    assert result.evaluations == [{"step": 1.0, "score": 1.0}, {"step": 2.0, "score": 1.0}]


def test_the_critic_works_while_the_reference_is_scored(monkeypatch):
    """A critic of 0.3 s beside a reference pass of 0.3 s must take little more than 0.3 s, not 0.6."""

    def slow_critic(jokes):
        time.sleep(0.3)
        return [Judgement("slow", 0.5) for _ in jokes]

    honest = Student.score_in_batches

    def slow_score(self, *args, **options):
        time.sleep(0.3)
        return honest(self, *args, **options)

    monkeypatch.setattr(Student, "score_in_batches", slow_score)
    one = student()
    env = vector_env(8, slow_critic)
    rollout = collect(env, one, SHORT, prompts(8), lambda _, n: torch.rand(8, n), old_logprobs=False)
    assert rollout.seconds["judge"] >= 0.3
    assert rollout.seconds["reference"] >= 0.3
    assert rollout.seconds["judge_wait"] < 0.15


def test_with_two_environments_the_second_is_written_while_the_first_is_judged():
    tape = []

    def slow_critic(jokes):
        tape.append("judging")
        time.sleep(0.2)
        tape.append("judged")
        return [Judgement("slow", 0.5) for _ in jokes]

    class Backend(InProcess):
        def generate(self, *args, **options):
            tape.append("writing")
            time.sleep(0.05)
            return super().generate(*args, **options)

    one = student()
    envs = [vector_env(4, slow_critic) for _ in range(2)]
    chance = lambda _, n: torch.rand(8, n)  # noqa: E731
    collect(envs, one, SHORT, prompts(8), chance, old_logprobs=False, reference=False, backend=Backend(one))
    assert tape.index("judged") > max(i for i, event in enumerate(tape) if event == "writing")


def half_failing(jokes):
    return [
        Judgement("flaky", None, error="the service is away") if i % 2 else Judgement("flaky", 0.5 if i else 1.0)
        for i, _ in enumerate(jokes)
    ]


def test_scores_of_a_judge_that_goes_by_the_place_teach_only_by_an_explicit_wish():
    """Of two orders most answers differed, and the student learned from them without a word."""

    def by_place(jokes):
        return [Judgement("win-tie", 0.4 + i / 20, {"flips": 0.75}) for i, _ in enumerate(jokes)]

    with pytest.raises(JudgingFailed, match=r"'win-tie' .* 6 of 8 .* max_flip_share = 1"):
        train(config(steps=1), vector_env(8, by_place), student(), Memory(), prompts=prompts())
    log = Memory()
    train(config(steps=1, max_flip_share=1.0), vector_env(8, by_place), student(), log, prompts=prompts())
    assert log.rows[0]["reward/part/flips"] == 0.75


def test_failed_judgements_teach_nothing():
    """Rows that could not be scored must leave the step as it would be without them."""
    log = Memory()
    one = student()
    train(config(steps=1, max_failure_share=0.6), vector_env(8, half_failing), one, log, prompts=prompts())
    assert log.rows[0]["failures/share"] == 0.5
    assert log.rows[0]["reward/mean"] == pytest.approx((1.0 + 3 * 0.5) / 4)

    def zero_for_failed(jokes):
        return [Judgement("z", 0.0) if j.failed else j for j in half_failing(jokes)]

    other = student()
    train(config(steps=1), vector_env(8, zero_for_failed), other, prompts=prompts())
    assert not all(torch.equal(a, b) for a, b in zip(one.state().values(), other.state().values(), strict=True))


def test_too_many_failures_stop_the_run_and_list_the_errors():
    def away(jokes):
        return [Judgement("away", None, error=f"error {i % 2}") for i, _ in enumerate(jokes)]

    with pytest.raises(JudgingFailed, match=r"8 of 8 judgements failed.*away: error 0; away: error 1"):
        train(config(), vector_env(8, away), student(), prompts=prompts())


def test_all_rewards_equal_is_no_trouble():
    same = lambda jokes: [Judgement("same", 0.5) for _ in jokes]  # noqa: E731
    log = Memory()
    train(config(siblings=4), vector_env(8, same), student(), log, prompts=prompts())
    assert log.rows[-1]["groups/no_spread_share"] == 1.0
    assert all(math.isfinite(v) for v in log.rows[-1].values())


def test_learning_rate_zero_changes_nothing():
    one = student()
    before = {n: t.clone() for n, t in one.state().items()}
    train(config(learning_rate=0.0, value_learning_rate=0.0), vector_env(8), one, prompts=prompts())
    assert all(torch.equal(before[n], t) for n, t in one.state().items())


def test_a_cut_off_line_pays_by_its_stop_reason():
    def reward_after(penalty):
        log = Memory()
        settings = config(steps=1, missing_end_penalty=penalty, kl_weight=0.0)
        train(settings, vector_env(8), student(), log, prompts=prompts())
        return log.rows[0]

    free, paid = reward_after(0.0), reward_after(0.5)
    cut = 1 - free["length/ended_share"]
    assert cut > 0
    assert free["reward/per_line_after_kl"] - paid["reward/per_line_after_kl"] == pytest.approx(0.5 * cut, abs=1e-6)
    assert free["reward/mean"] == paid["reward/mean"]  # what the critic said is logged as it was


def test_imitation_mixed_in_changes_the_step_and_fades():
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
    states = []
    for weight in (0.0, 1.0):
        one = student()
        train(config(steps=1, imitation_weight=weight), vector_env(8), one, prompts=prompts(), demonstrations=lines)
        states.append(one.state())
    assert not all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_kl_weight_follows_its_target():
    # The error is cut at 0.2 and 8 lines of a horizon of 80 were seen: a factor of 1.02 up or 0.98 down.
    for distance, factor in ((0.5, 1.02), (0.0, 0.98)):
        log, one = Memory(), student()
        stir(one, POLICY, size=distance)
        settings = config(steps=2, learning_rate=0.0, kl_target=1e-4, kl_horizon=80.0, kl_limit=1e9)
        train(settings, vector_env(8), one, log, prompts=prompts())
        assert [row["kl/weight"] for row in log.rows] == pytest.approx([0.05, 0.05 * factor])


def test_a_runaway_kl_stops_the_run_and_names_the_checkpoint(tmp_path):
    with pytest.raises(TrainingStopped, match=r"the KL is .*last good checkpoint is .*step-0000000"):
        train(
            config(steps=50, learning_rate=0.3, kl_weight=0.0, kl_limit=0.01, checkpoint_every=1),
            vector_env(8),
            student(),
            prompts=prompts(),
            checkpoints=CheckpointStore(tmp_path),
        )


def test_not_a_number_stops_the_run():
    one = student()
    with torch.no_grad():
        next(iter(one.adapter_parameters(POLICY).values()))[0, 0] = float("nan")
    with pytest.raises((TrainingStopped, ValueError)):
        train(config(), vector_env(8), one, prompts=prompts())


def test_misaligned_rows_are_noticed(monkeypatch):
    """A sampler that reports its numbers one token late must stop the run, not spoil it."""
    from humor_env.agents.feedback import rollout

    honest = rollout._Attempt._beside_tokens
    monkeypatch.setattr(rollout._Attempt, "_beside_tokens", lambda self, w: honest(self, w).roll(1, dims=1))
    one = student()
    stir(one, POLICY, size=0.5)
    with pytest.raises(TrainingStopped, match="misaligned"):
        train(config(), vector_env(8), one, prompts=prompts())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 10, "siblings": 4}, "multiple of siblings"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"kl_in": "head"}, "'reward' or 'loss'"),
    ],
)
def test_impossible_settings_are_explained(changes, words):
    with pytest.raises(InvalidOption, match=words):
        config(**changes)


def test_no_prompts_no_training():
    with pytest.raises(PromptError):
        train(config(), vector_env(8), student(), prompts=[])


def test_attempts_of_an_episode_are_linked():
    """Two attempts at each prompt: rows are linked, rewards are improvements, and the first learns from the second."""
    one = student()
    env = vector_env(4, attempts=2)
    rollout = collect(env, one, SHORT, prompts(4), lambda _, n: torch.rand(4, n), values=True, old_logprobs=False)
    assert len(rollout) == 8
    assert rollout.following.tolist() == [4, 5, 6, 7, -1, -1, -1, -1]
    assert [j.prompt.id for j in rollout.jokes[:4]] == [j.prompt.id for j in rollout.jokes[4:]]
    assert rollout.group.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]  # a score and an improvement are not siblings
    for first, second in zip(range(4), range(4, 8), strict=True):
        scores = [rollout.judgements[i].score for i in (first, second)]
        assert float(rollout.rewards[first]) == pytest.approx(scores[0])
        assert float(rollout.rewards[second]) == pytest.approx(max(0, scores[1] - scores[0]))
    log = Memory()
    train(config(batch_size=4), vector_env(4, attempts=2), student(), log, prompts=prompts())
    assert len(log.lines) == 2 * 2 * 4


def test_nobody_is_asked_about_an_episode_that_is_over():
    """A failure ends two of four episodes in their first attempt: the others go on alone, with their own chances."""
    one, four, chance = student(), prompts(4), torch.rand(3, 4, 8)
    names = [p.id for p in four]

    def played(failing):
        asked = []

        def critic(jokes):
            asked.append([j.prompt.id for j in jokes])
            return [
                Judgement("c", None, error="gone") if len(asked) == 1 and i in failing else Judgement("c", 0.5)
                for i, _ in enumerate(jokes)
            ]

        env = vector_env(4, critic, attempts=3)
        return collect(env, one, SHORT, four, lambda attempt, _: chance[attempt]), asked

    rollout, asked = played({1, 3})
    assert asked == [names, names[::2], names[::2]]
    assert [j.prompt.id for j in rollout.jokes] == [name for part in asked for name in part]
    assert rollout.following.tolist() == [4, -1, 5, -1, 6, 7, -1, -1]
    assert rollout.valid.tolist() == [True, False, True, False, True, True, True, True]
    whole, _ = played({})
    texts = [j.text for j in whole.jokes]
    assert [j.text for j in rollout.jokes] == [*texts[:4], *texts[4:8:2], *texts[8::2]]


def test_several_environments_are_one_batch():
    """Judging one part while the next is written must not change what is learned."""
    finals = []
    for sizes in ([8], [4, 4]):
        one = student()
        train(config(), [vector_env(n) for n in sizes], one, prompts=prompts())
        finals.append(one.state())
    assert all(torch.allclose(finals[0][n], finals[1][n], atol=1e-5) for n in finals[0])


def test_frozen_students_can_be_compared_after_training():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    twin = copy.deepcopy(one)
    train(config(steps=1), vector_env(8), one, prompts=prompts())
    rows = one.rows_from_text(["The meeting"], ["Glaciers"])
    same = one.score_in_batches(rows, adapter=IMITATION).logprobs
    assert torch.equal(same, twin.score_in_batches(rows, adapter=IMITATION).logprobs)


def test_the_critic_is_told_that_a_line_was_cut_off():
    """While learning, critics were handed every line without its stop reason: what the length gate fails when lines are
    measured, it let pass when they were paid. The reason reached the jokes only after the judgement."""
    asked = []

    def critic(jokes):
        asked.extend(jokes)
        return [Judgement("c", 0.5) for _ in jokes]

    short = Sampling(max_new_tokens=3)
    rollout = collect(vector_env(4, critic), student(), short, prompts(4), lambda _, n: torch.rand(4, n))
    assert [j.stop_reason for j in asked] == [j.stop_reason for j in rollout.jokes]
    assert "length" in {j.stop_reason for j in asked}


def test_an_environment_that_can_only_step_gives_the_same_rollout():
    """Any vector environment of strings will do: it is stepped as a whole, and only the rows asked about are kept."""

    class OnlySteps:
        def __init__(self, env):
            self.reset, self.step, self.num_envs = env.reset, env.step, env.num_envs
            self.single_action_space, self.inner = env.single_action_space, env

        last_jokes = property(lambda self: self.inner.last_jokes)
        last_judgements = property(lambda self: self.inner.last_judgements)

    chance = torch.rand(2, 4, SHORT.max_new_tokens, generator=torch.Generator().manual_seed(3))
    one = student()
    whole, stepped = (
        collect(env, one, SHORT, prompts(4), lambda attempt, n: chance[attempt])
        for env in (vector_env(4, attempts=2), OnlySteps(vector_env(4, attempts=2)))
    )
    assert torch.equal(whole.tokens, stepped.tokens)
    assert torch.equal(whole.rewards, stepped.rewards)
    assert [j.stop_reason for j in whole.jokes] == [j.stop_reason for j in stepped.jokes]
    assert torch.equal(whole.following, stepped.following)
