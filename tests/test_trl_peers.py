"""TRL as a peer: our critic as its reward, our data as its datasets, its trainers as learners of our student."""

import asyncio
import inspect
import json

import pytest
import torch
import trl
from tiny import letters_critic, prompts, stir, student
from transformers import AutoTokenizer

from humor_env import pocket, registry
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.session.schedule import learning_rate_share
from humor_env.agents.sft import encode
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.trl import demonstrations_dataset, make_trl_reward, peers, preferences_dataset, prompts_dataset
from humor_env.agents.trl.peers import TRLConfig
from humor_env.agents.update.minibatch import encode_pairs
from humor_env.errors import CriticContractError, InvalidOption, JudgingFailed, PromptError, StudentError
from humor_env.types import Demonstration, Judgement, Preference, Prompt

SHORT = Sampling(max_new_tokens=8)
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SETTINGS = TRLConfig(
    steps=4, batch_size=8, siblings=4, sampling=SHORT, checkpoint_every=2, kl_weight=0.1, learning_rate=1e-2
)


def ask(reward, **columns):
    return asyncio.run(reward(**columns))


def remembering(seen, scores=None):
    def critic(jokes):
        seen.extend(jokes)
        return [Judgement("c", None, error="no answer") if "fail" in j.text else Judgement("c", 0.25) for j in jokes]

    return critic


def test_a_critic_as_reward():
    seen, logged = [], []
    reward = make_trl_reward(
        remembering(seen), max_failure_share=0.5, on_jokes=lambda step, jokes, said: logged.append((step, jokes))
    )
    assert inspect.iscoroutinefunction(reward)
    assert reward.__name__ == "critic"

    class State:
        global_step = 7

    found = ask(
        reward,
        prompts=["x\n", "x\n"],
        completions=[" a line ", "fail"],
        completion_ids=[[1], [2]],
        prompt_id=["p1", "p2"],
        text=["the x", "the y"],
        task=["oneliner", None],
        split=["dev", None],
        extra=[json.dumps({"words": ["a"]}), None],
        trainer_state=State(),
        log_extra=None,
        log_metric=None,
    )
    assert found == [0.25, None], "what could not be judged is None, never 0"
    assert seen[0].prompt == Prompt("p1", "the x", "oneliner", "dev", {"words": ["a"]})
    assert seen[1].prompt == Prompt("p2", "the y")
    assert [j.text for j in seen] == ["a line", "fail"]
    assert logged == [(7, seen)]


def test_a_trl_user_needs_no_columns_of_ours():
    seen = []
    reward = make_trl_reward(remembering(seen))
    chat = [[{"role": "system", "content": "Be funny."}, {"role": "user", "content": "the x"}]] * 2
    said = [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two"}]]
    assert ask(reward, prompts=chat, completions=said) == [0.25, 0.25]
    assert [j.text for j in seen] == ["one", "two"]
    assert seen[0].prompt.text == "the x"
    assert ask(reward, prompts=["the x"], completions=["three"]) == [0.25]
    assert {j.prompt.id for j in seen} == {seen[0].prompt.id}, "siblings share an id"


def test_a_critic_that_fails():
    with pytest.raises(JudgingFailed, match="no answer"):
        ask(make_trl_reward(remembering([])), prompts=["x"] * 3, completions=["fail", "fail", "a"])
    with pytest.raises(CriticContractError):
        ask(make_trl_reward(lambda jokes: []), prompts=["x"], completions=["a"])
    flips = lambda jokes: [Judgement("j", 0.5, {"flips": 1.0}) for _ in jokes]  # noqa: E731
    assert ask(make_trl_reward(flips), prompts=["x"] * 8, completions=["a"] * 8) == [0.5] * 8
    with pytest.raises(JudgingFailed, match="'j' has a position bias: 8 of 8"):
        ask(make_trl_reward(flips, max_flip_share=0.5), prompts=["x"] * 8, completions=["a"] * 8)


def test_datasets_hold_what_the_student_reads():
    one = student()
    one.instruction = "Funny: "
    rows = prompts_dataset([Prompt("p", "the x", "oneliner", "dev", {"words": ["a"]})], one)
    assert rows[0] == {
        "prompt": "Funny: the x\n",
        "text": "the x",
        "prompt_id": "p",
        "task": "oneliner",
        "split": "dev",
        "extra": '{"words": ["a"]}',
    }
    assert one.tokenizer(rows[0]["prompt"])["input_ids"] == one.encode_prompt("the x")
    pairs = preferences_dataset([Preference(Prompt("p", "the x"), "good", "bad", 0.75, "people")])
    assert pairs[0] == {
        "prompt": "the x",
        "chosen": "good",
        "rejected": "bad",
        "prompt_id": "p",
        "probability": 0.75,
        "source": "people",
        "chosen_ended": True,
        "rejected_ended": True,
    }
    lines = demonstrations_dataset([Demonstration(Prompt("p", "the x"), "good", "t")], one)
    assert lines[0] == {"prompt": "Funny: the x\n", "completion": "good"}
    one.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    chat = preferences_dataset([Preference(Prompt("p", "the x"), "good", "bad", 0.75, "people")], one)
    assert chat[0]["prompt"] == [{"role": "system", "content": "Funny: "}, {"role": "user", "content": "the x"}]
    assert chat[0]["chosen"] == [{"role": "assistant", "content": "good"}]
    for make in (prompts_dataset, preferences_dataset, demonstrations_dataset):
        with pytest.raises(PromptError):
            make([])


def test_a_critic_as_a_plain_function():
    """OnlineDPOTrainer calls its reward without awaiting it: "'coroutine' object is not iterable"."""
    seen = []
    reward = make_trl_reward(remembering(seen), asynchronous=False)
    assert not inspect.iscoroutinefunction(reward)
    assert reward.__name__ == "critic"
    assert reward(["the x"] * 2, ["one", "fail"], prompt_id=["p", "p"]) == [0.25, None]
    assert reward(prompts=["the x"], completions=["one"], completion_ids=[[1]]) == [0.25]
    assert [j.prompt.id for j in seen][:2] == ["p", "p"]
    with pytest.raises(JudgingFailed):
        reward(["x"], ["fail"])


def test_prompts_for_a_model_of_ones_own():
    """Without a `Student` a TRL user got bare sentences: no instruction, no chat form."""
    tokenizer = AutoTokenizer.from_pretrained(pocket.path("causal"))
    the_x = [Prompt("p", "the x")]
    user = {"role": "user", "content": "the x"}
    assert prompts_dataset(the_x, tokenizer)[0]["prompt"] == [user]
    told = prompts_dataset(the_x, tokenizer, instruction="Be funny.")[0]["prompt"]
    assert told == [{"role": "system", "content": "Be funny."}, user]
    tokenizer.chat_template = None
    assert prompts_dataset(the_x, tokenizer, instruction="Be funny: ")[0]["prompt"] == "Be funny: the x\n"
    assert prompts_dataset(the_x, instruction="Be funny: ")[0]["prompt"] == "Be funny: the x\n"
    assert prompts_dataset(the_x)[0]["prompt"] == "the x"
    one = student()
    one.instruction = "Funny: "
    assert prompts_dataset(the_x, one, instruction="")[0]["prompt"] == "the x\n"


def test_a_template_without_system_turns_gets_the_instruction_in_the_users():
    """TRL's rows had a system turn that Gemma's template refuses, where our own students had none."""
    one = student()
    one.instruction = "Be funny."
    one.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    the_x = Prompt("p", "the x")
    for rows in (prompts_dataset([the_x], one), demonstrations_dataset([Demonstration(the_x, "good", "t")], one)):
        assert rows[0]["prompt"] == [{"role": "user", "content": "Be funny.\n\nthe x"}]
        text = one.tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, tokenize=False)
        assert one.tokenizer(text, add_special_tokens=False)["input_ids"] == one.encode_prompt("the x")


def warm_student():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    stir(one, POLICY, seed=3, size=0.05)
    return one


def run(learner, folder=None, log=None, config=SETTINGS, one=None, **more):
    one = one or warm_student()
    judge_or_critic = CriticAsJudge(letters_critic()) if learner == "trl-dpo" else letters_critic()
    result = registry.learners.resolve(learner)(
        config,
        judge_or_critic,
        one,
        log,
        prompts=prompts(),
        checkpoints=None if folder is None else CheckpointStore(folder / "c"),
        **more,
    )
    return one, result


@pytest.mark.parametrize("learner", ["trl-grpo", "trl-rloo", "trl-dpo"])
def test_a_peer_trains_the_students_policy(learner, tmp_path):
    one = warm_student()
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    padding = one.tokenizer.padding_side
    policies = []

    def evaluate(current):
        policies.append({n: p.clone() for n, p in current.adapter_parameters(POLICY).items()})
        return {"n": float(len(policies))}

    config = TRLConfig(
        **{
            **vars(SETTINGS),
            "evaluate_every": 2,
            "pairs": PairConfig(candidates=3, sampling=SHORT, length_filter="off"),
        }
    )
    _, result = run(learner, log=RunLog(tmp_path), config=config, one=one, evaluate=evaluate)
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if f".{POLICY}." in n}
    assert (result.steps, result.stopped) == (4, False)
    assert result.evaluations == [{"step": 2.0, "n": 1.0}, {"step": 4.0, "n": 2.0}]
    assert any(not torch.equal(policies[0][n], policies[1][n]) for n in policies[0])
    final = one.adapter_parameters(POLICY)
    assert all(torch.equal(policies[1][n], final[n]) for n in final)
    assert one.tokenizer.padding_side == padding
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    assert metrics[3]["eval/n"] == 2.0
    assert "trl/loss" in metrics[0]
    if learner != "trl-dpo":
        jokes = [json.loads(line) for line in (tmp_path / "jokes.jsonl").read_text().splitlines()]
        assert [j["step"] for j in jokes] == [s for s in (1, 2, 3, 4) for _ in range(8)]
        assert metrics[0]["trl/reward"] == pytest.approx(sum(j["score"] for j in jokes[:8]) / 8, abs=1e-6)


def test_the_reference_is_the_imitation(tmp_path):
    """DPO's first margin is that of the policy against the imitation, not 0 as against itself or the base's."""
    one = warm_student()
    made = [Preference(p, "Glaciers overtook it.", "So cold that penguins.", 1.0, "t") for p in prompts(8)]
    rows = encode_pairs(one, made)
    gains = (
        one.score_in_batches(rows, adapter=POLICY).logprobs - one.score_in_batches(rows, adapter=IMITATION).logprobs
    ).sum(-1)
    expected = SETTINGS.beta * float((gains[::2] - gains[1::2]).mean())
    assert abs(expected) > 1e-3
    run("trl-dpo", log=RunLog(tmp_path), one=one, preferences=made)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["trl/rewards/margins"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_dpo_does_not_learn_to_end_lines_that_were_cut_off(chat, monkeypatch):
    """TRL ends every line of a pair. Its rows are those of our own DPO: without an end where there was none."""
    one = student()
    one.tokenizer.chat_template = CHAT if chat else None
    cut = [(True, True), (True, False), (False, True), (False, False)]
    texts = ("Glaciers overtook it.", "So cold that penguins")
    made = [Preference(p, *texts, 1.0, "t", *ended) for p, ended in zip(prompts(4), cut, strict=True)]
    ours = encode_pairs(one, made)
    learned = []

    class Looking(trl.DPOTrainer):
        def train(self, **how):
            for batch in self.get_train_dataloader():
                learned.extend(map(written, batch["input_ids"].tolist(), batch["completion_mask"].tolist()))
            return super().train(**how)

    def written(tokens, mask):
        """The line's tokens, without what a template has after the end."""
        line = [t for t, m in zip(tokens, mask, strict=True) if m]
        ends = [i for i, t in enumerate(line) if t in one.end_tokens]
        return tuple(line[: ends[0] + 1] if ends else line)

    monkeypatch.setattr(trl, "DPOTrainer", Looking)
    config = TRLConfig(steps=1, batch_size=4)
    registry.learners.resolve("trl-dpo")(config, None, one, preferences=made)
    expected = [written(t, m) for t, m in zip(ours.tokens.tolist(), ours.action_mask.tolist(), strict=True)]
    assert [line[-1] in one.end_tokens for line in expected] == [ended for pair in cut for ended in pair]
    assert sorted(learned) == sorted(expected)
    config = TRLConfig(steps=1, batch_size=4, options={"precompute_ref_log_probs": True})
    with pytest.raises(InvalidOption, match="precompute_ref_log_probs"):
        registry.learners.resolve("trl-dpo")(config, None, one, preferences=made)


def test_a_batch_is_shared_among_processes(tmp_path, monkeypatch):
    """TRL counts the rows of one process: two processes learned from twice `batch_size`."""
    cpu = torch.device("cpu")

    def rows(config):
        arguments = config.arguments(tmp_path, cpu)
        return arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]

    assert rows(TRLConfig(batch_size=64, micro_batch=32)) == (32, 2)
    monkeypatch.setattr(peers, "process_count", lambda: 2)
    assert rows(TRLConfig(batch_size=64, micro_batch=32)) == (32, 1)
    assert rows(TRLConfig(batch_size=64, micro_batch=16)) == (16, 2)
    assert rows(TRLConfig(batch_size=8, micro_batch=32)) == (4, 1)
    with pytest.raises(InvalidOption, match="batch_size 9 does not divide among 2 processes"):
        TRLConfig(batch_size=9)
    with pytest.raises(
        InvalidOption, match="Each process's share of batch_size 96, 48 rows, must be a multiple of micro_batch 32"
    ):
        TRLConfig(batch_size=96, micro_batch=32)


@pytest.mark.parametrize("learner", ["trl-grpo", "trl-dpo"])
def test_a_stopped_peer_resumes_to_the_bit(learner, tmp_path):
    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 3:
                raise KeyboardInterrupt

    config = TRLConfig(**{**vars(SETTINGS), "pairs": PairConfig(candidates=3, sampling=SHORT, length_filter="off")})
    whole, _ = run(learner, tmp_path / "whole", RunLog(tmp_path / "whole"), config)
    with pytest.raises(KeyboardInterrupt):
        run(learner, tmp_path / "cut", Fragile(tmp_path / "cut"), config)
    resumed, result = run(learner, tmp_path / "cut", RunLog(tmp_path / "cut"), config)
    assert result.steps == 4
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert all(torch.equal(t, resumed.state()[n]) for n, t in whole.state().items())


def test_imitation_by_trl():
    lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts(8)]
    one = student()
    rows = encode(one, lines)
    was = one.score_in_batches(rows, adapter=IMITATION).logprobs.sum()
    base = {n: p.clone() for n, p in one.model.named_parameters() if "lora_" not in n}
    registry.learners.resolve("trl-sft")(SETTINGS, one, lines)
    now = one.score_in_batches(rows, adapter=IMITATION).logprobs
    assert float(now.sum()) > float(was) + 1
    assert torch.equal(now, one.score_in_batches(rows, adapter=POLICY).logprobs)
    assert all(torch.equal(p, base[n]) for n, p in one.model.named_parameters() if n in base)


def test_what_trl_cannot_do_is_said():
    with pytest.raises(StudentError, match="encoder-decoder"):
        run("trl-grpo", one=student("seq2seq"))
    with pytest.raises(InvalidOption, match="multiple of siblings"):
        run("trl-grpo", config=TRLConfig(batch_size=8, siblings=3))
    with pytest.raises(InvalidOption, match="micro_batch"):
        TRLConfig(batch_size=33, micro_batch=32)
    with pytest.raises(InvalidOption, match="judge"):
        registry.learners.resolve("trl-dpo")(SETTINGS, None, student(), prompts=prompts())


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        # Two steps of warm-up, then two of decay: at the first of them the peak, at the second half-way to a tenth.
        ("linear", [0.5, 1.0, 1.0, 0.55]),
        ("cosine", [0.5, 1.0, 1.0, 0.55]),
        ("constant", [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_a_peers_learning_rate_is_that_of_our_learners(decay, rates, tmp_path):
    """Transformers' schedules made the first step at a rate of 0, and decayed to 0 instead of a tenth."""
    config = TRLConfig(**{**vars(SETTINGS), "learning_rate": 0.002, "warmup_steps": 2, "decay": decay})
    assert config.steps == 4
    made = [Preference(p, "Glaciers overtook it.", "So cold that penguins.", 1.0, "t") for p in prompts(8)]
    run("trl-dpo", log=RunLog(tmp_path), config=config, preferences=made)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["trl/learning_rate"] for m in metrics] == pytest.approx([0.002 * rate for rate in rates])
    assert rates == pytest.approx([learning_rate_share(step, 4, warmup=2, decay=decay) for step in range(4)])


def test_a_users_own_schedule_is_kept(tmp_path):
    config = TRLConfig(**{**vars(SETTINGS), "learning_rate": 0.002, "options": {"lr_scheduler_type": "linear"}})
    made = [Preference(p, "Glaciers overtook it.", "So cold that penguins.", 1.0, "t") for p in prompts(8)]
    run("trl-dpo", log=RunLog(tmp_path), config=config, preferences=made)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["trl/learning_rate"] for m in metrics] == pytest.approx([0.002, 0.0015, 0.001, 0.0005])
