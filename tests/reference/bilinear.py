"""Bilinear interpolation in plain numpy."""

import numpy as np


def bilinear(mask, height, width):
    """Bilinear interpolation with half-pixel centres and clamped borders, in plain numpy."""

    def weights(source, target):
        matrix = np.zeros((target, source))
        for i in range(target):
            x = max((i + 0.5) * source / target - 0.5, 0)
            low = min(int(x), source - 1)
            matrix[i, low] += 1 - (x - low)
            matrix[i, min(low + 1, source - 1)] += x - low
        return matrix

    return weights(mask.shape[0], height) @ mask.astype(float) @ weights(mask.shape[1], width).T
