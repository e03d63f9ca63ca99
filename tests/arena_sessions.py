"""Sessions of the arena for tests: lines of systems of known quality, a real server in a process of its own, and raters
who judge through its pages as a browser without scripts would."""

import contextlib
import http.client
import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

from humor_env.shared.streams import stream_seed

HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')
TEXT = re.compile(r'<(?:p|div) class="text[^>]*>(.*?)</(?:p|div)>', re.DOTALL)


def write_lines(path: Path, systems, prompts=40, text=None):
    """A file of jokes: each system's line for each prompt. The system can be read from the line, by who knows how."""
    rows = []
    for number in range(prompts):
        for name in systems:
            said = text(name, number) if text else None
            line = said or f"Thing {number} was so slow that {code(name)} glaciers overtook it."
            score = {"score": stream_seed(0, name, number) % 1000 / 1000, "critic": "some"}
            rows.append({"prompt_id": f"p{number}", "prompt": f"Thing {number} was slow.", "text": line} | score)
            rows[-1]["author"] = name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def code(name):
    """A number that stands for a system in its lines."""
    return stream_seed(0, "code", name) % 100_000


class Taste:
    """Prefers by Bradley and Terry's model: strengths by system, ties now and then, everything drawn by hash."""

    def __init__(self, strengths, ties=0.0, seed=0):
        self.by_code = {str(code(name)): t for name, t in strengths.items()}
        self.ties, self.random = ties, random.Random(seed)

    def __call__(self, texts):
        first, second = (next(t for c, t in self.by_code.items() if c in text.split()) for text in texts)
        if self.random.random() < self.ties:
            return "tie"
        return "first" if self.random.random() < 1 / (1 + math.exp(second - first)) else "second"


class Server:
    """`humor-env arena` in a process of its own, on a free port; its links are read from what it prints."""

    def __init__(self, folder: Path, *arguments, env=None):
        self.folder = folder
        command = [sys.executable, "-m", "humor_env.experiments.commands.cli", "arena", "--port", "0"]
        with open(folder / "errors.txt", "ab") as errors:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=errors, env=env
            )
        self.printed, self.links, self.results = [], [], None
        for raw in self.process.stdout:
            line = raw.decode()
            self.printed.append(line)
            address = line.split()[-1]
            if line.startswith("Rater"):
                self.links.append(address)
            elif line.startswith("Results"):
                self.results = address
                break
        assert self.results, (folder / "errors.txt").read_text()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Page:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.fields = {name: unescape(value) for name, value in HIDDEN.findall(body)}
        self.texts = [unescape(found) for found in TEXT.findall(body)]
        found = re.search(r"<h1>(.*?)</h1>", body, re.DOTALL)
        self.title = unescape(" ".join(re.sub(r"<[^>]*>", "", found[1]).split())) if found else ""

    @property
    def asks(self):
        return 'action="/answer"' in self.body


class Visitor:
    """Follows a link, keeps its cookie, fills forms."""

    def __init__(self, link):
        self.host, _, path = link.removeprefix("http://").partition("/")
        self.cookie, self.connection = "", http.client.HTTPConnection(self.host, timeout=60)
        self.page = self.get("/" + path)
        if 'action="/agree"' in self.page.body:
            self.page = self.post("/agree", self.page.fields)

    def request(self, method, path, body=None, headers=None):
        sent = {"cookie": self.cookie} if self.cookie else {}
        if body is not None:
            sent["content-type"] = "application/x-www-form-urlencoded"
        self.connection.request(method, path, body, sent | (headers or {}))
        answer = self.connection.getresponse()
        text = answer.read().decode()
        got = {k.lower(): v for k, v in answer.getheaders()}
        if "set-cookie" in got:
            self.cookie = got["set-cookie"].partition(";")[0]
        return Page(answer.status, got, text)

    def get(self, path):
        page = self.request("GET", path)
        while page.status == 303:
            page = self.request("GET", page.headers["location"])
        return page

    def post(self, path, fields, follow=True):
        page = self.request("POST", path, urlencode(fields))
        return self.get(page.headers["location"]) if follow and page.status == 303 else page

    def answer(self, **said):
        """Judge the page that is shown, and see the next."""
        self.page = self.post("/answer", self.page.fields | said)
        if 'action="/rest"' in self.page.body:
            self.page = self.post("/rest", self.page.fields)
        return self.page


@contextlib.contextmanager
def served(store, shared=False):
    """A server in a thread of this process: (its arena, the address)."""
    from humor_env.experiments.arena import server
    from humor_env.experiments.arena.session import Arena

    arena = Arena(store, shared=shared)
    at = server.open_socket("127.0.0.1", 0)
    running = server.make_server(server.make_app(arena))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    try:
        yield arena, f"http://127.0.0.1:{at.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)
        at.close()


def simulate(store, taste, answers, raters=None, rng=None):
    """Raters judge in turn without a server, as it would have them."""
    from humor_env.experiments.arena.session import Arena

    arena, done = Arena(store), 0
    raters = raters or [rater.id for rater in store.raters()]
    while done < answers:
        before = done
        for rater in raters:
            ask = arena.ask_of(rater)
            if ask is None or done >= answers:
                continue
            shown = [ask.b, ask.a] if ask.turned else [ask.a, ask.b]
            said = taste([store.lines[place].text for place in shown])
            arena.answer(rater, ask.nonce, dict.fromkeys(store.settings.questions, said))
            done += 1
        assert done > before, "nothing is left to ask"
    return arena
