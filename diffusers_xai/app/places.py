"""Where the server's files lie is not told: visitors see another name of their folder, and send that back."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send


NAME = "files"  # what stands for the folder, in whatever is sent
_TEXT = (b"application/json", b"text/html", b"text/plain")
_STREAM = b"text/event-stream"


class Places:
    """The folder of Gradio's files, and what visitors see of it.

    Args:
        folder (`Path`): Where Gradio keeps uploads, pictures and downloads.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        written = {form for place in (folder, folder.resolve()) for form in _forms(str(place))}
        self._written = sorted((form.encode() for form in written), key=len, reverse=True)

    def real(self, path: str) -> str:
        """The path of a file, by what a visitor sends."""
        return f"{self.folder}/{path.removeprefix(NAME + '/')}" if path.startswith(NAME + "/") else path

    def told(self, text: bytes) -> bytes:
        """A text without the folder's place."""
        for written in self._written:
            text = text.replace(written, NAME.encode())
        return text

    def taken(self, value: dict[str, Any]) -> dict[str, Any]:
        """A file as a visitor sends it, with its path here; for `json.loads`, which gives every object."""
        path = value.get("path")
        return {**value, "path": self.real(path)} if isinstance(path, str) else value


def _forms(place: str) -> tuple[str, ...]:
    """How a path is written: as it is, within JSON, and within an address."""
    return place, json.dumps(place)[1:-1], quote(place)


class Discretion:
    """ASGI middleware: a request for a file finds it, and no answer names the folder.

    Args:
        app (`ASGIApp`): Gradio.
        places (`Places`): What is not told.
    """

    def __init__(self, app: ASGIApp, places: Places):
        self.app, self.places = app, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        before, mark, file = scope["path"].partition("/file=")
        if mark:
            path = before + mark + self.places.real(file)
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        start: Message | None = None  # held back until the length of what follows is known
        held = b""
        streams = False

        async def tell(message: Message) -> None:
            nonlocal start, held, streams
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                streams = kind.startswith(_STREAM)
                if kind.startswith(_TEXT) and not (mark and message["status"] < 400):  # a file is sent as it is
                    start = message
                    return
            elif message["type"] == "http.response.body" and start is not None:
                held += message.get("body", b"")
                if message.get("more_body"):
                    return
                body = self.places.told(held)
                headers = [pair for pair in start["headers"] if pair[0] != b"content-length"]
                if any(name == b"content-length" for name, _ in start["headers"]) and scope["method"] != "HEAD":
                    headers.append((b"content-length", str(len(body)).encode()))
                await send({**start, "headers": headers})
                message = {**message, "body": body}
            elif message["type"] == "http.response.body" and streams:  # Gradio sends each piece of news at once
                message = {**message, "body": self.places.told(message.get("body", b""))}
            await send(message)

        await self.app(scope, receive, tell)
