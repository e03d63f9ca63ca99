"""Requests and tokens a minute: never more in any 60 seconds, hardly less, for every client, and not at the deadline's
expense."""

import bisect
import time

import numpy
import pytest
from fake_messages_server import running
from test_llm_limits import OWN, a_client, asked, no_keys, tiny_model  # noqa: F401 (fixtures)

from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.llm import Budget, Ledger, LedgeredClient, make_client
from humor_env.llm.pace import Pace
from humor_env.types import Usage

RATE = 600
APART = 61 / RATE  # seconds between two calls


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def begun(pace, clock, seconds, most, used, seed=0):
    """When calls began, and what each used, where someone looks every 50 ms or so and is away now and then."""
    chance, calls, open_calls = numpy.random.default_rng(seed), [], []
    while clock.seconds < seconds:
        clock.seconds += chance.uniform(0.0, 0.1) if chance.random() > 0.002 else 8.0
        while open_calls and open_calls[0][0] <= clock.seconds:
            pace.settle(open_calls.pop(0)[1], used)
        while len(open_calls) < 32 and (booked := pace.enter(most)) is not None:
            calls.append(clock.seconds)
            open_calls.append((clock.seconds + 0.7, booked))
    return calls


def most_in_a_minute(calls):
    return max(bisect.bisect_left(calls, start + 60.0) - place for place, start in enumerate(calls))


@pytest.mark.parametrize("rate", [1, 7, 60, 1500])
def test_no_minute_has_more_requests_and_few_are_lost(rate):
    clock = Clock()
    calls = begun(Pace(rate, now=clock), clock, 600, 100, 50)
    assert most_in_a_minute(calls) <= rate
    away = 8.0 * 0.002 / 0.05  # the share of time in which nobody looks
    assert len(calls) >= (0.95 - away) * rate * 10 - 1


def test_tokens_count_as_they_were_used_and_not_as_the_worst_case():
    """A worst case is some four times what is used: booked in full, three quarters of a key would lie idle."""
    clock = Clock()
    calls = begun(Pace(tokens_per_minute=60_000, now=clock), clock, 600, most=2800, used=600)
    # A guess may be short by what is in the air, until the bill comes.
    assert most_in_a_minute(calls[20:]) * 600 <= 60_000 * 1.05
    assert len(calls) * 600 >= 0.6 * 600_000
    clock = Clock()
    unknown = begun(Pace(tokens_per_minute=60_000, now=clock), clock, 600, most=2800, used=None)
    assert len(unknown) * 2800 <= 600_000 * 1.05


def test_after_a_pause_tokens_are_paid_from_now_on():
    """61 tokens a minute are one a second, with what may be made up for: a call of 35 books 10 of them."""
    clock = Clock()
    pace = Pace(tokens_per_minute=61, now=clock)
    waits = []
    for start in (0.0, 500.0):
        clock.seconds = start
        assert pace.enter(35) is not None
        assert pace.enter(35) is None
        while pace.enter(35) is None:
            clock.seconds += 0.25
        waits.append(clock.seconds - start)
    assert waits == pytest.approx([10.0, 10.0], abs=0.5)
    clock.seconds = 520.75  # the turn was at 520: what is asked a little late is made up for
    assert pace.enter(35) is not None
    clock.seconds = 530.25
    assert pace.enter(35) is not None


def test_refused_calls_teach_nothing_of_what_a_call_uses():
    """After 40 answers of 529, which use no tokens, a call was taken to use none: 32 began at once."""
    clock = Clock()
    pace = Pace(tokens_per_minute=10_000, now=clock)
    for _ in range(40):
        while (booked := pace.enter(3500)) is None:
            clock.seconds += 0.05
        pace.settle(booked, 0)
    storm = clock.seconds
    calls = [at - storm for at in begun(pace, clock, storm + 600, most=3500, used=1000) if at > storm]
    assert most_in_a_minute(calls) * 1000 <= 10_000 * 1.1
    assert len(calls) >= 80


def test_a_call_that_was_not_made_gives_its_turn_back():
    clock = Clock()
    pace = Pace(1, 100, now=clock)
    booked = pace.enter(350)
    assert booked is not None and pace.enter(1) is None
    pace.cancel(booked)
    assert pace.enter(1) is not None


@pytest.mark.parametrize("service", ["anthropic", "openai", "local", OWN])
def test_every_client_keeps_the_pace(service, tiny_model, slowness):  # noqa: F811
    """Over real connections: each call begins a tenth of a second after the one before it, at the earliest."""

    def seconds(budget, count=8):
        with a_client(service, tiny_model, budget) as client:
            client(asked(1))  # imports, connections
            start = time.monotonic()
            replies = client(asked(count))
            assert len(replies) == count
            return time.monotonic() - start

    plain, slow = seconds(Budget()), slowness()
    paced = seconds(Budget(requests_per_minute=RATE))
    least = 7 * APART  # of what the first call may have left, a second at most is made up for
    assert paced >= min(least, max(plain, least - 1.0)) and paced >= 0.9 * (least - 1.0)
    assert paced <= 4 * (least + plain) * max(slow, slowness())


def test_requests_begin_evenly_at_the_service():
    with running("--judge", "always-1") as server:
        client = make_client(f"openai:m@{server.url}/v1", requests_per_minute=RATE, concurrency=8)
        start = time.monotonic()
        client(asked(12))
        assert time.monotonic() - start >= 11 * APART * 0.999
        assert server.stats()["calls"] == 12
        client.close()


def test_waiting_for_ones_own_pace_is_not_the_services_fault():
    """The second try had to wait for its turn beyond the deadline, and was sent with no time left."""
    with running("--judge", "always-1") as server:
        server.script("429", "ok")
        options = {"timeout": 2.0, "deadline": 2.5, "first_wait": 0.01, "concurrency": 1}
        client = make_client(f"anthropic:m@{server.url}", requests_per_minute=20, **options)
        [reply] = client(asked(1))
        assert reply.error is None, reply.detail
        assert server.stats()["calls"] == 2
        client.close()


def test_all_models_of_a_run_keep_one_pace(tmp_path):
    """A critic and a judge with the same key: two paces would be twice the limit."""
    budget = {"requests_per_minute": 50, "tokens_per_minute": 1000.0, "scope": "run"}
    made = [
        LedgeredClient(name, "openai:m@http://127.0.0.1:9/v1", ledger=tmp_path / "l.sqlite", budget=budget)
        for name in ("scorer", "judge")
    ]
    [pace] = made[0].budget.paces.values()
    assert list(made[1].budget.paces.values()) == [pace]
    other = LedgeredClient("scorer", "openai:m@http://127.0.0.1:9/v1", ledger=tmp_path / "o.sqlite", budget=budget)
    assert pace not in other.budget.paces.values()
    for ledgered in (*made, other):
        ledgered.close()


@pytest.mark.parametrize(
    ("own", "between"),
    [
        ({"requests_per_minute": 6000}, 61 / 600),  # faster than the run may: the run's
        ({"requests_per_minute": 300}, 61 / 300),  # slower: its own
        ({"tokens_per_minute": 10**9}, 61 / 600),  # another limit: the run's
        ({"requests_per_minute": 600, "tokens_per_minute": None}, 61 / 600),  # the same: it counts once
    ],
)
def test_a_clients_own_rate_is_kept_besides_the_runs(tmp_path, own, between):
    """The client's option replaced both limits of the run, and its calls did not count in the run's pace."""
    with running("--judge", "always-1") as server:
        limits = {"requests_per_minute": 600, "tokens_per_minute": 10**9, "scope": "run"}
        table = {"ledger": tmp_path / "l.sqlite", "budget": limits}
        name = f"openai:m@{server.url}/v1"
        one = LedgeredClient("one", name, options=own, **table)
        other = LedgeredClient("other", name, **table)
        [shared] = other.budget.paces.values()
        assert shared in one.budget.paces.values()
        start = time.monotonic()
        one.client(asked(7))
        assert time.monotonic() - start >= 6 * between * 0.999
        one.close()
        other.close()


def test_calls_of_a_client_with_a_rate_of_its_own_count_in_the_runs(tmp_path):
    table = {"ledger": Ledger(tmp_path / "l.sqlite"), "scope": "run"}
    one, other = (Budget(requests_per_minute=1, **table) for _ in range(2))
    one.keep_pace(requests_per_minute=600)
    one.keep_pace(requests_per_minute=600)
    assert len(one.paces) == 2
    ticket = one.reserve(10, None)
    assert ticket is not None
    assert other.reserve(10, None) is None
    one.release(ticket)  # it was not made, and gives its turn back in both
    assert other.reserve(10, None) is not None


def test_waiting_for_ones_own_pace_takes_no_turn_of_the_others(tmp_path):
    table = {"ledger": Ledger(tmp_path / "l.sqlite"), "scope": "run"}
    one, other = (Budget(requests_per_minute=600, **table) for _ in range(2))
    one.keep_pace(requests_per_minute=1)
    assert one.reserve(10, None) is not None
    time.sleep(2 * APART)
    for _ in range(5):
        assert one.reserve(10, None) is None
    assert other.reserve(10, None) is not None


def test_a_pace_and_a_limit_hold_together():
    """A call that the limit refuses takes no turn from those that it allows."""
    budget = Budget(max_tokens=50, requests_per_minute=1)
    with pytest.raises(BudgetExceeded, match="max_tokens"):
        budget.reserve(60, None)
    ticket = budget.reserve(10, None)
    assert ticket is not None and budget.reserve(10, None) is None  # allowed, and not yet its turn
    budget.settle(ticket, Usage(1, 5, 5))
    assert budget.account.calls == 1
    whole_batch = [Budget(requests_per_minute=1).reserve(10, None, paced=False) for _ in range(2)]
    assert None not in whole_batch


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "many", True])
def test_odd_limits_are_refused(bad):
    with pytest.raises(InvalidOption, match="requests_per_minute is"):
        Budget(requests_per_minute=bad)
    with pytest.raises(InvalidOption, match="tokens_per_minute is"):
        make_client("openai:m@http://127.0.0.1:9/v1", tokens_per_minute=bad)


def test_a_misspelt_limit_and_a_live_client_are_explained():
    with pytest.raises(InvalidOption, match="Did you mean 'requests_per_minute'"):
        make_client("openai:m@http://127.0.0.1:9/v1", request_per_minute=3)
    client = make_client("openai:m@http://127.0.0.1:9/v1")
    with pytest.raises(InvalidOption, match="live client takes no options"):
        make_client(client, requests_per_minute=3)
    with pytest.raises(InvalidOption, match="Did you mean 'tokens_per_minute'"):
        LedgeredClient("p", "openai:m@http://127.0.0.1:9/v1", budget={"token_per_minute": 3}, ledger=Ledger(":memory:"))
