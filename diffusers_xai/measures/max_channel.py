"""The channels of a layer that are most active, in the whole image or inside a mask."""

import os

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from diffusers_xai.measures.masks import as_mask
from diffusers_xai.measures.precision import to_float64


Mask = torch.Tensor | ArrayLike | os.PathLike  # whatever `as_mask` takes


def resize_mask(mask: Mask, height: int, width: int) -> torch.Tensor:
    """A mask of image pixels as weights at a layer's size, by bilinear interpolation (`align_corners=False`).

    Source: thesis section 4.1.

    Args:
        mask (`torch.Tensor` or array of shape `(H, W)`, bool):
            True where the image's pixels count.
        height (`int`):
            Height of the layer, in pixels.
        width (`int`):
            Width of the layer, in pixels.

    Returns:
        `torch.Tensor` of shape `(height, width)`, dtype float32, on the CPU: weights in [0, 1].

    Raises:
        ValueError: If the mask is not bool, not 2-D, has no True pixel, or falls between the layer's pixels.
    """
    pixels = torch.tensor(as_mask(mask), dtype=torch.float32)
    weights = F.interpolate(pixels[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    if not weights.any():
        raise ValueError(
            f"Expected a mask that is left at the layer's size {(height, width)}, got {int(pixels.sum())} pixels of"
            f" {tuple(pixels.shape)}: use a larger mask or a layer of higher resolution."
        )
    return weights


def channel_sums(activation: torch.Tensor, mask: Mask | None = None, absolute: bool = False) -> torch.Tensor:
    """Sum of every channel over the image, weighted by a mask.

    Source: thesis eq. 4.1.4.

    Args:
        activation (`torch.Tensor` of shape `(batch, channel, height, width)`):
            A layer's output, or a gradient of its shape, of any real dtype.
        mask (`torch.Tensor` or array of shape `(H, W)`, bool, *optional*):
            True where the image's pixels count; resized to the layer by [`resize_mask`] and multiplied first.
        absolute (`bool`, defaults to `False`):
            Sums absolute values, so that positive and negative ones do not cancel.

    Returns:
        `torch.Tensor` of shape `(batch, channel)` and dtype float64, in the activation's unit.

    Raises:
        ValueError: If the activation is not 4-D or the mask is not a bool (H, W) array with a True pixel.
    """
    if activation.ndim != 4:
        raise ValueError(
            f"Expected an activation (batch, channel, height, width), got shape {tuple(activation.shape)}."
        )
    activation = to_float64(activation)
    if absolute:
        activation = activation.abs()
    if mask is None:
        return activation.sum(dim=(2, 3))
    weights = resize_mask(mask, *activation.shape[2:]).to(activation)
    return (activation * weights).sum(dim=(2, 3))


def max_channel(activation: torch.Tensor, *, mask: Mask | None = None, absolute: bool = False) -> torch.Tensor:
    """Index c* of the channel with the largest sum over the image.

    Source: thesis eq. 4.1.4.

    Args:
        activation (`torch.Tensor` of shape `(batch, channel, height, width)`):
            A layer's output, or a gradient of its shape, of any real dtype.
        mask (`torch.Tensor` or array of shape `(H, W)`, bool, *optional*):
            True where the image's pixels count; resized to the layer by [`resize_mask`] and multiplied first.
        absolute (`bool`, defaults to `False`):
            Sums absolute values. The thesis sums signed ones and warns that they may cancel.

    Returns:
        `torch.Tensor` of shape `(batch,)` and dtype int64: channel indices; the first one of equals.

    Raises:
        ValueError: If the activation is not 4-D or contains NaN, or the mask is not a bool (H, W) array with a True
            pixel.
    """
    return top_channels(activation, 1, mask=mask, absolute=absolute)[:, 0]


def top_channels(
    activation: torch.Tensor, k: int, *, mask: Mask | None = None, absolute: bool = False
) -> torch.Tensor:
    """Indices of the k channels with the largest sums over the image, the largest first.

    Source: thesis eq. 4.1.4, for more than one channel.

    Args:
        activation (`torch.Tensor` of shape `(batch, channel, height, width)`):
            A layer's output, or a gradient of its shape, of any real dtype.
        k (`int`):
            How many, from 1 to the number of channels.
        mask (`torch.Tensor` or array of shape `(H, W)`, bool, *optional*):
            As in [`max_channel`].
        absolute (`bool`, defaults to `False`):
            As in [`max_channel`].

    Returns:
        `torch.Tensor` of shape `(batch, k)` and dtype int64: channel indices; of equals the lower index first.

    Raises:
        ValueError: As in [`max_channel`], and if there are not `k` channels.
    """
    sums = channel_sums(activation, mask, absolute)
    if not 1 <= k <= sums.shape[1]:
        raise ValueError(f"Expected k in 1..{sums.shape[1]}, the number of channels, got {k}.")
    if sums.isnan().any():
        raise ValueError("Expected an activation of numbers, which has a largest channel, got NaN.")
    return sums.sort(dim=1, descending=True, stable=True).indices[:, :k]
