"""Writes a profile's folder, at once or shard by shard during a run."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import safetensors
import safetensors.numpy
import xarray as xr

from diffusers_xai.profile.atomic import replacing
from diffusers_xai.profile.jsonable import dump, to_json
from diffusers_xai.profile.names import validate_array


FORMAT_VERSION = 1
INDEX_NAME = "profile.json"
_CLAIM = ".profile.claim"


class ProfileWriter:
    """A profile's folder in the making.

    What the index names is whole on the disk at any time, even if the process is killed: shards are written first, and
    then the index, by one rename.

    Args:
        folder (`Path`): The folder; made with the first write.
        validate (`Callable`): `(name, array) -> array`, what arrays must pass.
        claim (`bool`): Make it at once, so that nobody else begins to write there; see `give_up`.

    Raises:
        FileExistsError: If there is a file, or a folder with files in it, or somebody else has claimed it.
    """

    def __init__(
        self,
        folder: Path,
        validate: Callable[[str, xr.DataArray], xr.DataArray] = validate_array,
        claim: bool = False,
    ):
        if folder.is_file() or any(file.is_file() for file in folder.rglob("*")):
            raise FileExistsError(f"Expected a new folder, got {folder}, which exists: choose another.")
        self.folder = folder
        self._validate = validate
        self._made: list[Path] = []
        if claim:
            self._made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            try:
                (folder / _CLAIM).touch(exist_ok=False)
            except FileExistsError:
                raise FileExistsError(
                    f"Expected a folder of its own, got {folder}, which another run is writing: choose another."
                ) from None
        self._id = uuid.uuid4().hex
        self._entries: dict[str, dict[str, Any]] = {}
        self._stems: dict[str, str] = {}

    def give_up(self) -> None:
        """Removes a claimed folder that nothing was written into, and the folders made for it."""
        (self.folder / _CLAIM).unlink(missing_ok=True)
        for place in self._made:
            with contextlib.suppress(OSError):
                place.rmdir()

    def append(self, arrays: Iterable[tuple[str, xr.DataArray]], provenance: dict[str, Any]) -> None:
        """Adds arrays, or further steps to arrays that are there, and rewrites the index.

        Args:
            arrays (iterable of `tuple[str, xarray.DataArray]`): Names and arrays, taken one after the other. Steps
                follow those already written; everything but the steps must be as before.
            provenance (`dict`): How the profile is made, JSON-able.

        Raises:
            OSError: If writing fails, for example on a full disk. The folder stays as it was before.
            TypeError, ValueError: If an array is not what a profile holds, or does not continue the one of its name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        entries, written = dict(self._entries), []
        try:
            for name, array in arrays:
                array = self._validate(name, array)
                before = entries.get(name)
                file = self._file(name, 0 if before is None else len(before["files"]))
                written.append(file)
                self._write_shard(file, name, array)
                entry = _entry(array, file.relative_to(self.folder).as_posix())
                entries[name] = entry if before is None else _continued(name, before, entry)
            self._write_index(entries, provenance, written)
        except BaseException:
            for file in written:
                file.unlink(missing_ok=True)
            raise
        self._entries = entries

    def _file(self, name: str, shard: int) -> Path:
        stem = self._stems.get(name, quote(name, safe="/"))
        # Two names may differ in case only, and some file systems do not tell such files apart.
        while stem.casefold() in {other.casefold() for key, other in self._stems.items() if key != name}:
            stem += "_"
        self._stems[name] = stem
        return self.folder / (f"{stem}.safetensors" if shard == 0 else f"{stem}.{shard}.safetensors")

    def _write_shard(self, file: Path, name: str, array: xr.DataArray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # In C order, because safetensors writes the buffer as it lies in memory.
            values = np.asarray(array.values, order="C")
            safetensors.numpy.save_file({name: values}, file, metadata={"id": self._id})
        except safetensors.SafetensorError as error:
            raise OSError(f"Could not write {name!r} to {self.folder.parent}: {error}") from error

    def _write_index(self, entries: dict[str, Any], provenance: dict[str, Any], shards: list[Path]) -> None:
        index = {"format_version": FORMAT_VERSION, "id": self._id, "provenance": provenance, "arrays": entries}
        with replacing(self.folder / INDEX_NAME) as new:
            new.write_text(dump(to_json(index, INDEX_NAME)), encoding="utf-8")
            for file in shards:
                shutil.copymode(new, file)  # safetensors makes files that only their owner can read
                _flush(file)
            _flush(new)
        (self.folder / _CLAIM).unlink(missing_ok=True)


def _flush(file: Path) -> None:
    """Waits until the file is on the disk: a full one may show only now."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entry(array: xr.DataArray, file: str) -> dict[str, Any]:
    return {
        "dims": array.dims,
        "shape": array.shape,
        "dtype": str(array.dtype),
        "coords": {str(key): _coord_to_json(coord) for key, coord in array.coords.items()},
        "attrs": array.attrs,
        "files": [file],
    }


def _continued(name: str, before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The entry of an array with the steps of both."""
    if before["dims"][:1] != ("step",) or _but_steps(before) != _but_steps(more):
        raise ValueError(f"{name}: expected further steps of {_but_steps(before)}, got {_but_steps(more)}.")
    coords = {
        key: {**coord, "values": coord["values"] + more["coords"][key]["values"]} if "step" in coord["dims"] else coord
        for key, coord in before["coords"].items()
    }
    shape = (before["shape"][0] + more["shape"][0], *before["shape"][1:])
    return {**before, "shape": shape, "coords": coords, "files": before["files"] + more["files"]}


def _but_steps(entry: dict[str, Any]) -> dict[str, Any]:
    """What all shards of an array have in common."""
    coords = {
        key: {k: v for k, v in coord.items() if k != "values" or "step" not in coord["dims"]}
        for key, coord in entry["coords"].items()
    }
    return {**entry, "shape": entry["shape"][1:], "coords": coords, "files": None}


def _coord_to_json(coord: xr.DataArray) -> dict[str, Any]:
    dtype = "str" if coord.dtype.kind == "U" else str(coord.dtype)
    return {"dims": coord.dims, "dtype": dtype, "values": coord.values.tolist(), "attrs": coord.attrs}
