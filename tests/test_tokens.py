"""The token-level view: the text environment's reward, cheap steps, and a vector form equal to single ones."""

import json
import tracemalloc

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from humor_env import checks
from humor_env.env import HumorEnv
from humor_env.errors import CheckpointError, InvalidAction, InvalidOption, PromptError, ResetNeeded
from humor_env.tokens import TokensEnv, TokensVectorEnv
from humor_env.types import Judgement


@pytest.fixture
def make(prompts, critic, tokenizer_folder):
    def made(kind=TokensEnv, **options):
        return kind(prompts, critic, **{"tokenizer": tokenizer_folder, "max_tokens": 6, **options})

    return made


def write(env, text):
    """Play a whole text token by token; the last step."""
    ids = env.table.tokenizer(text, add_special_tokens=False)["input_ids"] + [env.table.end]
    for token in ids[:-1]:
        observation, reward, terminated, truncated, info = env.step(token)
        assert (reward, terminated, truncated, info) == (0.0, False, False, {})
        assert observation in env.observation_space
    return env.step(ids[-1])


def test_check_env(prompts, tokenizer_folder):
    def calm(jokes):
        return [Judgement("calm", len(joke.text) % 10 / 10) for joke in jokes]

    env = TokensEnv(prompts, calm, tokenizer=tokenizer_folder, max_tokens=6, render_mode="ansi")
    assert [str(finding) for finding in checks.check_env(env) if not finding.ok] == []


def test_the_return_is_the_text_environments_reward(make, prompts, critic):
    env, text_env = make(max_tokens=8), HumorEnv(prompts, critic)
    for i, text in enumerate(["so slow that glaciers overtook it", "", "walrus", "it it it it it"]):
        env.reset(seed=i)
        text_env.reset(seed=i)
        _, reward, terminated, truncated, info = write(env, text)
        expected = text_env.step(text)
        assert info.pop("text") == text
        assert (reward, terminated, truncated, info) == expected[1:]
        assert env.last_joke.stop_reason == "end"
        assert env.last_judgement.score == reward


def test_max_tokens_ends_the_episode(make, critic):
    env = make(max_tokens=3)
    _, info = env.reset(seed=0)
    token = env.table.tokenizer.convert_tokens_to_ids("glaciers")
    assert [env.step(token)[2] for _ in range(2)] == [False, False]
    _, reward, terminated, truncated, info = env.step(token)
    assert (terminated, truncated) == (True, False)
    assert info["text"] == "glaciers glaciers glaciers"
    assert reward == critic.score(info["prompt_id"], info["text"])
    assert env.last_joke.stop_reason == "length"


def test_the_observation_is_prompt_then_tokens(make):
    env = make()
    observation, _ = env.reset(seed=0)
    prompt = env.table.tokenizer(env.text_env.prompt.text + "\n")["input_ids"]
    padding = env.table.padding
    room = len(observation["tokens"]) - len(prompt)
    assert observation["tokens"].tolist() == prompt + [padding] * room
    assert observation["length"] == len(prompt)
    token = env.table.tokenizer.convert_tokens_to_ids("it")
    later = env.step(token)[0]
    assert later["tokens"].tolist() == [*prompt, token] + [padding] * (room - 1)
    assert later["length"] == len(prompt) + 1
    assert observation["tokens"].tolist() == prompt + [padding] * room, "what was returned never changes"
    later["tokens"][:] = 0
    assert env.step(token)[0]["tokens"].tolist() == [*prompt, token, token] + [padding] * (room - 2)
    longest = env.table.lengths.max()
    assert len(observation["tokens"]) == longest + 6


def test_nothing_is_decoded_before_the_end(make, monkeypatch):
    env = make()
    env.reset(seed=0)
    decoded = []
    decode = env.table.decode
    monkeypatch.setattr(env.table, "decode", lambda ids, limit: decoded.append(len(ids)) or decode(ids, limit))
    monkeypatch.setattr(type(env.table.tokenizer), "__call__", None)
    token = env.table.tokenizer.convert_tokens_to_ids("it")
    for _ in range(5):
        env.step(token)
    assert decoded == []
    env.step(env.table.end)
    assert decoded == [5]


def test_the_mask_leaves_out_what_vanishes_from_a_text(make):
    env = make()
    table, mask = env.table, env.action_masks()
    assert mask.dtype == np.bool_ and mask.shape == (env.action_space.n,) and mask[table.end]
    masked = np.flatnonzero(~mask).tolist()
    assert table.padding in masked and table.decode(masked, 1000) == ""
    mask[:] = False
    assert env.action_masks().any(), "it is a copy"
    env.reset(seed=0)
    env.step(masked[0])  # not recommended, not forbidden
    rows = make(TokensVectorEnv, num_envs=3).action_masks()
    assert rows.shape == (3, table.size) and (rows == env.action_masks()).all()


def test_long_texts_are_cut_not_refused(make, critic):
    env = make(max_chars=10)
    env.reset(seed=0)
    info = write(env, "glaciers glaciers")[4]
    assert info["text"] == "glaciers g"


def test_chat_templates_frame_the_prompt(make, tokenizer_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{% for m in messages %}so {{ m['content'] }} that{% endfor %}"
    env = make(tokenizer=tokenizer)
    env.reset(seed=0)
    expected = tokenizer(f"so {env.text_env.prompt.text} that")["input_ids"]
    assert env.table.prompt(env.text_env.prompt.id).tolist() == expected


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_equals_gymnasiums_own_vector_of_single_envs(make, mode):
    ours = make(TokensVectorEnv, num_envs=5, autoreset_mode=mode)
    theirs = SyncVectorEnv([make] * 5, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    chance = np.random.default_rng(0)
    judged = 0
    for turn in range(120):
        actions = chance.integers(0, ours.table.size, size=5)
        actions[chance.random(5) < 0.2] = ours.table.end
        # The tape critic raises and fails on words of this vocabulary; here it shall judge.
        actions[np.isin(actions, ours.table.tokenizer.convert_tokens_to_ids(["raise", "fail"]))] = 5
        mine, reference = ours.step(actions), theirs.step(actions)
        assert data_equivalence(mine, reference, exact=True), turn
        judged += int(mine[2].sum())
        assert mine[0] in ours.observation_space
        if mode is AutoresetMode.DISABLED and mine[2].any():
            mask = {"reset_mask": mine[2]}
            assert data_equivalence(ours.reset(options=dict(mask)), theirs.reset(options=dict(mask)), exact=True)
    assert judged > 100


def test_a_row_that_waits_writes_nothing(make):
    """NEXT_STEP: the longest row is full when it ends, and its next token would land in the row below."""
    envs = make(TokensVectorEnv, num_envs=2, max_tokens=2, autoreset_mode="NEXT_STEP")
    widest = max(envs.table.lengths)
    wide = next(p.id for p in envs.text_envs.task.prompts if envs.table.lengths[envs.table.row[p.id]] == widest)
    envs.reset(seed=0, options={"prompt_id": wide})
    envs.step([5, envs.table.end])
    envs.step([5, 5])  # the first is full; the second begins anew
    below = envs._tokens[1].copy()
    envs.step([7, 6])
    below[envs._lengths[1] - 1] = 6
    assert envs._tokens[1].tolist() == below.tolist()
    assert not (envs._tokens[0] == 7).any()


def test_one_critic_call_for_all_that_end_together(make, critic):
    envs = make(TokensVectorEnv, num_envs=4)
    envs.reset(seed=0)
    envs.step([5, 5, 5, 5])
    assert critic.calls == []
    envs.step([envs.table.end, 5, envs.table.end, 5])
    assert [len(call) for call in critic.calls] == [2]
    assert [joke.stop_reason for joke in envs.last_jokes] == ["end", "end"]
    assert len(envs.last_judgements) == 2


def test_prompts_can_be_picked(make):
    env, envs = make(), make(TokensVectorEnv, num_envs=2)
    assert env.reset(options={"prompt_id": "train-4"})[1]["prompt_id"] == "train-4"
    observations, infos = envs.reset(options={"prompt_ids": ["train-4", "train-1"]})
    assert infos["prompt_id"].tolist() == ["train-4", "train-1"]
    prompt = env.table.prompt("train-4")
    assert observations["tokens"][0, : len(prompt)].tolist() == prompt.tolist()


def byte_level_tokenizer(*, cleans=False, extra=None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["The meeting was so slow that glaciers overtook it."] * 9, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=cleans
    )
    if extra:
        made.add_tokens([extra])
    return made


def test_the_quick_way_to_decode_equals_the_tokenizers_own(prompts, critic):
    tokenizer = byte_level_tokenizer()
    table = TokensEnv(prompts, critic, tokenizer=tokenizer).table
    assert table._pieces is not None
    chance = np.random.default_rng(0)
    texts = ["The meeting", "müde 🐟", "a\nb", ""]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    rows += [chance.integers(0, len(tokenizer), size=n).tolist() for n in range(60)]
    for ids in rows:
        assert table.decode(ids, 1000) == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_the_quick_way_is_only_taken_where_it_is_exact(make, prompts, critic):
    assert make().table._pieces is None
    assert TokensEnv(prompts, critic, tokenizer=byte_level_tokenizer(cleans=True)).table._pieces is None
    assert TokensEnv(prompts, critic, tokenizer=byte_level_tokenizer(extra="walrus")).table._pieces is None


# --- saved states ---


def test_a_saved_state_continues_exactly_in_mid_word(make):
    env, other = make(), make()
    other.set_state(json.loads(json.dumps(env.get_state())))
    env.reset(seed=2)
    for token in (5, 6, env.table.end):
        env.step(token)
    env.reset()
    env.step(5)
    other.set_state(json.loads(json.dumps(env.get_state())))
    for token in (6, 7, env.table.end):
        assert data_equivalence(env.step(token), other.step(token), exact=True)
    with pytest.raises(ResetNeeded):
        other.step(5)
    assert data_equivalence(env.reset(), other.reset(), exact=True)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_a_saved_vector_state_continues_exactly(make, mode):
    envs, other = (make(TokensVectorEnv, num_envs=3, autoreset_mode=mode) for _ in range(2))
    other.set_state(json.loads(json.dumps(envs.get_state())))
    envs.reset(seed=2)
    envs.step([5, 6, envs.table.end])
    if mode == "SameStep":
        envs.step([6, envs.table.end, 7])
    other.set_state(json.loads(json.dumps(envs.get_state())))
    if mode == "Disabled":
        for one in (envs, other):
            with pytest.raises(ResetNeeded):
                one.step([5, 5, 5])
        mask = {"reset_mask": np.array([False, False, True])}
        assert data_equivalence(envs.reset(options=mask), other.reset(options=mask), exact=True)
    for tokens in ([5, 6, 7], [8, 9, 10]):
        assert data_equivalence(envs.step(tokens), other.step(tokens), exact=True)


def test_foreign_states_are_refused(make):
    env, envs = make(), make(TokensVectorEnv, num_envs=2)
    env.reset(seed=0)
    envs.reset(seed=0)
    before, before_all = env.get_state(), envs.get_state()
    for state in ({}, {**before, "written": [10**6]}, {**before, "written": [5] * 7}, before["text"]):
        with pytest.raises(CheckpointError):
            env.set_state(state)
        assert env.get_state() == before
    for state in ({}, {**before_all, "written": [[5], [-1]]}):
        with pytest.raises(CheckpointError):
            envs.set_state(state)
        assert envs.get_state() == before_all


# --- refusals ---


@pytest.mark.parametrize("action", [-1, 10**6, 1.0, "5", None, True, np.array([5])])
def test_bad_actions_change_nothing(make, action):
    env = make()
    env.reset(seed=0)
    env.step(np.int64(5))
    before = env.get_state()
    with pytest.raises(InvalidAction):
        env.step(action)
    assert env.get_state() == before


@pytest.mark.parametrize("actions", [[5], [5, 5, 5], [5.0, 5.0], [5, -1], [0, -1], [0, 10**6], [[5, 5]], ["a", "b"], 5])
def test_bad_vector_actions_change_nothing(make, actions):
    envs = make(TokensVectorEnv, num_envs=2)
    envs.reset(seed=0)
    envs.step([5, 6])
    before = envs.get_state()
    with pytest.raises(InvalidAction) as refused:
        envs.step(actions)
    if actions in ([5, -1], [0, -1], [0, 10**6]):
        assert str(refused.value).startswith("Action 1: a token id must be in 0")
    assert envs.get_state() == before


def test_a_critics_exception_changes_nothing(make):
    env, envs = make(max_tokens=2), make(TokensVectorEnv, num_envs=2, max_tokens=2)
    word = env.table.tokenizer.convert_tokens_to_ids("raise")
    env.reset(seed=0)
    env.step(word)
    before = env.get_state()
    with pytest.raises(ConnectionError):
        env.step(5)
    assert env.get_state() == before
    observations, _ = envs.reset(seed=0)
    envs.step([word, 6])
    before = envs.get_state()
    with pytest.raises(ConnectionError):
        envs.step([envs.table.end, 7])
    assert envs.get_state() == before
    assert (envs._tokens == envs.table.padding).sum() == (observations["tokens"] == envs.table.padding).sum() - 2


def test_steps_out_of_turn(make):
    env, envs = make(), make(TokensVectorEnv, num_envs=2, autoreset_mode="Disabled")
    for one, action in ((env, 5), (envs, [5, 5])):
        with pytest.raises(ResetNeeded):
            one.step(action)
    env.reset(seed=0)
    env.step(env.table.end)
    with pytest.raises(ResetNeeded, match="after the end"):
        env.step(5)
    envs.reset(seed=0)
    envs.step([5, envs.table.end])
    with pytest.raises(ResetNeeded, match="sub-environments 1 have ended"):
        envs.step([5, 5])
    envs.reset(options={"reset_mask": np.array([False, True])})
    envs.step([5, 5])


def test_bad_arguments(make, tokenizer_folder, tmp_path):
    from transformers import AutoTokenizer

    endless = AutoTokenizer.from_pretrained(tokenizer_folder)
    endless.eos_token = None
    for options, error, says in [
        ({"max_tokens": 0}, InvalidOption, "max_tokens must be a whole number"),
        ({"max_prompt_tokens": 0}, InvalidOption, "max_prompt_tokens must be"),
        ({"max_prompt_tokens": 3}, PromptError, "tokens, but max_prompt_tokens is 3"),
        ({"tokenizer": str(tmp_path)}, InvalidOption, "cannot be loaded"),
        ({"tokenizer": endless}, InvalidOption, "no end token"),
    ]:
        with pytest.raises(error, match=says):
            make(**options)


# --- cost ---


def test_memory_stays_flat(make):
    env, envs = make(), make(TokensVectorEnv, num_envs=16)
    env.text_env.task.critic.calls = Forgetful()
    env.reset(seed=0)
    envs.reset(seed=0)

    def play(steps):
        for i in range(steps):
            if env.step(5 + i % 3)[2]:
                env.reset()
            envs.step(np.full(16, 5 + i % 3))

    play(300)
    tracemalloc.start()
    play(300)
    first = tracemalloc.get_traced_memory()[0]
    play(3000)
    assert tracemalloc.get_traced_memory()[0] - first < 20_000
    tracemalloc.stop()


class Forgetful(list):
    def append(self, _):
        pass
