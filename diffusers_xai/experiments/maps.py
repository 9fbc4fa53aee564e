"""Maps at one size: of layers' most active channels, and of what a region of the clean image depends on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from diffusers_xai.experiments.nulls import noise_ratio, state_size
from diffusers_xai.passed import Scheduler
from diffusers_xai.prediction import is_flow
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.selection import pick_branch


def max_channel_maps(
    profile: DiffusionProfile,
    names: Sequence[str],
    size: Sequence[int],
    *,
    absolute: bool = False,
    mode: str = "nearest",
) -> xr.Dataset:
    """The map of the channel c* of each layer at every recorded step; c* is looked up at each step.

    Source: thesis eq. 4.1.4.

    Args:
        profile ([`DiffusionProfile`]): Holds the arrays.
        names (`Sequence[str]`): Full names of arrays of maps with the same steps, such as `"activations/<layer>"`.
        size (`Sequence[int]`): Height and width that all maps are resized to, and
        mode (`str`, defaults to `"nearest"`): how, see `torch.nn.functional.interpolate`.
        absolute (`bool`, defaults to `False`): See [`DiffusionProfile.max_channel`].

    Returns:
        `xarray.Dataset`: `map` of dims (layer, step, seed, height, width), float32, and `channel` of dims (layer,
        step, seed). Under guidance, of the branch with the label.
    """
    maps, channels = [], []
    for name in names:
        array = pick_branch(profile[name], "cond")
        best = profile.max_channels(name, absolute=absolute).values
        values = np.take_along_axis(array.values, best[:, :, None, None, None], axis=2)[:, :, 0]
        maps.append(resized(values, size, mode))
        channels.append(best)
    dims = ("layer", "step", "seed")
    return xr.Dataset({"map": ((*dims, "height", "width"), np.stack(maps)), "channel": (dims, np.stack(channels))})


def resized(maps: np.ndarray, size: Sequence[int], mode: str) -> np.ndarray:
    """Maps of shape (…, height, width) -> (…, *size), float32, by `torch.nn.functional.interpolate`."""
    flat = torch.from_numpy(maps.astype(np.float32).reshape(1, -1, *maps.shape[-2:]))
    return F.interpolate(flat, size=tuple(size), mode=mode).numpy().reshape(*maps.shape[:-2], *size)


def by_noised_image(volume: xr.DataArray, scheduler: Scheduler) -> xr.DataArray:
    """A volume of the noise by x_t = √ᾱ x_0 + √(1 − ᾱ) ε, with sigma √((1 − ᾱ) / ᾱ).

    It is by the network's input, which is x_t but in flow matching, where it is x_t times a factor.
    """
    volume, sigma = volume.astype(np.float64), volume["sigma"].astype(np.float64)
    if is_flow(scheduler):
        volume = volume * state_size(sigma, scheduler)
    return volume.assign_coords(sigma=noise_ratio(sigma, scheduler))


def clean_image_volume(volume: xr.DataArray) -> xr.DataArray:
    """Gradient of the predicted clean image √ᾱ x̂_0, from that of the noise: x̂_0 = (x_t − √(1 − ᾱ) ε) / √ᾱ.

    In the volume of the noise itself, a network that predicts x_0 shows little but the identity.

    Source: thesis eq. 4.1.2.

    Args:
        volume (`xarray.DataArray`): A volume of the noise by `by_noised_image`, with the dims pixel, channel, height,
            width and others.

    Returns:
        `xarray.DataArray` of the same dims, float64.
    """
    sigma = volume["sigma"].astype(np.float64)
    return identity_volume(volume) - volume.astype(np.float64) / np.sqrt(1 + 1 / sigma**2)


def identity_volume(volume: xr.DataArray) -> xr.DataArray:
    """The gradient of the input itself: 1 where the input's pixel is the output's; dims pixel, height, width."""
    rows, columns = (xr.DataArray(np.arange(volume.sizes[d]), dims=d) for d in ("height", "width"))
    return ((volume["row"] == rows) & (volume["column"] == columns)).astype(np.float64)


def energy(volume: xr.DataArray) -> xr.DataArray:
    """Squares summed over the region's pixels and the input's channels."""
    return (volume**2).sum(["pixel", "channel"])


def standardised(maps: np.ndarray) -> np.ndarray:
    """(…, h, w) -> (…, pixel) of mean 0 and norm 1, so that products are correlations; 0 where a map is constant."""
    flat = np.asarray(maps, dtype=np.float64).reshape(*maps.shape[:-2], -1)
    flat = flat - flat.mean(-1, keepdims=True)
    norm = np.linalg.norm(flat, axis=-1, keepdims=True)
    return flat / np.where(norm > 0, norm, np.inf)


def pooled(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Means over the pixels of each cell of a map of the given size."""
    flat = torch.from_numpy(np.asarray(maps, dtype=np.float64).reshape(1, -1, *maps.shape[-2:]))
    height, width = size
    return F.adaptive_avg_pool2d(flat, (height, width)).numpy().reshape(*maps.shape[:-2], height, width)
