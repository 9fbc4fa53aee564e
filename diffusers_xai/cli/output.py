"""The folder that a command writes: claimed and checked before the work, there when it is complete."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from diffusers_xai.cli.base import CommandError
from diffusers_xai.profile.locks import locked, uninterrupted
from diffusers_xai.profile.repr import format_size


_REPORT_BYTES = 12e6
_LOCK = "diffusers-xai.lock"


@contextmanager
def claimed(out: Path, inside: bool = False) -> Iterator[None]:
    """Holds `out` against other commands while the context lasts.

    Args:
        out (`Path`): The folder that is written.
        inside (`bool`, defaults to `False`): Whether the file lies in the folder, not beside it.

    Raises:
        CommandError: if another command holds `out`, or nothing can be written there.
    """
    lock = out / f".{_LOCK}" if inside else out.with_name(f".{out.name}.{_LOCK}")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except BlockingIOError:
            raise CommandError(f"another command is writing {out}: wait for it, or choose another --out") from None
        except (OSError, NotImplementedError) as error:
            raise CommandError(f"cannot write to {out}: {getattr(error, 'strerror', None) or error}") from error
        yield


def check_out(out: Path, overwrite: bool) -> None:
    """Raises if a profile may not be written to `out`."""
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise CommandError(
                f"--out: expected a new folder, got {out}, which exists: choose another, or --overwrite to replace it"
            )
        if not (out.is_dir() and ((out / "profile.json").is_file() or not any(out.iterdir()))):
            raise CommandError(f"--overwrite: expected a profile, which alone it replaces, got {out}")


def check_disk(out: Path, expected: float, what: str = "profile") -> None:
    """Raises if there is no room for `expected` bytes and a report."""
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free
    needed = expected + _REPORT_BYTES
    if free < needed:
        raise CommandError(f"the disk of {out} has {format_size(free)} free, the {what} takes {format_size(needed)}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A path for a folder beside `out` that takes its place, and removes what is there, when the context succeeds."""
    staging = Path(tempfile.mkdtemp(prefix=".diffusers-xai-", dir=out.absolute().parent))
    new, old = staging / "new", staging / "old"
    try:
        yield new
        with uninterrupted():
            replaced = out.exists()
            if replaced:
                out.rename(old)
            try:
                new.rename(out)
            except BaseException:
                if replaced:
                    old.rename(out)
                raise
    finally:
        with uninterrupted():
            shutil.rmtree(staging, ignore_errors=True)
