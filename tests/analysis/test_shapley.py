"""Shapley values over all orders, and variance components of data made with known ones."""

from itertools import permutations

import numpy as np
import pytest

from diffusers_xai.analysis import (
    shapley_values,
    variance_share_difference,
    variance_share_intervals,
    variance_shares,
)


def test_they_are_the_mean_gain_over_all_orders():
    values = np.random.default_rng(0).normal(size=(3, 2, 2, 2, 2))
    found = shapley_values(values, 4)
    expected = np.zeros((3, 4))
    for order in permutations(range(4)):
        place = [0] * 4
        for player in order:
            before = values[(slice(None), *place)]
            place[player] = 1
            expected[:, player] += (values[(slice(None), *place)] - before) / 24
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), values[:, 1, 1, 1, 1] - values[:, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(ValueError, match="5 axes of length 2"):
        shapley_values(values, 5)


def test_shares_of_a_variance_made_with_known_ones():
    draw = np.random.default_rng(1)
    rows, columns = draw.normal(0, 2, (400, 1, 50)), draw.normal(0, 1, (1, 40, 50))
    values = rows + columns + draw.normal(0, 3, (400, 40, 50))
    np.testing.assert_allclose(variance_shares(values), np.array([4, 1, 9]) / 14, atol=0.02)
    assert variance_shares(np.ones((3, 2, 5))).tolist() == pytest.approx([np.nan] * 3, nan_ok=True)
    additive = np.arange(3.0)[:, None, None] + 10 * np.arange(2.0)[None, :, None]
    np.testing.assert_allclose(variance_shares(additive), [1 / 51, 50 / 51, 0], atol=1e-12)
    with pytest.raises(ValueError, match="two rows and columns, got 1"):
        variance_shares(np.ones((1, 2, 5)))


def test_the_interval_covers_the_share():
    """Of 200 tables of 12 rows with a fixed column effect; by chance 95 %, a standard error of 1.5 %."""
    draw = np.random.default_rng(2)
    column = draw.normal(0, 1, (1, 4, 40))
    column = (column - column.mean(1, keepdims=True)) / column.std(1, ddof=1, keepdims=True)
    covered, covered_difference = np.zeros(3), np.zeros(3)
    for _ in range(200):
        rows, rest, other = draw.normal(0, 1, (12, 1, 40)), *draw.normal(0, 1, (2, 12, 4, 40))
        low, high = variance_share_intervals(rows + column + rest)
        covered += (low <= 1 / 3) & (high >= 1 / 3)
        # Without the columns, halves are left to the rows and the rest.
        _, low, high, p_value = variance_share_difference(rows + column + rest, rows + other)
        assert ((p_value < 0.05) == ((low > 0) | (high < 0))).all()
        truth = np.array([-1, 2, -1]) / 6
        covered_difference += (low <= truth) & (high >= truth)
    assert (covered / 200 >= 0.9).all()
    assert (covered_difference / 200 >= 0.9).all(), covered_difference
    assert np.isnan(variance_share_intervals(np.ones((2, 2, 1)))[0]).all()
    assert np.isnan(variance_share_difference(np.ones((2, 2, 1)), np.ones((2, 2, 1)))[1]).all()


def test_the_interval_covers_where_a_source_does_nothing():
    """Verdicts: the label decides, but of one in ten. Cut off at 0, the seeds' share would be held in 79 %."""
    draw = np.random.default_rng(3)
    covered, count = np.zeros(3), 200
    truth = np.array([0, 1 / 3 * 0.8**2, 0.09]) / (1 / 3 * 0.8**2 + 0.09)
    for _ in range(count):
        wrong = draw.random((30, 4)) < 0.1
        low, high = variance_share_intervals((wrong ^ np.array([0, 0, 1, 1], bool)).astype(float)[..., None])
        covered += (low <= truth) & (truth <= high)
    assert covered[0] / count >= 0.93
    assert (covered / count >= 0.9).all(), covered  # a standard error of 1.5 %
    alike = np.broadcast_to([0.0, 1.0], (8, 2))[..., None]
    assert variance_shares(alike).tolist() == [0, 1, 0]
    assert np.isnan(variance_share_intervals(alike)).all()  # eight seeds that agree do not say that all do
    assert np.isnan(variance_share_difference(alike, draw.normal(size=(8, 2, 1)))[1:]).all()
