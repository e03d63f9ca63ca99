"""A server on loopback that speaks the Messages API (and chat completions), and misbehaves on purpose.

    python tests/fake_messages_server.py --latency 0.2 --fail 0.3 --seed 1     # prints its port, then serves
    GET /stats    {"calls": ..., "by_kind": {"ok": ..., "429": ...}, "by_item": {...}, "answered": {...}}
    POST /script  ["401", "ok", ...]    what to do with the next calls (or batches: a status, "no-json"), before chance
                                        decides again

Each call is answered, or mistreated, by chance drawn from the seed and the call's number for its item. An item's
*valid* answer depends on its content only, so that a test knows what every joke must end up with. It is a program of
its own, so that clients are killed and servers stay.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

FAULTS = (
    "429",
    "429-retry-after",
    "529",
    "500",
    "hang",
    "reset",
    "cut-json",
    "cut-body",
    "wrong-type",
    "out-of-range",
    "refusal",
    "slow",
)
STATUS = {"400": 400, "401": 401, "402": 402, "403": 403, "404": 404, "413": 413, "422": 422, "429": 429, "500": 500,
          "502": 502, "503": 503, "529": 529}  # fmt: skip


class Running:
    """A server in its own process, as a test sees it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def stats(self) -> dict[str, Any]:
        return self._get("/stats")

    def bodies(self) -> list[dict[str, Any]]:
        """What was sent, if the server was started with --keep-bodies."""
        return self._get("/bodies")

    def script(self, *kinds: str) -> None:
        """What to do with the next calls, in order of arrival."""
        data = json.dumps(kinds).encode()
        urllib.request.urlopen(urllib.request.Request(self.url + "/script", data), timeout=10).close()

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """The server, started for the time of the block: `with running("--fail", "0.3") as server:`."""
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Running(int(process.stdout.readline()))
        finally:
            process.kill()


def content_number(text: str, name: str, most: int) -> int:
    """The answer that this server's judge gives: from the content alone."""
    return int.from_bytes(hashlib.sha256(f"{name}|{text}".encode()).digest()[:4], "big") % most


def valid_answer(user_text: str, schema: dict[str, Any] | None, judge: str) -> str:
    if schema is None:
        return "\n".join(f"{n}. Line {n} about {content_number(user_text, str(n), 1000)}." for n in (1, 2, 3))
    data = json.loads(user_text)
    out: dict[str, Any] = {}
    for name, rule in schema.get("properties", {}).items():
        if name == "answer" and judge.startswith("always-"):
            out[name] = judge.removeprefix("always-")
        elif name == "answer" and judge == "content":
            first, second = (content_number(json.dumps(data[k]), "wit", 1 << 30) for k in ("1", "2"))
            out[name] = "1" if first > second else "2"
        elif "enum" in rule:
            out[name] = rule["enum"][content_number(json.dumps(data, sort_keys=True), name, len(rule["enum"]))]
        elif rule.get("type") == "array":
            out[name] = [f"Line {n} about {content_number(user_text, str(n), 1000)}." for n in (1, 2, 3)]
        elif rule.get("type") == "integer":
            out[name] = content_number(user_text, name, 6)
        else:
            out[name] = "because"
    return json.dumps(out)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calls = 0
        self.by_kind: Counter[str] = Counter()
        self.by_item: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.script: list[str] = []
        self.bodies: list[Any] = []
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.mangled: set[int] = set()
        self.looks: Counter[str] = Counter()
        self.most_open = self.open = 0

    async def serve(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.options.port, backlog=512)
        print(server.sockets[0].getsockname()[1], flush=True)
        starter = os.getppid()
        async with server:
            # Ends with whoever started it, who may have been killed without a chance to say so.
            while os.getppid() == starter:
                await asyncio.sleep(0.5)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = path.split("?")[0]
        if path == "/stats":
            return await self.send(writer, 200, self.stats())
        if path == "/script":
            self.script = json.loads(body)
            return await self.send(writer, 200, {})
        if path == "/bodies":
            return await self.send(writer, 200, self.bodies)
        if path.startswith("/v1/messages/batches"):
            return await self.batch(writer, method, path, body)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self.call(writer, path, headers, json.loads(body))
        finally:
            self.open -= 1

    def stats(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "by_kind": self.by_kind,
            "by_item": self.by_item,
            "answered": self.answered,
            "most_open": self.most_open,
        }

    def kind_of(self, item: str) -> str:
        if self.script:
            return self.script.pop(0)
        chance = random.Random(f"{self.options.seed}|{item}|{self.by_item[item]}")
        if chance.random() >= self.options.fail:
            return "ok"
        return chance.choice(self.options.faults.split(",") if self.options.faults else FAULTS)

    async def call(self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: dict) -> bool:
        chat = path.endswith("/chat/completions")
        user = body["messages"][-1]["content"]
        item = hashlib.sha256(user.encode()).hexdigest()[:16]
        self.calls += 1
        kind = self.kind_of(item)
        self.by_item[item] += 1
        self.by_kind[kind] += 1
        if self.options.keep_bodies:
            self.bodies.append({"headers": sorted(headers), "body": body})
        await asyncio.sleep(self.options.latency)
        if kind in STATUS or kind == "429-retry-after":
            extra = {"retry-after": self.options.retry_after} if kind == "429-retry-after" else {}
            key = headers.get("authorization", "")
            error = {"type": "error", "error": {"type": "some_error", "message": f"as scripted, for {key}"}}
            return await self.send(writer, STATUS.get(kind, 429), error, extra)
        if kind == "hang":
            await asyncio.sleep(3600)
        if kind == "reset":
            writer.transport.abort()
            return False
        if kind == "slow":
            await asyncio.sleep(self.options.slow)
        if chat:
            form = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
            text = valid_answer(user, form, self.options.judge)
            reply = self.chat_completion(text, body)
        else:
            form = ((body.get("output_config") or {}).get("format") or {}).get("schema")
            text, stop = valid_answer(user, form, self.options.judge), "end_turn"
            if kind == "cut-json":
                text, stop = text[: len(text) // 2], "max_tokens"
            elif kind == "wrong-type":
                text = json.dumps({k: str(v) if isinstance(v, int) else 7 for k, v in json.loads(text).items()})
            elif kind == "out-of-range":
                text = json.dumps({k: 11 if isinstance(v, int) else v for k, v in json.loads(text).items()})
            elif kind == "refusal":
                text, stop = "", "refusal"
            reply = message(text, stop, body)
        if kind in ("ok", "slow"):
            self.answered[item] += 1
        return await self.send(writer, 200, reply, cut=kind == "cut-body")

    def chat_completion(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if body.get("logprobs"):
            # Characters as tokens; the judge is 80 % sure wherever it writes a digit.
            choice["logprobs"] = {"content": [_token(c) for c in text]}
        return {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }

    async def batch(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> bool:
        name = path.removeprefix("/v1/messages/batches").strip("/").split("/")[0]
        if method == "POST" and not name:
            kind = self.script.pop(0) if self.script else "ok"
            if kind in STATUS:
                error = {"type": "error", "error": {"type": "some_error", "message": "as scripted"}}
                return await self.send(writer, STATUS[kind], error)
            name = f"msgbatch_{len(self.batches) + 1}"
            self.batches[name] = json.loads(body)["requests"]
            if kind == "no-json":
                self.mangled |= {id(entry) for entry in self.batches[name]}
            self.calls += len(self.batches[name])
        elif name not in self.batches:
            missing = {"type": "error", "error": {"type": "not_found_error", "message": "no such batch"}}
            return await self.send(writer, 404, missing)
        if path.endswith("/results"):
            lines = [self.batch_result(entry) for entry in reversed(self.batches[name])]
            return await self.send(writer, 200, "".join(json.dumps(line) + "\n" for line in lines))
        self.looks[name] += 1
        ended = method == "GET" and self.looks[name] > self.options.batch_looks
        times = {"created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-02T00:00:00Z"}
        counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        port = writer.get_extra_info("sockname")[1]
        status = {
            "id": name,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "results_url": f"http://127.0.0.1:{port}/v1/messages/batches/{name}/results",
        }
        return await self.send(writer, 200, status | times)

    def batch_result(self, entry: dict[str, Any]) -> dict[str, Any]:
        params = entry["params"]
        user = params["messages"][-1]["content"]
        if "expire me" in user:
            return {"custom_id": entry["custom_id"], "result": {"type": "expired"}}
        form = ((params.get("output_config") or {}).get("format") or {}).get("schema")
        text = "no JSON" if id(entry) in self.mangled else valid_answer(user, form, self.options.judge)
        made = message(text, "end_turn", params)
        return {"custom_id": entry["custom_id"], "result": {"type": "succeeded", "message": made}}

    async def send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: Any,
        extra: dict[str, str] | None = None,
        cut: bool = False,
    ) -> bool:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        kind = "application/x-jsonl" if isinstance(body, str) else "application/json"
        if cut:
            # A whole HTTP answer whose JSON stops in the middle, as a broken proxy sends it.
            data = data[: len(data) // 2]
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(data)}"]
        lines += [f"{k}: {v}" for k, v in (extra or {}).items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await writer.drain()
        return True


def message(text: str, stop: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 100,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 50,
            "output_tokens": 20,
        },
    }


def _token(character: str) -> dict[str, Any]:
    sure = {"token": character, "logprob": -0.2231435513142097, "bytes": None}  # log 0.8
    other = {"1": "2", "2": "1"}.get(character, "?")
    return sure | {"top_logprobs": [sure, {"token": other, "logprob": -2.302585092994046, "bytes": None}]}  # log 0.1


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--fail", type=float, default=0.0)
    parser.add_argument("--faults", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.1)
    parser.add_argument("--retry-after", default="0.05")
    parser.add_argument("--judge", default="content")
    parser.add_argument("--batch-looks", type=int, default=1)
    parser.add_argument("--keep-bodies", action="store_true")
    asyncio.run(Server(parser.parse_args(arguments)).serve())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
