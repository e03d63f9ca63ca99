"""Critics and judges that ask a language model, called where an event loop runs already: notebooks and servers.

`asyncio.run` inside such a loop is an error, and a pooled connection of one loop cannot be used in another: both are
what other libraries' judges end with there.
"""

import asyncio
import contextlib
from argparse import Namespace

import pytest
from fake_messages_server import Server, running

from humor_env.errors import BudgetExceeded
from humor_env.llm.ledger import Ledger
from humor_env.registry import critics, judges
from humor_env.types import Joke, Prompt

P = Prompt("p", "The meeting was slow.", task="paraphrase")
JOKES = [Joke(P, f"Glacier number {n} overtook it.") for n in range(6)]
PAIRS = [(JOKES[0], JOKES[1]), (JOKES[2], JOKES[3])]


@pytest.fixture(scope="module")
def server():
    with running("--latency", "0.05") as server:
        yield server


@pytest.fixture
def clients(server):
    return [f"anthropic:m@{server.url}", f"openai:m@{server.url}/v1"]


def test_a_critic_and_a_judge_are_called_plainly_as_in_a_notebooks_cell(clients):
    """The same scores as outside of any loop; each cell may have a loop of its own."""
    for client in clients:
        critic, judge = critics.make("scorer", client=client), judges.make("multiple-choice", client=client)
        outside = [one.score for one in critics.make("scorer", client=client)(JOKES)]

        async def cell(critic=critic, judge=judge):
            return [one.score for one in critic(JOKES)], [verdict.probability for verdict in judge(PAIRS)]

        scores, verdicts = asyncio.run(cell())
        assert scores == outside and None not in outside
        assert asyncio.run(cell()) == (scores, verdicts) and None not in verdicts

        async def close(critic=critic, judge=judge):
            critic.close()
            judge.close()

        asyncio.run(close())


def test_a_server_goes_on_while_a_judge_thinks_in_a_thread(clients, tmp_path):
    """Many callers at once, one ledger: each question is paid once, and the loop's other work does not wait."""
    ledger = Ledger(tmp_path / "verdicts.sqlite")
    critic = critics.make("scorer", client=clients[0], ledger=ledger, options={"concurrency": 2})

    async def serve():
        ticks, over = 0, asyncio.Event()

        async def tick():
            nonlocal ticks
            while not over.is_set():
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        answers = await asyncio.gather(*(asyncio.to_thread(critic, JOKES) for _ in range(4)))
        over.set()
        await ticking
        return ticks, answers

    ticks, answers = asyncio.run(serve())
    assert len({tuple(one.score for one in answer) for answer in answers}) == 1
    assert critic.ledgered.usage.calls == len(JOKES) == len(ledger)
    assert ticks >= 10  # three round trips of 50 ms, a millisecond a tick: a loop that waits ticks once
    critic.close()


def test_the_model_may_be_served_by_the_very_loop_that_asks():
    """A plain call would wait for itself for ever; in a thread it is answered."""

    async def both():
        options = Namespace(fail=0.0, seed=0, faults="", keep_bodies=False, latency=0.0, judge="content")
        listening = await asyncio.start_server(Server(options).connection, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            critic = critics.make("scorer", client=f"openai:m@http://127.0.0.1:{port}/v1")
            found = await asyncio.wait_for(asyncio.to_thread(critic, JOKES), 60)
            await asyncio.to_thread(critic.close)
        return found

    assert not any(one.failed for one in asyncio.run(both()))


def test_what_stops_a_batch_is_raised_in_the_loop_and_the_next_call_is_answered(clients):
    critic = critics.make("scorer", client=clients[0], budget={"max_calls": 3}, options={"concurrency": 1})

    async def cells():
        with pytest.raises(BudgetExceeded, match="limit of 3 calls"):
            critic(JOKES)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.to_thread(critic, JOKES[:1])
        return critic(JOKES[:3])

    assert [one.failed for one in asyncio.run(cells())] == [False] * 3
