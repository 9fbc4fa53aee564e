"""Many visitors at once, at a real queue: nobody can shut out the others, and nothing is computed for nobody."""

import gc
import threading
import time
import tracemalloc
import uuid

import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import guard, models, server, settings
from tests.app.visitor import Visitor
from tests.tiny import convnext_unet


LIMITS = settings.Limits(max_seconds=600, confirm_seconds=600, sessions=20)


@pytest.fixture(scope="module")
def app():
    offered = {"faces": models.Model("faces", XAIPipeline(convnext_unet(), DDPMScheduler()))}
    app = server.build(offered, LIMITS, steps=3, every=1, gradients=False)
    app.url = app.start(quiet=True)
    app.model = offered["faces"]
    yield app
    app.demo.close()


def waiting(app):
    return len(app.demo._queue.event_ids_to_events)


def until(condition):
    """Waits for what another thread does, for as long as a busy machine may need."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_anonymous_requests_leave_places_and_are_cancelled_when_nobody_listens(app, monkeypatch):
    monkeypatch.setattr(guard, "GRACE", 3600.0)  # a busy machine does not tell how long the requests take
    calls = []
    hook = app.model.pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with app.model.lock:  # the queue stands still
        visitors = [Visitor(app.url, f"10.0.0.{i}") for i in range(40)]
        answers = [visitor.join("sample", steps=1000, every=100) for visitor in visitors]
        assert answers == [200] * LIMITS.jobs_without_page + [503] * (40 - LIMITS.jobs_without_page)
        assert waiting(app) == LIMITS.jobs_without_page

        # Who has the page open still gets in, and what needs no run answers at once.
        mine = Visitor(app.url, "10.0.1.1")
        with mine.page():
            until(lambda: app.presence.has_page(mine.session))
            assert mine.http.get("/").status_code == 200
            assert mine.call("share")[0] == 200
            assert mine.join("sample") == 200
            assert Visitor(app.url, "10.0.1.1").call("share")[0] == 200
            outputs = []
            listener = threading.Thread(target=lambda: outputs.extend(mine.news()))
            listener.start()
            until(lambda: app.presence.listens(mine.session))
            monkeypatch.setattr(guard, "GRACE", 0.0)
            app.model.lock.release()
            try:
                listener.join(timeout=600)
            finally:
                app.model.lock.acquire()
    hook.remove()
    completed = [message for message in outputs if message["msg"] == "process_completed"]
    assert "Done:" in str(completed[-1]["output"]["data"])
    until(lambda: waiting(app) == 0)
    # Nobody listened for the others: they did not run their thousand steps.
    assert len(calls) < 100


def test_page_loads_do_not_evict_a_run(app):
    mine = Visitor(app.url)
    mine.run("sample", steps=3)
    (session,) = app.demo.app.state_holder.session_data[mine.session].state_data.values()
    for _ in range(3 * LIMITS.sessions):
        assert Visitor(app.url).call("share", data=mine.data(mine.function("share")))[0] == 200
    assert len(app.demo.app.state_holder.session_data) <= LIMITS.sessions
    status, answer = mine.call("keep", run=session.result.id)
    assert status == 200
    assert "This run is kept" in str(answer["data"])


def test_a_session_is_small_beside_what_its_page_shows(app):
    """Gradio would keep a copy of the whole page, figures included, for each of them."""
    mine = Visitor(app.url)
    data, show = mine.data(mine.function("share")), mine.function("show")
    mine.run("sample", steps=3)
    mine.call("show", data=mine.data(show))
    tracemalloc.start()
    try:
        for _ in range(10):
            mine.session = uuid.uuid4().hex
            assert mine.call("share", data=data)[0] == 200
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 10 < 40_000, taken
