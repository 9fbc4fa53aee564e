"""Where a curve falls through a threshold, by hand."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.analysis import falling_crossing


def curves(*rows):
    return xr.DataArray(
        np.array(rows, float), dims=("seed", "step"), coords={"timestep": ("step", [900, 600, 300, 0])}
    )


def test_the_place_and_its_interval_by_hand():
    values = curves([1.0, 0.8, 0.4, 0.0], [1.0, 0.6, 0.2, 0.0], [1.0, 0.7, 0.0, 0.1])
    found = falling_crossing(values, 0.5)
    assert np.isclose(found["estimate"], 600 - 300 * (0.7 - 0.5) / (0.7 - 0.2))
    half = stats.t.ppf(0.975, 2) * values.std("seed", ddof=1) / np.sqrt(3)
    low, high = values.mean("seed") - half, values.mean("seed") + half
    assert float(low[1]) < 0.5 < float(high[2])
    assert np.isclose(found["early"], 900 - 300 * (1 - 0.5) / (1 - float(low[1])))
    assert np.isclose(found["late"], 300 - 300 * (float(high[2]) - 0.5) / float(high[2] - high[3]))


def test_the_last_fall_counts_and_no_fall_is_none():
    again = curves([1.0, 0.2, 0.8, 0.2], [1.0, 0.2, 0.8, 0.2])
    assert float(falling_crossing(again, 0.5)["estimate"]) == 150
    for rows in ([1.0, 0.9, 0.8, 0.7], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.9]):
        assert np.isnan(falling_crossing(curves(rows, rows), 0.5).to_dataarray()).all()
    both = xr.concat([again, curves([1.0, 0.9, 0.8, 0.7], [1, 1, 1, 1])], "of")
    assert falling_crossing(both, 0.5)["estimate"].isnull().values.tolist() == [False, True]
