"""Merged moments against pandas' covariances of all draws at once."""

from functools import reduce

import numpy as np
import pandas as pd
import pytest

from diffusers_xai.analysis import Moments


@pytest.mark.parametrize("shards", [1, 2, 3, 40])
@pytest.mark.parametrize("mean", [0.0, 1e6])  # where sums of squares would lose ten digits
def test_shards_give_what_all_at_once_give(shards, mean):
    source = np.random.default_rng(0)
    values = mean + source.normal(size=(40, 4)) @ source.normal(size=(4, 4))
    values[source.random(values.shape) < 0.2] = np.nan
    values[:13, 1] = np.inf  # no number either: a shard without any
    values[:, 3] = np.nan  # nowhere
    merged = reduce(Moments.merge, [Moments.of(part) for part in np.array_split(values, shards)])
    frame = pd.DataFrame(values).replace(np.inf, np.nan)
    np.testing.assert_allclose(merged.covariance, frame.cov(), rtol=1e-8)
    np.testing.assert_array_equal(np.diagonal(merged.count), frame.count())
    np.testing.assert_allclose(np.diagonal(merged.mean), frame.mean(), rtol=1e-12)
    both = frame[[0, 2]].dropna()
    assert merged.count[0, 2] == len(both)
    assert merged.mean[0, 2] == pytest.approx(both[0].mean())
