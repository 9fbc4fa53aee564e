"""Mean squared error of image batches, and PSNR made of it."""

import torch

from diffusers_xai.measures.precision import to_float64


def mean_squared_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each pair of images.

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): First images, of any real dtype.
        y (`torch.Tensor` of shape `(batch, ...)`): Second images, of the shape and on the device of `x`.

    Returns:
        `torch.Tensor` of shape `(batch,)` and dtype float64: values in [0, inf); 0 means equal images.

    Raises:
        ValueError: If the shapes differ or have no axis after the batch.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"Expected two tensors of one shape (batch, ...), got {tuple(x.shape)} and {tuple(y.shape)}.")
    return (to_float64(x) - to_float64(y)).square().flatten(1).mean(dim=1)


def peak_signal_to_noise_ratio(x: torch.Tensor, y: torch.Tensor, *, data_range: float = 2.0) -> torch.Tensor:
    """PSNR of each pair of images, 10 log₁₀(data_range² / MSE).

    Source: thesis fig. B.2; scikit-image's `peak_signal_noise_ratio`.

    Args:
        x (`torch.Tensor` of shape `(batch, ...)`): First images, of any real dtype.
        y (`torch.Tensor` of shape `(batch, ...)`): Second images, of the shape and on the device of `x`.
        data_range (`float`, defaults to 2.0): Distance between the smallest and the largest possible pixel value.

    Returns:
        `torch.Tensor` of shape `(batch,)` and dtype float64: decibels in (-inf, inf]; inf means equal images.

    Raises:
        ValueError: If the shapes differ or have no axis after the batch, or `data_range` is not positive.
    """
    if not data_range > 0:
        raise ValueError(f"Expected a positive data_range, got {data_range}.")
    return 10 * (data_range**2 / mean_squared_error(x, y)).log10()
