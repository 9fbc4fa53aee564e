"""Where a server's files lie: they are bounded in all, and vanish with the server, or with the next one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for the time of a server, which Gradio uses too; those that killed servers left are deleted first."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    root = Path(tempfile.gettempdir()) / f"diffusers-xai-app-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    with FileLock(root / "starting"):
        for left in root.iterdir():
            if left.is_dir():
                _delete_unless_used(left)
        folder = Path(tempfile.mkdtemp(dir=root))
        used = FileLock(folder / "lock")
        used.acquire()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        used.release()
        shutil.rmtree(folder, ignore_errors=True)


def _delete_unless_used(folder: Path) -> None:
    try:
        with FileLock(folder / "lock", timeout=0):  # held by a server that lives
            pass
    except (Timeout, OSError):
        return
    shutil.rmtree(folder, ignore_errors=True)


def trim(folder: Path, max_bytes: int) -> None:
    """Deletes the oldest files of a folder until the rest takes at most `max_bytes`."""
    files = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        except OSError:  # deleted meanwhile
            continue
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda file: file[0]):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
