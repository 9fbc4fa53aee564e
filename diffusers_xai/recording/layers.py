"""Layers as specs name them, and their outputs as profiles hold them."""

from collections.abc import Iterable

import torch
from torch import nn

from diffusers_xai.denoisers import Denoiser


_DIMS_BY_RANK = {4: ("channel", "height", "width"), 3: ("channel", "token"), 2: ("channel",)}


def layer_names(layers: str | Iterable[str]) -> tuple[str, ...]:
    """One or several layer names or globs as a tuple.

    Raises:
        TypeError: if something is not a name.
    """
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"Expected `layers` as a name or several, got {names}.")
    return names


def with_dims(
    path: str, output: torch.Tensor, denoiser: Denoiser, sample_size: tuple[int, int]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """A layer's output (batch, …) in the order of a profile's dims, with their names.

    Tokens that cover the image become a grid (channel, height, width); other tokens are (channel, token), vectors
    (channel).

    Raises:
        RuntimeError: for an output of other dimensions.
    """
    if output.ndim == 3 and isinstance(denoiser.layers[path], nn.GroupNorm):
        output = output.transpose(1, 2)  # inside diffusers' attention it gets (batch, channel, token)
    grid = denoiser.to_grid(output, sample_size)
    if grid.ndim not in _DIMS_BY_RANK:
        raise RuntimeError(f"{path}: expected an output of 2 to 4 dimensions, got shape {tuple(output.shape)}.")
    return grid.transpose(1, 2) if grid.ndim == 3 else grid, _DIMS_BY_RANK[grid.ndim]
