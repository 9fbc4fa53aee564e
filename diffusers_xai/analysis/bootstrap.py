"""Confidence intervals of means, by resampling."""

from typing import Any

import numpy as np
import xarray as xr


def bootstrap_interval(
    values: np.ndarray, *, axis: int = 0, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean along an axis.

    Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 13.

    Args:
        values (`np.ndarray`): Independent draws along `axis`, such as seeds; the other axes are resampled together.
        axis (`int`, defaults to 0): The axis of the draws.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).
        resamples (`int`, defaults to 2000): Number of resamples.
        seed (`int`, defaults to 0): Of the resampling.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: lower and upper limits, without the axis. A single draw has the width zero.

    Raises:
        ValueError: If there is no draw, or `confidence` is not in (0, 1).
    """
    values = np.moveaxis(np.asarray(values, dtype=np.float64), axis, 0)
    if len(values) == 0:
        raise ValueError("expected at least one value to resample, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, got {confidence}")
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    means = np.tensordot(counts / len(values), values, axes=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def summary(values: xr.DataArray, dim: str = "seed", **options: Any) -> xr.Dataset:
    """Mean, standard deviation and bootstrap interval of the mean along a dim.

    Args:
        values (`xarray.DataArray`): Values with the dim `dim`.
        dim (`str`, defaults to `"seed"`): What to average over.
        options: Passed to [`bootstrap_interval`].

    Returns:
        `xarray.Dataset`: `mean`, `std` (of the values, `ddof=1`; NaN of a single one), `low` and `high`.
    """
    low, high = bootstrap_interval(values.values, axis=values.get_axis_num(dim), **options)
    mean = values.mean(dim)
    with np.errstate(invalid="ignore", divide="ignore"):
        std = values.std(dim, ddof=1) if values.sizes[dim] > 1 else mean * np.nan
    return xr.Dataset({"mean": mean, "std": std, "low": mean.copy(data=low), "high": mean.copy(data=high)})
