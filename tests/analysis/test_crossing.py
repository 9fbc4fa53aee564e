"""Where a curve falls through a threshold, by hand."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.analysis import crossing_difference, falling_crossing


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


def test_the_difference_of_two_places_by_hand():
    early = curves([1.0, 0.8, 0.4, 0.0], [1.0, 0.6, 0.2, 0.0], [1.0, 0.7, 0.0, 0.1])
    late = curves([1.0, 0.9, 0.8, 0.0], [1.0, 0.9, 0.6, 0.2], [1.0, 0.9, 0.7, 0.1])
    found = crossing_difference(early, late, 0.5)
    assert np.isclose(found["mean"], (600 - 300 * 0.2 / 0.5) - (300 - 300 * 0.2 / 0.6))
    left = []
    for kept in ([1, 2], [0, 2], [0, 1]):
        places = [float(falling_crossing(x.isel(seed=kept), 0.5)["estimate"]) for x in (early, late)]
        left.append(places[0] - places[1])
    error = np.sqrt(2 / 3 * ((left - np.mean(left)) ** 2).sum())
    assert np.isclose(found["high"] - found["mean"], stats.t.ppf(0.975, 2) * error)
    assert np.isclose(found["mean"] - found["low"], found["high"] - found["mean"])
    assert np.isnan(crossing_difference(early, late + 1, 0.5).to_dataarray()).all()  # that one never falls
    alone = crossing_difference(early[:1], late[:1], 0.5).to_dataarray()
    assert np.isnan(alone).values.tolist() == [True, False, True]


def test_the_interval_of_a_difference_covers():
    """Seeds that share their noise, each with a fall of its own in both curves."""
    rng, times = np.random.default_rng(0), np.linspace(1000, 0, 21)

    def fall(middles):
        values = 1 / (1 + np.exp((middles[..., None] - times) / 60))
        return xr.DataArray(values, dims=("repeat", "seed", "step"), coords={"timestep": ("step", times)})

    def drawn(repeats, seeds):
        shared = rng.normal(0, 60, (repeats, seeds))
        return [fall(middle + shared + rng.normal(0, 50, shared.shape)) for middle in (520, 480)]

    truth = crossing_difference(*(x.mean("seed").rename(repeat="seed") for x in drawn(1, 200_000)), 0.5)["mean"]
    found = crossing_difference(*drawn(1000, 30), 0.5)
    assert 0.93 <= float(((found["low"] <= truth) & (truth <= found["high"])).mean()) <= 0.97
