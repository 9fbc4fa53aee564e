"""Files that are there whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to, and moves that file to `path` when the block ends without an error.

    Until then, and after an error, what is at `path` stays, and nothing else is left.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed while they replaced `path` have left beside it."""
    for new in path.parent.glob(f".{path.name}.????????.new"):
        new.unlink(missing_ok=True)
