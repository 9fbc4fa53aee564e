"""The diffusion profile: what a run of a diffusion model left behind, as labelled arrays."""

import os
from collections.abc import Iterator, KeysView, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from huggingface_hub import CommitInfo

from diffusers_xai.hub.transfer import is_hub_id
from diffusers_xai.measures import Mask, Measure, as_mask, max_channel, top_channels
from diffusers_xai.profile.comparison import common_steps, find_measure, measure_pairs, over_steps
from diffusers_xai.profile.jsonable import to_json
from diffusers_xai.profile.names import describe, resolve_name, unknown_name, validate_array
from diffusers_xai.profile.publishing import hub_profile, push_profile
from diffusers_xai.profile.repr import to_html, to_text
from diffusers_xai.profile.selection import pick_branch, pick_sample, pick_step, to_tensor
from diffusers_xai.profile.storage import StoredArray, read_profile, write_profile


class DiffusionProfile(Mapping[str, xr.DataArray]):
    """Labelled arrays of one run of a diffusion model, and how the run was made.

    A read-only mapping from names to `xarray.DataArray`s:

    | name                  | what                                   | dims                                           |
    |-----------------------|----------------------------------------|------------------------------------------------|
    | `samples`             | x_t, the denoiser's input at the step  | step, sample, channel, height, width           |
    | `x0`                  | the clean sample predicted at the step | step, sample, channel, height, width           |
    | `final_sample`        | the scheduler's state after the run    | sample, channel, height, width                 |
    | `activations/<layer>` | the layer's output                     | step, sample, [branch,] channel, height, width |
    | `attention_outputs`   | A_t, all attention layers in one map   | step, sample, height, width                    |
    | `measures/<name>`     | the step's input against its result    | step, sample                                   |

    Every dim comes from one vocabulary, in this order: step, sample, branch, head, channel, height, width, token,
    pixel. `step` is the 0-based index of the denoiser call; `timestep` (the scheduler's t, which may repeat) and
    `sigma` are coordinates on it. `branch` ("uncond", "cond") exists where guidance ran. `<layer>` is the layer's
    module path; wherever a layer is named, its alias in `provenance["layer_aliases"]` is understood too.

    Arrays of a loaded profile are read when they are first asked for.

    Source: thesis section 4.1.

    Args:
        arrays (`Mapping[str, xarray.DataArray]`):
            The arrays by name. Dtypes: bool, integers, float16, float32, float64.
        provenance (`Mapping[str, Any]`, *optional*):
            How the run was made, as JSON values: versions, model, scheduler, seeds, labels, what was recorded ….

    Raises:
        TypeError: If an array is no `DataArray`, or the provenance has no JSON form.
        ValueError: If an array's name, dims, dtype or coordinates do not fit, or `layer_aliases` is no mapping.
    """

    def __init__(self, arrays: Mapping[str, xr.DataArray], provenance: Mapping[str, Any] | None = None):
        self.provenance: dict[str, Any] = to_json(provenance or {})
        if not isinstance(self._aliases, dict):
            raise ValueError(f"expected layer_aliases to map aliases to module paths, got {self._aliases!r}")
        self._arrays: dict[str, xr.DataArray | StoredArray] = {
            name: validate_array(name, array) for name, array in arrays.items()
        }

    # Mapping

    def __getitem__(self, name: str) -> xr.DataArray:
        stored_name = resolve_name(name, self._arrays, self._aliases)
        if stored_name is None:
            raise unknown_name(name, self._arrays, self._aliases)
        array = self._arrays[stored_name]
        if isinstance(array, StoredArray):
            array = self._arrays[stored_name] = array.read()
        return array

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and resolve_name(name, self._arrays, self._aliases) is not None

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
    def _aliases(self) -> Mapping[str, str]:
        return self.provenance.get("layer_aliases") or {}

    # Selection

    def sel(self, name: str, *, step: int | None = None, timestep: float | None = None) -> xr.DataArray:
        """An array at one recorded step.

        Args:
            name (`str`): Name of the array; its layer may be given by an alias.
            step (`int`, *optional*): Index of the denoiser call; must be recorded.
            timestep (`float`, *optional*): The scheduler's t; the nearest recorded one is taken, the first of equals.

        Returns:
            `xarray.DataArray`: The array without its `step` dim; `step`, `timestep` and `sigma` stay as scalars.

        Raises:
            KeyError: If there is no such array, or `step` is not recorded.
            ValueError: If not exactly one of `step` and `timestep` is given, or the array has no steps.
        """
        return pick_step(self[name], step, timestep)

    def max_channel(
        self,
        layer: str,
        *,
        step: int | None = None,
        timestep: float | None = None,
        mask: Mask | None = None,
        absolute: bool = False,
        sample: int = 0,
        branch: str = "cond",
    ) -> int:
        """The layer's channel c* with the largest sum over the image, at one step.

        Source: thesis eq. 4.1.4.

        Args:
            layer (`str`): Module path or alias of a layer with recorded activations, or the full name of another array
                with channels, such as `"gradient_maps/<layer>"`.
            step (`int`, *optional*): Index of the denoiser call; must be recorded.
            timestep (`float`, *optional*): The scheduler's t; the nearest recorded one is taken, the first of equals.
            mask (array of shape `(height, width)` of the samples, bool, or a PNG file's path, *optional*): True where
                pixels count; resized to the layer bilinearly and multiplied first.
            absolute (`bool`, defaults to `False`): Sums absolute values, so that they do not cancel.
            sample (`int`, defaults to 0): Position of the sample.
            branch (`str`, defaults to `"cond"`): Guidance branch.

        Returns:
            `int`: The channel's index.

        Raises:
            KeyError: If the layer or the step is not recorded.
            ValueError: If the mask is empty, not bool or of another size than the samples, or there is no such sample,
                branch or timestep.
        """
        return self.top_channels(
            layer, 1, step=step, timestep=timestep, mask=mask, absolute=absolute, sample=sample, branch=branch
        )[0]

    def top_channels(
        self,
        layer: str,
        k: int = 5,
        *,
        step: int | None = None,
        timestep: float | None = None,
        mask: Mask | None = None,
        absolute: bool = False,
        sample: int = 0,
        branch: str = "cond",
    ) -> list[int]:
        """The layer's k channels with the largest sums over the image, at one step, the largest first.

        Source: thesis eq. 4.1.4, for more than one channel.

        Args:
            layer (`str`): As in [`max_channel`], as are the arguments that follow `k`.
            k (`int`, defaults to 5): How many, from 1 to the number of channels.
            step (`int`, *optional*): Index of the denoiser call.
            timestep (`float`, *optional*): The scheduler's t.
            mask (array of shape `(height, width)` of the samples, bool, *optional*): True where pixels count.
            absolute (`bool`, defaults to `False`): Sums absolute values.
            sample (`int`, defaults to 0): Position of the sample.
            branch (`str`, defaults to `"cond"`): Guidance branch.

        Returns:
            `list[int]`: The channels' indices; of equals the lower one first.

        Raises:
            KeyError, ValueError: As in [`max_channel`], and if the layer has not `k` channels.
        """
        record = pick_sample(pick_step(self._image_record(layer, branch), step, timestep), sample)
        mask = self._checked_mask(mask)
        return top_channels(to_tensor(record), k, mask=mask, absolute=absolute)[0].tolist()

    def max_channels(
        self,
        layer: str,
        *,
        mask: Mask | None = None,
        absolute: bool = False,
        branch: str = "cond",
    ) -> xr.DataArray:
        """The layer's channel c* at every recorded step, of every sample.

        Source: thesis eq. 4.1.4.

        Args:
            layer (`str`): As in [`max_channel`].
            mask (array of shape `(height, width)` of the samples, bool, *optional*): As in [`max_channel`].
            absolute (`bool`, defaults to `False`): As in [`max_channel`].
            branch (`str`, defaults to `"cond"`): Guidance branch.

        Returns:
            `xarray.DataArray` of dims (step, sample) and dtype int64: channel indices.

        Raises:
            KeyError: If the layer is not recorded.
            ValueError: If the mask is empty, not bool or of another size than the samples, or there is no such branch.
        """
        records = self._image_record(layer, branch)
        mask = self._checked_mask(mask)
        channels = [max_channel(to_tensor(record), mask=mask, absolute=absolute).numpy() for record in records]
        return over_steps(np.stack(channels), records, records["step"].values, "max_channel")

    # Measures

    def trajectory(
        self, measure: str = "ssim", *, layer: str | None = None, branch: str = "cond", **options: Any
    ) -> xr.DataArray:
        """A measure along the run: each recorded step compared with the next recorded one.

        `"ssim"`, its parts, `"psnr"` and `"mse"` compare the samples, the last one with `final_sample` where that is
        recorded; `"attention_distance"` the maps A_t; `"distance"` the activations of `layer`. Where
        `measures/<measure>` is stored, which the recorder computes at every step, that is returned.

        Source: thesis eq. 4.1.5 to 4.1.10, fig. 5.6, 5.7.

        Args:
            measure (`str`, defaults to `"ssim"`): A name in `MEASURES`, or of a stored measure.
            layer (`str`, *optional*): Module path or alias; for measures of activations.
            branch (`str`, defaults to `"cond"`): Guidance branch of the activations.
            options: Passed to the measure's function, as in `trajectory("distance", layer=…, normalize="minmax")`; a
                stored measure is then computed anew.

        Returns:
            `xarray.DataArray` of dims (step, sample): the value at a step belongs to it and the one recorded after it.

        Raises:
            KeyError: If the measure is unknown, or what it compares is not recorded.
            ValueError: If `layer` is missing or given in vain, or fewer than two states are recorded.
        """
        if layer is None and not options and f"measures/{measure}" in self:
            return self[f"measures/{measure}"]
        chosen = find_measure(measure)
        records = self._compared_record(chosen, layer, branch)
        states = list(records)
        if chosen.of == "samples" and "final_sample" in self:
            states.append(self["final_sample"])
        if len(states) < 2:
            raise ValueError(f"{records.name}: expected at least two recorded states to compare, got {len(states)}")
        values = measure_pairs(chosen, pairwise(states), options)
        return over_steps(values, records, records["step"].values[: len(values)], measure)

    def compare(
        self,
        other: "DiffusionProfile",
        *,
        measure: str = "ssim",
        layer: str | None = None,
        branch: str = "cond",
        **options: Any,
    ) -> xr.DataArray:
        """A measure between two runs, at the steps that both have recorded.

        Source: thesis eq. 4.1.8, 4.1.10, fig. 5.14, 5.15.

        Args:
            other (`DiffusionProfile`): The other run, with as many samples.
            measure (`str`, defaults to `"ssim"`): A name in `MEASURES`, as in [`trajectory`].
            layer (`str`, *optional*): Module path or alias; for measures of activations.
            branch (`str`, defaults to `"cond"`): Guidance branch of the activations.
            options: Passed to the measure's function.

        Returns:
            `xarray.DataArray` of dims (step, sample).

        Raises:
            KeyError: If the measure is unknown, or what it compares is not recorded in both.
            ValueError: If the two have no recorded step in common, other timesteps at a common step or other shapes.
        """
        chosen = find_measure(measure)
        mine, theirs = (profile._compared_record(chosen, layer, branch) for profile in (self, other))
        steps = common_steps(mine, theirs)
        pairs = ((mine.sel(step=step), theirs.sel(step=step)) for step in steps)
        return over_steps(measure_pairs(chosen, pairs, options), mine, steps, measure)

    # Disk

    def save_pretrained(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the profile into a new folder: `profile.json` and one safetensors file per array.

        The folder appears when it is complete. If writing fails or is interrupted, nothing half-written stays, and a
        profile that was there before stays as it was.

        Args:
            path (`str` or `os.PathLike`): The folder; missing parents are made.
            overwrite (`bool`, defaults to `False`): Replaces a profile at `path`, with everything else in its folder.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false, or what is there is not a profile.
            OSError: If writing fails, for example on a full disk.
            TypeError: If the provenance has no JSON form.
        """
        write_profile(Path(path), self, to_json(self.provenance), overwrite)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> "DiffusionProfile":
        """Opens a profile from a folder or from the Hub; each array is read when it is first asked for.

        From the Hub, the index is downloaded at once, and an array's own file when the array is asked for.

        Args:
            path (`str` or `os.PathLike`): The profile's folder, or its data set repository's id, `user/name`.
            revision (`str`, *optional*): Branch, tag or commit on the Hub; `main` if `None`. All arrays are those of
                the commit that the profile was opened at.
            token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
            cache_dir (`str` or `os.PathLike`, *optional*): Cache of downloads; `HF_HUB_CACHE` if `None`.

        Raises:
            FileNotFoundError: If there is no profile; on access, if the array's file is missing.
            HubError: If the Hub has no such repository or revision, or there is no connection.
            ValueError: If the index, or on access the array's file, is damaged, or the format version is unknown.
        """
        if not Path(path).exists() and isinstance(path, str) and is_hub_id(path):
            folder, locate = hub_profile(path, revision=revision, token=token, cache_dir=cache_dir)
            provenance, arrays = read_profile(folder, locate)
        else:
            provenance, arrays = read_profile(Path(path))
        profile = cls({}, provenance)
        profile._arrays.update(arrays)
        return profile

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload the diffusion profile",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publishes the profile as a data set repository, in one commit.

        It holds what [`save_pretrained`] writes, a card, and a table of the samples and measures that the Hub shows.
        A profile that is there is replaced.

        Args:
            repo_id (`str`): `user/name`, or a name in the user's own namespace; made if need be.
            commit_message (`str`, *optional*): Of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
            revision (`str`, *optional*): Branch to commit to; made if need be.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request with the commit instead.

        Returns:
            `huggingface_hub.CommitInfo`: The commit.

        Raises:
            ImportError: If pyarrow, which writes the table, is not installed.
            HubError: If the Hub refuses the token or the repository, or the connection stays lost; it is unchanged.
            ValueError: If `repo_id` is no id.
        """
        return push_profile(
            self,
            repo_id,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    # Display

    def __repr__(self) -> str:
        return to_text(self._headers, self.provenance)

    def _repr_html_(self) -> str:
        return to_html(self, self._headers, self.provenance)

    # Behind the above

    @property
    def _headers(self) -> dict[str, xr.DataArray]:
        """Dims, shape, dtype and coordinates of every array, none of them read for it."""
        return {
            name: array.header if isinstance(array, StoredArray) else array for name, array in self._arrays.items()
        }

    def _layer_record(self, layer: str, branch: str) -> xr.DataArray:
        return pick_branch(self[layer if "/" in layer else f"activations/{layer}"], branch)

    def _image_record(self, layer: str, branch: str) -> xr.DataArray:
        array = self._layer_record(layer, branch)
        if array.dims != ("step", "sample", "channel", "height", "width"):
            raise ValueError(f"{array.name}: expected dims step, sample, channel, height, width, got {array.dims}")
        return array

    def _compared_record(self, measure: Measure, layer: str | None, branch: str) -> xr.DataArray:
        if measure.of != "activations":
            if layer is not None:
                raise ValueError(f"measure {measure.name!r} compares {measure.of}: it takes no layer=, got {layer!r}")
            return pick_branch(self[measure.of], branch)
        if layer is None:
            layers = [name.removeprefix("activations/") for name in self if name.startswith("activations/")]
            raise ValueError(f"measure {measure.name!r} needs layer=; recorded layers: {describe(layers)}")
        return self._layer_record(layer, branch)

    def _checked_mask(self, mask: Mask | None) -> np.ndarray | None:
        """The mask, if it has the samples' size (where a recorded array tells that)."""
        if mask is None:
            return None
        for name in ("samples", "x0", "final_sample", "attention_outputs"):
            header = self._headers.get(name)
            if header is not None and header.dims[-2:] == ("height", "width"):
                return as_mask(mask, header.shape[-2:])
        return as_mask(mask)
