"""The same arithmetic on a GPU. Skips itself where there is none; run alone with `pytest -m gpu`."""

import pytest
import torch
from tiny import bart, llama, prompts, stir, tokenizer, vector_env

from humor_env.agents import grpo, ppo, rloo, sft
from humor_env.agents.feedback.rollout import collect
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, choose, draw_uniforms, sample
from humor_env.agents.student.static_writer import StaticWriter, unsuitable
from humor_env.agents.student.writer import InProcess
from humor_env.types import Demonstration, Judgement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHORT = Sampling(max_new_tokens=8)
PROMPTS = ["The meeting was slow.", "My soup", "A much longer sentence about the meeting that was slow."]
LINES = ["Glaciers overtook it.", "So cold.", "x"]


def on(device: str, family: str = "causal") -> Student:
    words = tokenizer()
    one = Student(llama(len(words)) if family == "causal" else bart(len(words)), words, device=device)
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    return one


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_scores_equal_those_of_the_cpu(family):
    found = []
    for device in ("cpu", "cuda"):
        one = on(device, family)
        scored = one.score_in_batches(one.rows_from_text(PROMPTS, LINES), adapter=POLICY, values=True, entropy=True)
        found.append([t.cpu() for t in (scored.logprobs, scored.values, scored.entropy)])
    for cpu, cuda in zip(*found, strict=True):
        assert torch.allclose(cpu, cuda, atol=1e-3)


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_sampling_reports_what_scoring_finds(family):
    one = on("cuda", family)
    uniforms = draw_uniforms(3, 8, torch.Generator().manual_seed(0))
    out = sample(one, PROMPTS, SHORT, uniforms=uniforms, values=True)
    scored = one.score_in_batches(one.rows(out.prompts, out.responses), adapter=POLICY)
    rows = one.rows(out.prompts, out.responses)
    for i, response in enumerate(out.responses):
        here = scored.logprobs[i][rows.action_mask[i].bool()]
        assert torch.allclose(here, out.logprobs[i, : len(response)], atol=1e-3)
    assert len(beams(one, PROMPTS, width=4, groups=2, max_new_tokens=6)[0]) == 4


@pytest.mark.parametrize("learner", ["sft", "ppo", "grpo", "rloo"])
def test_learners_train_save_and_resume(learner, tmp_path):
    one = on("cuda")
    before = {n: t.clone() for n, t in one.state().items()}
    store = CheckpointStore(tmp_path)
    if learner == "sft":
        lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
        sft.train(sft.SFTConfig(epochs=1, batch_size=4), one, lines, checkpoints=store)
    else:
        module = {"ppo": ppo, "grpo": grpo, "rloo": rloo}[learner]
        config_class = {"ppo": ppo.PPOConfig, "grpo": grpo.GRPOConfig, "rloo": rloo.RLOOConfig}[learner]
        config = config_class(steps=2, batch_size=8, siblings=4, sampling=SHORT, checkpoint_every=1)
        module.train(config, vector_env(8), one, prompts=prompts(), checkpoints=store)
    assert not all(torch.equal(before[n], t) for n, t in one.state().items())
    assert store.latest() is not None


def test_bf16_stays_near_single_precision():
    words = tokenizer()
    exact, rough = on("cuda"), Student(llama(len(words)).bfloat16(), words, device="cuda")
    rough.load_state(exact.state())
    a = exact.score_in_batches(exact.rows_from_text(PROMPTS, LINES), adapter=POLICY).logprobs
    b = rough.score_in_batches(rough.rows_from_text(PROMPTS, LINES), adapter=POLICY).logprobs
    assert (a - b).abs().max() < 0.1


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_captured_steps_write_what_the_eager_writer_writes(family):
    """In float32. Kernels round otherwise, so that a near tie may fall otherwise: most lines are the same."""
    one = on("cuda", family)
    assert unsuitable(one) == ""
    texts = PROMPTS * 20
    uniforms = draw_uniforms(60, 16, torch.Generator().manual_seed(0))
    sampling = Sampling(max_new_tokens=16)
    eager = sample(one, texts, sampling, uniforms=uniforms, values=True)
    writer = StaticWriter(one)
    for _ in range(2):  # captured, then replayed
        out = writer.generate(texts, sampling, uniforms, values=True)
        same = [i for i in range(60) if out.responses[i] == eager.responses[i]]
        assert len(same) >= 54
        for i in same:
            width = len(out.responses[i])
            assert torch.allclose(out.logprobs[i, :width], eager.logprobs[i, :width], atol=1e-3)
            assert torch.allclose(out.values[i, :width], eager.values[i, :width], atol=1e-3)
    assert all(table.graph is not None for table in writer._tables.values())


def test_graphs_in_one_pool_do_not_spoil_each_other():
    one = on("cuda")
    writer, uniforms = StaticWriter(one), draw_uniforms(3, 40, torch.Generator().manual_seed(0))
    first, *later = [
        [writer.generate(PROMPTS, Sampling(max_new_tokens=length), uniforms) for length in (8, 40)] for _ in range(3)
    ]
    assert len({table.graph.pool() for table in writer._tables.values()}) == 1 < len(writer._tables)
    for again in later:
        for before, after in zip(first, again, strict=True):
            assert before.responses == after.responses
            assert torch.allclose(before.logprobs, after.logprobs, atol=1e-5)


def test_writing_in_this_process_is_captured_and_follows_the_weights():
    one = on("cuda")
    uniforms = draw_uniforms(3, 8, torch.Generator().manual_seed(0))
    first = InProcess(one).generate(PROMPTS, SHORT, uniforms)
    assert one.static_writer is not None
    stir(one, POLICY, seed=7, size=0.5)
    second = InProcess(one).generate(PROMPTS, SHORT, uniforms)
    rows = one.rows(second.prompts, second.responses)
    scored = one.score_in_batches(rows, adapter=POLICY).logprobs[rows.action_mask.bool()]
    written = torch.cat([second.logprobs[i, : len(r)] for i, r in enumerate(second.responses)])
    assert torch.allclose(scored, written, atol=1e-3)
    assert first.responses != second.responses


def test_a_common_instruction_changes_no_scores():
    found = []
    for device in ("cpu", "cuda"):
        one = on(device)
        one.instruction = "Rewrite the sentence so that it is funny. "
        texts = [*PROMPTS, "x", "The soup"]
        found.append(one.score_in_batches(one.rows_from_text(texts, [*LINES, "y", "z"]), adapter=POLICY).logprobs.cpu())
    assert torch.allclose(*found, atol=1e-3)


def test_a_critic_on_the_same_gpu_runs_beside_the_writer():
    one, used = on("cuda"), []

    class OnGPU:
        name = "on-gpu"
        rubric = ""

        def __call__(self, jokes):
            used.append(torch.cuda.current_stream())
            lengths = torch.tensor([float(len(joke.text)) for joke in jokes], device=one.device)
            return [Judgement(self.name, score) for score in (lengths / (1 + lengths)).tolist()]

    env = [vector_env(4, OnGPU()), vector_env(4, OnGPU())]
    uniforms = draw_uniforms(8, 8, torch.Generator().manual_seed(0))
    rollout = collect(env, one, SHORT, [*prompts(4), *prompts(4)], lambda *_: uniforms)
    expected = [len(joke.text) / (1 + len(joke.text)) for joke in rollout.jokes]
    assert rollout.rewards.tolist() == pytest.approx(expected)
    assert len(set(used)) == 1 and used[0] != torch.cuda.current_stream()


def test_a_captured_run_resumes_bit_for_bit(tmp_path):
    def learn(folder, *counts):
        for steps in counts:
            one = on("cuda")
            config = ppo.PPOConfig(steps=steps, batch_size=8, sampling=SHORT, checkpoint_every=1)
            ppo.train(config, vector_env(8), one, prompts=prompts(), checkpoints=CheckpointStore(folder))
        return one.state()

    whole, resumed = learn(tmp_path / "whole", 3), learn(tmp_path / "resumed", 1, 3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_norm_is_one_kernel():
    one = on("cuda")
    norms = [m for m in one.base.modules() if type(m).__name__.endswith("RMSNorm")]
    states = torch.randn(4, 1, len(norms[0].weight), device="cuda", dtype=norms[0].weight.dtype)
    norms[0](states)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        norms[0](states)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, [event.name for event in kernels]


@pytest.mark.parametrize("vocabulary", [300, 49_152])
def test_tokens_are_chosen_as_on_a_cpu(vocabulary):
    """But for targets on the border of two tokens, where sums that round otherwise decide."""
    generator = torch.Generator().manual_seed(0)
    logits, uniform = 3 * torch.randn(256, vocabulary, generator=generator), torch.rand(256, generator=generator)
    cpu, cuda = choose(logits, uniform, Sampling()), choose(logits.cuda(), uniform.cuda(), Sampling())
    same = cpu[0] == cuda[0].cpu()
    assert same.sum() >= 254
    assert torch.allclose(cpu[1][same], cuda[1].cpu()[same], atol=1e-4)
