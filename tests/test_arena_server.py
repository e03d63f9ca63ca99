"""The arena's server and command: judging, refusals, limits, a kill, a full disk, many raters at once."""

import csv
import http.client
import io
import json
import os
import resource
import socket
import stat
import threading
from collections import Counter
from pathlib import Path

import pytest
from arena_sessions import Server, Taste, Visitor, code, served, simulate, write_lines
from report_runs import HOSTILE
from test_arena import TASTE, kept, links, session
from typer.testing import CliRunner

from humor_env.errors import InvalidOption
from humor_env.experiments.arena import exports
from humor_env.experiments.arena.server import open_socket
from humor_env.experiments.arena.session import Limiter
from humor_env.experiments.arena.store import Store
from humor_env.experiments.commands.cli import app

# The server


@pytest.fixture
def there(tmp_path):
    store = session(tmp_path, raters=2, per_rater=20)
    with served(store) as (arena, address):
        yield arena, address
    store.close()


def test_judging_skipping_reporting_and_undoing(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    assert one.page.title == "Pair 1 of 20" and len(one.page.texts) == 3
    before = one.page.texts
    one.answer(humor="first", consistency="tie")
    assert one.page.title == "Pair 2 of 20"
    one.page = one.post("/undo", one.page.fields)
    assert (one.page.title, one.page.texts) == ("Pair 1 of 20", before)
    assert arena.store.answers() == []
    one.answer(humor="second", consistency="first")
    one.answer(do="skip")
    one.answer(do="offence")
    said = [(x.what, dict(x.replies)) for x in arena.store.answers()]
    assert said == [("answer", {"humor": "second", "consistency": "first"}), ("skip", {}), ("offence", {})]
    again = Visitor(links(arena, address)[0])  # the same link, in another browser
    assert (again.page.title, again.page.texts) == (one.page.title, one.page.texts)


def test_without_a_script_each_question_comes_after_the_other(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    fields = one.page.fields
    page = one.post("/answer", fields | {"humor": "first"})
    assert page.status == 200 and page.texts == one.page.texts and arena.store.answers() == []
    assert page.fields == fields | {"humor": "first"}
    assert page.body.count('aria-pressed="true"') == 1
    one.post("/answer", page.fields | {"consistency": "second"})
    assert [dict(x.replies) for x in arena.store.answers()] == [{"humor": "first", "consistency": "second"}]


def test_no_page_names_a_system_and_no_address_stays_with_its_token(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    pages = [one.page.body]
    while one.page.asks:
        pages.append(one.answer(humor="tie", consistency="tie").body)
    assert one.page.title == "Thank you"
    for name in TASTE:
        assert not any(name in page for page in pages)
    assert not any(arena.store.token(1) in page or "some" in page for page in pages)
    assert one.cookie.startswith("arena=1.") and arena.store.token(1) not in one.cookie


def test_what_is_refused_changes_nothing(there):
    arena, address = there
    first, second = (Visitor(link) for link in links(arena, address))
    good = {"humor": "first", "consistency": "second"}
    replayed = first.page.fields | good
    first.answer(**good)
    undone = first.page.fields | good
    first.answer(**good)
    first.page = first.post("/undo", first.page.fields)
    before, fields = kept(arena.store), first.page.fields
    cases = [
        (first, replayed | {"humor": "second"}, 409, "You have answered this pair already"),
        (first, undone, 409, "This page is out of date"),
        (first, fields | good | {"ask": second.page.fields["ask"]}, 403, "This pair is somebody else's"),
        (second, fields | good, 403, "This form is not from here"),  # another rater's form
        (first, fields | good | {"csrf": ""}, 403, "This form is not from here"),
        (first, fields | good | {"csrf": "é"}, 403, "This form is not from here"),
        (first, fields | good | {"humor": "third"}, 400, "This answer is not complete"),
        (first, fields | {"do": "win"}, 400, "This answer is not complete"),
        (first, fields, 400, "This answer is not complete"),
        (first, fields | good | {"humor": "x" * 70_000}, 413, "This form is too large"),
    ]
    for who, form, status, title in cases:
        page = who.post("/answer", form)
        assert (page.status, page.title) == (status, title)
        assert "Nothing was changed" in page.body or "nothing was changed" in page.body
        assert kept(arena.store) == before
    from_elsewhere = first.request("POST", "/undo", f"csrf={fields['csrf']}", {"sec-fetch-site": "cross-site"})
    assert from_elsewhere.status == 403 and kept(arena.store) == before
    for cookie in ("", "arena=1", "arena=1.x", "arena=2." + first.cookie.partition(".")[2], "arena=é.é"):
        first.cookie = cookie.encode().decode("latin-1")
        page = first.get("/judge")
        assert (page.status, page.title) == (401, "Open your own link first")
    for path in ("/r/wrong", "/results/wrong", f"/results/{arena.store.token(1)}", "/static/../store.py", "/nothing"):
        assert first.get(path).status == 404
    assert first.get(f"/results/{arena.owner()}/arena.sqlite").status == 404
    assert first.request("DELETE", "/judge").status == 405
    arena.store.set_closed(True)
    page = second.post("/answer", second.page.fields | good)
    assert (page.status, page.title) == (403, "This session is closed")
    assert second.post("/undo", second.page.fields).title == "This session is closed"
    assert second.get("/judge").title == "This session is closed" and kept(arena.store) == before
    arena.store.set_closed(False)
    assert second.post("/answer", second.page.fields | good).title == "Pair 2 of 20"


def test_every_answer_carries_the_policy_and_no_cache_keeps_it(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    for path in ("/judge", "/nothing", f"/results/{arena.owner()}", "/static/arena.js"):
        headers = one.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "form-action 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert headers["cache-control"] == ("max-age=600" if "static" in path else "no-store")
    page = one.get(f"/results/{arena.owner()}").body + one.page.body
    assert "style=" not in page and "onclick" not in page and "<script>" not in page
    assert not [x for x in page.split('"') if x.startswith(("http:", "https:", "//"))]  # nothing from elsewhere


def test_a_private_session_answers_to_no_other_name(there):
    """Else any web page could reach it under a name of its own that leads to 127.0.0.1."""
    arena, address = there
    one = Visitor(links(arena, address)[0])
    for host, status in (("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200), ("[::1]:1", 200)):
        connection = http.client.HTTPConnection(one.host)
        connection.request("GET", "/judge", headers={"host": host, "cookie": one.cookie})
        assert connection.getresponse().status == status
        connection.close()


def test_a_shared_session_limits_each_rater_and_who_guesses(tmp_path):
    store = session(tmp_path, raters=2)
    with served(store, shared=True) as (arena, address):
        arena.raters = Limiter(0.001, 10)
        one, other = (Visitor(link) for link in links(arena, address))
        found = [one.get("/judge").status for _ in range(15)]
        assert found == [200] * found.index(429) + [429] * (15 - found.index(429)) and 5 <= found.index(429) <= 10
        assert "Wait a few seconds" in one.get("/judge").body
        assert other.get("/judge").status == 200
        guesses = [other.get(f"/r/{n}").status for n in range(25)]
        assert guesses.count(404) == 20 and guesses[-1] == 429
        assert other.get("/results/x").status == 429
        assert other.get("/judge").status == 200
    store.close()


def test_a_limit_fills_up_again_by_hand():
    now = [0.0]
    limiter = Limiter(2, 3, lambda: now[0])
    assert [limiter.allows("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5  # one more
    assert [limiter.allows("a"), limiter.allows("a"), limiter.allows("b")] == [True, False, True]
    now[0] = 100.0
    assert [limiter.allows("a") for _ in range(4)] == [True, True, True, False]


def test_pages_are_not_held_back_for_forty_milliseconds():
    """A socket made without its protocol kept Nagle's algorithm: asyncio looks at it before it sends at once."""
    found = open_socket("127.0.0.1", 0)
    assert found.proto == socket.IPPROTO_TCP
    found.close()


NASTY = {
    "markup": HOSTILE,
    "bidi": "\u202eThe line that goes the other way\u202c \u2067isolate",
    "long": "W" * 10_000,
    "emoji": "\U0001f602\U0001f469\u200d\U0001f469\u200d\U0001f467 \u0301\u0301",
    "control": "bell \x07 escape \x1b[31m nul \x00",
    "empty": "",
}


def test_hostile_lines_are_text(tmp_path):
    store = session(tmp_path, tuple(NASTY), 4, raters=1, text=lambda name, n: NASTY[name] or " ", repeats=0)
    with served(store) as (arena, address):
        one, seen = Visitor(links(arena, address)[0]), []
        while one.page.asks:
            assert "<script>" not in one.page.body and "<img" not in one.page.body and "<svg" not in one.page.body
            seen += one.page.texts[1:]
            one.answer(humor="first", consistency="tie")
        shown = {"bell · escape ·[31m nul ·", "(nothing was written)", *(NASTY[k] for k in ("markup", "bidi", "long"))}
        assert shown <= set(seen) and NASTY["emoji"] in seen
        page = Visitor(f"{address}/results/{arena.owner()}").page.body
        assert "<script>" not in page and "<img" not in page
        table = list(csv.DictReader(io.StringIO(exports.table(store))))
        assert {row["line_1"] for row in table} <= set(NASTY.values()) | {" "}
    store.close()


def test_a_spreadsheet_runs_no_formula(tmp_path):
    store = session(tmp_path, ("a", "b"), 3, raters=1, text=lambda name, n: f"=cmd|'{name}'", repeats=0)
    simulate(store, lambda texts: "tie", 3)
    for row in csv.DictReader(io.StringIO(exports.table(store))):
        assert row["line_1"].startswith("'=cmd") and row["line_2"].startswith("'=cmd")
    assert all(json.loads(row)["a"].startswith("=cmd") for row in exports.FILES["pairs.jsonl"](store).splitlines())
    store.close()


def test_grades_of_single_lines(tmp_path):
    store = session(tmp_path, ("a", "b"), 6, raters=2, mode="ratings", per_rater=12, questions=("humor",), rest=5)
    with served(store) as (arena, address):
        for rater, link in enumerate(links(arena, address)):
            one = Visitor(link)
            assert one.page.title == "Line 1 of 12" and "How funny is the line?" in one.page.body
            assert one.post("/answer", one.page.fields | {"humor": "5"}).status == 400
            for _ in range(5):
                one.page = one.post("/answer", one.page.fields | {"humor": str(3 - rater)})
            assert one.page.title == "Time for a rest" and not one.page.asks
            one.page = one.post("/rest", one.page.fields)
            while one.page.asks:
                one.answer(humor="4" if str(code("a")) in one.page.texts[1] else str(rater))
        page = Visitor(f"{address}/results/{arena.owner()}").page.body
        assert "Mean grade" in page
    from humor_env.rewards.rated.rated_sets import load_rated

    (tmp_path / "ratings.jsonl").write_text(exports.ratings_file(store))
    found = load_rated("ratings", tmp_path / "ratings.jsonl", low=0, high=4)
    assert len(found.texts) == 12
    assert sum(len(text.raters) or 1 for text in found.texts) == len(
        [x for x in store.answers() if x.ask.again is None]
    )
    store.close()


def test_one_raters_answers_are_deleted_and_the_server_goes_on(there):
    """Beside the running server, which remembered who was asked what."""
    arena, address = there
    first, second = (Visitor(link) for link in links(arena, address))
    for _ in range(8):
        first.answer(humor="first", consistency="first")
        second.answer(humor="second", consistency="first")
    done = CliRunner().invoke(app, ["arena", "--store", str(arena.store.path), "--forget", "1"])
    assert done.exit_code == 0 and "8 answers of rater 1" in done.output
    assert {x.ask.rater for x in arena.store.answers()} == {2}
    assert first.get("/judge").title == "Before you begin"  # they have agreed to nothing
    second.answer(humor="tie", consistency="tie")
    assert second.page.title == "Pair 10 of 20"
    again = Visitor(links(arena, address)[0])
    assert again.page.title == "Pair 1 of 20"
    wrong = CliRunner().invoke(app, ["arena", "--store", str(arena.store.path), "--forget", "9"])
    assert wrong.exit_code == 2 and "numbered from 1 to 2" in wrong.output


# The command


def test_the_store_is_its_owners_alone_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = session(tmp_path)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    store.close()
    Path("other.sqlite").write_bytes(b"not a database, but something else that is long enough to be looked at")
    write_lines(tmp_path / "more.jsonl", ("x", "y"), 3)
    for arguments, said in [
        (["--store", "other.sqlite", "--close"], "is not the store of an arena"),
        (["--store", "none.sqlite", "--export", "x"], "There is no session in 'none.sqlite'"),
        (["--file", "more.jsonl"], "holds another session"),
        (["--file", "more.jsonl", "--store", "new", "--system", "x"], "pairs need two systems"),
        (["--file", "more.jsonl", "--store", "new", "--mode", "stars"], "--mode is pairs or ratings"),
        (["--file", "more.jsonl", "--store", "new", "--ask", "wit"], "--ask is one of humor"),
        (["--file", "more.jsonl", "--store", "new", "--repeats", "0.9"], "a share from 0 to 0.5"),
        (["--file", "more.jsonl", "--store", "new", "--host", "0.0.0.0"], "Add --share"),
        (["--store", "new"], "There is nothing to judge"),
        (["--file", "more.jsonl", "--store", "new", "--teacher"], "--teacher: no run has"),
    ]:
        done = CliRunner().invoke(app, ["arena", *arguments])
        assert done.exit_code == 2 and said in done.output, (arguments, done.output)
        assert not Path("new").exists() and not Path("new.lock").exists()


def test_a_session_is_continued_without_naming_its_lines_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session(tmp_path).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the command ends where it would begin to serve
        port = taken.getsockname()[1]
        for again in ([], ["--file", "lines.jsonl"]):
            done = CliRunner().invoke(app, ["arena", *again, "--port", str(port), "--raters", "3"])
            assert done.exit_code == 2 and f"Cannot listen on 127.0.0.1, port {port}" in done.output, done.output
    with Store.open(tmp_path / "arena.sqlite") as store:
        assert len(store.raters()) == 3


def test_tokens_of_a_file(tmp_path, monkeypatch):
    from humor_env.experiments.commands.arena import _tokens

    path = tmp_path / "tokens.txt"
    path.write_text("# ours\nabcdefghijklmnop\n\nABCD-efgh_ijkl-mnop\n")
    assert _tokens(str(path), share=True) == ["abcdefghijklmnop", "ABCD-efgh_ijkl-mnop"]
    for text, said in (("short\n", "line 1 is not"), ("a" * 16 + "\n" + "a" * 16, "twice"), ("", "there is none")):
        path.write_text(text)
        with pytest.raises(InvalidOption, match=said):
            _tokens(str(path), share=True)
    store = session(tmp_path, raters=["mine-is-a-long-token", "and-another-long-one"])
    store.add_raters(["and-another-long-one", "a-third-one-comes-late"])
    assert [store.rater_of(t) for t in ("mine-is-a-long-token", "and-another-long-one", "a-third-one-comes-late")] == [
        1,
        2,
        3,
    ]
    assert store.rater_of(store.sign("rater", 1)) is None
    assert b"mine-is-a-long-token" not in store.path.read_bytes()  # kept as digests
    store.close()


def judging(server, number, count, said):
    """Answer until `count` are given or the server is gone."""
    one = Visitor(server.links[number])
    for _ in range(count):
        try:
            one.answer(humor="first", consistency="tie")
        except (OSError, http.client.HTTPException):
            return
        said[number] += 1


@pytest.mark.slow
def test_a_server_that_is_killed_has_every_answer_and_raters_go_on(tmp_path):
    write_lines(tmp_path / "lines.jsonl", tuple(TASTE), 60)
    server, said = Server(tmp_path, "--file", "lines.jsonl", "--raters", "4"), [0] * 4
    threads = [threading.Thread(target=judging, args=(server, n, 20, said)) for n in range(4)]
    for thread in threads:
        thread.start()
    while sum(said) < 24:
        threads[0].join(0.01)
    second = CliRunner().invoke(app, ["arena", "--store", str(tmp_path / "arena.sqlite"), "--port", "0"])
    assert second.exit_code == 2 and "Another server is using" in second.output
    server.kill()
    for thread in threads:
        thread.join()
    server.stop()
    with Store.open(tmp_path / "arena.sqlite") as store:
        count = Counter(x.ask.rater for x in store.answers())
        # One more than was seen, where the server died between writing and saying so.
        assert all(said[n] <= count[n + 1] <= said[n] + 1 for n in range(4)), (said, count)
        waiting = [store.open_ask(n) for n in range(1, 5)]
    with Server(tmp_path) as again:
        assert [link.rpartition("/")[2] for link in again.links] == [link.rpartition("/")[2] for link in server.links]
        for n, link in enumerate(again.links):
            one = Visitor(link)
            assert one.page.title == f"Pair {count[n + 1] + 1} of 100"
            if waiting[n]:
                assert one.page.fields["ask"] == waiting[n].nonce
            one.answer(humor="tie", consistency="tie")
            assert one.page.title == f"Pair {count[n + 1] + 2} of 100"
    tokens = [link.rpartition("/")[2] for link in (*server.links, server.results)]
    logged = (tmp_path / "errors.txt").read_text()
    assert "To continue: humor-env arena --store arena.sqlite" in logged
    assert not any(token in logged for token in tokens)
    assert not any(token in second.output for token in tokens)


@pytest.mark.slow
def test_a_full_disk_is_told_and_changes_nothing(tmp_path):
    """The limit on the size of files refuses writes as a full disk does, and can be lifted again."""
    write_lines(tmp_path / "lines.jsonl", tuple(TASTE), 60)
    with Server(tmp_path, "--file", "lines.jsonl") as server:
        one = Visitor(server.links[0])
        one.answer(humor="first", consistency="tie")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        page = one.post("/answer", one.page.fields | {"humor": "second", "consistency": "tie"})
        assert (page.status, page.title) == (503, "This could not be saved") and "Nothing was changed" in page.body
        assert one.get("/judge").fields == one.page.fields
        no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, no_limit)
        one.answer(humor="second", consistency="first")
        assert one.page.title == "Pair 3 of 100"
    with Store.open(tmp_path / "arena.sqlite") as store:
        assert [dict(x.replies)["humor"] for x in store.answers()] == ["first", "second"]


def test_many_raters_at_once_lose_and_double_nothing(tmp_path):
    """Measured with 32 raters of 200 answers each: see docs/arena.md."""
    store = session(tmp_path, prompts=60, raters=12, per_rater=15)
    given = [[] for _ in range(12)]

    def judge(number, link):
        one, people = Visitor(link), Taste(TASTE, seed=number)
        while one.page.asks:
            said = people(one.page.texts[1:])
            given[number].append((one.page.fields["ask"], said))
            one.answer(humor=said, consistency="tie")

    with served(store) as (arena, address):
        threads = [threading.Thread(target=judge, args=each) for each in enumerate(links(arena, address))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, own in enumerate(given):
        there = [(x.ask.nonce, x.replies["humor"]) for x in store.answers() if x.ask.rater == number + 1]
        assert there == own and len(own) == 15
    store.close()
