"""What a profile's arrays may look like, and how their names are found."""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from diffusers_xai.profile.jsonable import to_json


DIMS = (
    "step", "sample", "branch", "head", "pixel", "query", "channel", "frame", "height", "width", "token",
)  # fmt: skip
# Guidance branches; `branch_<i>` where a pipeline has more and nothing tells their names.
BRANCHES = ("uncond", "cond", "image", "perturbed", "degraded", "skipped", *(f"branch_{i}" for i in range(16)))
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip

_MAX_LISTED = 12


def validate_array(name: str, array: xr.DataArray) -> xr.DataArray:
    """Checks an array against the profile's vocabulary, and that it can be stored.

    Args:
        name (`str`): Name of the array in the profile, such as `"samples"` or `"activations/mid_block"`.
        array (`xarray.DataArray`): The array; its dims must come from `DIMS`, in that order.

    Returns:
        `xarray.DataArray`: The same values under the name `name`, with attributes as JSON values and text coordinates
        in numpy's fixed-width form. The argument stays as it is.

    Raises:
        TypeError: If `array` is no DataArray, or an attribute cannot be written as JSON.
        ValueError: If the name, the dims, the dtype or the coordinates are not what a profile holds.
    """
    _check_name_and_type(name, array)
    positions = [DIMS.index(dim) if dim in DIMS else -1 for dim in array.dims]
    if not array.dims or -1 in positions or positions != sorted(positions):
        raise ValueError(f"{name}: expected dims from {DIMS}, in this order, got {array.dims}.")
    array = storable_array(name, array)
    _validate_steps(name, array)
    _validate_branches(name, array)
    return array


def storable_array(name: str, array: xr.DataArray) -> xr.DataArray:
    """Checks that an array can be stored as a profile's are, whatever its dims.

    Args:
        name (`str`): Its name.
        array (`xarray.DataArray`): The array.

    Returns:
        `xarray.DataArray`: As [`validate_array`] returns it.

    Raises:
        TypeError, ValueError: As of [`validate_array`], but for the dims and their coordinates.
    """
    _check_name_and_type(name, array)
    if str(array.dtype) not in DTYPES:
        raise ValueError(f"{name}: expected one of the dtypes {', '.join(DTYPES)}, got {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one value, got shape {array.shape}.")

    array = array.copy(deep=False)
    array.name = name
    array.attrs = to_json(array.attrs, f"attrs of {name}")
    for key, coord in list(array.coords.variables.items()):
        attrs = to_json(coord.attrs, f"attrs of {name}'s coordinate {key}")
        if str(coord.dtype) in DTYPES:
            coord.attrs = attrs
        else:
            array = array.assign_coords(
                {key: (coord.dims, _fixed_width_text(f"{name}: coordinate {key!r}", coord), attrs)}
            )
    return array


def _check_name_and_type(name: str, array: xr.DataArray) -> None:
    if not isinstance(name, str) or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"Expected an array name such as 'samples' or 'activations/<layer>', got {name!r}.")
    if not isinstance(array, xr.DataArray):
        raise TypeError(f"{name}: expected an xarray.DataArray, got {type(array).__name__}.")


def _fixed_width_text(name: str, coord: xr.Variable) -> np.ndarray:
    texts = coord.values.astype(object)
    if not all(isinstance(text, str) for text in texts.ravel()):
        raise ValueError(f"{name}: expected text or numbers of the dtypes {', '.join(DTYPES)}, got {coord.dtype}.")
    return texts.astype(str)


def _validate_steps(name: str, array: xr.DataArray) -> None:
    if "step" not in array.dims:
        return
    coords = array.coords.variables  # as coordinates, each would become an array of its own
    steps = coords["step"].values if "step" in coords else None
    if steps is None or steps.dtype.kind not in "iu" or steps[0] < 0 or (np.diff(steps.astype(np.int64)) <= 0).any():
        got = "none" if steps is None else f"{steps.dtype} {describe(steps.tolist())}"
        raise ValueError(f"{name}: expected increasing integer coordinates 'step' from 0 on, got {got}.")
    for clock in ("timestep", "sigma"):
        if clock in coords:
            coord = coords[clock]
            if coord.dims != ("step",) or coord.dtype.kind != "f":
                raise ValueError(
                    f"{name}: expected {clock!r} to be a float coordinate on ('step',), "
                    f"got {coord.dtype} on {coord.dims}."
                )


def _validate_branches(name: str, array: xr.DataArray) -> None:
    if "branch" not in array.dims:
        return
    branches = array.coords.variables["branch"].values.tolist() if "branch" in array.coords else []
    if not branches or len(set(branches)) < len(branches) or not set(branches) <= set(BRANCHES):
        raise ValueError(f"{name}: expected coordinates 'branch' from {BRANCHES}, got {branches or 'none'}.")


def layer_path(layer: str, aliases: Mapping[str, str]) -> str:
    """The module path of a layer that may be named by an alias; `aliases` maps alias -> path."""
    return aliases.get(layer, layer)


def short_name(path: str, aliases: Mapping[str, str]) -> str:
    """The shortest alias of a layer, or its path."""
    return min((alias for alias, target in aliases.items() if target == path), key=len, default=path)


def resolve_name(name: str, names: Collection[str], aliases: Mapping[str, str]) -> str | None:
    """The stored one of `names` that `name` means, either directly or with its layer given by an alias.

    Args:
        name (`str`): `"samples"`, `"activations/<module path>"` or `"activations/<alias>"`.
        names (`Collection[str]`): Names of the stored arrays.
        aliases (`Mapping[str, str]`): Alias of a layer -> its module path.

    Returns:
        `str` or `None`: A member of `names`; `None` if there is no such array.
    """
    if name in names:
        return name
    group, _, layer = name.partition("/")
    resolved = f"{group}/{layer_path(layer, aliases)}"
    return resolved if resolved in names else None


def unknown_name(name: str, names: Collection[str], aliases: Mapping[str, str]) -> KeyError:
    """The error for a name that is not in the profile; it lists the nearest names, aliases included.

    Args:
        name (`str`): The name that was asked for.
        names (`Collection[str]`): Names of the stored arrays.
        aliases (`Mapping[str, str]`): Alias of a layer -> its module path.
    """
    groups = {stored.split("/", 1)[0] for stored in names if "/" in stored}
    by_alias = [
        f"{group}/{alias}" for group in groups for alias, path in aliases.items() if f"{group}/{path}" in names
    ]
    nearest = difflib.get_close_matches(name, [*names, *by_alias], n=5, cutoff=0.5)
    found = f"nearest: {', '.join(nearest)}" if nearest else f"available: {describe(names)}"
    return KeyError(f"Expected an array of this profile, got {name!r}; {found}.")


def describe(values: Iterable[Any]) -> str:
    """The values separated by commas, the middle left out when they are many."""
    texts = [f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value) for value in values]
    if len(texts) > _MAX_LISTED:
        half = _MAX_LISTED // 2
        texts = [*texts[:half], f"… ({len(texts) - 2 * half} more)", *texts[-half:]]
    return ", ".join(texts) or "nothing"
