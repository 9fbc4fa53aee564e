"""Who did it: exact Shapley values, and the parts of a variance."""

from math import factorial

import numpy as np

from diffusers_xai.analysis.statistics import mean_interval


def shapley_values(values: np.ndarray, players: int) -> np.ndarray:
    """Exact Shapley values from the value of every coalition.

    Source: Shapley 1953.

    Args:
        values (`np.ndarray` of shape `(…, 2, …, 2)`): v of every coalition, with an axis for each player at the end:
            index 1 with it, 0 without.
        players (`int`): Number of those axes, n.

    Returns:
        `np.ndarray` of shape `(…, player)`: each player's mean gain over all orders in which they may come; their sum
        is v of all less v of none.

    Raises:
        ValueError: If the axes are not as many twos.
    """
    values = np.asarray(values, dtype=np.float64)
    if players < 1 or values.shape[values.ndim - players :] != (2,) * players:
        raise ValueError(f"Expected {players} axes of length 2 at the end, got shape {values.shape}")
    others = np.indices((2,) * (players - 1)).sum(0)  # players that are there already
    weights = np.array([factorial(k) * factorial(players - 1 - k) / factorial(players) for k in range(players)])[
        others
    ]
    start = values.ndim - players
    axes = tuple(range(start, values.ndim - 1))
    gains = [np.diff(values, axis=start + player).squeeze(start + player) for player in range(players)]
    return np.stack([(gain * weights).sum(axes) for gain in gains], axis=-1)


def variance_shares(values: np.ndarray) -> np.ndarray:
    """How much of a variance is due to rows, to columns, and to neither alone (two-way ANOVA, random effects).

    Components are (MS_rows − MS_rest) / columns, (MS_columns − MS_rest) / rows and MS_rest, none below 0, summed over
    the last axis before they are divided by their sum.

    Source: Searle, Casella and McCulloch 1992, *Variance Components*.

    Args:
        values (`np.ndarray` of shape `(row, column, …, value)`): Such as (seed, label, pixel); at least two rows and
            columns.

    Returns:
        `np.ndarray` of shape `(…, 3)`: shares in [0, 1] of rows, columns, and what is left; NaN where nothing varies.

    Raises:
        ValueError: If there are fewer than two rows or columns.
    """
    values = np.asarray(values, dtype=np.float64)
    rows, columns = values.shape[:2]
    if min(rows, columns) < 2:
        raise ValueError(f"Expected at least two rows and columns, got {rows} and {columns}")
    mean, of_rows, of_columns = values.mean((0, 1)), values.mean(1), values.mean(0)
    rest = values - of_rows[:, None] - of_columns[None] + mean
    left = np.square(rest).sum((0, 1)) / ((rows - 1) * (columns - 1))
    by_row = columns * np.square(of_rows - mean).sum(0) / (rows - 1)
    by_column = rows * np.square(of_columns - mean).sum(0) / (columns - 1)
    parts = np.stack([(by_row - left) / columns, (by_column - left) / rows, left], axis=-1).sum(-2)
    parts = np.maximum(parts, 0)
    total = parts.sum(-1, keepdims=True)
    return np.divide(parts, total, out=np.full_like(parts, np.nan), where=total > 0)


def variance_share_intervals(values: np.ndarray, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of [`variance_shares`] by the jackknife over the rows: lower and upper limits `(…, 3)` in [0, 1].

    The columns are taken as those that are asked about, and not as drawn from others. A bootstrap would not do: rows
    that are drawn twice look like a variance between columns.

    Source: Tukey 1958 (pseudo-values and Student's t).

    Args:
        values (`np.ndarray` of shape `(row, column, …, value)`): See [`variance_shares`]; NaN limits below three rows.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).
    """
    whole = variance_shares(values)
    if len(values) < 3:
        return np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    low, high = mean_interval(_pseudo_values(values), confidence=confidence)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def variance_share_difference(
    values: np.ndarray, control: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much more of a variance is due to each source than of a control's: difference, lower and upper limit (…, 3).

    By the jackknife over the rows, which both have in common.

    Args:
        values (`np.ndarray` of shape `(row, column, …, value)`): See [`variance_shares`].
        control (`np.ndarray` of that shape): The same rows and columns of the control.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1); NaN limits below three rows.
    """
    difference = variance_shares(values) - variance_shares(control)
    if len(values) < 3:
        return difference, np.full_like(difference, np.nan), np.full_like(difference, np.nan)
    low, high = mean_interval(_pseudo_values(values) - _pseudo_values(control), confidence=confidence)
    return difference, np.clip(low, -1, 1), np.clip(high, -1, 1)


def _pseudo_values(values: np.ndarray) -> np.ndarray:
    """Tukey's pseudo-values of the shares, a row each."""
    count = len(values)
    without = np.stack([variance_shares(np.delete(values, row, axis=0)) for row in range(count)])
    return count * variance_shares(values) - (count - 1) * without
