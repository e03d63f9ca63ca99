"""How often the update asks the device for a number. A GPU answers no question before it has done all that it was given
to do, so a question for each micro-batch leaves it idle between them."""

from collections import Counter

import pytest
import torch
from questions import Questions
from test_shared_prompts import FAMILIES, family_rows, instructed_rows
from tiny import SENTENCES, prompts, stir, student, vector_env
from torch.utils._python_dispatch import TorchDispatchMode

from humor_env.agents import grpo, ppo, reinforce_pp, rloo
from humor_env.agents.student import IMITATION, POLICY, forward, sampling
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, sample
from humor_env.agents.student.token_rows import length_sorted
from humor_env.agents.student.transfers import read, send
from humor_env.agents.update import minibatch, on_policy

ASKING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten._unique2.default", "aten.equal.default"}
ASKING |= {"aten.isin.Tensor_Tensor"}  # among many it sorts, and looks for equal ones


class Asked(TorchDispatchMode):
    """Counts the operations whose answer has to come back: numbers, and tensors whose shape depends on values."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __enter__(self):
        whole = torch.Tensor.tolist

        def counted(tensor):  # on a CPU it reads the memory itself, and no operation is seen
            self.counts["tolist"] += 1
            return whole(tensor)

        self._undo = pytest.MonkeyPatch()
        self._undo.setattr(torch.Tensor, "tolist", counted)
        return super().__enter__()

    def __exit__(self, *problem):
        self._undo.undo()
        return super().__exit__(*problem)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_mask = str(operation).startswith("aten.index.") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if str(operation) in ASKING or by_mask:
            self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


LEARNERS = {
    "ppo": (ppo.train, ppo.PPOConfig, {"imitation_weight": 0.0}),
    "grpo": (grpo.train, grpo.GRPOConfig, {"siblings": 2}),
    "rloo": (rloo.train, rloo.RLOOConfig, {"siblings": 2}),
    "reinforce++": (reinforce_pp.train, reinforce_pp.ReinforcePPConfig, {"siblings": 2}),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_more_micro_batches_are_no_more_questions(learner, monkeypatch):
    """Each micro-batch asked twice for its length (the model's own pass, where rows are laid out, is left out here)."""
    train, settings, more = LEARNERS[learner]
    found = {}
    for micro_batch in (8, 2):
        one = student()
        stir(one, IMITATION)
        one.start_policy_from_imitation()
        asked, total = Asked(), Counter()

        def update(self, score=one.score, asked=asked, total=total, whole=minibatch.Minibatch.__iter__):
            """The loop over micro-batches, without the passes."""
            asked.counts.clear()
            parts = whole(self)
            while True:
                with asked:
                    try:
                        part = next(parts)
                    except StopIteration:
                        break
                yield part
            total.update(asked.counts)

        def apart(*rows, score=one.score, **options):
            with torch.utils._python_dispatch._disable_current_modes():
                return score(*rows, **options)

        monkeypatch.setattr(one, "score", apart)
        with monkeypatch.context() as patch:
            patch.setattr(on_policy.Minibatch, "__iter__", update)
            short = Sampling(max_new_tokens=6)
            config = settings(steps=1, batch_size=8, micro_batch=micro_batch, sampling=short, **more)
            train(config, vector_env(8), one, prompts=prompts())
        found[micro_batch] = dict(total)
    assert found[8] == found[2]


def test_a_step_is_read_in_one_go():
    """The sums of the log and the gradient's norm were read one after the other."""
    one = student()
    parameters = list(one.adapter_parameters("policy").values())
    one.train_only(parameters)
    rows = one.rows_from_text(["The meeting was slow."] * 4, ["So cold.", "x", "Glaciers overtook it.", "Cold"])
    batch = minibatch.Minibatch(one, torch.optim.SGD(parameters, lr=0.1), rows, [torch.arange(2), torch.arange(2, 4)])
    for part in batch:
        loss = -(part.logprobs * part.mask).sum() / batch.tokens
        loss.backward()
        part.record({"loss": loss, "tokens": part.mask.sum().float()})
    norm = float(torch.cat([p.grad.flatten() for p in parameters]).norm())
    with Asked() as asked:
        batch.clip_and_step(1e9)
    assert asked.counts == {"tolist": 1}
    assert batch.norm == pytest.approx(norm, rel=1e-5)
    assert batch.sums["tokens"] == float(rows.action_mask.sum())


def student_of_no_values(family, monkeypatch):
    """A student on the meta device, which knows shapes only: what it is asked is counted, and nothing is computed."""
    one = student(family)
    stir(one, POLICY)
    assert one.passes.masks_can_be_made if one.is_seq2seq else one.passes.prompts_can_be_shared  # tried out beforehand
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it fails on a device without autocasting
    monkeypatch.setattr(forward.ForwardPasses, "output_layer", property(lambda p: p.base.get_output_embeddings()))
    one.model.to("meta")
    one.value_head.to("meta")
    one.device = torch.device("meta")
    one.train_only([*one.adapter_parameters(POLICY).values(), *one.value_head.parameters()])
    return one


ROWS = {
    "of different prompts": lambda one: one.rows_from_text(SENTENCES, ["a", "b c", "d"]),
    "of siblings": family_rows,
    "with a common instruction": instructed_rows,
    "of siblings with a common instruction": lambda one: instructed_rows(one, 3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_micro_batch_asks_the_device_nothing(family, monkeypatch):
    """Each asked a GPU 9 to 19 times: for lengths, for places of tokens, for equal prompts, on the way back again.
    What is left is one question of transformers: whether the mask of an encoder-decoder's line hides anything."""
    one = student_of_no_values(family, monkeypatch)
    for name, make in list(ROWS.items())[: 2 if one.is_seq2seq else None]:  # an encoder shares no instruction
        rows = make(one)
        with Questions() as questions:
            scored = one.score(rows, values=True, entropy=True, entropy_gradient=True)
            (scored.logprobs.sum() + scored.values.sum() + scored.entropy.sum()).backward()
        assert scored.logprobs.device.type == "meta"
        assert questions.counts == ({"read": 1} if one.is_seq2seq else {}), name


def test_a_step_asks_the_device_once(monkeypatch):
    """For the sums of the log, the gradient's norm and the counts; it was once and more for each micro-batch."""
    one = student_of_no_values("causal", monkeypatch)
    with Questions() as questions:
        rows = instructed_rows(one, 3)
        optimizer = torch.optim.SGD([p for p in one.model.parameters() if p.requires_grad], lr=0.1)
        batch = minibatch.Minibatch(one, optimizer, rows, length_sorted(rows, 4), examples=15)
        one.score_in_batches(rows, adapter=IMITATION, micro_batch=4)
        for part in batch:
            loss = -(part.logprobs * part.mask).sum() / batch.tokens
            loss.backward()
            part.record({"loss": loss})
        assert not questions.counts
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: questions.counts.update(["read"]) or [1.0] * 4)
        batch.clip_and_step(1.0)
    assert questions.counts == {"read": 1}


def test_what_is_sent_and_read_comes_out_as_it_was():
    """Several tensors travel as one. A read is tried on tensors that only say they are elsewhere."""

    class Away(torch.Tensor):
        device = property(lambda self: torch.device("meta"))  # type: ignore[assignment]

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    given = [torch.tensor([[0.1, -3e38]]), torch.tensor(2**53), torch.tensor([True, False]), torch.zeros(0, 2)]
    for found in (read(*given), read(*[tensor.as_subclass(Away) for tensor in given])):
        for expected, tensor in zip(given, found, strict=True):
            assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    there = send(torch.device("meta"), torch.zeros(2, 3), torch.zeros(()), torch.zeros(0))
    assert [(tensor.device.type, tuple(tensor.shape)) for tensor in there] == [
        ("meta", (2, 3)),
        ("meta", ()),
        ("meta", (0,)),
    ]


@pytest.mark.parametrize("siblings", [1, 2])
def test_masks_and_a_past_made_beforehand_change_no_digit(siblings, monkeypatch):
    """What spares a GPU the questions of transformers is made on a GPU only; here a CPU is told that it is one."""
    for family in FAMILIES:
        one = student(family)
        stir(one, POLICY)
        rows = one.rows_from_text(
            [s for s in SENTENCES for _ in range(siblings)], ["a b", "x", "c", "d", "", "f"][: 3 * siblings]
        )
        inputs, row, column = (
            one.passes._seq2seq_inputs(rows, None, made=True) if one.is_seq2seq else one.passes._causal_inputs(rows)
        )
        if not one.is_seq2seq:
            inputs["past_key_values"] = forward._KeepsNothing(config=one.base.config)
        with torch.no_grad():
            monkeypatch.setattr(forward, "prompt_groups", lambda *_: None)
            assert torch.equal(
                one.passes.before_response(rows),
                one.passes.backbone(**inputs, use_cache=False).last_hidden_state[row, column],
            )


def asked_by(one, texts, new_tokens):
    one.end_tokens = (len(one.tokenizer) + 1,)  # lines of full length
    with Asked() as asked:
        out = sample(one, texts, Sampling(max_new_tokens=new_tokens), uniforms=torch.full((len(texts), 20), 0.4))
    assert {len(r) for r in out.responses} == {new_tokens}
    return out, asked.counts


WRITTEN = {
    "uneven": SENTENCES,
    "even": [SENTENCES[0]] * 2 + ["The meetinx was slow."],
    "a common start": [f"Rewrite this so that it is funny. {text}" for text in (*SENTENCES, "x")],
}


@pytest.mark.parametrize("texts", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_of_the_eager_writer_asks_the_device_nothing(family, texts, monkeypatch):
    """With prompts of unequal length, and in an encoder-decoder always, transformers asked at every token whether the
    mask hides anything. Masks are made beforehand on a GPU only; here a CPU is told that it is one."""
    one = student(family)
    stir(one, POLICY)
    plain, _ = asked_by(one, texts, 12)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "makes_masks", sampling.steps_take_masks)
        assert sampling.makes_masks(one)
        made, few = asked_by(one, texts, 12)
        _, many = asked_by(one, texts, 20)
        # Asked of the CPU on any machine: which rows go on, and once whether the prompts are of one length.
        assert [count.pop("aten.nonzero.default") for count in (few, many)] == [12, 20]
        assert few == many == {"tolist": 3, "aten._local_scalar_dense.default": 1}
        lines = beams(one, texts, width=4, groups=2, max_new_tokens=5)
    assert made.responses == plain.responses
    assert torch.allclose(made.logprobs, plain.logprobs, atol=1e-6)
    assert lines == beams(one, texts, width=4, groups=2, max_new_tokens=5)


@pytest.mark.parametrize("way", ["none", "refuses", "ignores", "window"])
def test_a_model_that_takes_no_made_masks_gets_none(way, monkeypatch):
    one = student()

    def before(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4 and way == "refuses":
            raise ValueError("two dimensions, please")
        if mask is not None and mask.ndim == 4 and way == "ignores":
            kwargs["attention_mask"] = torch.ones_like(mask)
        return args, kwargs

    one.base.model.register_forward_pre_hook(before, with_kwargs=True)
    if way == "window":
        monkeypatch.setattr(forward.ForwardPasses, "reach", 8)
    assert sampling.steps_take_masks(one) == (way == "none")
    assert not sampling.makes_masks(one)  # on a CPU transformers' questions cost nothing
