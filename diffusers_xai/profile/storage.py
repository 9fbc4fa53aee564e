"""How a profile lies on disk: `profile.json` and safetensors files, in a folder that appears whole or not at all.

    profile.json
        format_version  1
        id              random; every array file carries it too, so that files of two profiles cannot mix unseen
        provenance      how the profile was made
        arrays          name -> dims, shape, dtype, coords, attrs, files
    samples.safetensors
    activations/<layer>.safetensors

`files` lists an array's shards, concatenated along its first dim; each holds one tensor under the array's name.
Floats that JSON lacks (NaN, infinities) are written as {"__float__": "nan"}.
"""

import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
import safetensors
import safetensors.numpy
import xarray as xr

from diffusers_xai.profile.names import DTYPES, to_json, validate_array


FORMAT_VERSION = 1
INDEX_NAME = "profile.json"


@dataclass(frozen=True)
class StoredArray:
    """An array in a folder, described by the index and not read yet.

    Answers `dims`, `shape`, `dtype`, `nbytes` and `coords` as the `xarray.DataArray` does that [`load`] returns.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    coords: dict[str, xr.Variable]
    attrs: dict[str, Any]
    files: tuple[Path, ...]
    profile_id: str

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> xr.DataArray:
        """Opens the array's files, and no other.

        A single file is mapped into memory, copy on write: the system reads the parts that are used.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, belongs to another profile or holds something else than the index says.
        """
        parts = [_map_tensor(file, self.name, self.dtype, self.profile_id) for file in self.files]
        rows = sum(part.shape[0] for part in parts)
        if any(part.shape[1:] != self.shape[1:] for part in parts) or rows != self.shape[0]:
            raise ValueError(
                f"{self.name}: {INDEX_NAME} says shape {self.shape}, the files hold {[part.shape for part in parts]}"
            )
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        array = xr.DataArray(values, dims=self.dims, coords=self.coords, name=self.name, attrs=self.attrs)
        return validate_array(self.name, array)


def write_profile(path: Path, arrays: Mapping[str, xr.DataArray], provenance: dict, overwrite: bool) -> None:
    """Writes a profile beside `path` and moves it there once it is complete.

    Args:
        path (`Path`): The folder to make; missing parents are made too.
        arrays (`Mapping[str, xarray.DataArray]`): The arrays by name; each is taken once, one after the other.
        provenance (`dict`): How the profile was made, JSON-able.
        overwrite (`bool`): Whether a profile at `path` may be replaced, with everything in its folder.

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
        _write_folder(new, arrays, provenance)
        _check_target(path, overwrite)
        if path.exists():
            _replace(path, new)
        else:
            os.rename(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists already: choose another folder, or pass overwrite=True")
    if not path.is_dir() or (any(path.iterdir()) and not (path / INDEX_NAME).is_file()):
        raise FileExistsError(f"{path} exists and is not a profile: overwrite=True replaces profiles only")


def _replace(path: Path, new: Path) -> None:
    old = new.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_folder(folder: Path, arrays: Mapping[str, xr.DataArray], provenance: dict) -> None:
    profile_id = uuid.uuid4().hex
    entries: dict[str, dict] = {}
    taken: set[str] = set()
    for name, array in arrays.items():
        stem = quote(name, safe="/")
        # Two names may differ in case only; file systems exist that do not tell them apart.
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        file = folder / f"{stem}.safetensors"
        file.parent.mkdir(exist_ok=True)
        try:
            # Whoever writes for safetensors must hand over plain C order: it copies the buffer as it lies.
            safetensors.numpy.save_file({name: np.asarray(array.values, order="C")}, file, metadata={"id": profile_id})
        except safetensors.SafetensorError as error:
            raise OSError(f"could not write {name!r} to {file.parent}: {error}") from error
        entries[name] = {
            "dims": array.dims,
            "shape": array.shape,
            "dtype": str(array.dtype),
            "coords": {str(key): _coord_to_json(coord) for key, coord in array.coords.items()},
            "attrs": array.attrs,
            "files": [f"{stem}.safetensors"],
        }
    index = {"format_version": FORMAT_VERSION, "id": profile_id, "provenance": provenance, "arrays": entries}
    with open(folder / INDEX_NAME, "w", encoding="utf-8") as stream:
        stream.write(_layout(_encode_floats(to_json(index, INDEX_NAME))) + "\n")
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(folder / INDEX_NAME, file)  # safetensors makes files that only their owner can read
    for file in folder.rglob("*.*"):
        if file.is_file():
            _flush_to_disk(file)


def _flush_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_profile(path: Path) -> tuple[dict, dict[str, StoredArray]]:
    """Reads a profile's index, and no array.

    Args:
        path (`Path`): A folder written by [`write_profile`].

    Returns:
        `tuple[dict, dict[str, StoredArray]]`: The provenance, and the arrays by name.

    Raises:
        FileNotFoundError: If there is no profile.
        ValueError: If the index is damaged, of another format version, or names files outside the folder.
    """
    folder = path.expanduser().resolve()
    index_file = folder / INDEX_NAME
    if not index_file.is_file():
        hint = "" if folder.is_dir() else _interrupted_saves(folder)
        raise FileNotFoundError(f"no profile at {path}: expected a folder with {INDEX_NAME}{hint}")
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"), object_hook=_decode_float)
    except ValueError as error:
        raise ValueError(f"{index_file} is damaged: {error}") from error
    if not isinstance(index, dict) or "format_version" not in index:
        raise ValueError(f"{index_file} is no profile index: it has no format_version")
    if index["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{index_file} has format_version {index['format_version']!r}, this version of diffusers_xai reads "
            f"{FORMAT_VERSION}: a newer one may read it"
        )
    try:
        arrays = {name: _parse_entry(folder, name, entry, index["id"]) for name, entry in index["arrays"].items()}
        return dict(index["provenance"]), arrays
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{index_file} is damaged: {type(error).__name__}: {error}") from error


def _interrupted_saves(path: Path) -> str:
    """A save that was killed between its two renames has left the profile beside its place: says so."""
    left = [file.parent.name for file in path.parent.glob(f".{path.name}.*/{INDEX_NAME}")]
    return f"; an interrupted save left {' and '.join(sorted(left))} beside it, which can be renamed" if left else ""


def _parse_entry(folder: Path, name: str, entry: dict, profile_id: str) -> StoredArray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name}: unknown dtype {entry['dtype']!r}")
    coords = {key: _coord_from_json(coord) for key, coord in entry["coords"].items()}
    files = tuple(folder / _checked_file_name(file) for file in entry["files"])
    if not files:
        raise ValueError(f"{name}: no files")
    return StoredArray(
        name=name,
        dims=tuple(entry["dims"]),
        shape=tuple(int(size) for size in entry["shape"]),
        dtype=np.dtype(entry["dtype"]),
        coords=coords,
        attrs=dict(entry["attrs"]),
        files=files,
        profile_id=profile_id,
    )


def _checked_file_name(file: str) -> str:
    parts = PurePosixPath(file).parts
    if not file.endswith(".safetensors") or re.search(r"[\\:\0]", file) or not parts or {"/", ".."} & set(parts):
        raise ValueError(f"expected the name of a safetensors file inside the profile's folder, got {file!r}")
    return file


def _map_tensor(file: Path, name: str, dtype: np.dtype, profile_id: str) -> np.ndarray:
    try:
        with safetensors.safe_open(file, framework="numpy") as tensors:
            metadata, names = tensors.metadata() or {}, list(tensors.keys())
            if names != [name]:
                raise ValueError(f"{name}: expected its file {file} to hold this tensor alone, got {names}")
            shape, stored_dtype = tensors.get_slice(name).get_shape(), tensors.get_slice(name).get_dtype()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: its file {file} is missing") from error
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name}: its file {file} is damaged: {error}") from error
    if metadata.get("id") != profile_id:
        raise ValueError(f"{name}: {file} belongs to another profile; was the folder overwritten? Open it again")
    if stored_dtype != _SAFETENSORS_DTYPES[str(dtype)]:
        raise ValueError(f"{name}: {INDEX_NAME} says {dtype}, its file {file} holds {stored_dtype}")
    with open(file, "rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
    # The file's one tensor begins where its header ends.
    return np.asarray(np.memmap(file, dtype=dtype, mode="c", offset=8 + header_size, shape=tuple(shape)))


_SAFETENSORS_DTYPES = {
    name: "BOOL" if name == "bool" else f"{np.dtype(name).kind.upper()}{8 * np.dtype(name).itemsize}"
    for name in DTYPES
}


def _coord_to_json(coord: xr.DataArray) -> dict:
    dtype = "str" if coord.dtype.kind == "U" else str(coord.dtype)
    return {"dims": coord.dims, "dtype": dtype, "values": coord.values.tolist()}


def _coord_from_json(entry: dict) -> xr.Variable:
    if entry["dtype"] not in (*DTYPES, "str"):
        raise ValueError(f"unknown dtype {entry['dtype']!r} of a coordinate")
    return xr.Variable(tuple(entry["dims"]), np.array(entry["values"], dtype=entry["dtype"]))


def _encode_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": str(value)}
    if isinstance(value, dict):
        return {key: _encode_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode_floats(item) for item in value]
    return value


def _decode_float(value: dict) -> Any:
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _layout(value: Any, indent: str = "") -> str:
    """JSON with dicts over several lines and lists on one: readable, and not one line per number."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + "  "
    items = ",\n".join(f"{inner}{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items())
    return f"{{\n{items}\n{indent}}}"
