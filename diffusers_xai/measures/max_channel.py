"""The channel of a layer that is most active, in the whole image or inside a mask."""

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from diffusers_xai.measures.precision import to_float64


def resize_mask(mask: torch.Tensor | ArrayLike, height: int, width: int) -> torch.Tensor:
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
        `torch.Tensor` of shape `(height, width)`, dtype float32, on the mask's device: weights in [0, 1].

    Raises:
        ValueError: If the mask is not bool, not 2-D, has no True pixel, or falls between the layer's pixels.
    """
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(
            f"expected a mask of shape (height, width) and dtype bool, got shape {tuple(mask.shape)} and {mask.dtype}"
        )
    if not mask.any():
        raise ValueError(f"expected a mask with at least one True pixel, got an empty one of {_size(mask)}")
    weights = F.interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    if not weights.any():
        raise ValueError(
            f"the mask's {int(mask.sum())} pixels of {_size(mask)} vanish at the layer's size {height}x{width}: "
            "use a larger mask or a layer of higher resolution"
        )
    return weights


def channel_sums(
    activation: torch.Tensor, mask: torch.Tensor | ArrayLike | None = None, absolute: bool = False
) -> torch.Tensor:
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
            f"expected an activation (batch, channel, height, width), got shape {tuple(activation.shape)}"
        )
    activation = to_float64(activation)
    if absolute:
        activation = activation.abs()
    if mask is None:
        return activation.sum(dim=(2, 3))
    weights = resize_mask(mask, *activation.shape[2:]).to(activation)
    return (activation * weights).sum(dim=(2, 3))


def max_channel(
    activation: torch.Tensor, *, mask: torch.Tensor | ArrayLike | None = None, absolute: bool = False
) -> torch.Tensor:
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
    sums = channel_sums(activation, mask, absolute)
    if sums.isnan().any():
        raise ValueError("the activation contains NaN: it has no largest channel")
    return sums.argmax(dim=1)


def _size(mask: torch.Tensor) -> str:
    return "x".join(map(str, mask.shape))
