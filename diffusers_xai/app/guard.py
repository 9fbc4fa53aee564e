"""What stands before Gradio's routes: sizes of requests, jobs of one visitor, and who still listens."""

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusers_xai.app.places import Places
from diffusers_xai.app.requests import NAMED, RequestError, called, read
from diffusers_xai.app.settings import Limits
from diffusers_xai.app.workspace import trim


GRACE = 15.0  # seconds between a job's request and the connection that listens for its news, without a page
# Routes of Gradio that the page does not use.
CLOSED = (
    "component_server", "process_recording", "deep_link", "reset", "monitoring", "vibe", "undo-vibe", "stream",
    "profiling", "proxy=", "dev/",
)  # fmt: skip
CALLS = ("/queue/join", "/call/", "/run/", "/api/")
TOO_MANY = "You have as many runs waiting as one visitor may have: wait for them, or cancel them."
TOO_LARGE = "This request is larger than this server takes."
MAX_NAME = 128  # characters of a session's name, which is remembered for a while
TOO_LONG = f"session_hash: expected a session's name, a text of at most {MAX_NAME} characters."


class Presence:
    """Which sessions have their page open, and which have a connection that listens for their jobs."""

    def __init__(self) -> None:
        self._listening: Counter[str] = Counter()
        self._pages: Counter[str] = Counter()
        self._asked: dict[str, float] = {}
        self._lock = threading.Lock()

    def asked(self, session: str) -> None:
        """Notes that a session has asked for a job."""
        now = time.monotonic()
        with self._lock:
            self._asked = {name: at for name, at in self._asked.items() if now - at < 3600}
            self._asked[session] = now

    def listening(self, session: str) -> AbstractContextManager[None]:
        """Notes a connection that listens for jobs, for as long as it lasts."""
        return self._counted(self._listening, session)

    def page(self, session: str) -> AbstractContextManager[None]:
        """Notes an open page, for as long as it is open."""
        return self._counted(self._pages, session)

    def has_page(self, session: str) -> bool:
        """Whether the session is that of an open page."""
        return self._pages[session] > 0

    def listens(self, session: str) -> bool:
        """Whether a session has a connection that listens for its jobs."""
        return self._listening[session] > 0

    def is_gone(self, session: str | None) -> bool:
        """Whether nobody listens for the jobs of a session that has asked for one, and its page is not open.

        An open page listens sooner or later: a busy browser or a slow line may need longer than any grace.
        """
        name = session or ""
        with self._lock:
            asked = self._asked.get(name)
            late = asked is not None and time.monotonic() - asked > GRACE
            return late and not self.listens(name) and not self.has_page(name)

    @contextmanager
    def _counted(self, counts: Counter[str], session: str) -> Iterator[None]:
        with self._lock:
            counts[session] += 1
        try:
            yield
        finally:
            with self._lock:
                counts[session] -= 1
                if not counts[session]:
                    del counts[session]


class Guard:
    """ASGI middleware.

    Args:
        app (`ASGIApp`): Gradio.
        demo (`gradio.Blocks`): Whose queue it is.
        presence (`Presence`): Is told who listens.
        limits (`Limits`): What a visitor may ask for.
        places (`Places`): Where Gradio's files lie.
        uploads (`Path`, *optional*): The same, if they are this server's alone; they take at most `limits.disk`.
    """

    def __init__(
        self,
        app: ASGIApp,
        demo: Any,
        presence: Presence,
        limits: Limits,
        places: Places,
        uploads: Path | None = None,
    ):
        self.app, self.demo, self.presence, self.limits = app, demo, presence, limits
        self.places, self.uploads = places, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"].rstrip("/").removeprefix("/gradio_api")
        if route.startswith(tuple(f"/{name}" for name in CLOSED)):
            await _answer(send, 404, "This app has no such route.")
        elif len(_session_of(scope, route)) > MAX_NAME:
            await _answer(send, 400, TOO_LONG)
        elif scope["method"] == "POST":
            await self._post(route, scope, receive, send)
        elif route == "/queue/data" or route.startswith("/call/"):
            await self._listen(scope, receive, send)
        elif route.startswith("/heartbeat/"):
            with self.presence.page(_session_of(scope, route)):
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _post(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = route == "/upload"
        most = self.limits.upload + 2**16 if is_upload else self.limits.request
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if is_upload and not length.isdigit():
            await _answer(send, 411, "Expected an upload that states its size.")
            return
        if length.isdigit() and int(length) > most:
            await _answer(send, 413, TOO_LARGE)
            return
        if is_upload:
            self._make_room(int(length))
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > most:
                await _answer(send, 413, TOO_LARGE)
                return
            if not message.get("more_body"):
                break
        if route.startswith((*CALLS, "/cancel")):
            try:
                scope, body = self._call(route, scope, body)
            except RequestError as refused:
                await _answer(send, refused.status, str(refused))
                return
        await self.app(scope, _replayed(body, receive), send)

    def _call(self, route: str, scope: Scope, body: bytes) -> tuple[Scope, bytes]:
        """A call of a function as Gradio is to have it.

        Raises:
            RequestError: If it cannot be had, or not now.
        """
        request = read(body, self.places.taken)
        if route.startswith(CALLS):
            request = called(route, request, self.demo)
        if route.startswith(NAMED):
            scope = {**scope, "path": scope["path"].replace(NAMED, "/call/")}
        session = request.get("session_hash") or ""
        if not isinstance(session, str) or len(session) > MAX_NAME:
            raise RequestError(TOO_LONG)
        if route.startswith(("/queue/join", "/call/")):
            session = request["session_hash"] = session or uuid.uuid4().hex  # one without a session gets its own
            if refused := self._refused(session, _address(scope)):
                raise RequestError(refused, HTTPStatus.SERVICE_UNAVAILABLE)
            self.presence.asked(session)
            self._make_room(0)
        return scope, json.dumps(request).encode()

    def _make_room(self, needed: int) -> None:
        """Deletes the oldest of what visitors have sent or could download."""
        if self.uploads is not None:
            trim(self.uploads, self.limits.disk - needed)

    def _refused(self, session: str, address: str) -> str | None:
        """Why a visitor cannot have another job now."""
        jobs = list(self.demo._queue.event_ids_to_events.values())
        if sum(job.session_hash == session for job in jobs) >= self.limits.jobs:
            return TOO_MANY
        if sum(_address(job.request.scope) == address for job in jobs) >= self.limits.jobs_of_address:
            return TOO_MANY
        if not self.presence.has_page(session):
            without = sum(not self.presence.has_page(job.session_hash) for job in jobs)
            if without >= self.limits.jobs_without_page:
                return "Too many programs are waiting for runs: try again later."
        return None

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = _session_of(scope, "")
        if not session:
            job = self.demo._queue.event_ids_to_events.get(scope["path"].rstrip("/").rpartition("/")[2])
            session = job.session_hash if job is not None else ""
        with self.presence.listening(session):
            await self.app(scope, receive, send)


def _session_of(scope: Scope, route: str) -> str:
    """The session that an address names."""
    if route.startswith("/heartbeat/"):
        return route.rpartition("/")[2]
    return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]


def _address(scope: Mapping[str, Any]) -> str:
    """Where a request comes from: what the last proxy says, which has an address of the server's own network.

    Others could say anything.
    """
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
    client = (scope.get("client") or ("",))[0]
    return forwarded if forwarded and _is_near(client) else client


def _is_near(address: str) -> bool:
    try:
        return ip_address(address).is_private
    except ValueError:
        return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what else comes, such as the end of the connection."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text, "error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
