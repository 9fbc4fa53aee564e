"""Files that one process holds, and moments that Ctrl-C does not fall into."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds a file against other processes while the context lasts.

    It is the operating system's lock, which ends with the process in any case. Folders that
    were made for the file go with it, as long as they are empty.

    Args:
        file (`Path`): The file.

    Raises:
        BlockingIOError: If another process holds it.
        OSError, NotImplementedError: If it cannot be made or locked.
    """
    from filelock import FileLock, Timeout

    missing = [parent for parent in file.absolute().parents if not parent.exists()]
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        claim = FileLock(file).acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{file.parent} is being written by another process") from None
    except (OSError, NotImplementedError):
        _remove_empty(missing)
        raise
    try:
        yield
    finally:
        with uninterrupted(), claim:
            # Removed while it is held: who opened it meanwhile sees that it is gone, and makes a new one.
            with suppress(OSError):
                file.unlink()
            _remove_empty(missing)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C out of a moment in which files change their places."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _remove_empty(folders: list[Path]) -> None:
    """Removes `folders`, the deepest first, until one is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
