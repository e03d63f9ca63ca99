"""Contract checks for environments, critics, judges and prompt sets. Each reports all findings, one sentence each.

    for finding in check_critic(my_critic):
        print(finding)                          # "ok    order: …" or "FAIL  empty text: …"
    assert all(finding.ok for finding in check_env(gym.make("humor_env/Paraphrase-v0")))

`check_env` runs Gymnasium's own check and adds what Gymnasium cannot know: infos are plain data, a bad action raises
and leaves the episode unchanged, no step after the end, scores in [0, 1], prompts can be picked.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, cast

import gymnasium
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.utils.env_checker import data_equivalence

from humor_env import registry
from humor_env.episodes.critic_memory import show, with_memory
from humor_env.episodes.episode import checked_reply
from humor_env.errors import HumorEnvError, InvalidAction, ResetNeeded
from humor_env.findings import AWKWARD_TEXTS, Broken, Finding, report, short
from humor_env.prompts import PromptSet, load_prompts
from humor_env.shared.streams import generator
from humor_env.types import Critic, Joke, Judge, Judgement, Prompt, Verdict, critic_name

MAX_STEPS = 10_000  # an episode longer than this is taken to be endless


# --- critics ---


def check_critic(
    critic: Critic,
    prompts: PromptSet | Iterable[str | Prompt] | str = "pocket",
    *,
    tolerance: float = 1e-9,
) -> list[Finding]:
    """Check a critic's contract, also on awkward texts. `tolerance` is how far two scores of one joke may differ.

    A judgement with an error passes for awkward texts (the critic may decline); an exception never does. A critic with
    a memory (`humor_env.episodes.critic_memory`) is called from its initial state each time and left in it; its scores
    late in a run cannot be checked.
    """
    first_prompts = list(load_prompts(prompts))[:4]
    name = critic_name(critic)
    remembering = with_memory([critic])
    before = [copy.deepcopy(memory.get_state()) for memory in remembering]

    def go_back() -> None:
        for memory, state in zip(remembering, before, strict=True):
            memory.set_state(copy.deepcopy(state))

    def ask(jokes: Sequence[Joke]) -> list[Judgement]:
        go_back()
        return checked_reply(critic, name, jokes, strict=True)

    lines = ["It was so {} that everyone left.", "{}.", "Even the clock asked for a day off.", ""]
    jokes = [Joke(p, line.format(p.text.rstrip("."))) for p in first_prompts for line in lines]

    def length() -> str:
        for count in (0, 1, 2, len(jokes)):
            ask(jokes[:count])
        return f"as many judgements as jokes, for 0, 1, 2 and {len(jokes)}."

    def input_unharmed() -> str:
        copied = list(jokes)
        ask(copied)
        if copied != jokes:
            raise Broken("the list of jokes was changed: copy it before sorting or popping.")
        return "the list of jokes was left as it was."

    def same(what: str, order: Sequence[int]) -> None:
        straight, moved = ask(list(jokes)), ask([jokes[i] for i in order])
        for place, i in enumerate(order):
            a, b = straight[i].score, moved[place].score
            if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > tolerance):
                raise Broken(f"{what}: the line {short(jokes[i].text)} got {a} and then {b}.")

    def determinism() -> str:
        same("asked twice", range(len(jokes)))
        return "the same jokes get the same scores when asked again."

    def order() -> str:
        # Rotated by one, not reversed: a critic that answers in reverse order would pass with reversed jokes.
        same("asked in another order", [*range(1, len(jokes)), 0])
        return "judgements follow the order of the jokes."

    def shuffling() -> str:
        for turn in range(3):
            same("shuffled", generator(0, "check-critic", turn).permutation(len(jokes)).tolist())
        return "a joke's score does not depend on its place in the batch."

    def one_text(text: str) -> Callable[[], str]:
        def check() -> str:
            [judgement] = ask([Joke(first_prompts[0], text)])
            return f"declined ({judgement.error})." if judgement.failed else f"judged, score {judgement.score:.3g}."

        return check

    def scores() -> list[float | None]:
        return [judgement.score for judgement in checked_reply(critic, name, jokes, strict=True)]

    def states() -> list[object]:
        return [memory.get_state() for memory in remembering]

    def asking() -> str:
        ask(jokes)
        if states() != before:
            raise Broken(
                "a call changed its memory, and evaluations call it too: change the memory in remember(jokes), which a "
                "run calls after each step with the lines of all processes."
            )
        return "calls leave its memory unchanged."

    def saved() -> str:
        go_back()
        show(remembering, jokes)
        state_text, first = json.dumps(states(), allow_nan=False), scores()
        go_back()
        for memory, state in zip(remembering, json.loads(state_text), strict=True):
            memory.set_state(state)
        if json.dumps(states(), allow_nan=False) != state_text:
            raise Broken("get_state() after set_state(state) returns a different state: a resumed run would differ.")
        if scores() != first:
            raise Broken("with its state saved as JSON and restored, it gives different scores.")
        return "its state is plain data, and restored it gives the same scores."

    def late() -> str:
        go_back()
        return "it has a memory: all checks used one state; its scores late in a run are not checked."

    of_memory = [("asking", asking), ("saved state", saved), ("memory", late)] if remembering else []
    of_all = [(f.__name__.replace("_", " "), f) for f in (length, input_unharmed, determinism, order, shuffling)]
    of_texts = [(what, one_text(text)) for what, text in AWKWARD_TEXTS.items()]
    return report([*of_all, *of_texts, *of_memory])


# --- judges ---


def check_judge(
    judge: Judge | str,
    prompts: PromptSet | Iterable[str | Prompt] | str = "pocket",
    *,
    tolerance: float = 1e-9,
) -> list[Finding]:
    """Check a pair judge's contract (live or by name), also on awkward texts. `tolerance` is how far two of its
    probabilities for one pair may differ. A verdict with an error passes for awkward texts."""
    judge = cast(Judge, registry.judges.make(judge))
    first_prompts = list(load_prompts(prompts))[:4]
    lines = ("It was so {} that everyone left.", "{}.", "Even the clock asked for a day off.")
    texts = [(p, [Joke(p, line.format(p.text.rstrip("."))) for line in lines]) for p in first_prompts]
    pairs = [pair for _, jokes in texts for pair in combinations(jokes, 2)]

    def ask(questions: Sequence[tuple[Joke, Joke]]) -> list[Verdict]:
        verdicts = list(judge(questions))
        if len(verdicts) != len(questions):
            raise Broken(f"{len(questions)} pairs got {len(verdicts)} verdicts; expected one per pair, in order.")
        for verdict in verdicts:
            if not isinstance(verdict, Verdict):
                raise Broken(f"a {type(verdict).__name__} came back; expected humor_env.Verdict objects.")
            if verdict.probability is None and verdict.error is None:
                raise Broken("a verdict has neither a probability nor an error.")
        return verdicts

    def length() -> str:
        for count in (0, 1, 2, len(pairs)):
            ask(pairs[:count])
        return f"as many verdicts as pairs, for 0, 1, 2 and {len(pairs)}."

    def input_unharmed() -> str:
        copied = list(pairs)
        ask(copied)
        if copied != pairs:
            raise Broken("the list of pairs was changed: copy it before sorting or popping.")
        return "the list of pairs was left as it was."

    def same(what: str, order: Sequence[int]) -> None:
        straight, moved = ask(pairs), ask([pairs[i] for i in order])
        for place, i in enumerate(order):
            _alike(what, pairs[i], straight[i].probability, moved[place].probability, tolerance)

    def determinism() -> str:
        same("asked twice", range(len(pairs)))
        return "the same pairs get the same verdicts when asked again."

    def order() -> str:
        same("asked in another order", [*range(1, len(pairs)), 0])
        return "verdicts follow the order of the pairs."

    def both_ways() -> str:
        straight, turned = ask(pairs), ask([(b, a) for a, b in pairs])
        for pair, first, second in zip(pairs, straight, turned, strict=True):
            back = None if second.probability is None else 1 - second.probability
            try:
                _alike("shown in the other order", pair, first.probability, back, max(tolerance, 1e-6))
            except Broken as broken:
                raise Broken(f"{broken} Ask in both orders: humor_env.rewards.shared.both_orders.") from None
        return "a pair shown in the other order gets the opposite verdict."

    def same_text() -> str:
        [verdict] = ask([(pairs[0][0], pairs[0][0])])
        if verdict.probability is not None and abs(verdict.probability - 0.5) > max(tolerance, 1e-6):
            raise Broken(f"a line beats itself with probability {verdict.probability:.3g}; expected 0.5.")
        return "a line ties with itself."

    def one_text(text: str) -> Callable[[], str]:
        def check() -> str:
            [verdict] = ask([(Joke(first_prompts[0], text), pairs[0][0])])
            return f"declined ({verdict.error})." if verdict.failed else f"judged, {verdict.probability:.3g}."

        return check

    return report(
        [
            ("length", length),
            ("input unharmed", input_unharmed),
            ("determinism", determinism),
            ("order", order),
            ("both orders", both_ways),
            ("same text", same_text),
            *((what, one_text(text)) for what, text in AWKWARD_TEXTS.items()),
        ]
    )


def _alike(what: str, pair: tuple[Joke, Joke], a: float | None, b: float | None, tolerance: float) -> None:
    if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > tolerance):
        raise Broken(f"{what}: {short(pair[0].text)} against {short(pair[1].text)} got {a} and then {b}.")


# --- prompt sets ---


def check_prompts(prompts: PromptSet | Iterable[str | Prompt] | str) -> list[Finding]:
    """Check a prompt set: a name, a file, `hf:` and a dataset's name, or live prompts."""
    source = prompts if isinstance(prompts, (str, PromptSet)) else list(prompts)
    loaded: list[PromptSet] = []

    def loads() -> str:
        loaded.append(load_prompts(source))
        return f"{loaded[0]!r}: ids are unique, no text is in two splits."

    def repeatable() -> str:
        again = load_prompts(prompts)
        if again.prompts != load_prompts(source).prompts:
            raise Broken("loaded again, the prompts differ: a run could not be repeated or resumed.")
        return "loaded again, it holds the same prompts in the same order."

    def splits() -> str:
        present = {prompt.split for prompt in loaded[0]}
        missing = [
            what for what, names in (("train", {"train"}), ("test or dev", {"test", "dev"})) if not present & names
        ]
        if missing:
            raise Broken(
                f"no prompt is in {' and in '.join(missing)}: a run learns from one and is measured on another."
            )
        return f"prompts to learn from and to be measured on ({', '.join(sorted(present))})."

    def extras() -> str:
        for prompt in loaded[0]:
            try:
                json.dumps(prompt.extra, allow_nan=False)
            except (TypeError, ValueError) as problem:
                raise Broken(f"the extra of '{prompt.id}' is not plain data ({problem}).") from None
        return "the prompts' extra data for critics is plain data."

    def readable() -> str:
        for prompt in loaded[0]:
            odd = next((c for c in prompt.text if not c.isprintable() and c != "\n"), None)
            if odd is not None:
                raise Broken(f"'{prompt.id}' holds the character {odd!r}, which cannot be read.")
        return f"every text can be read; the longest has {loaded[0].longest} characters."

    first = report([("loads", loads)])
    if not loaded:
        return first
    more_checks = [("repeatable", repeatable), ("splits", splits), ("plain extras", extras), ("readable", readable)]
    return first + report(more_checks)


# --- environments ---


def check_env(env: gymnasium.Env, *, seed: int = 0) -> list[Finding]:
    """Run Gymnasium's check and ours on one environment, unwrapped. The environment is reset many times."""
    raw = env.unwrapped

    def gymnasium_own() -> str:
        # Its render check also tries the mode "human", which prints.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("error")
            # Its render check remakes the environment from its spec, which one built by hand does not have.
            gymnasium_check_env(raw, skip_close_check=True, skip_render_check=raw.spec is None)
        without = " (rendering not checked: there is no spec, use gymnasium.make)" if raw.spec is None else ""
        return f"Gymnasium's own check passes without a warning{without}."

    def repeatable() -> str:
        first, second = (list(_transitions(raw, seed, episodes=3)) for _ in range(2))
        if not data_equivalence(first, second, exact=True):
            raise Broken(
                "two runs with the same seed and actions differ: keep time, cost and latency out of info, draw "
                "only from np_random, and cache a nondeterministic critic."
            )
        return "three episodes repeat exactly under the same seed."

    def plain_infos() -> str:
        for _, reward, info in _transitions(raw, seed, episodes=2):
            try:
                json.dumps(info, allow_nan=False)
            except (TypeError, ValueError) as problem:
                raise Broken(f"info is not plain data ({problem}): {short(info)}.") from None
            if reward is None and not isinstance(info.get("prompt_id"), str):
                raise Broken(f"the info of reset has no prompt_id: {short(info)}.")
        return "infos can be written as JSON and name their prompt."

    def rewards() -> str:
        for episode in range(5):
            total = 0.0
            for _, reward, _ in _transitions(raw, seed + episode, episodes=1):
                total += reward or 0.0
                if reward is not None and not (isinstance(reward, (int, float)) and 0.0 <= reward <= 1.0):
                    raise Broken(f"a reward of {reward!r}: rewards are numbers in [0, 1].")
            if total > 1.0 + 1e-9:
                raise Broken(f"an episode's return of {total}: it is a score, so at most 1.")
        return "rewards and returns lie in [0, 1]."

    def beyond_the_end() -> str:
        list(_transitions(raw, seed, episodes=1))
        try:
            raw.step(raw.action_space.sample())
        except ResetNeeded:
            return "a step after the end raises ResetNeeded."
        raise Broken("a step after the end of the episode was accepted: raise humor_env.errors.ResetNeeded.")

    def bad_action() -> str:
        raw.reset(seed=seed)
        raw.action_space.seed(seed)
        action = raw.action_space.sample()
        expected = raw.step(action)
        raw.reset(seed=seed)
        for bad in (None, 1.5, object(), b"bytes", ["a list"]):
            try:
                raw.step(bad)
            except InvalidAction:
                continue
            raise Broken(f"the action {bad!r} was accepted: raise humor_env.errors.InvalidAction.")
        if not data_equivalence(raw.step(action), expected, exact=True):
            raise Broken("after refused actions the next step differs: refuse before changing anything.")
        return "bad actions raise InvalidAction and leave the episode as it was."

    def picking() -> str:
        _, info = raw.reset(seed=seed)
        prompt_id = info["prompt_id"]
        for _ in range(3):
            raw.reset()
        _, info = raw.reset(options={"prompt_id": prompt_id})
        if info["prompt_id"] != prompt_id:
            raise Broken(f"asked for the prompt '{prompt_id}', got '{info['prompt_id']}'.")
        try:
            raw.reset(options={"prompt_id": "no such prompt"})
        except HumorEnvError:
            return "reset(options={'prompt_id': …}) picks a prompt and refuses an unknown one."
        raise Broken("an unknown prompt_id was accepted silently.")

    return report(
        [
            ("gymnasium", gymnasium_own),
            ("repeatable", repeatable),
            ("plain infos", plain_infos),
            ("rewards", rewards),
            ("beyond the end", beyond_the_end),
            ("bad action", bad_action),
            ("picking prompts", picking),
        ]
    )


def _transitions(env: gymnasium.Env, seed: int, *, episodes: int) -> Iterator[tuple[Any, float | None, dict[str, Any]]]:
    """(observation, reward or None for a reset, info) under random actions."""
    env.action_space.seed(seed)
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        yield copy.deepcopy(observation), None, info
        for _ in range(MAX_STEPS):
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            yield copy.deepcopy(observation), float(reward), info
            if terminated or truncated:
                break
        else:
            raise Broken(f"the episode has not ended after {MAX_STEPS} steps.")


__all__ = ["Finding", "check_critic", "check_env", "check_judge", "check_prompts"]
