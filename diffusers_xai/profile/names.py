"""What a profile's arrays may look like, and how their names are found."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr


DIMS = ("step", "sample", "branch", "head", "channel", "height", "width", "token", "pixel")
BRANCHES = ("uncond", "cond")
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip

_MAX_LISTED = 12


def validate_array(name: str, array: xr.DataArray) -> xr.DataArray:
    """Checks an array against the profile's vocabulary.

    Args:
        name (`str`): Name of the array in the profile, such as `"samples"` or `"activations/mid_block"`.
        array (`xarray.DataArray`): The array; its dims must come from `DIMS`, in that order.

    Returns:
        `xarray.DataArray`: The same values under the name `name`, with attributes as JSON values and text coordinates
        in numpy's fixed-width form.

    Raises:
        TypeError: If `array` is no DataArray, or an attribute cannot be written as JSON.
        ValueError: If the name, the dims, the dtype or the coordinates are not what a profile holds.
    """
    if not isinstance(name, str) or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"expected an array name such as 'samples' or 'activations/<layer>', got {name!r}")
    if not isinstance(array, xr.DataArray):
        raise TypeError(f"{name}: expected an xarray.DataArray, got {type(array).__name__}")
    positions = [DIMS.index(dim) if dim in DIMS else -1 for dim in array.dims]
    if not array.dims or -1 in positions or positions != sorted(positions):
        raise ValueError(f"{name}: expected dims from {DIMS}, in this order, got {array.dims}")
    if str(array.dtype) not in DTYPES:
        raise ValueError(f"{name}: expected one of the dtypes {', '.join(DTYPES)}, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one value, got shape {array.shape}")

    array = array.copy(deep=False)
    array.name = name
    array.attrs = to_json(array.attrs, f"attrs of {name}")
    for coord_name, coord in array.coords.items():
        if coord.dtype.kind not in "biuf":
            texts = coord.values.tolist()
            if not all(isinstance(text, str) for text in np.ravel(np.array(texts, dtype=object))):
                raise ValueError(
                    f"{name}: expected coordinate {coord_name!r} to hold numbers or text, got {coord.dtype}"
                )
            array = array.assign_coords({coord_name: (coord.dims, np.array(texts, dtype=str))})
    _validate_coords(name, array)
    return array


def _validate_coords(name: str, array: xr.DataArray) -> None:
    if "step" in array.dims:
        steps = array.coords["step"].values if "step" in array.coords else None
        if steps is None or steps.dtype.kind not in "iu" or steps.min() < 0 or (np.diff(steps.astype(int)) <= 0).any():
            got = "none" if steps is None else f"{steps.dtype} {describe(steps.tolist())}"
            raise ValueError(f"{name}: expected increasing integer coordinates 'step' from 0 on, got {got}")
        for clock in ("timestep", "sigma"):
            if clock in array.coords:
                coord = array.coords[clock]
                if coord.dims != ("step",) or coord.dtype.kind != "f":
                    raise ValueError(
                        f"{name}: expected {clock!r} to be a float coordinate on ('step',), "
                        f"got {coord.dtype} on {coord.dims}"
                    )
    if "branch" in array.dims:
        branches = array.coords["branch"].values.tolist() if "branch" in array.coords else []
        if not branches or len(set(branches)) < len(branches) or not set(branches) <= set(BRANCHES):
            raise ValueError(f"{name}: expected coordinates 'branch' from {BRANCHES}, got {branches or 'none'}")


def to_json(value: Any, where: str = "provenance") -> Any:
    """A copy of `value` made of JSON types only: numpy scalars become Python's, tuples lists, keys text.

    Args:
        value (`Any`): Nested mappings, lists and tuples of text, numbers, booleans and `None`.
        where (`str`): How the error calls the value.

    Returns:
        `Any`: What writing `value` to a profile and reading it again gives.

    Raises:
        TypeError: If something in it has no JSON form; the text says where.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: expected text, numbers, lists and dicts, got {type(value).__name__}: {value!r:.80}")


def resolve_name(name: str, names: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The stored one of `names` that `name` means, either directly or with its layer given by an alias.

    Args:
        name (`str`): `"samples"`, `"activations/<module path>"` or `"activations/<alias>"`.
        names (`Iterable[str]`): Names of the stored arrays.
        aliases (`Mapping[str, str]`): Alias of a layer -> its module path.

    Returns:
        `str` or `None`: A member of `names`; `None` if there is no such array.
    """
    if name in names:
        return name
    group, _, layer = name.partition("/")
    resolved = f"{group}/{aliases.get(layer, layer)}"
    return resolved if resolved in names else None


def unknown_name(name: str, names: Iterable[str], aliases: Mapping[str, str]) -> KeyError:
    """The error for a name that is not in the profile; it lists the nearest names, aliases included."""
    names = list(names)
    by_alias = [
        f"{group}/{alias}"
        for group, layer in (stored.split("/", 1) for stored in names if "/" in stored)
        for alias, path in aliases.items()
        if path == layer
    ]
    nearest = difflib.get_close_matches(name, [*names, *by_alias], n=5, cutoff=0.5)
    if nearest:
        return KeyError(f"no array {name!r} in this profile; nearest: {', '.join(nearest)}")
    return KeyError(f"no array {name!r} in this profile; it holds: {describe(names)}")


def describe(values: Iterable[Any]) -> str:
    """The values separated by commas, the middle left out when they are many."""
    texts = [f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value) for value in values]
    if len(texts) > _MAX_LISTED:
        half = _MAX_LISTED // 2
        texts = [*texts[:half], f"… ({len(texts) - 2 * half} more)", *texts[-half:]]
    return ", ".join(texts) or "nothing"
