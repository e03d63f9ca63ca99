"""How often the update asks the device for a number. A GPU answers no question before it has done all that it was given
to do, so a question for each micro-batch leaves it idle between them."""

from collections import Counter

import pytest
import torch
from tiny import prompts, stir, student, vector_env
from torch.utils._python_dispatch import TorchDispatchMode

from humor_env.agents import grpo, ppo, reinforce_pp, rloo
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.update import minibatch, on_policy

ASKING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten._unique2.default", "aten.equal.default"}


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
            sampling = Sampling(max_new_tokens=6)
            config = settings(steps=1, batch_size=8, micro_batch=micro_batch, sampling=sampling, **more)
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
