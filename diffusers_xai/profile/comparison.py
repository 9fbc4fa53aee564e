"""What `trajectory` and `compare` share: measures over pairs of recorded states."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from diffusers_xai.measures import MEASURES, Measure
from diffusers_xai.profile.names import describe
from diffusers_xai.profile.selection import to_tensor


def find_measure(name: str) -> Measure:
    """The registered measure of that name.

    Raises:
        KeyError: If there is none; the text lists them.
    """
    if name not in MEASURES:
        raise KeyError(f"Expected a measure, got {name!r}; available: {', '.join(MEASURES)}.")
    return MEASURES[name]


def measure_pairs(
    measure: Measure, pairs: Iterable[tuple[xr.DataArray, xr.DataArray]], options: dict[str, Any]
) -> np.ndarray:
    """The measure of each pair of states (sample, ...), as an array (pair, sample). Holds one pair at a time."""
    return np.stack([measure.function(to_tensor(a), to_tensor(b), **options).numpy() for a, b in pairs])


def common_steps(mine: xr.DataArray, theirs: xr.DataArray) -> np.ndarray:
    """The steps that two records (step, sample, ...) both have.

    Raises:
        ValueError: If there is none, or the records' shapes differ, or their timesteps at the common steps.
    """
    steps = np.intersect1d(mine["step"].values, theirs["step"].values)
    if not steps.size:
        got = " and ".join(describe(record["step"].values.tolist()) for record in (mine, theirs))
        raise ValueError(f"{mine.name}: expected a recorded step in common, got steps {got}.")
    if mine.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"{mine.name}: expected equal shapes at the common steps, got {mine.shape[1:]} and {theirs.shape[1:]}."
        )
    if "timestep" in mine.coords and "timestep" in theirs.coords:
        t_mine, t_theirs = (record["timestep"].sel(step=steps).values for record in (mine, theirs))
        differ = ~np.isclose(t_mine, t_theirs, equal_nan=True)
        if differ.any():
            first = int(differ.argmax())
            raise ValueError(
                f"{mine.name}: expected equal timesteps at the common steps, got t={t_mine[first]:g} and "
                f"t={t_theirs[first]:g} at step {steps[first]}: the schedules differ."
            )
    return steps


def over_steps(values: np.ndarray, records: xr.DataArray, steps: np.ndarray, name: str) -> xr.DataArray:
    """`values` (step, sample) as an array that says what it was computed from.

    It takes over the coordinates of `records` at `steps` on these two dims, and the layer as an attribute.
    """
    at_steps = records.coords.to_dataset().sel(step=steps).variables
    coords = {key: coord for key, coord in at_steps.items() if coord.dims and set(coord.dims) <= {"step", "sample"}}
    layer = str(records.name).partition("/")[2]
    attrs = {"layer": layer} if layer else {}
    return xr.DataArray(values, dims=("step", "sample"), coords=coords, name=name, attrs=attrs)
