"""What is measured of each batch of seeds: kept in memory, or as a parquet file at a time, which survives a crash.

    predetermination.parquet/
        _request.json       what was asked for; another request is refused
        part-00000.parquet  a row for each seed of the first batch
        part-00001.parquet

A column holds a variable: a number, or the numbers of a seed as a list in C order. What has no dim `seed`, such as
pictures of the first seed, stands in a file's first row. Each file's metadata tell dims, shapes and coordinates.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from accelerate.utils import broadcast_object_list, gather_object

from diffusers_xai.experiments.processes import process_state
from diffusers_xai.profile.atomic import replacing
from diffusers_xai.profile.locks import locked


REQUEST = "_request.json"  # readers of parquet folders pass over names that begin so
PART = "part-*.parquet"
_METADATA = b"diffusers_xai"


class Parts(Protocol):
    """Where the numbers of a call's batches go."""

    def missing(self) -> list[int]:
        """The batches that are not there yet; the same in all processes."""

    def keep(self, index: int, data: xr.Dataset) -> None:
        """Takes the numbers of a batch."""

    def all(self) -> list[xr.Dataset]:
        """The numbers of every batch, in order, when all processes are done."""


@dataclass
class MemoryParts:
    """Batches in the memory of the process that measured them, gathered at the end."""

    batches: Sequence[Sequence[int]]
    kept: list[tuple[int, xr.Dataset]] = field(default_factory=list)

    def missing(self) -> list[int]:
        """See [`Parts`]."""
        return list(range(len(self.batches)))

    def keep(self, index: int, data: xr.Dataset) -> None:
        """See [`Parts`]."""
        self.kept.append((index, data))

    def all(self) -> list[xr.Dataset]:
        """See [`Parts`]."""
        found = self.kept if process_state().num_processes == 1 else gather_object(self.kept)
        return [data for _, data in sorted(found, key=lambda pair: pair[0])]


@dataclass
class ParquetParts:
    """Batches in a folder that all processes see, a file for each.

    Args:
        folder (`Path`): The folder.
        first (`int`): Number of the call's first file.
        batches (`Sequence[Sequence[int]]`): Seeds of each batch.
        labels (`Sequence[int]`): Of the runs.
        description (`str`): What is measured.
    """

    folder: Path
    first: int
    batches: Sequence[Sequence[int]]
    labels: Sequence[int]
    description: str

    def missing(self) -> list[int]:
        """See [`Parts`]."""
        found = [index for index in range(len(self.batches)) if not self._path(index).is_file()]
        return broadcast_object_list([found])[0]  # seen by one process, before any of them writes

    def keep(self, index: int, data: xr.Dataset) -> None:
        """See [`Parts`]."""
        with replacing(self._path(index)) as path:
            pq.write_table(_to_table(data, self.description, self.labels), path)

    def all(self) -> list[xr.Dataset]:
        """See [`Parts`].

        Raises:
            ValueError: If a file is damaged, or holds other seeds.
        """
        process_state().wait_for_everyone()
        return [self._read(index) for index in range(len(self.batches))]

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{self.first + index:05d}.parquet"

    def _read(self, index: int) -> xr.Dataset:
        path = self._path(index)
        data = read_part(path)
        if data["seed"].values.tolist() != list(self.batches[index]):
            raise ValueError(f"{path}: expected seeds {list(self.batches[index])}, got {data['seed'].values.tolist()}")
        return data.drop_attrs()


@dataclass
class _Folder:
    path: Path
    files: int = 0  # of the calls before


_FOLDER: ContextVar[_Folder | None] = ContextVar("folder", default=None)


@contextmanager
def kept_parts(folder: str | os.PathLike, request: Mapping[str, Any]) -> Iterator[None]:
    """Within it, experiments keep each batch of seeds in a folder, and do not measure again what is there.

    Args:
        folder (`str` or `os.PathLike`): The folder, which all processes see.
        request (`Mapping[str, Any]`): What tells these numbers from others, JSON-able.

    Raises:
        ValueError: If the folder was made for another request.
        BlockingIOError: If another process writes it.
    """
    path = Path(folder)
    check_request(path, request)
    with locked(path / ".lock") if process_state().is_main_process else nullcontext():
        if process_state().is_main_process:
            for unfinished in path.glob(".part-*.new"):  # of a process that was killed
                unfinished.unlink()
            with replacing(path / REQUEST) as new:
                new.write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
        token = _FOLDER.set(_Folder(path))
        try:
            yield
        finally:
            _FOLDER.reset(token)
            if process_state().num_processes == 1 and not any(path.glob(PART)):  # then there is nothing to continue
                (path / REQUEST).unlink(missing_ok=True)


def check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Refuses a folder that was made for another request.

    Raises:
        ValueError: Which names what differs.
    """
    if not (folder / REQUEST).is_file():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(f"{folder}: expected a folder of an experiment's seeds, got no {REQUEST} in it")
        return
    check_same(folder, json.loads((folder / REQUEST).read_text(encoding="utf-8")), json.loads(json.dumps(request)))


def check_same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses what lies in a folder if it was made for another request.

    Raises:
        ValueError: Which names what differs.
    """
    differing = [name for name in {**asked, **there} if asked.get(name) != there.get(name)]
    if differing:
        told = ", ".join(f"{name} {_short(asked.get(name))}, got {_short(there.get(name))}" for name in differing)
        raise ValueError(f"{folder}: expected {told}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def parts_of(batches: Sequence[Sequence[int]], labels: Sequence[int], description: str) -> Parts:
    """Where the numbers of a call's batches go: into the folder of [`kept_parts`], or into memory without one."""
    folder = _FOLDER.get()
    if folder is None:
        return MemoryParts(batches)
    first, folder.files = folder.files, folder.files + len(batches)
    return ParquetParts(folder.path, first, batches, labels, description)


def read_part(path: Path) -> xr.Dataset:
    """Reads a file that an experiment kept; its attributes are what was `measured`, and the `labels`.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        table = pq.read_table(path, partitioning=None)
        facts = json.loads(table.schema.metadata[_METADATA])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: remove it, and it is measured again") from error
    variables = {name: _values(table[name], **layout) for name, layout in facts["variables"].items()}
    coords = {name: (c["dims"], np.array(c["values"], dtype=c["dtype"])) for name, c in facts["coords"].items()}
    return xr.Dataset(variables, coords, {"measured": facts["measured"], "labels": facts["labels"]})


def _to_table(data: xr.Dataset, description: str, labels: Sequence[int]) -> pa.Table:
    seeds = data["seed"].values
    columns: dict[str, pa.Array] = {"seed": pa.array(seeds), "labels": pa.array([list(labels)] * len(seeds))}
    for name, array in data.data_vars.items():
        rows = array.transpose("seed", ...).values if "seed" in array.dims else array.values[None]
        numbers = pa.array(np.ascontiguousarray(rows).reshape(-1))
        ends = np.minimum(np.arange(len(seeds) + 1), len(rows)) * (rows[0].size if len(rows) else 0)
        per_seed = array.dims == ("seed",)
        columns[str(name)] = numbers if per_seed else pa.ListArray.from_arrays(pa.array(ends, pa.int32()), numbers)
    facts = {
        "measured": description,
        "labels": list(labels),
        "variables": {name: {"dims": array.dims, "shape": array.shape} for name, array in data.data_vars.items()},
        "coords": {
            name: {"dims": array.dims, "dtype": array.dtype.str, "values": array.values.tolist()}
            for name, array in data.coords.items()
        },
    }
    return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(facts)})


def _values(column: pa.ChunkedArray, dims: Sequence[str], shape: Sequence[int]) -> tuple[Sequence[str], np.ndarray]:
    numbers = column.combine_chunks()
    flat = numbers.flatten() if pa.types.is_list(numbers.type) else numbers
    sizes = dict(zip(dims, shape, strict=True))
    order = [*(dim for dim in dims if dim == "seed"), *(dim for dim in dims if dim != "seed")]
    values = flat.to_numpy(zero_copy_only=False).reshape([sizes[dim] for dim in order])
    return dims, np.transpose(values, [order.index(dim) for dim in dims])
