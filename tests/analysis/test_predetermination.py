"""The index on processes whose crossing is known."""

import numpy as np
import pytest
import xarray as xr

from diffusers_xai.analysis import mean_interval, predetermination_index


def curves(crossings, shares, width=0.12):
    """SSIM of processes that pass 0.9 exactly at the given shares: 0.4 at the beginning, smooth, 1 at the end."""
    place = (np.asarray(shares) - np.asarray(crossings)[..., None]) / width
    values = np.minimum(0.4 + 0.6 / (1 + np.exp(-(place + np.log(5)))), 1.0)
    dims = [*(f"d{i}" for i in range(np.ndim(crossings))), "switch"]
    return xr.DataArray(values, dims=dims, coords={"share": ("switch", shares)})


def test_the_crossing_is_found_between_two_switches():
    shares = np.arange(20) / 20
    for crossing in (0.31, 0.666, 0.674, 0.87):
        assert float(predetermination_index(curves(crossing, shares))) == pytest.approx(crossing, abs=0.006)


def test_the_last_crossing_counts_and_the_end_of_the_process_is_alike():
    ssim = xr.DataArray(
        [[0.95, 0.8, 0.95, 0.99], [0.2, 0.3, 0.4, 0.8], [0.91, 0.92, 0.95, 0.99], [0.2, np.nan, 0.95, 1.0]],
        dims=("seed", "switch"),
        coords={"share": ("switch", [0, 0.25, 0.5, 0.75])},
    )
    np.testing.assert_allclose(predetermination_index(ssim), [0.25 + 0.25 * 2 / 3, 0.75 + 0.25 / 2, 0, np.nan])


def test_the_interval_over_seeds_covers_the_true_crossing():
    rng = np.random.default_rng(0)
    crossings = np.clip(rng.normal(0.666, 0.08, (1000, 30)), 0.1, 0.95)
    index = predetermination_index(curves(crossings, np.arange(20) / 20))
    low, high = mean_interval(index.values, axis=1)
    assert 0.93 <= ((low <= 0.666) & (high >= 0.666)).mean() <= 0.97


def test_the_interval_of_a_lock_in_covers_too():
    """An attribute is as in the unswitched image from its crossing on: a step between two switches."""
    rng = np.random.default_rng(0)
    crossings = np.clip(rng.normal(0.666, 0.12, (1000, 25)), 0.1, 0.95)
    shares = np.arange(20) / 20
    seen = (shares >= crossings[..., None]).astype(float)
    ssim = xr.DataArray(seen, dims=["repeat", "seed", "switch"], coords={"share": ("switch", shares)})
    low, high = mean_interval(predetermination_index(ssim, 0.5).values, axis=1)
    assert 0.93 <= ((low <= 0.666) & (high >= 0.666)).mean() <= 0.97


@pytest.mark.parametrize("shares", [[0, 0.5, 0.5], [0.5, 0.2], [0, 1.0], [-0.1, 0.5]])
def test_shares_that_cannot_be_are_refused(shares):
    ssim = xr.DataArray(np.ones(len(shares)), dims="switch", coords={"share": ("switch", shares)})
    with pytest.raises(ValueError, match="Expected shares that increase"):
        predetermination_index(ssim)
