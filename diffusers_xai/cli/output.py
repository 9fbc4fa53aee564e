"""The folder that a command writes: checked before the work, there when it is complete."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers_xai.cli.base import CommandError


_REPORT_BYTES = 12e6


def check_out(out: Path, overwrite: bool) -> None:
    """Raises if a folder could not be made at `out`."""
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise CommandError(f"{out} exists: choose another --out, or --overwrite to replace the profile there")
        if not (out.is_dir() and ((out / "profile.json").is_file() or not any(out.iterdir()))):
            raise CommandError(f"{out} is not a profile: --overwrite replaces nothing else")
    try:
        with tempfile.TemporaryDirectory(prefix=".diffusers-xai-", dir=_existing_parent(out)):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error


def check_disk(out: Path, expected: float) -> None:
    """Raises if there is no room for a profile of `expected` bytes and its report."""
    free = shutil.disk_usage(_existing_parent(out)).free
    needed = expected + _REPORT_BYTES
    if free < needed:
        raise CommandError(f"the disk of {out} has {free / 1e6:.0f} MB free, the profile takes {needed / 1e6:.0f} MB")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A path for a folder beside `out` that takes its place, and removes what is there, when the context succeeds."""
    with tempfile.TemporaryDirectory(prefix=".diffusers-xai-", dir=_existing_parent(out)) as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        yield new
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        replaced = out.exists()
        if replaced:
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if replaced:
                old.rename(out)
            raise


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
