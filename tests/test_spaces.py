"""The space of texts: what it holds, what it draws, and that Gymnasium's machinery can carry it."""

import copy
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.spaces import Text
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory
from gymnasium.wrappers.utils import create_zero_array
from hypothesis import given
from hypothesis import strategies as st

from humor_env.errors import InvalidOption
from humor_env.exports import register_minari_spaces
from humor_env.spaces import UnicodeText, refusal, text_space

AWKWARD = ["", "a", "Café — “quotes”…", "🐟" * 5, "שלום עולם", "nul\0 inside", "e\u0301", "line\nbreak", "\ufeffmark"]


def test_holds_any_unicode_within_its_bounds():
    space = UnicodeText(16, min_length=1)
    assert [text in space for text in AWKWARD] == [False] + [True] * (len(AWKWARD) - 1)
    assert "x" * 16 in space
    assert "x" * 17 not in space
    assert "\ud800" not in space
    assert "fine\udfff" not in space
    assert None not in space
    assert b"bytes" not in space
    assert 3 not in space


@given(st.integers(0, 2**31 - 1), st.integers(0, 40), st.integers(0, 40))
def test_samples_lie_in_the_space(seed, low, more):
    space = UnicodeText(low + more, min_length=low, seed=seed)
    assert all(space.sample() in space for _ in range(5))


def test_samples_follow_the_seed_and_vary():
    first, second = UnicodeText(50, seed=7), UnicodeText(50, seed=7)
    texts = [first.sample() for _ in range(20)]
    assert texts == [second.sample() for _ in range(20)]
    assert len(set(texts)) == 20
    assert any(not text.isascii() for text in texts)
    assert {len(text) for text in (UnicodeText(3, seed=1).sample() for _ in range(1))} <= {0, 1, 2, 3}


def test_sample_lengths_reach_both_bounds():
    space = UnicodeText(3, min_length=1, seed=0)
    assert {len(space.sample()) for _ in range(100)} == {1, 2, 3}


def test_equality_copy_pickle_and_json():
    space = UnicodeText(16, min_length=1, seed=3)
    assert space == UnicodeText(16, min_length=1)
    assert space != UnicodeText(16)
    assert space != UnicodeText(17, min_length=1)
    assert space != Text(16)
    assert hash(space) == hash(UnicodeText(16, min_length=1))
    assert copy.deepcopy(space) == pickle.loads(pickle.dumps(space)) == space
    assert copy.deepcopy(space).sample() == space.sample()
    assert space.from_jsonable(space.to_jsonable(AWKWARD)) == AWKWARD
    assert repr(space) == "UnicodeText(1, 16)"
    assert not space.is_np_flattenable


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (6, 5), (0, 2.5), (0, "9"), (True, 3)])
def test_bad_bounds(low, high):
    with pytest.raises(InvalidOption):
        UnicodeText(high, min_length=low)


def test_masks_are_refused():
    with pytest.raises(InvalidOption, match="neither a mask"):
        UnicodeText(5).sample(mask=(3, None))


def test_cheap_where_the_stock_space_is_not(slowness):
    began = time.process_time()
    for _ in range(100):
        copy.deepcopy(UnicodeText(2000))
    assert time.process_time() - began < 0.5 * slowness()  # the stock space over all of Unicode takes 3.5 s for one


def test_batches_to_a_tuple_with_seeds_of_their_own():
    batch = gym.vector.utils.batch_space(UnicodeText(40, seed=0), 3)
    texts = batch.sample()
    assert isinstance(texts, tuple)
    assert len(set(texts)) == 3
    assert texts in batch


def test_shared_memory_carries_every_text():
    """AsyncVectorEnv reads the memory once and copies what it read at each step: the copy must be of now."""
    space = UnicodeText(16)
    memory = create_shared_memory(space, n=len(AWKWARD))
    view = read_from_shared_memory(space, memory, n=len(AWKWARD))
    for i, text in enumerate(AWKWARD):
        write_to_shared_memory(space, i, "longer than before"[:16], memory)
        write_to_shared_memory(space, i, text, memory)
    first = copy.deepcopy(view)
    assert first == tuple(AWKWARD)
    assert len(view) == len(AWKWARD)
    write_to_shared_memory(space, 0, "later", memory)
    assert first[0] == ""
    assert (view[0], view[-1], copy.deepcopy(view)[0]) == ("later", AWKWARD[-1], "later")


def test_stock_space_takes_ordinary_english_and_the_prompts_characters():
    space = text_space("text", 60, ["Ώ"])
    assert type(space) is Text
    assert "Café — “quotes”… it's 100% slow!\n" in space
    assert "Ώ" in space
    assert "" in space
    assert "🐟" not in space
    assert isinstance(text_space("unicode", 5), UnicodeText)
    with pytest.raises(InvalidOption, match="unicode"):
        text_space("utf8", 5)


@pytest.mark.parametrize(
    ("kind", "action", "says"),
    [
        ("unicode", None, "found NoneType"),
        ("unicode", np.zeros(3), "found ndarray"),
        ("unicode", "x" * 11, "11 characters and max_chars is 10"),
        ("unicode", "ab\ud800", "at character 2"),
        ("text", "ab🐟", "U+1F41F"),
    ],
)
def test_refusals_say_what_was_found_and_what_to_do(kind, action, says):
    assert says in refusal(text_space(kind, 10), action)


def test_long_actions_are_shown_cut():
    """`repr` of 57 bytes has 60 characters, which fit; of 58 the first 57 are shown, and three dots."""
    space = text_space("unicode", 10)
    assert refusal(space, b"x" * 57).endswith(": b'" + "x" * 57 + "'.")
    assert refusal(space, b"x" * 58).endswith(": b'" + "x" * 55 + "....")


def test_shared_memory_is_for_one_text_unless_more_are_wanted():
    space = UnicodeText(16)
    memory = create_shared_memory(space)
    assert len(memory) == 1 + 16
    assert len(read_from_shared_memory(space, memory)) == 1


# --- Gymnasium's wrappers, Minari ---


@pytest.mark.parametrize("text", ["", "¿Café? 🐟", "x" * 30])
def test_texts_as_rows_of_numbers(text):
    space = UnicodeText(30)
    row = flatten(space, text)
    assert row in flatten_space(space)
    assert row.shape == (flatdim(space),) == (30,)
    assert unflatten(space, row) == text


def test_an_empty_text_to_begin_with():
    assert create_zero_array(UnicodeText(30)) == ""
    assert create_zero_array(UnicodeText(30, min_length=2)) in UnicodeText(30, min_length=2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: wrappers.FrameStackObservation(env, 2),
        lambda env: wrappers.FrameStackObservation(env, 2, padding_type="zero"),
        lambda env: wrappers.DelayObservation(env, 1),
        lambda env: wrappers.FlattenObservation(env),
        lambda env: wrappers.TimeAwareObservation(env),
        lambda env: wrappers.TimeAwareObservation(env, flatten=False),
    ],
    ids=["stack", "stack of zeros", "delay", "flatten", "time aware", "time aware dict"],
)
def test_wrappers_that_make_or_flatten_observations(wrap):
    """They did not know the space: "doesn't have a registered `create_zero_array` function", "Unknown space"."""
    env = wrap(gym.make("humor_env/Revise-v0", max_chars=100, max_episode_steps=9))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, *_ = env.step("The tea was so late that glaciers overtook it.")
    assert env.observation_space.contains(observation)


def test_minari_writes_and_reads_the_space():
    serialization = pytest.importorskip("minari.serialization")
    register_minari_spaces()
    space = gym.spaces.Dict(text=UnicodeText(30, min_length=1), n=gym.spaces.Discrete(3))
    assert serialization.deserialize_space(serialization.serialize_space(space)) == space
