"""Differences seed by seed, against scipy, by hand, and how often their intervals cover."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from diffusers_xai.analysis import paired_difference, ratio_of_means, summary, verdict_difference


RNG = np.random.default_rng(0)


def over_seeds(values):
    return xr.DataArray(np.asarray(values, float), dims="seed")


def test_a_paired_t_test_is_scipy_s():
    first, second = over_seeds(RNG.normal(0.4, 1, 12)), over_seeds(RNG.normal(0, 1, 12))
    found, expected = paired_difference(first, second), stats.ttest_rel(first, second)
    assert float(found["p_value"]) == pytest.approx(expected.pvalue)
    np.testing.assert_allclose([found["low"], found["high"]], expected.confidence_interval(0.95))
    # Of numbers that were measured, ones and zeros are numbers.
    ones = paired_difference(over_seeds(np.ones(5)))
    assert [float(ones[name]) for name in ("low", "high", "p_value")] == [1, 1, 0]
    assert np.isnan(float(paired_difference(first[:1], second[:1])["p_value"]))


def test_verdicts_that_are_all_the_same_are_not_known_for_sure():
    facts = summary(over_seeds(np.ones(5)), verdicts=True)
    assert float(facts["low"]) == pytest.approx(0.025 ** (1 / 5))  # Clopper and Pearson
    assert float(facts["high"]) == 1
    assert float(summary(over_seeds([0.9] * 5), verdicts=True)["low"]) == 0.9  # probabilities are no verdicts
    difference = paired_difference(over_seeds(np.ones(5)), over_seeds(np.zeros(5)), verdicts=True)
    assert float(difference["p_value"]) == pytest.approx(2 * 0.5**5)
    assert float(difference["low"]) < 0 < float(difference["high"])


def multinomial(plus, minus, count):
    """All counts of pairs, and how likely each is."""
    pairs = np.array([(b, c) for b in range(count + 1) for c in range(count + 1 - b)])
    rest = count - pairs.sum(1)
    return pairs, stats.multinomial.pmf(np.c_[pairs, rest], count, [plus, minus, 1 - plus - minus])


@pytest.mark.parametrize("count", [5, 8, 12])
def test_the_exact_interval_covers_at_any_probabilities(count):
    """Not of draws: every outcome, with its probability."""
    pairs, _ = multinomial(0.3, 0.3, count)
    low, high, p_values = np.array([verdict_difference(b, c, count) for b, c in pairs.tolist()]).T
    covered = []
    for plus in np.arange(0.02, 1, 0.06):
        for minus in np.arange(0.02, 1 - plus, 0.06):
            weights = multinomial(plus, minus, count)[1]
            covered.append(weights[(low <= plus - minus) & (plus - minus <= high)].sum())
    assert min(covered) > 0.949  # the grid of the other probabilities is that fine
    assert np.mean(covered) < 0.993
    np.testing.assert_array_equal(p_values < 0.05, (low > 0) | (high < 0))
    for share in (0.1, 0.3, 0.5):
        assert multinomial(share, share, count)[1][p_values < 0.05].sum() <= 0.0501


def test_more_pairs_take_the_normal_distribution():
    few, more = (verdict_difference(60, 30, count) for count in (200, 201))  # one more, of equal answers
    np.testing.assert_allclose(more[:2], few[:2], atol=0.01)
    assert more[2] == pytest.approx(few[2], rel=0.1)
    low, high, p_value = verdict_difference(300, 200, 2000)
    assert p_value == pytest.approx(stats.chi2.sf(100**2 / 500, 1))  # McNemar
    half = stats.norm.ppf(0.975) * np.sqrt((500 - 100**2 / 2000) / 2000**2)  # Wald
    np.testing.assert_allclose([low, high], [0.05 - half, 0.05 + half], atol=5e-4)


def test_counts_that_cannot_be_are_refused():
    for counts in ((3, 3, 5), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="at least one pair"):
            verdict_difference(*counts)


def test_the_interval_of_a_ratio_covers():
    shared = RNG.gamma(3, 1, (60, 1000))
    first, second = (xr.DataArray(shared * RNG.gamma(4, 1, shared.shape), dims=("seed", "repeat")) for _ in range(2))
    parts = ratio_of_means(2 * first, second)
    np.testing.assert_allclose(parts.mean("seed"), 2 * first.mean("seed") / second.mean("seed"))
    facts = summary(parts)
    assert 0.93 <= float(((facts["low"] <= 2) & (facts["high"] >= 2)).mean()) <= 0.97
