"""What is taken out of texts and tables before they are shared, and what stays."""

import pytest

from humor_env.experiments.sharing.publishable import hosts_in, publishable


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("openai:judge@http://me:secret@10.1.2.3:8000/v1", "openai:judge"),
        ("openai:judge@10.1.2.3:8000", "openai:judge"),
        ("anthropic-batch:x@host", "anthropic-batch:x"),
        ("openai@host:8000/v1", "openai"),
        ("someone@host", "someone@host"),
        ("ask http://10.1.2.3/v1 again", "ask  again"),
        ("see (https://h/x), then", "see (), then"),
        ("sqlite:///home/me/x.db", ""),
        ("/home/me/rubric.txt", "rubric.txt"),
        ("/home/me/my own/", "my own"),
        ("~/model", "model"),
        ("~me/model", "model"),
        ("C:\\Users\\me\\model.gguf", "model.gguf"),
        ("C:/Users/me/model", "model"),
        ("local:/home/me/model", "local:model"),
        ("folder=/home/me/my model", "folder=my model"),
        ("cannot read '/home/me/my own/v.sqlite' now", "cannot read 'v.sqlite' now"),
        ('and "/home/me/a b"', 'and "a b"'),
        ("reads /home/me/v.sqlite and /tmp/x/y, then", "reads v.sqlite and y, then"),
        ("no \\\\server\\share\\x", "no x"),
        ("/tmp", "tmp"),
        ("and/or a/b, 1/2", "and/or a/b, 1/2"),
        ("one / two", "one / two"),
        ("runs/mine/spec.toml", "runs/mine/spec.toml"),
        ("./runs/mine", "./runs/mine"),
        ("owner/name", "owner/name"),
        ("  kept as it is  ", "  kept as it is  "),
        ("  http://h/x  ", ""),
        ("", ""),
    ],
)
def test_a_text_without_what_is_private(private, public):
    assert publishable(private) == public


def test_bare_names_of_servers_are_replaced_the_longest_first():
    assert publishable("h:80 and h are down", hosts=["h:80", "host", "h"]) == "[server] and [server] are down"
    assert publishable("h:80 is down", hosts=["h", "h:80"]) == "[server] is down"
    assert publishable("h:80 is down") == "h:80 is down"


def test_a_server_called_like_a_setting_renames_none():
    """With a server at http://judge:8000, as in a container's network, the spec that was pushed had a table "[server]"
    in the place of [judge], and of "prejudged" was left "pre[server]d"."""
    table = {"judge": {"judge_options": 1}, "why": "judge is down: prejudged", "judge:8000": 2}
    assert publishable(table, hosts=["judge", "judge:8000"]) == {
        "judge": {"judge_options": 1},
        "why": "[server] is down: prejudged",
        "[server]": 2,
    }


def test_tables_lose_ledgers_and_what_nothing_is_left_of():
    table = {
        "ledger": "/home/me/v.sqlite",
        "rubric": "/home/me/rubric.txt",
        "base_url": "http://h/v1",
        "empty": "",
        "none": None,
        "number": 3,
        "inner": {"ledger": 1, "base_url": "http://h/v1"},
        "list": ["/home/me/a", ("http://h", 1)],
        "/home/me/key": 1,
        5: "/x/y",
    }
    assert publishable(table) == {
        "rubric": "rubric.txt",
        "empty": "",
        "none": None,
        "number": 3,
        "inner": {},
        "list": ["a", ["", 1]],
        "key": 1,
        5: "y",
    }
    assert publishable({"why": "h is down", "l": ["h"]}, hosts=["h"]) == {"why": "[server] is down", "l": ["[server]"]}


def test_texts_that_somebody_wrote_stay_as_they_are():
    row = {"text": "see /home/me/x", "source": "/home/me/x", "inner": {"text": "http://h", "t": "http://h"}, "l": ["h"]}
    assert publishable(row, keep=["text"], hosts=["h"]) == {
        "text": "see /home/me/x",
        "source": "x",
        "inner": {"text": "http://h"},
        "l": ["[server]"],
    }
    # Only a text is kept: a table of that name is looked into, and a ledger is not kept even so.
    assert publishable({"text": {"a": "/x/y"}, "ledger": "x"}, keep=["text", "ledger"]) == {"text": {"a": "y"}}


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("openai:m@http://me:secret@h.org:8000/v1", {"me:secret@h.org:8000", "h.org", "secret"}),
        ("http://h/v1", {"h"}),
        ("no address", set()),
        ({}, set()),
        ([], set()),
        (3, set()),
        ({"a": "http://h", "b": ["x", ("http://i:1",)]}, {"h", "i:1", "i"}),
        ("http://[broken http://h", {"h"}),
    ],
)
def test_the_servers_in_plain_data(value, hosts):
    assert hosts_in(value) == hosts


def test_a_password_goes_wherever_it_stands():
    """A server's name only as a whole word: "prejudged" is no mention of the server "judge"."""
    hosts = hosts_in("http://me:hunter@judge:8000/v1")
    assert hosts == {"me:hunter@judge:8000", "judge", "hunter"}
    text = "xhunterx by judge was prejudged, huntersaid"
    assert publishable(text, hosts=hosts) == "x[server]x by [server] was prejudged, [server]said"
