"""Where the arrays of a run wait until they are a profile: in memory, or in a folder that grows step by step."""

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.writer import ProfileWriter


# A shard is written when this much waits in memory, or when the oldest has waited this long.
SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 30.0


@dataclass(frozen=True)
class StepArray:
    """What one step adds to an array: values, and the dims and coordinates they have, all without `step`.

    `steps` is how many steps the array is expected to have in the end, at least 1; `coords_of_step` are coordinates,
    with their dims, that other steps may have other values of.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    coords: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    coords_of_step: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)


class _GrowingArray:
    """An array that steps are copied into, in memory that is taken once where their number is known.

    Args:
        first ([`StepArray`]): The first step, which tells dims and coordinates of all.
        capacity (`int`): For how many steps there is room at first.
    """

    def __init__(self, first: StepArray, capacity: int):
        self.dims, self._coords = first.dims, first.coords
        self._coords_of_steps: list[Mapping[str, tuple[tuple[str, ...], np.ndarray]]] = []
        self.steps: list[int] = []
        self._values = np.empty((capacity, *first.values.shape), first.values.dtype)

    def add(self, step: int, array: StepArray) -> None:
        """Adds a step.

        Raises:
            ValueError: if its shape is not that of the steps before.
        """
        values = array.values
        if values.shape != self._values.shape[1:]:
            raise ValueError(f"Expected {self._values.shape[1:]} as at the steps before, got {values.shape}.")
        if len(self.steps) == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        if values.dtype != self._values.dtype:
            self._values = self._values.astype(np.result_type(self._values, values))
        self._values[len(self.steps)] = values
        self.steps.append(step)
        self._coords_of_steps.append(array.coords_of_step)

    @property
    def coords(self) -> dict[str, Any]:
        """The coordinates beside those of the steps themselves."""
        by_step = {
            name: (("step", *dims), np.stack([coords[name][1] for coords in self._coords_of_steps]))
            for name, (dims, _) in self._coords_of_steps[0].items()
        }
        return {**self._coords, **by_step}

    @property
    def values(self) -> np.ndarray:
        """Those of the steps added, (step, …)."""
        return self._values[: len(self.steps)]


def free_bytes(folder: str | os.PathLike | None) -> int:
    """How large a profile can be: what the disk of `folder` has left, or free memory where there is none."""
    if folder is None:
        return int(psutil.virtual_memory().available)
    place = Path(folder).expanduser().resolve()
    return shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free


class MemoryStore:
    """Keeps what was recorded in memory."""

    def __init__(self) -> None:
        self._steps: dict[str, _GrowingArray] = {}
        self._clock: dict[int, tuple[float, float]] = {}
        self._final: dict[str, xr.DataArray] = {}

    def add_final(self, name: str, array: xr.DataArray) -> None:
        """Adds an array that has no steps."""
        self._final[name] = array

    def add_step(
        self, step: int, timestep: float, sigma: float, arrays: Mapping[str, StepArray], describe: Callable[[], dict]
    ) -> None:
        """Adds what one step yielded.

        Args:
            step (`int`): Index of the denoiser call, larger than that before.
            timestep (`float`): The scheduler's t there.
            sigma (`float`): The noise level there.
            arrays (mapping from `str` to `StepArray`): By name.
            describe (`Callable`): Gives the run's provenance, as far as it is known.
        """
        self._clock[step] = (timestep, sigma)
        for name, array in arrays.items():
            if name not in self._steps:
                self._steps[name] = _GrowingArray(array, self._capacity(array))
            self._steps[name].add(step, array)

    def close(self) -> None:
        """Leaves nothing behind where nothing was recorded."""

    def finish(self, provenance: dict[str, Any]) -> DiffusionProfile:
        """The profile of all steps added."""
        clocks: dict[tuple[int, ...], xr.Coordinates] = {}
        arrays = {name: self._labelled(array, clocks) for name, array in self._steps.items()}
        return DiffusionProfile({**arrays, **self._final}, provenance)

    def _capacity(self, array: StepArray) -> int:
        """For how many steps memory is taken at once; pages are not used before they are written."""
        return array.steps

    def _labelled(self, array: _GrowingArray, clocks: dict[tuple[int, ...], xr.Coordinates]) -> xr.DataArray:
        """The array of all steps; those of the same steps share coordinates, which are slow to make, in `clocks`."""
        key = tuple(array.steps)
        if key not in clocks:
            timesteps, sigmas = zip(*(self._clock[step] for step in key), strict=True)
            of_steps = {"timestep": ("step", np.array(timesteps)), "sigma": ("step", np.array(sigmas))}
            clocks[key] = xr.Coordinates({"step": np.array(key), **of_steps})
        labelled = xr.DataArray(array.values, dims=("step", *array.dims), coords=clocks[key])
        coords = array.coords
        return labelled.assign_coords(coords) if coords else labelled


class DiskStore(MemoryStore):
    """Writes what was recorded into a profile's folder during the run.

    From the first step on the folder is a profile at any time, marked `complete: false` until the run has ended. It
    lacks at most what waits in memory for the next shard.

    Args:
        folder (`str` or `os.PathLike`): A folder that does not exist or is empty.

    Raises:
        FileExistsError: If there is something already.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self._writer = ProfileWriter(Path(folder).expanduser().resolve(), claim=True)
        self._steps_written = 0
        self._waiting_bytes = 0
        self._flushed_at = -math.inf  # the first step is written at once: a bad folder shows early
        self._failed = False

    def add_step(
        self, step: int, timestep: float, sigma: float, arrays: Mapping[str, StepArray], describe: Callable[[], dict]
    ) -> None:
        """Adds what one step yielded, and writes a shard when it is time.

        Raises:
            OSError: If writing fails, for example on a full disk; the folder holds the steps written before.
        """
        super().add_step(step, timestep, sigma, arrays, describe)
        self._waiting_bytes += sum(array.values.nbytes for array in arrays.values())
        if self._waiting_bytes >= SHARD_BYTES or time.monotonic() - self._flushed_at >= SHARD_SECONDS:
            self._flush(describe())

    def close(self) -> None:
        """Gives the folder up if nothing was written into it."""
        if not self._steps_written:
            self._writer.give_up()

    def finish(self, provenance: dict[str, Any]) -> DiffusionProfile:
        """Writes what is left and opens the profile; its arrays are read when they are asked for.

        Raises:
            OSError: If writing fails.
        """
        if not self._failed and (self._steps_written or self._clock):
            self._flush(provenance, final=True)
        if not self._steps_written:
            return DiffusionProfile({}, provenance)
        return DiffusionProfile.from_pretrained(self._writer.folder)

    def _capacity(self, array: StepArray) -> int:
        return min(array.steps, 1 + SHARD_BYTES // max(array.values.nbytes, 1))

    def _flush(self, provenance: dict[str, Any], final: bool = False) -> None:
        arrays = itertools.chain(self._waiting(), self._final.items() if final else ())
        try:
            self._writer.append(arrays, provenance)
        except OSError as error:
            self._failed = True
            raise OSError(
                f"The profile could not be written: {error}. {self._writer.folder} holds the first"
                f" {self._steps_written} steps, marked incomplete."
            ) from error
        self._steps_written += len(self._clock)
        self._flushed_at = time.monotonic()
        self._waiting_bytes = 0
        self._steps, self._clock = {}, {}

    def _waiting(self) -> Iterator[tuple[str, xr.DataArray]]:
        clocks: dict[tuple[int, ...], xr.Coordinates] = {}
        for name, array in self._steps.items():
            yield name, self._labelled(array, clocks)
