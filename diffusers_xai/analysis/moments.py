"""Counts, means and covariances that are merged: of any number of draws, in the memory of a few."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of every pair of features, over the draws that have both: how many, the mean of each, and how they covary.

    Two of these are merged by adding counts and moving the means, so that parts of the draws, in any order and on any
    machines, give what all at once give. NaN and infinity are numbers that a draw does not have.

    Source: Chan, Golub and LeVeque 1983.

    Args:
        count (`np.ndarray` of shape `(feature, feature)`): Draws that have both features.
        mean (`np.ndarray` of shape `(feature, feature)`): Of the row's feature, over them; NaN of none.
        scatter (`np.ndarray` of shape `(feature, feature)`): Sum of the products of both deviations from these means.
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of draws.

        Args:
            values (`np.ndarray` of shape `(draw, feature)`): Numbers, at least one draw; it may lack some, see above.
        """
        values = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(values)
        there = finite.astype(np.float64)
        count = there.T @ there
        # Deviations from a value within the data lose no digits where numbers are large and differ by little.
        middle = np.where(finite.any(0), values[finite.argmax(0), range(values.shape[1])], 0.0)
        deviations = np.subtract(values, middle, out=np.zeros_like(values), where=finite)
        sums = deviations.T @ there
        mean = sums / np.maximum(count, 1)
        return cls(
            count, np.where(count > 0, middle[:, None] + mean, np.nan), deviations.T @ deviations - sums * mean.T
        )

    def merge(self, other: Self) -> Self:
        """Of the draws of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = np.where((self.count > 0) & (other.count > 0), other.mean - self.mean, 0.0)
        mean = np.where(self.count > 0, self.mean, other.mean) + apart * share
        return type(self)(count, mean, self.scatter + other.scatter + apart * apart.T * self.count * share)

    @property
    def covariance(self) -> np.ndarray:
        """Of shape `(feature, feature)`; NaN of pairs that fewer than two draws have."""
        return np.where(self.count > 1, self.scatter / np.maximum(self.count - 1, 1), np.nan)
