"""The arena's web server: pages for raters, who each have a link, and the results for whoever started it.

    app = make_app(Arena(Store.open(Path("arena.sqlite"))))
    serve(app, open_socket("127.0.0.1", 8765))

Meant for a lab, a class or friends, not for the open internet. A link's token becomes a cookie and leaves the address
bar; every form carries a value that other sites cannot know; nothing is loaded from other sites, and the policy in the
headers forbids it. URLs are never logged, since links hold tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from humor_env.errors import InvalidOption, MissingExtra
from humor_env.experiments.arena import exports, pages
from humor_env.experiments.arena.session import Arena
from humor_env.experiments.arena.store import Ask, Rater, Refused, Store

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Route
except ImportError as problem:  # an extra
    raise MissingExtra(f"The arena needs {problem.name}: pip install 'humor-env[arena]'") from None

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "arena"
MOST_BYTES = 64 * 1024  # of a form
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # "no-referrer" would also take away the Origin of our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


# Pages


def _message(status: int, title: str, text: str, link: str = "/judge", label: str = "Go on") -> Response:
    return _page("message", status, title=title, text=text, link=link, label=label)


def _page(name: str, status: int = 200, **view: object) -> Response:
    return Response(pages.render(name, **view), status, media_type="text/html")


_REFUSALS = {
    "unknown": (409, "This page is out of date", "Its pair was taken back or never asked. Nothing was changed."),
    "foreign": (403, "This pair is somebody else's", "You cannot answer for another rater. Nothing was changed."),
    "replayed": (
        409,
        "You have answered this pair already",
        "Your first answer stands; nothing was changed. To change it, go on and press Undo.",
    ),
    "incomplete": (400, "This answer is not complete", "Nothing was changed. Go on and answer the pair again."),
    "closed": (403, "This session is closed", "Your answer came too late: nothing was changed. Thank you for judging."),
}


class _App:
    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    # Identifying raters

    def _rater(self, request: Request) -> Rater:
        id, _, signed = request.cookies.get(COOKIE, "").partition(".")
        is_valid = id.isascii() and id.isdecimal() and len(id) < 9
        is_valid = is_valid and hmac.compare_digest(signed.encode(), self.arena.store.sign("session", id).encode())
        rater = self.arena.store.rater(int(id)) if is_valid else None
        if rater is None:
            raise HTTPException(401)
        if self.arena.shared and not self.arena.raters.allows(f"rater {rater.id}"):
            raise HTTPException(429)
        return rater

    async def _form(self, request: Request, rater: Rater) -> dict[str, str]:
        """The fields of a form; it must be one that this server gave to this rater."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise HTTPException(413)
        try:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
        except ValueError:
            raise HTTPException(400) from None
        if not hmac.compare_digest(form.get("csrf", "").encode(), self.arena.csrf(rater.id).encode()):
            raise HTTPException(403)
        return form

    # Raters

    async def enter(self, request: Request) -> Response:
        """A rater's link: the token becomes a cookie, and the address no longer shows it."""
        who = request.client.host if request.client else "?"
        rater = self.arena.store.rater_of(request.path_params["token"])
        if rater is None:
            if self.arena.shared and not self.arena.strangers.allows(who):
                raise HTTPException(429)
            return _message(
                404,
                "This link is not known",
                "Its token is not of this session. Copy the whole link that you were given, or ask for a new one.",
                "",
                "",
            )
        answer = RedirectResponse("/judge", 303)
        signed = f"{rater}.{self.arena.store.sign('session', rater)}"
        answer.set_cookie(COOKIE, signed, httponly=True, samesite="lax", path="/")
        return answer

    async def home(self, request: Request) -> Response:
        return RedirectResponse("/judge", 303)

    async def judge(self, request: Request) -> Response:
        rater, store = self._rater(request), self.arena.store
        csrf, settings = self.arena.csrf(rater.id), store.settings
        if store.closed:
            return _message(403, "This session is closed", "Thank you for judging. Your answers are kept.", "", "")
        if not rater.agreed:
            return _page("consent", csrf=csrf, settings=settings)
        ask = self.arena.ask_of(rater.id)
        done = self.arena.chooser.count(rater.id) - (ask is not None)
        if ask is None:
            return _page("done", csrf=csrf, done=done)
        if done and done % settings.rest == 0 and rater.rested < done:
            return _page("rest", csrf=csrf, done=done, total=settings.per_rater)
        return self._asked(ask, csrf, done, {})

    def _asked(self, ask: Ask, csrf: str, done: int, replies: Mapping[str, str], status: int = 200) -> Response:
        store = self.arena.store
        places = [ask.a] if ask.b is None else [ask.b, ask.a] if ask.turned else [ask.a, ask.b]
        settings = store.settings
        return _page(
            "judge",
            status,
            csrf=csrf,
            ask=ask.nonce,
            sentence=store.prompts[store.lines[ask.a].prompt][1],
            texts=[store.lines[place].text for place in places],
            number=done + 1,
            done=done,
            total=settings.per_rater,
            questions=[pages.QUESTIONS[settings.mode][q] | {"name": q} for q in settings.questions],
            given=replies,
        )

    async def answer(self, request: Request) -> Response:
        rater = self._rater(request)
        form = await self._form(request, rater)
        if not rater.agreed:
            return RedirectResponse("/judge", 303)
        questions = self.arena.store.settings.questions
        try:
            if (
                form.get("do", "answer") == "answer"
                and any(q not in form for q in questions)
                and any(q in form for q in questions)
            ):
                # Without the script, each button sends the form, with the answers given so far.
                ask = self.arena.store.find(rater.id, form.get("ask", ""))
                done = self.arena.chooser.count(rater.id) - 1
                return self._asked(ask, form["csrf"], done, {q: form[q] for q in questions if q in form})
            self.arena.answer(rater.id, form.get("ask", ""), form)
            await self.arena.kept.wait()
        except Refused as why:
            return _message(*_REFUSALS[str(why)])
        return RedirectResponse("/judge", 303)

    async def agree(self, request: Request) -> Response:
        rater = self._rater(request)
        await self._form(request, rater)
        self.arena.store.agree(rater.id)
        return RedirectResponse("/judge", 303)

    async def rest(self, request: Request) -> Response:
        rater = self._rater(request)
        form = await self._form(request, rater)
        done = form.get("done", "")
        if done.isascii() and done.isdecimal() and len(done) < 9:
            self.arena.store.rest(rater.id, int(done))
        return RedirectResponse("/judge", 303)

    async def undo(self, request: Request) -> Response:
        rater = self._rater(request)
        await self._form(request, rater)
        if self.arena.store.closed:
            return _message(*_REFUSALS["closed"])
        self.arena.store.undo(rater.id)
        self.arena.changed()
        return RedirectResponse("/judge", 303)

    # The owner's pages

    def _owner(self, request: Request) -> None:
        token = request.path_params["token"].encode("utf-8", "replace")
        if not hmac.compare_digest(token, self.arena.owner().encode()):
            who = request.client.host if request.client else "?"
            if self.arena.shared and not self.arena.strangers.allows(who):
                raise HTTPException(429)
            raise HTTPException(404)

    async def results(self, request: Request) -> Response:
        self._owner(request)
        return Response(await self.arena.results(), media_type="text/html")

    async def count(self, request: Request) -> Response:
        self._owner(request)
        return Response(json.dumps({"answers": self.arena.store.count()}), media_type="application/json")

    async def download(self, request: Request) -> Response:
        self._owner(request)
        name = request.path_params["name"]
        if name not in exports.FILES:
            raise HTTPException(404)
        text = await asyncio.to_thread(_export, self.arena.store.path, name)
        return Response(
            text,
            media_type="text/csv" if name.endswith(".csv") else "text/plain",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )


def _export(path: Path, name: str) -> str:
    with Store.open(path) as store:
        return exports.FILES[name](store)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in pages.STATIC:
        raise HTTPException(404)
    kind, content = pages.STATIC[name]
    return Response(content(), media_type=kind, headers={"cache-control": "max-age=600"})


_WRONG = {
    400: ("This request is not valid", "It is not one of this server's forms. Nothing was changed."),
    401: (
        "Open your own link first",
        "This page belongs to a rater, and nobody is signed in here. Open the link that you were given.",
    ),
    403: ("This form is not from here", "It was sent from another page, or for another rater. Nothing was changed."),
    404: ("There is nothing here", "Copy the whole link that you were given."),
    405: ("There is nothing here", "This page does not accept such requests. Nothing was changed."),
    413: ("This form is too large", "No answer can be that long. Nothing was changed."),
    429: (
        "One moment, please",
        "Too many requests came from here. Wait a few seconds and load the page again; nothing was changed.",
    ),
}


async def _wrong(_: Request, problem: Exception) -> Response:
    status = problem.status_code if isinstance(problem, HTTPException) else 500
    title, text = _WRONG.get(status, _WRONG[404])
    return _message(status, title, text, *(("/judge", "Go on") if status in (400, 403, 413) else ("", "")))


async def _disk(_: Request, problem: Exception) -> Response:
    with contextlib.suppress(OSError):  # the log may be on the same disk
        print(f"Cannot write to the store: {problem}", file=sys.stderr, flush=True)
    return _message(
        503,
        "This could not be saved",
        "The server's disk is full or cannot be written to. Nothing was "
        "changed. Tell whoever gave you the link, and try again later.",
        "/judge",
        "Try again",
    )


async def _broken(_: Request, problem: Exception) -> Response:
    return _message(500, "Something went wrong here", "Nothing was changed. Tell whoever gave you the link.")


class _Guard:
    """Security headers on every response. If nothing is shared, requests for a host other than this machine are
    refused, so that no web page can reach the server under a name of its own."""

    def __init__(self, app: ASGIApp, shared: bool) -> None:
        self.app, self.shared = app, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if not self.shared and name.strip("[]") not in LOOPBACK:
            text = "This session is private to the machine it runs on. To share it, start it with --share."
            await _message(403, "Not available from here", text, "", "")(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)


def make_app(arena: Arena) -> Starlette:
    pages_of = _App(arena)

    def route(path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            route("/", pages_of.home),
            route("/r/{token}", pages_of.enter),
            route("/judge", pages_of.judge),
            route("/answer", pages_of.answer, "POST"),
            route("/agree", pages_of.agree, "POST"),
            route("/rest", pages_of.rest, "POST"),
            route("/undo", pages_of.undo, "POST"),
            route("/results/{token}", pages_of.results),
            route("/results/{token}/count", pages_of.count),
            route("/results/{token}/{name}", pages_of.download),
            route("/static/{name}", _static),
        ],
        exception_handlers={HTTPException: _wrong, sqlite3.OperationalError: _disk, OSError: _disk, Exception: _broken},
        middleware=[Middleware(_Guard, shared=arena.shared)],
    )


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that is already listening; port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Name the protocol: otherwise asyncio leaves Nagle's algorithm on, which delays every page by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # from now on, so that a link works as soon as it is printed
    except OSError as problem:
        listener.close()
        raise InvalidOption(
            f"Cannot listen on {host}, port {port}: {problem.strerror}. Give another --port (0 picks a free one)."
        ) from None
    return listener


def make_server(app: Starlette) -> uvicorn.Server:
    """URLs are not logged: they hold tokens."""
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        limit_concurrency=512,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, at: socket.socket) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after shutting down
        make_server(app).run(sockets=[at])


def links(arena: Arena, base: str, tokens: Sequence[str] = ()) -> tuple[list[tuple[int, str]], str]:
    """Each rater's link (with `tokens`, if given in a file), and the link to the results."""
    store = arena.store
    token_of = {store.rater_of(token): token for token in tokens}
    own_tokens = [(rater.id, token_of.get(rater.id) or store.token(rater.id)) for rater in store.raters()]
    return [(id, f"{base}/r/{token}") for id, token in own_tokens if token], f"{base}/results/{arena.owner()}"
