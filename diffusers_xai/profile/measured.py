"""What a profile is asked for: its arrays at a step, its most active channels, measures of its run and of two runs."""

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from diffusers_xai.measures import Mask, Measure, as_mask, max_channel, top_channels
from diffusers_xai.profile.comparison import common_steps, find_measure, measure_pairs, over_steps
from diffusers_xai.profile.mapping import ProfileArrays
from diffusers_xai.profile.names import describe
from diffusers_xai.profile.selection import pick_branch, pick_sample, pick_step, to_tensor


class MeasuredProfile(ProfileArrays):
    """A profile that selects and measures; see [`DiffusionProfile`]."""

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
                stored measure is then recomputed.

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
            raise ValueError(f"{records.name}: expected at least two recorded states to compare, got {len(states)}.")
        values = measure_pairs(chosen, pairwise(states), options)
        return over_steps(values, records, records["step"].values[: len(values)], measure)

    def compare(
        self,
        other: "MeasuredProfile",
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

    def _layer_record(self, layer: str, branch: str) -> xr.DataArray:
        return pick_branch(self[layer if "/" in layer else f"activations/{layer}"], branch)

    def _image_record(self, layer: str, branch: str) -> xr.DataArray:
        array = self._layer_record(layer, branch)
        if array.dims != ("step", "sample", "channel", "height", "width"):
            raise ValueError(f"{array.name}: expected dims step, sample, channel, height, width, got {array.dims}.")
        return array

    def _compared_record(self, measure: Measure, layer: str | None, branch: str) -> xr.DataArray:
        if measure.of != "activations":
            if layer is not None:
                raise ValueError(
                    f"Expected no layer= for the measure {measure.name!r} of {measure.of}, got {layer!r}."
                )
            return pick_branch(self[measure.of], branch)
        if layer is None:
            layers = [name.removeprefix("activations/") for name in self if name.startswith("activations/")]
            raise ValueError(
                f"Expected layer= for the measure {measure.name!r}, got none; available: {describe(layers)}."
            )
        return self._layer_record(layer, branch)

    def _checked_mask(self, mask: Mask | None) -> np.ndarray | None:
        """The mask, if it has the samples' size (where a recorded array tells that)."""
        if mask is None:
            return None
        for name in ("samples", "x0", "final_sample", "attention_outputs"):
            header = self.headers.get(name)
            if header is not None and header.dims[-2:] == ("height", "width"):
                return as_mask(mask, header.shape[-2:])
        return as_mask(mask)
