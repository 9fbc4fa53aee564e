"""Where a curve over the process falls through a threshold, with an interval."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.analysis.statistics import summary


_FINE, _COARSE = 1000, 100  # places that are tried over the whole curve, and in a part of it


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

    The places are those of [`falling_crossing`]. The interval has all differences of two places at which both means
    may be at the threshold together, by Hotelling's T² over the seeds. It needs no slopes, which few seeds tell badly.
    How often a 95 % interval covered, of 1000 synthetic sets of curves (standard error 0.7 %), the place of each seed
    being drawn from a normal distribution, or from an exponential one in both curves, or in one of them; the last with
    a threshold that only the latest tenth of the seeds is above:

    | seeds | normal | both exponential | one exponential | the latest tenth |
    |-------|--------|------------------|-----------------|------------------|
    | 16    | 95.7 % | 96.7 %           | 96.4 %          | 81.0 %           |
    | 30    | 95.9 % | 95.4 %           | 94.7 %          | 89.9 %           |
    | 60    | 95.8 % | 94.7 %           | 94.5 %          | 92.0 %           |

    So where the ends of a window hang on a few skewed seeds, they take more than 60.

    Source: Fieller 1954 (limits by inversion of a test); Hotelling 1931.

    Args:
        values (`xarray.DataArray`): Values with the dims `dim` and `along`, the latter in the order of the process.
        others (`xarray.DataArray`): Those of the other curve, of the same seeds at the same places.
        threshold (`float`): What the curves fall through.
        along (`str`, defaults to `"step"`): The dim of the curves.
        at (`str`, defaults to `"timestep"`): The coordinate on `along` in which the places are told.
        dim (`str`, defaults to `"seed"`): What to average over.

    Returns:
        `xarray.Dataset`: `mean` (the difference of the places of both means), the interval from `low` to `high`, and
        `p_value` (two-sided) of no difference; NaN where one of the means does not fall below, all but `mean` also of
        fewer than three seeds.
    """
    places = np.asarray(values[at].values, dtype=np.float64)
    found = xr.apply_ufunc(
        lambda ours, theirs: _difference(ours - threshold, theirs - threshold, places),
        values,
        others,
        input_core_dims=[[dim, along]] * 2,
        output_core_dims=[["limit"]],
        vectorize=True,
    )
    return xr.Dataset({name: found.isel(limit=i) for i, name in enumerate(("low", "mean", "high", "p_value"))})


def _difference(ours: np.ndarray, theirs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Lower limit, estimate, upper limit and p-value, of curves (seed, step) that fall through 0."""
    count, means = len(ours), [curves.mean(0) for curves in (ours, theirs)]
    if not all(_falls(mean, 0) for mean in means):
        return np.full(4, np.nan)
    own, other = (_last_crossing(mean, 0, places) for mean in means)
    if count < 3:
        return np.array([np.nan, own - other, np.nan, np.nan])
    scale = (count - 1) / (count - 2)  # of T², of which one place is free: then it is F's of 1 and n − 2
    most = scale * stats.t.ppf(0.975, count - 2) ** 2
    first = np.append(_may_be_at_zero(ours, places, most), own)
    second = np.append(_may_be_at_zero(theirs, places, most), other)
    pairs = np.subtract.outer(first, second)
    kept = pairs[_hotelling(_at(ours, places, first), _at(theirs, places, second), all_pairs=True) <= most]
    together = np.concatenate([np.linspace(places[0], places[-1], _FINE), first, second])
    least = _hotelling(_at(ours, places, together), _at(theirs, places, together)).min()
    return np.array([kept.min(), own - other, kept.max(), 2 * stats.t.sf(np.sqrt(least / scale), count - 2)])


def _at(curves: np.ndarray, places: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The values (seed, place) of curves (seed, step) at any places between their own."""
    order = np.argsort(places)
    places, curves = places[order], curves[:, order]
    left = np.clip(np.searchsorted(places, where, side="right") - 1, 0, len(places) - 2)
    share = (where - places[left]) / (places[left + 1] - places[left])
    return (1 - share) * curves[:, left] + share * curves[:, left + 1]


def _may_be_at_zero(curves: np.ndarray, places: np.ndarray, most: float) -> np.ndarray:
    """Places, evenly spread, between the first and the last at which a mean of curves is not shown to be off 0."""
    fine = np.linspace(places[0], places[-1], _FINE)
    values = _at(curves, places, fine)
    kept = fine[len(values) * values.mean(0) ** 2 <= most * values.var(0, ddof=1)]
    return np.linspace(kept[0], kept[-1], _COARSE) if kept.size else kept


def _hotelling(ours: np.ndarray, theirs: np.ndarray, *, all_pairs: bool = False) -> np.ndarray:
    """T² that the means of values (seed, place) are both 0, of the places of one beside, or by, those of the other."""
    count, first, second = len(ours), ours.mean(0), theirs.mean(0)
    # A little more, so that curves that are the same, or of which all seeds are, have a T² too.
    own, other = (values.var(0, ddof=1) * (1 + 1e-9) + 1e-18 for values in (ours, theirs))
    if all_pairs:
        both = (ours - first).T @ (theirs - second) / (count - 1)
        first, own = first[:, None], own[:, None]
    else:
        both = ((ours - first) * (theirs - second)).sum(0) / (count - 1)
    return count * (first**2 * other - 2 * first * second * both + second**2 * own) / (own * other - both**2)


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
