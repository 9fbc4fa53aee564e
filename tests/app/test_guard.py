"""What stands before Gradio: sizes, jobs of one visitor, and who listens."""

import json
from types import SimpleNamespace

import pytest

from diffusers_xai.app import guard
from diffusers_xai.app.guard import Guard, Presence
from diffusers_xai.app.places import Places
from diffusers_xai.app.settings import Limits


LIMITS = Limits(request=1000, upload=5000, jobs=2, jobs_of_address=4, jobs_without_page=3)


class Gradio:
    """Takes jobs as Gradio's queue does, and says what has reached it."""

    def __init__(self):
        self._queue = SimpleNamespace(event_ids_to_events={})
        self.fns = {0: SimpleNamespace(api_name="plan", api_visibility="public", inputs=[], fn=lambda: None)}
        self.bodies = []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        if scope["path"].endswith("/queue/join"):
            job = SimpleNamespace(session_hash=json.loads(body)["session_hash"], request=SimpleNamespace(scope=scope))
            self._queue.event_ids_to_events[str(len(self.bodies))] = job
        await send({"type": "http.response.start", "status": 200, "headers": []})


def drive(coroutine):
    """Runs a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def post(standing, path, body=b"", address="1.1.1.1", headers=(), pieces=1, method="POST", query=b""):
    """The status of a request whose body comes in pieces."""
    size = max(-(-len(body) // pieces), 1)
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
    ]
    statuses = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": f"/gradio_api{path}", "headers": list(headers),
             "client": (address, 1), "query_string": query}  # fmt: skip
    drive(standing(scope, receive, send))
    return statuses[0]


@pytest.fixture
def gradio():
    return Gradio()


@pytest.fixture
def standing(gradio, tmp_path):
    return Guard(gradio, gradio, Presence(), LIMITS, Places(tmp_path))


def join(standing, session, **options):
    return post(
        standing, "/queue/join", json.dumps({"session_hash": session, "fn_index": 0, "data": []}).encode(), **options
    )


def test_a_large_request_is_refused_whether_it_tells_its_size_or_not(standing, gradio):
    large = b'{"data": []}' + b" " * 989
    assert post(standing, "/run/predict", large, headers=[(b"content-length", b"1001")]) == 413
    assert post(standing, "/run/predict", large, pieces=20) == 413
    assert gradio.bodies == []
    assert post(standing, "/run/plan", large[:1000], pieces=3) == 200
    assert [json.loads(body) for body in gradio.bodies] == [{"data": []}]


def test_an_upload_tells_its_size(standing):
    assert post(standing, "/upload", b"x") == 411
    assert post(standing, "/upload", b"x", headers=[(b"content-length", b"1")]) == 200
    assert post(standing, "/upload", b"x", headers=[(b"content-length", b"999999")]) == 413


@pytest.mark.parametrize("route", ["component_server", "process_recording", "reset/", "stream/1"])
def test_routes_that_the_page_does_not_use_are_closed(standing, route):
    assert post(standing, f"/{route}") == 404


def test_one_visitor_has_two_jobs_and_others_still_have_theirs(standing):
    assert [join(standing, "one") for _ in range(4)] == [200, 200, 503, 503]
    assert join(standing, "other", address="2.2.2.2") == 200


def test_programs_without_a_page_cannot_fill_the_queue(standing):
    refused = [join(standing, f"script {i}", address=f"9.9.9.{i}") for i in range(6)]
    assert refused == [200, 200, 200, 503, 503, 503]
    with standing.presence.page("visitor"):
        assert join(standing, "visitor", address="2.2.2.2") == 200


def test_one_address_cannot_fill_the_queue(standing):
    for i in range(6):
        with standing.presence.page(f"page {i}"):
            assert join(standing, f"page {i}") == (200 if i < 4 else 503)
    forwarded = [(b"x-forwarded-for", b"6.6.6.6, 7.7.7.7")]
    with standing.presence.page("behind the proxy"):
        assert join(standing, "behind the proxy", address="10.0.0.1", headers=forwarded) == 200
    with standing.presence.page("who says so himself"):
        assert join(standing, "who says so himself", headers=forwarded) == 503


def test_a_job_without_a_session_gets_its_own(standing, gradio):
    assert post(standing, "/call/plan", b'{"data": []}') == 200
    assert len(json.loads(gradio.bodies[0])["session_hash"]) == 32


def test_a_session_s_name_is_short(standing, gradio):
    """It is remembered: of a thousand names of a megabyte each, a gigabyte would stay."""
    for route in ("/queue/join", "/run/predict", "/call/plan", "/cancel"):
        for name in ("x" * 129, 5):
            request = {"session_hash": name, "fn_index": 0, "data": []}
            assert post(standing, route, json.dumps(request).encode()) == 400
    for route in (f"/heartbeat/{'x' * 129}", "/queue/data"):
        assert post(standing, route, method="GET", query=b"session_hash=" + b"x" * 129) == 400
    assert gradio.bodies == []
    assert join(standing, "x" * 128) == 200


def test_who_never_listens_or_has_left_is_gone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    presence = Presence()
    assert not presence.is_gone(None)  # a call from within
    presence.asked("one")
    assert not presence.is_gone("one")  # still on its way
    now[0] = guard.GRACE + 0.1
    assert presence.is_gone("one")
    with presence.listening("one"):
        assert not presence.is_gone("one")
    with presence.page("one"):
        assert not presence.is_gone("one")  # an open page is still on its way
    assert presence.is_gone("one")
