"""Intervals, indices and structure, against other people's code and by hand."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom, norm, t

from diffusers_xai.analysis import (
    above_test,
    benjamini_hochberg,
    equivalence_test,
    mean_interval,
    share_interval,
    summary,
)
from diffusers_xai.analysis.statistics import INTERVALS


REPEATS = 200
# A count of 200 repeats scatters by 1.5 %; these seeds were not chosen, and the wider run below has 0.3 %.


def coverage(low, high, truth):
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize(
    ("method", "draws", "distribution", "truth"),
    [
        ("t", 5, "normal", 0.0),
        ("t", 30, "normal", 0.0),
        ("t", 100, "exponential", 1.0),
        ("bca", 100, "normal", 0.0),
        ("bca", 100, "exponential", 1.0),
    ],
)
def test_the_interval_covers_the_mean_as_often_as_it_says(method, draws, distribution, truth):
    values = getattr(np.random.default_rng(0), distribution)(size=(draws, REPEATS))
    assert 0.93 <= coverage(*mean_interval(values, method=method, resamples=1000), truth) <= 0.97


def test_student_s_interval_covers_exactly_of_normal_draws_however_few():
    rng = np.random.default_rng(1)
    for draws, confidence in ((3, 0.95), (8, 0.95), (30, 0.8)):
        values = rng.normal(5.0, 2.0, size=(draws, 5000))
        noise = np.sqrt(confidence * (1 - confidence) / 5000)
        assert coverage(*mean_interval(values, confidence=confidence), 5.0) == pytest.approx(confidence, abs=3 * noise)


def test_the_share_s_interval_covers():
    rng = np.random.default_rng(0)
    for share in (0.03, 0.3, 0.5):
        counts = rng.binomial(400, share, size=REPEATS)
        limits = np.array([share_interval(count, 400) for count in counts])
        assert 0.93 <= coverage(*limits.T, share) <= 1  # never less than it says, and more where the share is small


def test_limits_of_a_share_solve_the_binomial_tails():
    low, high = share_interval(7, 20)
    assert binom.sf(6, 20, low) == pytest.approx(0.025)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025)
    assert share_interval(0, 20)[0] == 0
    assert share_interval(0, 20)[1] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert share_interval(20, 20)[1] == 1


def test_student_s_interval_by_hand():
    # 1, 2, 3, 4: mean 2.5, standard error √(5/3)/2, the quantile of three degrees of freedom from a table
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert high - 2.5 == pytest.approx(2.5 - low)
    assert high - 2.5 == pytest.approx(3.182446 * np.sqrt(5 / 3) / 2, rel=1e-6)


def test_the_arcsine_s_interval_by_hand():
    # 0.1, 0.3, 0.5: mean 0.3, standard error 0.2/√3; arcsin √m has the slope 1/(2 √(m (1 − m))).
    low, high = mean_interval(np.array([0.1, 0.3, 0.5]), method="arcsine")
    half = 4.30265273 * 0.2 / np.sqrt(3) / (2 * np.sqrt(0.21))
    assert low == pytest.approx(np.sin(np.arcsin(np.sqrt(0.3)) - half) ** 2, rel=1e-6)
    assert high == pytest.approx(np.sin(np.arcsin(np.sqrt(0.3)) + half) ** 2, rel=1e-6)
    assert mean_interval(np.array([0.0, 0.0, 0.1]), method="arcsine")[0] == 0


def test_draws_that_say_nothing_about_their_spread():
    for method in INTERVALS:
        assert np.isnan(mean_interval(np.array([3.0]), method=method)).all()
        np.testing.assert_array_equal(mean_interval(np.full(6, 0.3), method=method), np.full(2, 0.3).mean())


def test_false_discoveries_are_as_rare_as_asked_for():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(REPEATS):
        p = np.concatenate([rng.uniform(size=40), norm.sf(rng.normal(3.0, 1.0, size=10))])  # 40 false, 10 true
        found = benjamini_hochberg(p) <= 0.1
        shares.append(found[:40].sum() / max(found.sum(), 1))
    assert np.mean(shares) == pytest.approx(0.1 * 40 / 50, abs=3 * np.std(shares) / np.sqrt(REPEATS))


def test_correction_by_hand():
    # The values times 4/rank, each at most those of the ranks above.
    expected = [0.04, 4 / 3 * 0.04, 4 / 3 * 0.04, 0.2]
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03, 0.2]), expected)
    np.testing.assert_allclose(benjamini_hochberg([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def test_equivalence_is_claimed_wrongly_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    at_the_margin = equivalence_test(rng.normal(0.1, 0.2, size=(20, 2000)), -0.1, 0.1)
    assert np.mean(at_the_margin <= 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))
    assert np.mean(equivalence_test(rng.normal(0.0, 0.2, size=(100, 200)), -0.1, 0.1) <= 0.05) > 0.95
    assert equivalence_test(np.full(5, 0.05), -0.1, 0.1) == 0
    assert equivalence_test(np.full(5, 0.2), -0.1, 0.1) == 1
    assert equivalence_test(np.full(5, 0.1), -0.1, 0.1) == 1  # on the margin: not shown to lie within


def test_a_mean_above_a_bound_by_hand():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    expected = t.sf((2.5 - 1.5) / (np.sqrt(5 / 3) / 2), 3)
    assert above_test(values, 1.5) == pytest.approx(expected)
    assert above_test(-values, -1.5) == pytest.approx(1 - expected)
    np.testing.assert_array_equal(above_test(np.array([[0.3, 0.3, 0.3], [0.1, 0.1, 0.1]]), 0.1, axis=1), [0, 1])
    assert above_test(0.71 + 1e-17 * values - 0.7) == 0  # the noise of arithmetic is no spread
    assert np.isnan(above_test(np.array([1.0, np.nan, 2.0])))
    with pytest.raises(ValueError, match="at least two"):
        above_test(np.ones(1))  # one seed shows nothing


def test_other_axes_keep_their_place():
    values = xr.DataArray(np.random.default_rng(0).random((3, 5, 2)), dims=("layer", "seed", "step"))
    for method in INTERVALS:
        facts = summary(values, method=method)
        assert facts["low"].dims == facts["mean"].dims == ("layer", "step")
        assert facts["count"] == 5
        np.testing.assert_allclose(facts["mean"], values.values.mean(1))
        np.testing.assert_allclose(facts["std"], values.values.std(1, ddof=1))
        if method == "t":
            alone = mean_interval(values.values[2, :, 1])
            np.testing.assert_allclose([facts["low"][2, 1], facts["high"][2, 1]], alone)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: mean_interval(np.empty(0)), "at least one value"),
        (lambda: mean_interval(np.ones(3), confidence=95), "between 0 and 1"),
        (lambda: mean_interval(np.ones(3), method="normal"), "'normal'"),
        (lambda: mean_interval(np.array([0.5, 1.5]), method="arcsine"), r"in \[0, 1\], got 0.5 to 1.5"),
        (lambda: share_interval(3, 2), "3 out of 2"),
        (lambda: share_interval(0, 0), "at least one trial"),
        (lambda: equivalence_test(np.ones(3), 0.1, -0.1), "low < high"),
        (lambda: equivalence_test(np.ones(1), -0.1, 0.1), "at least two"),
        (lambda: benjamini_hochberg([0.5, 1.5]), "p"),
    ],
)
def test_bad_requests(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()
