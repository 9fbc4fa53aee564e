"""A profile as one zip file, and back from a zip file that anybody may have made."""

import io
import lzma
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from diffusers_xai.profile.atomic import replacing
from diffusers_xai.profile.diffusion_profile import DiffusionProfile
from diffusers_xai.profile.repr import format_size


MAX_BYTES, MAX_MEMBERS, MAX_DEPTH = 256 * 2**20, 2000, 8
MAX_NAME = 255
MAX_LIST = 2**18  # bytes of the zip file's list of members
MAX_JSON = 4 * 2**20  # bytes of JSON in all: read, it takes up to 25 times as much


def write_archive(profile: DiffusionProfile, file: str | os.PathLike) -> Path:
    """Writes the folder of a profile, safetensors and JSON, as a zip file.

    Args:
        profile (`DiffusionProfile`): What to write.
        file (`str` or `os.PathLike`): The file; it is replaced.

    Returns:
        `Path`: The file.
    """
    file = Path(file)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "profile"
        profile.save_pretrained(folder)
        with replacing(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(folder.rglob("*")):
                if member.is_file():
                    archive.write(member, member.relative_to(folder))
    return file


def read_archive(file: str | os.PathLike, folder: str | os.PathLike, max_bytes: int = MAX_BYTES) -> DiffusionProfile:
    """Unpacks a zip file of a profile into a new folder and opens it there.

    Args:
        file (`str` or `os.PathLike`): The zip file; it is not trusted.
        folder (`str` or `os.PathLike`): A folder that does not exist; its parent does.
        max_bytes (`int`): The most that the unpacked files may take.

    Returns:
        `DiffusionProfile`: All its arrays have been read once, so that a damaged one is found now.

    Raises:
        FileExistsError: If `folder` exists.
        ValueError: If the file is no zip file of safetensors and JSON alone, names files outside, is larger than
            `max_bytes` when unpacked, holds more than `MAX_JSON` bytes of JSON or no sound profile. Nothing is left
            at `folder`.
    """
    folder = Path(folder)
    folder.mkdir()
    try:
        with _InPieces(file) as stream, zipfile.ZipFile(stream) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(members, max_bytes)
            left = max_bytes
            for member in members:
                left -= _extract(archive, member, folder, left)
        profile = DiffusionProfile.from_pretrained(folder)
        for name in profile:
            profile[name]
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"Expected a zip file of a profile: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return profile


class _InPieces(io.FileIO):
    """A file that is read in pieces: a zip file's list of members is read at once, whatever it takes."""

    def read(self, size: int | None = -1) -> bytes:
        """Reads up to `size` bytes, or what is left.

        Raises:
            ValueError: If that is more than `MAX_LIST`.
        """
        piece = super().read(size if size is not None and 0 <= size <= MAX_LIST else MAX_LIST + 1) or b""
        if len(piece) > MAX_LIST:
            raise ValueError(
                f"Expected a zip file whose list of files takes at most {format_size(MAX_LIST)}, got more."
            )
        return piece


def _check(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise ValueError(f"Expected 1 to {MAX_MEMBERS} files in the zip file, got {len(members)}.")
    for member in members:
        path = PurePosixPath(member.filename)
        if path.suffix not in (".safetensors", ".json"):
            raise ValueError(f"Expected safetensors and JSON files alone, got {member.filename[:80]!r}.")
        outside = path.is_absolute() or ".." in path.parts or set("\\:\0") & set(member.filename)
        if outside or len(path.parts) > MAX_DEPTH or len(member.filename) > MAX_NAME:
            raise ValueError(f"Expected files inside the profile's folder, got {member.filename[:80]!r}.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"Expected files, got the link {member.filename!r}.")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise ValueError(f"Expected at most {format_size(max_bytes)} when unpacked, got {format_size(total)}.")
    text = sum(member.file_size for member in members if member.filename.endswith(".json"))
    if text > MAX_JSON:
        raise ValueError(f"Expected at most {format_size(MAX_JSON)} of JSON, got {format_size(text)}.")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, left: int) -> int:
    """Unpacks one file and counts its bytes: what the zip file states may be a lie."""
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with archive.open(member) as source, open(target, "xb") as sink:
            while piece := source.read(MAX_LIST):
                count += len(piece)
                if count > left:
                    raise ValueError("Expected no more when unpacked than the zip file says, got more.")
                sink.write(piece)
    except (zlib.error, lzma.LZMAError) as error:  # zipfile lets its decompressors' errors through
        raise zipfile.BadZipFile(f"Damaged data of file {member.filename[:80]!r}") from error
    return count
