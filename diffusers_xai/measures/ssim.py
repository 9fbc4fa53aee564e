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
        `torch.Tensor` of shape `(batch,)` and dtype float64: values in [-1, 1]: 1 means equal images.

    Raises:
        ValueError: If the shapes differ or are not 4-D, the images are smaller than the window, `win_size` is even or
            less than 3, or `data_range` is not positive.
    """
    windows = _Windows(x, y, data_range, win_size)
    # The product of the three parts, without the roots of the variances, which have no gradient at flat windows.
    return (windows.luminance() * windows.contrast_and_structure()).mean(dim=(1, 2, 3))


def ssim_luminance(x: torch.Tensor, y: torch.Tensor, *, data_range: float = 2.0, win_size: int = 7) -> torch.Tensor:
    """The part of SSIM that compares brightness, (2 μ_x μ_y + C_1) / (μ_x² + μ_y² + C_1), as its mean over the image.

    Source: thesis eq. 4.1.5.

    Arguments and errors are those of [`structural_similarity`]. Values in [-1, 1]: 1 means equal local means.
    """
    return _Windows(x, y, data_range, win_size).luminance().mean(dim=(1, 2, 3))


def ssim_contrast(x: torch.Tensor, y: torch.Tensor, *, data_range: float = 2.0, win_size: int = 7) -> torch.Tensor:
    """The part of SSIM that compares contrast, (2 σ_x σ_y + C_2) / (σ_x² + σ_y² + C_2), as its mean over the image.

    Source: thesis eq. 4.1.6.

    Arguments and errors are those of [`structural_similarity`]. Values in [0, 1]: 1 means equal local deviations.
    """
    return _Windows(x, y, data_range, win_size).contrast().mean(dim=(1, 2, 3))


def ssim_structure(x: torch.Tensor, y: torch.Tensor, *, data_range: float = 2.0, win_size: int = 7) -> torch.Tensor:
    """The part of SSIM that compares structure, (σ_xy + C_3) / (σ_x σ_y + C_3) with C_3 = C_2 / 2, as its mean.

    Source: thesis eq. 4.1.7.

    Arguments and errors are those of [`structural_similarity`]. Values in [-1, 1]: 1 means that one window is the
    other's, up to brightness and contrast.
    """
    return _Windows(x, y, data_range, win_size).structure().mean(dim=(1, 2, 3))


class _Windows:
    """Means, variances and covariance of every window of two image batches, and what SSIM makes of them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, data_range: float, win_size: int):
        if x.shape != y.shape or x.ndim != 4:
            raise ValueError(
                "Expected two tensors of one shape (batch, channel, height, width),"
                f" got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        if win_size < 3 or win_size % 2 == 0:
            raise ValueError(f"Expected an odd win_size of at least 3, got {win_size}.")
        if min(x.shape[-2:]) < win_size:
            raise ValueError(
                f"Expected images of at least {win_size}x{win_size} pixels (win_size={win_size}),"
                f" got {x.shape[-2]}x{x.shape[-1]}."
            )
        if not data_range > 0:
            raise ValueError(f"Expected a positive data_range, got {data_range}.")
        x, y = to_float64(x), to_float64(y)
        moments = _window_means(torch.stack([x, y, x * x, y * y, x * y]), win_size)
        self.mean_x, self.mean_y, mean_xx, mean_yy, mean_xy = moments.unbind()
        to_sample_covariance = win_size**2 / (win_size**2 - 1)
        self.var_x = to_sample_covariance * (mean_xx - self.mean_x * self.mean_x)
        self.var_y = to_sample_covariance * (mean_yy - self.mean_y * self.mean_y)
        self.cov = to_sample_covariance * (mean_xy - self.mean_x * self.mean_y)
        self.c1, self.c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def luminance(self) -> torch.Tensor:
        x, y = self.mean_x, self.mean_y
        return (2 * x * y + self.c1) / (x * x + y * y + self.c1)

    def contrast(self) -> torch.Tensor:
        return (2 * self._deviations() + self.c2) / (self.var_x + self.var_y + self.c2)

    def structure(self) -> torch.Tensor:
        return (self.cov + self.c2 / 2) / (self._deviations() + self.c2 / 2)

    def contrast_and_structure(self) -> torch.Tensor:
        return (2 * self.cov + self.c2) / (self.var_x + self.var_y + self.c2)

    def _deviations(self) -> torch.Tensor:
        """σ_x σ_y; rounding may make a flat window's variance negative."""
        return (self.var_x.clamp(min=0) * self.var_y.clamp(min=0)).sqrt()


def _window_means(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Means over all `size` x `size` windows: (..., height, width) -> (..., height - size + 1, width - size + 1)."""
    # Row and column apart: in float64 on the CPU this is several times faster than F.avg_pool2d.
    return maps.unfold(-1, size, 1).mean(-1).unfold(-2, size, 1).mean(-1)
