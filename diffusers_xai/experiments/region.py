"""A region of the image, and what the clean image within it depends on."""

import numpy as np
import xarray as xr

from diffusers_xai.measures import Mask, as_mask
from diffusers_xai.pipelines import XAIPipeline


def region_or_middle(pipe: XAIPipeline, mask: Mask | None) -> np.ndarray:
    """The mask of shape (height, width), bool; a square in the middle of the image if it is `None`."""
    height, width = pipe._sample_shape[-2:]
    if mask is not None:
        return as_mask(mask, (height, width))
    region = np.zeros((height, width), dtype=bool)
    region[3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = True
    return region


def clean_image_energy(volume: xr.DataArray) -> xr.DataArray:
    """Squared gradient of the predicted clean image, summed over the region's pixels and the input's channels.

    x̂_0 is a multiple of x_t - s ε with s = √(1 - ᾱ), whatever the network predicts; that factor of each step is left
    out. In the volume of the noise itself, a network that predicts x_0 shows little but the identity.

    Source: thesis eq. 4.1.2.

    Args:
        volume (`xarray.DataArray`): A volume of the noise, with the dims pixel, channel, height, width and others.

    Returns:
        `xarray.DataArray` without the dims pixel and channel, float64.
    """
    sigma = volume["sigma"].astype(np.float64)
    gradient = -(sigma / np.sqrt(1 + sigma**2)) * volume.astype(np.float64)
    identity = (volume["row"] == xr.DataArray(np.arange(volume.sizes["height"]), dims="height")) & (
        volume["column"] == xr.DataArray(np.arange(volume.sizes["width"]), dims="width")
    )
    return ((gradient + identity) ** 2).sum(["pixel", "channel"])
