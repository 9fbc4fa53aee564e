"""What the server writes to its log: bounded, whoever writes it, so that no visitor can fill a disk with it."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO


MOST, SECONDS = 2**16, 60.0
LEFT_OUT = "\n… more of the log is left out for a minute\n"


class Bounded(io.TextIOBase):
    """Passes on at most `most` characters in `seconds`, and says where it leaves some out.

    Args:
        stream (`TextIO`): Where to.
        most (`int`): Characters.
        seconds (`float`): From the first of them on.
    """

    def __init__(self, stream: TextIO, most: int = MOST, seconds: float = SECONDS):
        self.stream, self.most, self.seconds = stream, most, seconds
        self._since, self._written = -seconds, 0
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Writes `text`, or what there is room for."""
        with self._lock:
            now = time.monotonic()
            if now - self._since >= self.seconds:
                self._since, self._written = now, 0
            left = self.most - self._written
            if left > 0:
                self._written += len(text)
                self.stream.write(text if len(text) <= left else text[:left] + LEFT_OUT)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()


@contextmanager
def bounded_log() -> Iterator[None]:
    """Bounds stderr, where Gradio's own tracebacks go too, while the context lasts."""
    with redirect_stderr(Bounded(sys.stderr)):
        yield
