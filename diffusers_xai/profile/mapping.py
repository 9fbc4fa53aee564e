"""The mapping that a profile is: names, aliases of layers, and arrays that are read when they are asked for."""

from collections.abc import Iterator, KeysView, Mapping
from typing import Any

import pandas as pd
import xarray as xr

from diffusers_xai.profile import conversion
from diffusers_xai.profile.jsonable import to_json
from diffusers_xai.profile.names import resolve_name, unknown_name, validate_array
from diffusers_xai.profile.repr import to_html, to_text
from diffusers_xai.profile.storage import StoredArray


class ProfileArrays(Mapping[str, xr.DataArray]):
    """Arrays by name, and how they were made; see [`DiffusionProfile`]."""

    def __init__(self, arrays: Mapping[str, xr.DataArray], provenance: Mapping[str, Any] | None = None):
        self.provenance: dict[str, Any] = to_json(provenance or {})
        if not isinstance(self.layer_aliases, dict):
            raise ValueError(f"Expected layer_aliases to map aliases to module paths, got {self.layer_aliases!r}.")
        self._arrays: dict[str, xr.DataArray | StoredArray] = {
            name: validate_array(name, array) for name, array in arrays.items()
        }

    def __getitem__(self, name: str) -> xr.DataArray:
        stored_name = resolve_name(name, self._arrays, self.layer_aliases)
        if stored_name is None:
            raise unknown_name(name, self._arrays, self.layer_aliases)
        array = self._arrays[stored_name]
        if isinstance(array, StoredArray):
            array = self._arrays[stored_name] = array.read()
        return array

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and resolve_name(name, self._arrays, self.layer_aliases) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def keys(self) -> KeysView[str]:
        """Names of the arrays, layers by their module paths."""
        return self._arrays.keys()

    # Two profiles compare by identity: arrays have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def layer_aliases(self) -> Mapping[str, str]:
        """Other names of recorded layers -> module paths."""
        return self.provenance.get("layer_aliases") or {}

    @property
    def class_attributes(self) -> tuple[str, ...]:
        """Names of the label's bits, most significant first; empty where a label is not made of attributes."""
        return tuple(self.provenance.get("model", {}).get("config", {}).get("class_attributes") or ())

    @property
    def headers(self) -> dict[str, xr.DataArray]:
        """Dims, shape, dtype and coordinates of every array, none of them read for it."""
        return {
            name: array.header if isinstance(array, StoredArray) else array for name, array in self._arrays.items()
        }

    def to_dataset(self) -> xr.Dataset:
        """All arrays as one `xarray.Dataset`, the provenance as its attributes.

        The arrays share a dim where they have the same coordinates on it. An array that was recorded at other steps,
        or whose layer has other channels or another size, gets dims of its own there, named
        `"<dim> of <array>"`: nothing is filled in.
        """
        return conversion.to_dataset(self, self.provenance)

    def to_datatree(self) -> xr.DataTree:
        """All arrays as an `xarray.DataTree`: each is the variable `values` of a node with the array's name.

        `tree["activations/mid_block/values"]` is the layer's array; the provenance is the root's attributes.
        """
        return conversion.to_datatree(self, self.provenance)

    def to_dataframe(self, name: str | None = None) -> pd.DataFrame:
        """A pandas table.

        Args:
            name (`str`, *optional*): An array, of which every value becomes a row. If `None`, the table has a row for
                each recorded step and sample, with the timestep, sigma, seed and label, and a column for every array
                that holds one number there, such as `measures/ssim`.

        Raises:
            KeyError: If there is no such array.
        """
        return conversion.to_dataframe(self, self.provenance) if name is None else self[name].to_dataframe(name=name)

    def __repr__(self) -> str:
        return to_text(self.headers, self.provenance)

    def _repr_html_(self) -> str:
        return to_html(self, self.headers, self.provenance)
