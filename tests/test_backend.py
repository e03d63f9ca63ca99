"""A server as generation back-end, tried on a real HTTP server that answers with a tiny model."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny import prompts, stir, student, vector_env

from humor_env.agents import ppo
from humor_env.agents.student import POLICY
from humor_env.agents.student.sampling import Sampling, draw_uniforms, sample
from humor_env.agents.student.server import Server
from humor_env.agents.student.writer import InProcess
from humor_env.errors import StudentError

SHORT = Sampling(max_new_tokens=8)


class Completions(BaseHTTPRequestHandler):
    """Answers as vLLM does: completions with token ids, adapters loaded and unloaded by name."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.seen.append((self.path, body, self.headers.get("Authorization")))
        if self.path == "/v1/load_lora_adapter":
            server.adapters[body["lora_name"]] = body["lora_path"]
            reply = {}
        elif self.path == "/v1/unload_lora_adapter":
            del server.adapters[body["lora_name"]]
            reply = {}
        elif server.broken:
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.broken) + 500 * (server.broken == b'{"cut": [')))
            self.end_headers()
            self.wfile.write(server.broken)
            return
        elif body["model"] not in server.adapters:
            self.send_error(404, "no such model")
            return
        else:
            ids = [(body["seed"] + 7 * i) % 300 + 3 for i in range(body["max_tokens"])]
            short = body["seed"] % 2 == 0
            choice = {"text": "x", "finish_reason": "stop" if short else "length"}
            if server.gives_ids:
                choice["token_ids"] = [*ids[:3], *server.end] if short else ids
            reply = {"choices": [choice]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    found.seen, found.adapters, found.gives_ids, found.broken, found.end = [], {}, True, b"", []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_lines_of_a_server_carry_their_tokens_and_ends(server, tmp_path):
    one = student()
    backend = Server(address(server), one, base="base", adapters=tmp_path, key="a-key")
    uniforms = draw_uniforms(6, 8, torch.Generator().manual_seed(0))
    out = backend.generate([p.text for p in prompts(6)], SHORT, uniforms, values=True)
    assert set(out.stop_reasons) == {"end", "length"}
    for response, stop in zip(out.responses, out.stop_reasons, strict=True):
        assert (response[-1] == one.end_token) == (stop == "end")
        assert len(response) == (4 if stop == "end" else 8)
    assert out.logprobs.shape == out.values.shape == (6, max(map(len, out.responses)))
    asked = [(body, authorization) for path, body, authorization in server.seen if path == "/v1/completions"]
    assert {body["model"] for body, _ in asked} == {"policy-1"}
    assert {authorization for _, authorization in asked} == {"Bearer a-key"}
    # A new field of Sampling reaches the server by itself; what it calls "all" is -1.
    assert all(body.items() >= (SHORT.how() | {"top_k": -1}).items() for body, _ in asked)
    sent = [body["prompt"] for body, _ in asked]  # in the order of arrival: the requests run side by side
    assert sorted(sent) == sorted(one.encode_prompt(p.text) for p in prompts(6))


@pytest.mark.parametrize("sends_it", [True, False])
def test_the_end_token_is_there_once_whether_or_not_the_server_sends_it(server, tmp_path, sends_it):
    one = student()
    server.end = [one.end_token] if sends_it else []
    uniforms = draw_uniforms(6, 8, torch.Generator().manual_seed(0))
    with contextlib.closing(Server(address(server), one, base="base", adapters=tmp_path)) as backend:
        out = backend.generate([p.text for p in prompts(6)], SHORT, uniforms)
    ended = [r for r, stop in zip(out.responses, out.stop_reasons, strict=True) if stop == "end"]
    assert ended and all(len(r) == 4 and r.count(one.end_token) == 1 and r[-1] == one.end_token for r in ended)
    assert [one.decode(r[:3]) for r in ended] == [
        t for t, stop in zip(out.texts, out.stop_reasons, strict=True) if stop == "end"
    ]


def test_a_refresh_replaces_the_adapter_the_server_holds(server, tmp_path):
    from safetensors.torch import load_file

    one = student()
    backend = Server(address(server), one, base="base", adapters=tmp_path)
    stir(one, POLICY)
    backend.refresh()
    assert list(server.adapters) == ["policy-2"]
    saved = load_file(f"{server.adapters['policy-2']}/adapter_model.safetensors")
    ours = one.adapter_parameters(POLICY)
    assert len(saved) == len(ours)
    first = next(n for n in saved if "lora_B" in n)
    assert saved[first].abs().max() > 0
    backend.close()
    assert server.adapters == {}


def test_ppo_learns_from_a_servers_lines(server, tmp_path):
    """The lines are scored here, so the ratio check holds although the server's arithmetic is its own."""
    rows = []

    class RunControl:
        def metrics(self, step, numbers):
            rows.append(numbers)

        def jokes(self, *_): ...

        def rewind(self, _): ...

    one = student()
    config = ppo.PPOConfig(steps=2, batch_size=8, sampling=SHORT, kl_limit=1e9)
    backend = Server(address(server), one, base="base", adapters=tmp_path)
    ppo.train(config, vector_env(8), one, RunControl(), prompts=prompts(), backend=backend)
    assert [r["update/first_mismatch"] < 1e-4 for r in rows] == [True, True]
    assert list(server.adapters) == ["policy-3"]  # one at the start, one after each step


def test_servers_that_cannot_help_are_explained(server, tmp_path):
    with pytest.raises(StudentError, match="does not answer"):
        Server("http://127.0.0.1:9", student(), base="base", adapters=tmp_path, timeout=2)
    with pytest.raises(StudentError, match="encoder-decoder"):
        Server(address(server), student("seq2seq"), base="base", adapters=tmp_path)
    backend = Server(address(server), student(), base="base", adapters=tmp_path)
    server.gives_ids = False
    with pytest.raises(StudentError, match="without token ids"):
        backend.generate(["x"], SHORT, torch.zeros(1, 8), values=False)
    server.adapters.clear()
    with pytest.raises(StudentError, match="status 404"):
        backend.generate(["x"], SHORT, torch.zeros(1, 8), values=False)


@pytest.mark.parametrize(
    ("body", "told"),
    [(b"<html>Log in</html>", "not a proxy's page"), (b'{"cut": [', "does not answer"), (b"{]}", "broken JSON")],
)
def test_what_is_no_answer_is_explained(server, tmp_path, body, told):
    backend = Server(address(server), student(), base="base", adapters=tmp_path)
    server.broken = body
    with pytest.raises(StudentError, match=told):
        backend.generate(["x"], SHORT, torch.zeros(1, 8), values=False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_key_to_another_host(server, tmp_path, monkeypatch, status):
    """urllib follows redirects, and sends the key along."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", address(server) + "/v1/completions")
            self.end_headers()

        def log_message(self, *_):
            pass

    def do_get(self):
        self.server.seen.append((self.path, {}, self.headers.get("Authorization")))

    monkeypatch.setattr(Completions, "do_GET", do_get, raising=False)
    other = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    with pytest.raises(StudentError, match=f"status {status}"):
        Server(address(other), student(), base="base", adapters=tmp_path, key="my-own-key-42", timeout=2)
    other.shutdown()
    other.server_close()
    assert server.seen == []


def test_a_servers_words_hold_no_key_and_no_file_is_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Completions, "do_POST", lambda self: self.send_error(500, f"bad {self.headers['Authorization']}")
    )
    with pytest.raises(StudentError, match="status 500") as caught:
        Server(address(server), student(), base="base", adapters=tmp_path, key="my-own-key-42")
    assert "my-own-key-42" not in str(caught.value)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "load_lora_adapter").write_text("{}")
    with pytest.raises(StudentError, match="is not an address"):
        Server(tmp_path.as_uri(), student(), base="base", adapters=tmp_path)


def test_in_process_is_plain_sampling():
    one = student()
    uniforms = draw_uniforms(2, 8, torch.Generator().manual_seed(0))
    texts = [p.text for p in prompts(2)]
    a = InProcess(one).generate(texts, SHORT, uniforms, values=False)
    assert a.responses == sample(one, texts, SHORT, uniforms=uniforms).responses
