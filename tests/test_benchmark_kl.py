"""The benchmark's distance of a policy from its imitation is that of the lines as they were written."""

import pytest
import torch
from tiny import prompts, stir, student

from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling, draw_uniforms, sample
from humor_env.experiments.compare.benchmark_cell import kl_per_line
from humor_env.types import Joke


@pytest.mark.parametrize(("temperature", "most"), [(1.0, 40), (1.0, 4), (0.5, 40)])
def test_it_has_the_temperature_of_writing_and_no_end_that_was_not_written(temperature, most):
    """At 0.5 it was half of what it is, and lines that were cut off had an end that the policy never wrote."""
    one = student()
    stir(one, POLICY)
    bias = torch.zeros(1, one.base.get_output_embeddings().weight.shape[0])
    bias[:, one.end_token] = 3.0  # ends come often
    one.base.final_logits_bias = bias
    asked = prompts(96)
    uniforms = draw_uniforms(len(asked), most, torch.Generator().manual_seed(0))
    sampling = Sampling(max_new_tokens=most, temperature=temperature)
    out = sample(one, [p.text for p in asked], sampling, uniforms=uniforms)
    rows, again = one.rows(out.prompts, out.responses), one.rows_from_text([p.text for p in asked], out.texts)
    jokes = [Joke(p, text, "student", stop) for p, text, stop in zip(asked, out.texts, out.stop_reasons, strict=True)]
    same = [  # most lines of a random model are read as other tokens than were written
        i
        for i, response in enumerate(out.responses)
        if again.tokens[i][again.action_mask[i].bool()].tolist()[: len(response)] == list(response)
    ]
    assert len(same) > 5
    policy, imitation = (
        one.score_in_batches(rows, adapter=adapter, temperature=temperature).logprobs for adapter in (POLICY, IMITATION)
    )
    expected = ((policy - imitation) * rows.action_mask).sum(-1)[same].mean()
    assert kl_per_line(one, [jokes[i] for i in same], sampling) == pytest.approx(float(expected), abs=1e-4)


def test_greedy_lines_have_a_distance_too():
    """Temperature 0 divided the logits by nothing."""
    one, asked = student(), prompts(4)
    stir(one, POLICY)
    jokes = [Joke(p, "Glaciers overtook it.", "student", "end") for p in asked]
    greedy, plain = (kl_per_line(one, jokes, Sampling(temperature=t)) for t in (0.0, 1.0))
    assert greedy == plain != 0
