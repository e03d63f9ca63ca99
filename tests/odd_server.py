"""A server on loopback, in this process, that answers as a test says: any status, any headers, any bytes.

with answering(lambda body: message(body, usage={"input_tokens": -1})) as server:
    make_client(f"anthropic:claude-haiku-4-5@{server.url}")
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
GOOD = {
    "anthropic": {"input_tokens": 100, "output_tokens": 20},
    "openai": {"prompt_tokens": 100, "completion_tokens": 20},
}
JSON = {"content-type": "application/json"}


class Odd:
    def __init__(self, url: str) -> None:
        self.url = url
        self.calls = 0
        self.in_air = self.most_in_air = 0
        self.connections = self.connected = 0  # ever made, and open now
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()


@contextlib.contextmanager
def answering(answer: Callable[[dict[str, Any]], Answer], port: int = 0) -> Iterator[Odd]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with server.lock:
                server.connections += 1
                server.connected += 1

        def finish(self) -> None:
            super().finish()
            with server.lock:
                server.connected -= 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with server.lock:
                server.calls += 1
                server.in_air += 1
                server.most_in_air = max(server.most_in_air, server.in_air)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                server.paths.append(self.path)
            try:
                status, headers, content = answer(json.loads(body or b"{}"))
            finally:
                with server.lock:
                    server.in_air -= 1
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512  # of five, as it is by default, the others' connections would be refused

    http = Server(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    server = Odd(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def message(body: dict[str, Any], usage: Any = ..., text: str = '{"answer": "1"}') -> Answer:
    """A good message of the protocol that the body is of, with the usage as given (None: without one)."""
    if "system" in body:  # the Messages API
        made: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        made |= {"stop_reason": "end_turn", "content": [{"type": "text", "text": text}]}
        good = GOOD["anthropic"]
    else:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        good = GOOD["openai"]
    used = good if usage is ... else usage
    return 200, JSON, json.dumps(made if used is None else made | {"usage": used}).encode()
