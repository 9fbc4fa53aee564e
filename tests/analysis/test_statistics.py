"""Intervals, indices and structure, against other people's code and by hand."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import bootstrap
from skimage.color import rgb2gray
from skimage.filters import sobel_h, sobel_v

from diffusers_xai.analysis import bootstrap_interval, predetermination_index, summary
from diffusers_xai.analysis.structure import edge_strength, foreground, map_correlation


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(3).gamma(2.0, size=40)
    low, high = bootstrap_interval(values, resamples=20_000)
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    width = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.1 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.1 * width)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(5.0, 2.0, size=40), confidence=0.9, resamples=500)
        inside += low <= 5.0 <= high
    assert 0.83 <= inside / 300 <= 0.95


def test_other_axes_keep_their_place():
    values = xr.DataArray(np.random.default_rng(0).normal(size=(3, 5, 2)), dims=("layer", "seed", "step"))
    facts = summary(values)
    assert facts["low"].dims == facts["mean"].dims == ("layer", "step")
    np.testing.assert_allclose(facts["mean"], values.values.mean(1))
    np.testing.assert_allclose(facts["std"], values.values.std(1, ddof=1))
    alone = bootstrap_interval(values.values[2, :, 1])
    np.testing.assert_allclose([facts["low"][2, 1], facts["high"][2, 1]], alone)


def test_bad_requests():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(np.empty(0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval(np.ones(3), confidence=95)


@pytest.mark.parametrize(
    ("ssim", "expected"),
    [
        ([0.5, 0.7, 0.95, 0.97], 0.5),
        ([0.95, 0.7, 0.95, 0.97], 0.5),  # an early one that happens to be alike does not count
        ([0.95, 0.95, 0.95, 0.95], 0.0),
        ([0.5, 0.95, 0.95, 0.89], 1.0),
        ([0.1, 0.2, 0.3, 0.9], 0.75),
    ],
)
def test_the_index_is_the_first_switch_after_which_all_are_alike(ssim, expected):
    array = xr.DataArray([ssim], dims=("seed", "switch"), coords={"share": ("switch", [0, 0.25, 0.5, 0.75])})
    assert predetermination_index(array).item() == expected


def test_edges_are_sobel_s():
    image = np.random.default_rng(0).random((3, 12, 10))
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    expected = np.hypot(sobel_h(grey), sobel_v(grey))
    inside = (slice(1, -1), slice(1, -1))  # its border is left out there
    np.testing.assert_allclose(edge_strength(image)[inside], expected[inside], rtol=1e-9)
    assert rgb2gray(image.transpose(1, 2, 0)).shape == grey.shape
    np.testing.assert_allclose(edge_strength(image[:1]), edge_strength(np.repeat(image[:1], 3, axis=0)))


def test_the_foreground_is_what_fills_the_middle():
    image = np.full((1, 3, 16, 16), -0.8)
    image[0, :, 4:13, 3:12] = 0.6
    image += 0.05 * np.random.default_rng(0).normal(size=image.shape)
    expected = np.zeros((16, 16))
    expected[4:13, 3:12] = 1
    assert (foreground(image)[0] == expected).all()
    assert (foreground(-image)[0] == expected).all()


def test_correlation_is_pearson_s():
    rng = np.random.default_rng(2)
    maps, target = rng.random((2, 4, 8, 8)), rng.random((4, 8, 8))
    expected = [[abs(np.corrcoef(maps[i, j].ravel(), target[j].ravel())[0, 1]) for j in range(4)] for i in range(2)]
    np.testing.assert_allclose(map_correlation(maps, target), expected)
    assert map_correlation(np.ones((8, 8)), target[0]) == 0
