"""Structural similarity of image batches."""

import torch

from diffusers_xai.measures.precision import to_float64


def structural_similarity(
    x: torch.Tensor, y: torch.Tensor, *, data_range: float = 2.0, win_size: int = 7
) -> torch.Tensor:
    """Mean structural similarity (SSIM) of each pair of images.

    Equals `skimage.metrics.structural_similarity(x, y, win_size=win_size, channel_axis=0, data_range=data_range)` of
    every sample: uniform windows, sample covariance, windows that overlap the border left out, channels averaged. The
    images are compared as they are; values outside [-1, 1], as every noisy x_t has them, are not clipped.

    Source: thesis eq. 4.1.8; Wang et al. 2004; scikit-image.

    Args:
        x (`torch.Tensor` of shape `(batch, channel, height, width)`):
            First images, of any real dtype; height and width at least `win_size`.
        y (`torch.Tensor` of shape `(batch, channel, height, width)`):
            Second images, on the device of `x`.
        data_range (`float`, defaults to 2.0):
            Distance between the smallest and the largest possible pixel value: 2 for images in [-1, 1].
        win_size (`int`, defaults to 7):
            Odd side length of the window, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch,)` and dtype float64: values in [-1, 1]; 1 means equal images.

    Raises:
        ValueError: If the shapes differ or are not 4-D, the images are smaller than the window, `win_size` is even or
            less than 3, or `data_range` is not positive.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            "expected two tensors of one shape (batch, channel, height, width), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if win_size < 3 or win_size % 2 == 0:
        raise ValueError(f"expected an odd win_size of at least 3, got {win_size}")
    if min(x.shape[-2:]) < win_size:
        raise ValueError(
            f"expected images of at least {win_size}x{win_size} pixels (win_size={win_size}), "
            f"got {x.shape[-2]}x{x.shape[-1]}"
        )
    if not data_range > 0:
        raise ValueError(f"expected a positive data_range, got {data_range}")

    x, y = to_float64(x), to_float64(y)
    moments = _window_means(torch.stack([x, y, x * x, y * y, x * y]), win_size)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments.unbind()
    to_sample_covariance = win_size**2 / (win_size**2 - 1)
    var_x = to_sample_covariance * (mean_xx - mean_x * mean_x)
    var_y = to_sample_covariance * (mean_yy - mean_y * mean_y)
    cov_xy = to_sample_covariance * (mean_xy - mean_x * mean_y)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    contrast_and_structure = (2 * cov_xy + c2) / (var_x + var_y + c2)
    return (luminance * contrast_and_structure).mean(dim=(1, 2, 3))


def _window_means(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Means over all `size` x `size` windows: (..., height, width) -> (..., height - size + 1, width - size + 1)."""
    # Row and column apart: in float64 on the CPU this is several times faster than F.avg_pool2d.
    return maps.unfold(-1, size, 1).mean(-1).unfold(-2, size, 1).mean(-1)
