"""One recording at a time of a network and of a scheduler, whichever pipelines and threads hold them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


_taken: dict[int, Any] = {}  # by identity; holding the object keeps its identity from being given away
_lock = threading.Lock()


@contextmanager
def exclusive(*objects: Any) -> Iterator[None]:
    """Holds `objects` for one recording.

    Raises:
        RuntimeError: if one of them is being recorded already.
    """
    mine = {id(item): item for item in objects}
    with _lock:
        for item in mine.values():
            if id(item) in _taken:
                raise RuntimeError(
                    f"This {type(item).__name__} is being recorded already: expected one recording at a time of a"
                    " network and of a scheduler. End the other one first, or load the pipeline twice."
                )
        _taken.update(mine)
    try:
        yield
    finally:
        with _lock:
            for key in mine:
                del _taken[key]
