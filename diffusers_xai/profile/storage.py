"""How a profile lies on disk: an index and safetensors files, in a folder that appears whole or not at all.

    profile.json
        format_version  1
        id              random; every array file carries it too, so that files of two profiles cannot mix unseen
        provenance      how the profile was made
        arrays          name -> dims, shape, dtype, coords, attrs, files
    samples.safetensors
    activations/<layer>.safetensors

`files` lists an array's shards, concatenated along its first dim; each holds one tensor under the array's name.
"""

import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors
import xarray as xr

from diffusers_xai.profile.jsonable import load
from diffusers_xai.profile.names import DTYPES, validate_array
from diffusers_xai.profile.writer import FORMAT_VERSION, INDEX_NAME, ProfileWriter


_SAFETENSORS_DTYPES = {
    name: "BOOL" if name == "bool" else f"{np.dtype(name).kind.upper()}{8 * np.dtype(name).itemsize}"
    for name in DTYPES
}
_MAX_HEADER = 2**16  # bytes of a file that holds one tensor
_MAX_TEXT = 2**20  # characters of a coordinate: numpy gives every text the room of the longest


Locate = Callable[[str], Path]
Validate = Callable[[str, xr.DataArray], xr.DataArray]


@dataclass(frozen=True)
class StoredArray:
    """An array in a folder, here or on the Hub, that has not been read yet.

    Attributes:
        header (`xarray.DataArray`): The array as the index describes it, over placeholders without memory.
        files (`tuple[str, ...]`): The shards, to be concatenated along the first dim, by their names in the folder.
        locate (`Locate`): Where a file of that name lies; it may have to be downloaded first.
        profile_id (`str`): The id that the files must carry.
    """

    header: xr.DataArray
    files: tuple[str, ...]
    locate: Locate
    profile_id: str

    def read(self) -> xr.DataArray:
        """Opens the array's files, and no other.

        A single file is mapped into memory, copy on write: the system reads those parts that are used.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, belongs to another profile or holds something else than the index says.
        """
        name, shape = str(self.header.name), self.header.shape
        parts = [_map_tensor(self.locate(file), name, str(self.header.dtype), self.profile_id) for file in self.files]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if values.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, as {INDEX_NAME} says, got {values.shape} in its files.")
        return self.header.copy(data=values)


def write_profile(
    path: Path,
    arrays: Mapping[str, xr.DataArray],
    provenance: dict[str, Any],
    overwrite: bool,
    validate: Validate = validate_array,
) -> None:
    """Writes a profile beside `path` and moves it there once it is complete.

    Args:
        path (`Path`): The folder to make; missing parents are made too.
        arrays (`Mapping[str, xarray.DataArray]`): The arrays by name; they are taken one after the other.
        provenance (`dict`): How the profile was made, JSON-able.
        overwrite (`bool`): Whether a profile at `path` may be replaced, with everything in its folder.
        validate (`Validate`): What arrays must pass; those of a profile have its dims.

    Raises:
        FileExistsError: If `path` exists and `overwrite` is false, or it holds something else than a profile.
        OSError: If writing fails, for example on a full disk. Nothing is left behind, and what was at `path` stays.
    """
    path = path.expanduser().resolve()
    _check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden siblings: on the same file system as the target, so that moving is one rename.
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        new.mkdir()
        ProfileWriter(new, validate).append(arrays.items(), provenance)
        _check_target(path, overwrite)
        _move(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"Expected a new folder, got {path}, which exists: choose another, or pass overwrite=True."
        )
    if not path.is_dir() or (any(path.iterdir()) and not (path / INDEX_NAME).is_file()):
        raise FileExistsError(f"Expected a profile to overwrite, got {path}, which is none.")


def _move(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    old = new.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_profile(
    path: Path, locate: Locate | None = None, validate: Validate = validate_array
) -> tuple[dict[str, Any], dict[str, StoredArray]]:
    """Reads a profile's index, and no array.

    Args:
        path (`Path`): A folder written by [`write_profile`].
        locate (`Locate`, *optional*): Where an array's file lies, by its name in the folder; in `path` if `None`.
        validate (`Validate`): What arrays must pass; those of a profile have its dims.

    Returns:
        `tuple[dict, dict[str, StoredArray]]`: The provenance, and the arrays by name.

    Raises:
        FileNotFoundError: If there is no profile.
        ValueError: If the index is damaged, of another format version, or names files outside the folder.
    """
    folder = path.expanduser().resolve()
    index_file = folder / INDEX_NAME
    if not index_file.is_file():
        raise FileNotFoundError(f"Expected a folder with {INDEX_NAME}, got {path}{_interrupted_saves(folder)}.")
    try:
        index = load(index_file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{index_file} is damaged: its lists lie too deep in each other.") from error
    except ValueError as error:
        raise ValueError(f"{index_file} is damaged: {error}") from error
    if not isinstance(index, dict) or "format_version" not in index:
        raise ValueError(f"{index_file}: expected the index of a profile, got one without format_version.")
    if index["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{index_file}: expected format_version {FORMAT_VERSION}, got {index['format_version']!r}: "
            "another version of diffusers_xai wrote it."
        )
    if not all(isinstance(index.get(key, {}), dict) for key in ("arrays", "provenance")):
        raise ValueError(f"{index_file} is damaged: expected arrays and provenance by name.")
    try:
        arrays = {
            name: _parse_entry(locate or folder.joinpath, name, entry, index["id"], validate)
            for name, entry in index["arrays"].items()
        }
        return dict(index["provenance"]), arrays
    except KeyError as error:
        raise ValueError(f"{index_file} is damaged: it lacks {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{index_file} is damaged: an entry is of another kind than a profile's.") from error
    except ValueError as error:
        raise ValueError(f"{index_file} is damaged: {error}") from error


def _interrupted_saves(path: Path) -> str:
    """A save killed between its two renames has left the old and the new profile beside the path: says so."""
    left = sorted(index.parent.name for index in path.parent.glob(f".{glob.escape(path.name)}.*/{INDEX_NAME}"))
    return f"; an interrupted save left {' and '.join(left)} beside it, to be renamed by hand" if left else ""


def _parse_entry(locate: Locate, name: str, entry: dict[str, Any], profile_id: str, validate: Validate) -> StoredArray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name}: expected one of the dtypes {', '.join(DTYPES)}, got {entry['dtype']!r}.")
    files = tuple(_checked_file_name(name, file) for file in entry["files"])
    if not files or len(set(files)) < len(files):
        raise ValueError(f"{name}: expected at least one file, and each once, got {len(files)}.")
    placeholder = np.broadcast_to(np.zeros((), entry["dtype"]), tuple(entry["shape"]))
    coords = {key: _coord_from_json(name, coord) for key, coord in entry["coords"].items()}
    header = xr.DataArray(placeholder, dims=tuple(entry["dims"]), coords=coords, attrs=entry["attrs"])
    return StoredArray(validate(name, header), files, locate, profile_id)


def _checked_file_name(name: str, file: str) -> str:
    parts = PurePosixPath(file).parts
    if not file.endswith(".safetensors") or re.search(r"[\\:\0]", file) or {"/", "//", ".."} & set(parts):
        raise ValueError(f"{name}: expected the name of a safetensors file inside the profile's folder, got {file!r}.")
    return file


def _map_tensor(file: Path, name: str, dtype: str, profile_id: str) -> np.ndarray:
    try:
        with open(file, "rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
        if header_size > _MAX_HEADER:
            raise ValueError(f"{name}: its file {file} is damaged: expected the header of one tensor.")
        with safetensors.safe_open(file, framework="numpy") as tensors:
            metadata, names = tensors.metadata() or {}, list(tensors.keys())
            if names != [name]:
                raise ValueError(f"{name}: expected its file {file} to hold this tensor alone, got {names}.")
            shape, stored_dtype = tensors.get_slice(name).get_shape(), tensors.get_slice(name).get_dtype()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: its file {file} is missing.") from error
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name}: its file {file} is damaged.") from error
    if metadata.get("id") != profile_id:
        raise ValueError(
            f"{name}: expected a file of this profile, got {file} of another one. If the folder was overwritten, open"
            " it again."
        )
    if stored_dtype != _SAFETENSORS_DTYPES[dtype]:
        raise ValueError(f"{name}: expected dtype {dtype}, as {INDEX_NAME} says, got {stored_dtype} in {file}.")
    # The file's one tensor begins where its header ends.
    return np.asarray(np.memmap(file, dtype=dtype, mode="c", offset=8 + header_size, shape=tuple(shape)))


def _coord_from_json(name: str, entry: dict[str, Any]) -> xr.Variable:
    if entry["dtype"] not in (*DTYPES, "str"):
        raise ValueError(f"{name}: expected a coordinate of text or numbers, got dtype {entry['dtype']!r}.")
    if entry["dtype"] == "str":
        texts = np.array(entry["values"], dtype=object)
        if texts.size * max((len(str(text)) for text in texts.flat), default=0) > _MAX_TEXT:
            raise ValueError(f"{name}: expected a coordinate of at most {_MAX_TEXT} characters, got a longer one.")
    return xr.Variable(tuple(entry["dims"]), np.array(entry["values"], dtype=entry["dtype"]), entry["attrs"])
