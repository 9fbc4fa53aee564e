"""Intervals that cover, and verdicts over many tests; by scipy."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats


INTERVALS = ("t", "bca", "arcsine")
_SURE = 8  # seeds: the scatter of fewer is hardly known itself


def interval_worth(seeds: int) -> str:
    """What the intervals of so many seeds are worth, where that has to be said (see [`mean_interval`]); else nothing.

    Args:
        seeds (`int`): Their number.
    """
    if seeds == 1:
        return "One seed: no intervals."
    return f"{seeds} seeds: too few for a sure interval." if seeds < _SURE else ""


def mean_interval(
    values: np.ndarray,
    *,
    axis: int = 0,
    confidence: float = 0.95,
    method: str = "t",
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of the mean along an axis.

    How often a 95 % interval covered the mean of 1500 synthetic samples (standard error 0.6 %), drawn from a normal
    and from an exponential distribution:

    | draws | t, normal | BCa, normal | t, exponential | BCa, exponential |
    |-------|-----------|-------------|----------------|------------------|
    | 8     | 95.1 %    | 88.7 %      | 88.0 %         | 84.1 %           |
    | 30    | 95.1 %    | 94.0 %      | 94.0 %         | 92.5 %           |
    | 100   | 95.1 %    | 94.4 %      | 94.9 %         | 94.5 %           |

    So Student's is the default, and no interval of three seeds is worth its name where they may be skewed.

    Where values are shares of which most are near 0 or 1, the mean's error depends on the mean, and neither is right:
    of shares of mean 10 %, with 32 draws, Student's interval covered in 93 % of cases, that of the arcsine in 96 %.

    Source: Student 1908; Efron 1987, *Better Bootstrap Confidence Intervals*; Bartlett 1936 (the arcsine).

    Args:
        values (`np.ndarray`): Independent draws along `axis`, such as seeds.
        axis (`int`, defaults to 0): The axis of the draws.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).
        method (`str`, defaults to `"t"`): `"t"`, Student's; `"bca"`, the bias-corrected and accelerated bootstrap,
            which stays within the range of the values; or `"arcsine"`, Student's of arcsin √mean, of values in [0, 1].
        resamples (`int`, defaults to 2000): Of `"bca"`.
        seed (`int`, defaults to 0): Of the resampling of `"bca"`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: lower and upper limits, without the axis. Draws that are all alike have the
        width zero; of a single draw, which says nothing about how draws differ, both limits are NaN.

    Raises:
        ValueError: If there is no draw, `confidence` is not in (0, 1), `method` is unknown, or values are not in
            [0, 1] where they have to be.
    """
    values = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    count = values.shape[-1]
    if count == 0:
        raise ValueError("Expected at least one value to average, got none.")
    if method not in INTERVALS:
        raise ValueError(f"Expected method in {INTERVALS}, got {method!r}.")
    _check_confidence(confidence)
    mean = values.mean(-1)
    if count == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(values, axis=-1)
    if method == "t":
        return mean - half, mean + half
    if method == "arcsine":
        if ((values < 0) | (values > 1)).any():
            raise ValueError(f"Expected values in [0, 1], got {values.min():g} to {values.max():g}.")
        # The slope of arcsin √m; where the mean is 0 or 1, so are all values.
        slope = 0.5 / np.sqrt(np.where((mean > 0) & (mean < 1), mean * (1 - mean), np.inf))
        angle = np.arcsin(np.sqrt(mean))
        ends = (np.clip(angle + sign * half * slope, 0, np.pi / 2) for sign in (-1, 1))
        low, high = (np.sin(end) ** 2 for end in ends)
        return np.where(half > 0, low, mean), np.where(half > 0, high, mean)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # draws that are all alike
        interval = stats.bootstrap(
            (values,),
            np.mean,
            axis=-1,
            confidence_level=confidence,
            method="BCa",
            n_resamples=resamples,
            batch=max(1, 2**24 // max(values.size, 1)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    alike = np.ptp(values, axis=-1) == 0
    return np.where(alike, mean, interval.low), np.where(alike, mean, interval.high)


def share_interval(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a probability from a count, which covers at least as often as it says.

    Source: Clopper and Pearson 1934.

    Args:
        successes (`int`): How often it happened.
        total (`int`): Out of how many independent trials, at least 1.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).

    Returns:
        `tuple[float, float]`: lower and upper limit, in [0, 1].

    Raises:
        ValueError: If `successes` is not in 0..`total`, there is no trial, or `confidence` is not in (0, 1).
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"Expected a count out of at least one trial, got {successes} out of {total}.")
    _check_confidence(confidence)
    interval = stats.binomtest(int(successes), int(total)).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected for their number: rejecting those of at most q leaves a share of q false ones on average.

    Source: Benjamini and Hochberg 1995.

    Args:
        p_values (array of shape `(test,)`): In [0, 1]; NaN where a test could not be made, which is not counted.

    Returns:
        `np.ndarray` of shape `(test,)`: the corrected values, NaN where they were.

    Raises:
        ValueError: If a value lies outside [0, 1].
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full_like(p_values, np.nan)
    made = ~np.isnan(p_values)
    if made.any():
        corrected[made] = stats.false_discovery_control(p_values[made], method="bh")
    return corrected


def above_test(values: np.ndarray, bound: float = 0.0, *, axis: int = 0) -> np.ndarray:
    """p-value of "the mean is at most `bound`": small where a mean is shown to lie above. A one-sided t-test.

    Source: Student 1908.

    Args:
        values (`np.ndarray`): Independent draws along `axis`, at least two.
        bound (`float`, defaults to 0.0): What the mean should exceed.
        axis (`int`, defaults to 0): The axis of the draws.

    Returns:
        `np.ndarray`: the p-values, without the axis. Draws that are all alike (to a billionth of their distance to
        the bound) have no spread to compare with: 0 where they lie above the bound, else 1. NaN where a draw is.

    Raises:
        ValueError: If there are fewer than two draws.
    """
    away = np.moveaxis(np.asarray(values, dtype=np.float64) - bound, axis, -1)
    if away.shape[-1] < 2:
        raise ValueError(f"Expected at least two values to test, got {away.shape[-1]}.")
    alike = np.ptp(away, axis=-1) <= 1e-9 * np.abs(away).max(-1)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # draws that are all alike
        p_values = stats.ttest_1samp(away, 0, axis=-1, alternative="greater").pvalue
    return np.where(alike, np.where(away[..., 0] > 0, 0.0, 1.0), p_values)


def not_zero_test(values: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Two-sided p-value of "the mean is 0", see [`above_test`]; NaN of fewer than two draws."""
    if np.shape(values)[axis] < 2:
        return np.full(np.delete(np.shape(values), axis), np.nan)
    return np.minimum(1, 2 * np.minimum(above_test(values, axis=axis), above_test(-np.asarray(values), axis=axis)))


def equivalence_test(values: np.ndarray, low: float, high: float, *, axis: int = 0) -> np.ndarray:
    """p-value of "the mean lies outside [low, high]": small where a mean is shown to lie within, as "changes little".

    Two one-sided t-tests, see [`above_test`]. A difference that is merely not significant shows nothing of the kind.

    Source: Schuirmann 1987.

    Args:
        values (`np.ndarray`): Independent draws along `axis`, at least two.
        low (`float`): The margins within which a mean counts as equivalent, from here
        high (`float`): to here.
        axis (`int`, defaults to 0): The axis of the draws.

    Returns:
        `np.ndarray`: the larger of the two p-values, without the axis.

    Raises:
        ValueError: If `low` is not below `high`, or there are fewer than two draws.
    """
    if not low < high:
        raise ValueError(f"Expected margins with low < high, got {low} and {high}.")
    values = np.asarray(values, dtype=np.float64)
    return np.maximum(above_test(values, low, axis=axis), above_test(-values, -high, axis=axis))


def summary(values: xr.DataArray, dim: str = "seed", *, verdicts: bool = False, **options: Any) -> xr.Dataset:
    """Mean, standard deviation and interval of the mean along a dim.

    Args:
        values (`xarray.DataArray`): Values with the dim `dim`.
        dim (`str`, defaults to `"seed"`): What to average over.
        verdicts (`bool`, defaults to `False`): Whether they are a judge's answers: where all are 0 or 1, the interval
            is the exact one of a share. (Of measured numbers that are all 1, 1 is known; of verdicts that is not.)
        options: Passed to [`mean_interval`].

    Returns:
        `xarray.Dataset`: `mean`, `std` (of the values, `ddof=1`), `low` and `high`, the last three NaN of a single
        value, and `count`, the number of values.
    """
    low, high = mean_interval(values.values, axis=values.get_axis_num(dim), **options)
    mean = values.mean(dim)
    count = values.sizes[dim]
    std = values.std(dim, ddof=1) if count > 1 else mean * np.nan
    if verdicts and count > 1 and are_verdicts(values.values):
        low, high = np.vectorize(share_interval, otypes=[float] * 2)(values.sum(dim).astype(int).values, count)
    return xr.Dataset(
        {"mean": mean, "std": std, "low": mean.copy(data=low), "high": mean.copy(data=high), "count": count}
    )


def are_verdicts(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1, as the answers of a judge who says yes or no."""
    return bool(np.isin(values, (0, 1)).all())


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence between 0 and 1, got {confidence}.")
