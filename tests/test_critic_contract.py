"""Every built-in critic and judge keeps the contract: one answer each, in order, whatever the text holds."""

import hashlib
from itertools import pairwise

import pytest

from humor_env.checks import check_critic
from humor_env.llm.protocol import Reply
from humor_env.registry import critics, judges
from humor_env.teacher import pocket_lines
from humor_env.types import Joke, Judgement, Prompt, Usage, Verdict

P, Q = Prompt("p", "The meeting was slow."), Prompt("q", "The soup was cold.")
AWKWARD = [
    "",
    " \n\t ",
    "The meeting was so slow that glaciers overtook it.",
    "😂" * 50,
    "so slow that glaciers overtook it " * 300,
    "\ud83d lone \udc00",
    "הפגישה הייתה איטית",
    "\u202e\u200b\x00\x1b[31m",
    '{"answer": 1} </joke> {joke} %s $x',
]


class Reader:
    """A language model in name only: it gives well-formed answers that depend on nothing but what it was sent."""

    name = "reader"
    probabilities = False

    def __call__(self, requests, on_reply=None):
        replies = [self.reply(request) for request in requests]
        for index, reply in enumerate(replies):
            if on_reply is not None:
                on_reply(index, reply)
        return replies

    def reply(self, request):
        digest = hashlib.blake2b(request.user_text.encode()).digest()
        data = {"reason": "because"}
        for place, (name, kind) in enumerate(request.schema["properties"].items()):
            if "enum" in kind:
                data[name] = kind["enum"][digest[place] % len(kind["enum"])]
        return Reply(data=data, stop_reason="end_turn", usage=Usage(1, 100, 10))

    def close(self):
        pass


def reward_model(folder):
    from test_reward_model import encoder

    return {"folder": str(encoder(folder)), "max_length": 48}


def no_options(folder):
    return {}


CRITICS = {
    "rules": lambda folder: {"teacher": "pocket"},
    "scorer": lambda folder: {"client": Reader()},
    "win-tie": lambda folder: {"teacher": "pocket", "judge": "pocket-crowd"},
    "tournament": lambda folder: {"judge": "pocket-crowd"},
    "reward-model": reward_model,
    "diversity": lambda folder: {"archive": AWKWARD},
    "fill-in": lambda folder: {"critic": "rules"},
    "lift": lambda folder: {"prompts": "pocket", "critic": "win-tie", "critic_options": {"teacher": "pocket"}},
    "novelty": lambda folder: {"lines": 50},
    "fit": lambda folder: {"model": "pocket:causal"},
}
JUDGES = {
    "multiple-choice": lambda folder: {"client": Reader()},
    "jury": lambda folder: {"judges": ["pocket", {"judge": "multiple-choice", "options": {"client": Reader()}}]},
    "reward-model": reward_model,
    "cheap-first": lambda folder: {
        "cheap": "reward-model",
        "cheap_options": reward_model(folder),
        "paid": "multiple-choice",
        "paid_options": {"client": Reader()},
    },
}


def built_in(registry):
    return {name for name, entry in registry.entries().items() if entry.origin == "built in"}


def test_every_name_here_is_built_in():
    assert set(CRITICS) <= built_in(critics)
    assert set(JUDGES) <= built_in(judges)


# All that are built in are tried: one that is not named above is made as its own defaults say.


@pytest.fixture(params=sorted(built_in(critics)))
def critic(request, tmp_path):
    return critics.make(request.param, **CRITICS.get(request.param, no_options)(tmp_path))


@pytest.fixture(params=sorted(built_in(judges)))
def judge(request, tmp_path):
    return judges.make(request.param, **JUDGES.get(request.param, no_options)(tmp_path))


def test_critics_keep_the_contract(critic):
    # float32 sums over batches of another width differ in the last digits; nothing else may.
    tolerance = 1e-5 if critic.name == "reward-model" else 1e-9
    findings = check_critic(critic, "pocket", tolerance=tolerance)
    assert [str(f) for f in findings if not f.ok] == []


def test_critics_survive_awkward_texts_among_good_ones(critic):
    prompts = [pocket_lines().prompts()[0], P, Q]
    jokes = [Joke(p, text) for text in AWKWARD for p in prompts]
    judgements = critic(jokes)
    assert len(judgements) == len(jokes)
    assert all(isinstance(j, Judgement) and j.critic == critic.name for j in judgements)
    assert all(j.failed or 0 <= j.score <= 1 for j in judgements)
    assert critic([]) == []
    assert len(critic(tuple(jokes[:1]))) == 1


def test_critics_survive_awkward_prompts(critic):
    for text in AWKWARD:
        prompt = Prompt("\ud83d" + text[:10], text, task="oneliner")
        judgements = critic([Joke(prompt, "A line."), Joke(prompt, "Another line.")])
        assert len(judgements) == 2


def test_judges_are_fair_to_both_sides_and_to_every_order(judge):
    lines = pocket_lines()
    prompts = lines.prompts()[:4]
    pairs = [(Joke(p, a), Joke(p, b)) for p in prompts for a, b, _ in [lines.lines_for(p.id)]]
    pairs += [(Joke(prompts[0], a), Joke(prompts[0], b)) for a, b in pairwise(AWKWARD)]
    straight = judge(pairs)
    assert all(isinstance(v, Verdict) and v.judge == judge.name for v in straight)
    turned = judge([(b, a) for a, b in pairs])
    for one, other in zip(straight, turned, strict=True):
        assert one.failed == other.failed
        if not one.failed:
            assert one.probability + other.probability == pytest.approx(1, abs=1e-9)
            assert one.tie == pytest.approx(other.tie)
    back = judge(pairs[::-1])
    assert [v.probability for v in back[::-1]] == pytest.approx([v.probability for v in straight], nan_ok=False)
    assert judge([]) == []


def test_judges_call_a_line_as_good_as_itself(judge):
    prompt = pocket_lines().prompts()[0]
    for text in AWKWARD:
        [verdict] = judge([(Joke(prompt, text), Joke(prompt, text))])
        assert verdict.failed or verdict.probability == 0.5
