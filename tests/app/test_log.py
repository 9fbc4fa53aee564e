"""The log is bounded, whoever writes it."""

import io
import sys
import traceback

from diffusers_xai.app import log


def test_what_is_too_much_for_a_minute_is_left_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with log.bounded_log():
        for _ in range(2000):
            try:
                raise ValueError("x" * 1000)
            except ValueError:
                traceback.print_exc()  # as Gradio does
        first = stream.getvalue()
        assert len(first) == log.MOST + len(log.LEFT_OUT)
        assert first.endswith(log.LEFT_OUT)
        now[0] += log.SECONDS
        print("heard again", file=sys.stderr)
    assert stream.getvalue() == first + "heard again\n"
    assert sys.stderr is stream
