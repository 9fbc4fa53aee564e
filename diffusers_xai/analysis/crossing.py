"""Where a curve over the process falls through a threshold, with an interval."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.analysis.statistics import summary


def falling_crossing(
    values: xr.DataArray,
    threshold: float,
    *,
    along: str = "step",
    at: str = "timestep",
    dim: str = "seed",
    method: str = "t",
) -> xr.Dataset:
    """Where the mean over the seeds falls below a threshold for good.

    The interval is where the mean's own interval holds the threshold: as often as that one covers the true mean where
    it passes the threshold, this one covers the place. Between two points the curves are taken as straight.

    Source: Fieller 1954 (limits by inversion of a test).

    Args:
        values (`xarray.DataArray`): Values with the dims `dim` and `along`, the latter in the order of the process.
        threshold (`float`): What the curve falls through.
        along (`str`, defaults to `"step"`): The dim of the curve.
        at (`str`, defaults to `"timestep"`): The coordinate on `along` in which the place is told.
        dim (`str`, defaults to `"seed"`): What to average over.
        method (`str`, defaults to `"t"`): Of the mean's interval, see [`mean_interval`].

    Returns:
        `xarray.Dataset`: `estimate`, and the interval from `early` to `late` in the order of the process, which ends
        at the ends of the curve; all three NaN where the mean does not fall below, or is below from the beginning. Of
        a single value the interval is NaN.
    """
    facts = summary(values, dim, method=method)
    places = np.asarray(values[at].values, dtype=np.float64)

    def crossings(low: np.ndarray, mean: np.ndarray, high: np.ndarray) -> np.ndarray:
        if not _falls(mean, threshold):
            return np.full(3, np.nan)
        return np.array([_last_crossing(curve, threshold, places) for curve in (low, mean, high)])

    found = xr.apply_ufunc(
        crossings,
        *(facts[name] for name in ("low", "mean", "high")),
        input_core_dims=[[along]] * 3,
        output_core_dims=[["limit"]],
        vectorize=True,
    )
    return xr.Dataset({name: found.isel(limit=i) for i, name in enumerate(("early", "estimate", "late"))})


def crossing_difference(
    values: xr.DataArray,
    others: xr.DataArray,
    threshold: float,
    *,
    along: str = "step",
    at: str = "timestep",
    dim: str = "seed",
) -> xr.Dataset:
    """How much larger the place is where a curve falls below a threshold than that of another curve, seed by seed.

    The places are those of [`falling_crossing`]. The interval is Student's with the jackknife's standard error: the
    means are taken anew without each seed.

    Source: Tukey 1958.

    Args:
        values (`xarray.DataArray`): Values with the dims `dim` and `along`, the latter in the order of the process.
        others (`xarray.DataArray`): Those of the other curve, of the same seeds at the same places.
        threshold (`float`): What the curves fall through.
        along (`str`, defaults to `"step"`): The dim of the curves.
        at (`str`, defaults to `"timestep"`): The coordinate on `along` in which the places are told.
        dim (`str`, defaults to `"seed"`): What to average over.

    Returns:
        `xarray.Dataset`: `mean` (the difference of the places of both means), and the interval from `low` to `high`;
        NaN where one of the means does not fall below, the interval also where it does not without one of the seeds,
        or where there is a single one.
    """
    places = np.asarray(values[at].values, dtype=np.float64)

    def without_each(curves: np.ndarray) -> np.ndarray:
        count = len(curves)
        means = [curves.mean(0)]
        if count > 1:
            means += [(curves.sum(0) - curve) / (count - 1) for curve in curves]
        return np.array([_last_crossing(m, threshold, places) if _falls(m, threshold) else np.nan for m in means])

    def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        found = without_each(ours) - without_each(theirs)
        estimate, left, count = found[0], found[1:], len(ours)
        if count < 2:
            return np.array([np.nan, estimate, np.nan])
        error = np.sqrt((count - 1) * left.var())
        half = stats.t.ppf(0.975, count - 1) * error
        return np.array([estimate - half, estimate, estimate + half])

    found = xr.apply_ufunc(
        difference,
        values,
        others,
        input_core_dims=[[dim, along]] * 2,
        output_core_dims=[["limit"]],
        vectorize=True,
    )
    return xr.Dataset({name: found.isel(limit=i) for i, name in enumerate(("low", "mean", "high"))})


def _falls(curve: np.ndarray, threshold: float) -> bool:
    """Whether a curve is above a threshold and ends below it."""
    return bool((curve >= threshold).any() and curve[-1] < threshold and not np.isnan(curve).any())


def _last_crossing(curve: np.ndarray, threshold: float, places: np.ndarray) -> float:
    if np.isnan(curve).any():
        return np.nan
    above = np.flatnonzero(curve >= threshold)
    if not above.size:
        return places[0]
    last = above[-1]
    if last == len(curve) - 1:
        return places[-1]
    share = (curve[last] - threshold) / (curve[last] - curve[last + 1])
    return float(places[last] + share * (places[last + 1] - places[last]))
