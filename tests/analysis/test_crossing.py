"""Where a curve falls through a threshold, by hand."""

import numpy as np
import pytest
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
    rng = np.random.default_rng(0)
    early, late = (
        curves(*(np.array(fall) + rng.normal(0, 0.15, (6, 4)))) for fall in ([1, 0.7, 0.3, 0], [1, 1, 0.7, 0])
    )
    found = crossing_difference(early, late, 0.5)
    middles = [float(falling_crossing(x, 0.5)["estimate"]) for x in (early, late)]
    assert np.isclose(found["mean"], middles[0] - middles[1])

    def least(difference):
        """The least T² of all pairs of places so far apart."""
        places = np.linspace(max(0, difference), min(900, 900 + difference), 2000)
        both = np.array(
            [[np.interp(t, x["timestep"][::-1], row[::-1]) - 0.5 for row in x.values]
             for t, x in ((places, early), (places - difference, late))]
        ).transpose(2, 0, 1)  # fmt: skip
        means = both.mean(2)
        covariances = np.array([np.cov(pair) for pair in both])
        return min(6 * m @ np.linalg.solve(c, m) for m, c in zip(means, covariances, strict=True))

    most = 5 / 4 * stats.f.ppf(0.95, 1, 4)  # of T², of which one place is free
    assert least(float(found["low"]) + 4) < most < least(float(found["low"]) - 4)
    assert least(float(found["high"]) - 4) < most < least(float(found["high"]) + 4)
    assert np.isclose(found["p_value"], stats.f.sf(least(0.0) * 4 / 5, 1, 4), rtol=0.01)
    assert np.isnan(crossing_difference(early, late + 1, 0.5).to_dataarray()).all()  # that one never falls
    two = crossing_difference(early[:2], late[:2], 0.5).to_dataarray()
    assert np.isnan(two).values.tolist() == [True, False, True, True]


def test_curves_that_are_the_same_or_do_not_scatter():
    same = curves([1.0, 0.8, 0.4, 0.0], [1.0, 0.6, 0.2, 0.0], [1.0, 0.7, 0.1, 0.1])
    found = crossing_difference(same, same, 0.5)
    assert float(found["mean"]) == 0
    assert float(found["low"]) < 0 < float(found["high"])
    assert np.isclose(found["low"], -found["high"])
    assert float(found["p_value"]) == pytest.approx(1, abs=1e-6)
    still = curves(*[[1.0, 0.8, 0.2, 0.0]] * 4)
    assert float(crossing_difference(still, still, 0.5)["p_value"]) == pytest.approx(1, abs=1e-6)
    exact = crossing_difference(curves(*[[1.0, 0.8, 0.2, 0.0]] * 4), curves(*[[1.0, 1.0, 0.8, 0.0]] * 4), 0.5)
    places = 450 - 187.5
    np.testing.assert_allclose(exact.to_dataarray(), [places, places, places, 0], atol=1e-6)


def test_the_interval_of_a_difference_covers():
    """Sixteen seeds that share their noise, each with a fall of its own in both curves."""
    rng, times = np.random.default_rng(0), np.linspace(1000, 0, 21)

    def fall(middles, width):
        values = 1 / (1 + np.exp((middles[..., None] - times) / width))
        return xr.DataArray(values, dims=("repeat", "seed", "step"), coords={"timestep": ("step", times)})

    def symmetric(*shape):
        shared = rng.normal(0, 60, shape)
        return [fall(middle + shared + rng.normal(0, 50, shape), 60) for middle in (520, 480)]

    def skewed(*shape):  # one of them, as an exponential distribution is
        return [fall(300 + rng.exponential(150, shape), 30), fall(430 + rng.normal(0, 10, shape), 30)]

    for drawn in (symmetric, skewed):
        truth = crossing_difference(*(x.mean("seed").expand_dims(seed=1) for x in drawn(1, 100_000)), 0.5)[
            "mean"
        ].item()
        found = crossing_difference(*drawn(150, 16), 0.5)
        held = ((found["low"] <= truth) & (truth <= found["high"])).values
        assert 0.93 <= held.mean() <= 0.99, drawn  # 96 % of 1000; here a standard error of 1.6 %
        beyond = (found["low"] > 0) | (found["high"] < 0)
        assert float((beyond == (found["p_value"] < 0.05)).mean()) >= 0.99  # a grid's width apart


@pytest.mark.parametrize("seeds", [16, 30])
def test_the_interval_of_a_ratio_s_crossing_covers(seeds):
    """Errors that grow with the noise, as a share of errors of fresh images that scatter as much."""
    rng, times, repeats = np.random.default_rng(1), np.linspace(50, 950, 8), 1000
    shape = (repeats, seeds)
    common = rng.gamma(4, 1 / 4, shape)
    growth = 1 / (1 + np.exp((560 - times) / 120))
    errors = common[..., None] * growth * rng.gamma(6, 1 / 6, (*shape, 8))
    fresh = common * rng.gamma(4, 1 / 4, shape)
    truth = 560.0  # both means are 1
    error = xr.DataArray(errors, dims=("repeat", "seed", "level"), coords={"timestep": ("level", times)})
    kept = 0.5 * xr.DataArray(fresh, dims=("repeat", "seed")) - error
    place = np.interp(0.5, growth, times)  # between the levels the curves are straight
    assert abs(place - truth) < 2
    found = falling_crossing(kept.transpose("repeat", "seed", "level"), 0, along="level")
    held = (found["early"] <= place) & (place <= found["late"])
    assert 0.93 <= float(held.mean()) <= 0.98
    # Taking the batch's mean of fresh images as exact does not.
    of_batch = 1 - error / xr.DataArray(fresh, dims=("repeat", "seed")).mean("seed")
    naive = falling_crossing(of_batch, 0.5, along="level")
    assert np.allclose(naive["estimate"], found["estimate"])
    assert float(((naive["early"] <= place) & (place <= naive["late"])).mean()) < 0.93
