"""Picking one step, sample or guidance branch out of a profile's array."""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from diffusers_xai.profile.names import describe


def pick_step(array: xr.DataArray, step: int | None, timestep: float | None) -> xr.DataArray:
    """The array at one recorded step, without its `step` dim.

    Args:
        array (`xarray.DataArray`): An array of a profile.
        step (`int`, *optional*): Index of the denoiser call; must be recorded.
        timestep (`float`, *optional*): The scheduler's t; the nearest recorded one is taken, the first of equals.

    Raises:
        KeyError: If `step` is not recorded.
        ValueError: If not exactly one of the two is given, or the array has no steps or timesteps.
    """
    if (step is None) == (timestep is None):
        raise ValueError(f"Expected either step= or timestep=, got step={step!r} and timestep={timestep!r}.")
    if "step" not in array.dims:
        raise ValueError(f"{array.name}: expected an array with steps, got the dims {array.dims}.")
    if timestep is None:
        steps = array.coords["step"].values
        if step not in steps:
            raise KeyError(
                f"{array.name}: expected a recorded step, got {step}; available: {describe(steps.tolist())}."
            )
        return array.isel(step=int((steps == step).argmax()))
    if "timestep" not in array.coords:
        raise ValueError(f"{array.name}: expected an array with timesteps, got none. Choose by step=.")
    timesteps = array.coords["timestep"].values
    if not math.isfinite(timestep):
        recorded = describe(timesteps.tolist())
        raise ValueError(f"{array.name}: expected a finite timestep, got {timestep}; available: {recorded}.")
    return array.isel(step=nearest(timesteps, timestep))


def nearest(values: ArrayLike, wanted: float) -> int:
    """Position of the value that is nearest to the wanted one, the first of equals."""
    return int(np.abs(np.asarray(values) - wanted).argmin())


def pick_branch(array: xr.DataArray, branch: str) -> xr.DataArray:
    """The array for one guidance branch, without its `branch` dim; without guidance there is only `"cond"`.

    Raises:
        ValueError: If the run had no such branch.
    """
    branches = array.coords["branch"].values.tolist() if "branch" in array.dims else ["cond"]
    if branch not in branches:
        raise ValueError(f"{array.name}: expected branch to be one of {branches}, got {branch!r}.")
    return array.isel(branch=branches.index(branch)) if "branch" in array.dims else array


def pick_sample(array: xr.DataArray, sample: int) -> xr.DataArray:
    """The array for the sample at a position, which stays as a dim of size 1.

    Raises:
        ValueError: If there is no such sample.
    """
    if not 0 <= sample < array.sizes["sample"]:
        raise ValueError(f"{array.name}: expected sample to be in 0..{array.sizes['sample'] - 1}, got {sample}.")
    return array.isel(sample=[sample])


def to_tensor(array: Any) -> torch.Tensor:
    """The values as a CPU tensor of the same dtype, without a copy where torch allows it."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
