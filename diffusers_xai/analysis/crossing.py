"""Where a curve over the process falls through a threshold, with an interval."""

import numpy as np
import xarray as xr

from diffusers_xai.analysis.statistics import summary


def falling_crossing(
    values: xr.DataArray, threshold: float, *, along: str = "step", at: str = "timestep", dim: str = "seed"
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

    Returns:
        `xarray.Dataset`: `estimate`, and the interval from `early` to `late` in the order of the process, which ends
        at the ends of the curve; all three NaN where the mean does not fall below, or is below from the beginning. Of
        a single value the interval is NaN.
    """
    facts = summary(values, dim)
    places = np.asarray(values[at].values, dtype=np.float64)

    def crossings(low: np.ndarray, mean: np.ndarray, high: np.ndarray) -> np.ndarray:
        above = mean >= threshold
        if not above.any() or above[-1] or np.isnan(mean).any():
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
