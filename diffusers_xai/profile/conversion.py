"""A profile's arrays as what other libraries work with."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr


def to_dataset(arrays: Mapping[str, xr.DataArray], provenance: Mapping[str, Any]) -> xr.Dataset:
    """See `DiffusionProfile.to_dataset`."""
    axes: dict[str, xr.Dataset] = {}  # dim -> the coordinates of the first array that has it
    variables = {}
    for name, array in arrays.items():
        own: dict[str, str] = {}
        for dim in map(str, array.dims):
            axis = _axis(array, dim)
            if not axis.identical(axes.setdefault(dim, axis)):
                own |= {key: f"{key} of {name}" for key in [dim, *map(str, axis.coords)]}
        variables[name] = array.rename(own)
    return xr.Dataset(variables, attrs=dict(provenance))


def to_datatree(arrays: Mapping[str, xr.DataArray], provenance: Mapping[str, Any]) -> xr.DataTree:
    """See `DiffusionProfile.to_datatree`."""
    nodes = {name: array.to_dataset(name="values") for name, array in arrays.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(provenance)), **nodes})


def to_dataframe(arrays: Mapping[str, xr.DataArray], provenance: Mapping[str, Any]) -> pd.DataFrame:
    """See `DiffusionProfile.to_dataframe`."""
    scalars = {name: array for name, array in arrays.items() if array.dims == ("step", "sample")}
    columns = {name: array.to_series() for name, array in scalars.items()}
    index = pd.MultiIndex.from_tuples([], names=["step", "sample"])
    table = pd.DataFrame(columns, index=None if columns else index)
    for column, key in (("label", "class_labels"), ("seed", "seeds")):
        values = provenance.get(key) or []
        if len(values) > max(table.index.get_level_values("sample"), default=len(values)):
            table.insert(0, column, [values[sample] for sample in table.index.get_level_values("sample")])
    for clock in ("sigma", "timestep"):
        known: dict[int, float] = {}
        for array in scalars.values():
            if clock in array.coords:
                known |= array[clock].to_series().to_dict()
        table.insert(0, clock, [known.get(step) for step in table.index.get_level_values("step")])
    return table


def _axis(array: xr.DataArray, dim: str) -> xr.Dataset:
    """The dim's coordinates, with a variable of its length for a dim without any."""
    coords = {key: coord.variable for key, coord in array.coords.items() if coord.dims == (dim,)}
    return xr.Dataset({"length": array.sizes[dim]}, coords=coords)
