"""Who did it: exact Shapley values, and the parts of a variance."""

from math import factorial

import numpy as np

from diffusers_xai.analysis.statistics import mean_interval, not_zero_test


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
    if min(values.shape[:2]) < 2:
        raise ValueError("Expected at least two rows and columns, got {} and {}".format(*values.shape[:2]))
    return _divided(np.maximum(_components(values), 0))


def _components(values: np.ndarray) -> np.ndarray:
    """The components (…, 3) themselves, which scatter around the true ones, also below 0."""
    rows, columns = values.shape[:2]
    mean, of_rows, of_columns = values.mean((0, 1)), values.mean(1), values.mean(0)
    rest = values - of_rows[:, None] - of_columns[None] + mean
    left = np.square(rest).sum((0, 1)) / ((rows - 1) * (columns - 1))
    by_row = columns * np.square(of_rows - mean).sum(0) / (rows - 1)
    by_column = rows * np.square(of_columns - mean).sum(0) / (columns - 1)
    return np.stack([(by_row - left) / columns, (by_column - left) / rows, left], axis=-1).sum(-2)


def _divided(parts: np.ndarray) -> np.ndarray:
    total = parts.sum(-1, keepdims=True)
    return np.divide(parts, total, out=np.full_like(parts, np.nan), where=total > 0)


def variance_share_intervals(values: np.ndarray, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of [`variance_shares`] by the jackknife over the rows: lower and upper limits `(…, 3)` in [0, 1].

    The columns are taken as those that are asked about, and not as drawn from others. A bootstrap would not do: rows
    that are drawn twice look like a variance between columns. Of a component that is estimated below 0, the jackknife
    sees the estimate: if it were cut off, it would hardly scatter, and the interval be too narrow.

    Source: Tukey 1958 (pseudo-values and Student's t).

    Args:
        values (`np.ndarray` of shape `(row, column, …, value)`): See [`variance_shares`]; NaN limits below three rows,
            and where all rows are alike, which does not tell how rows differ.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).
    """
    if len(values) < 3:
        nothing = np.full_like(variance_shares(values), np.nan)
        return nothing, nothing
    pseudo = _pseudo_values(values)
    low, high = mean_interval(pseudo, confidence=confidence)
    centre, half = _centre(pseudo), (high - low) / 2
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def variance_share_difference(
    values: np.ndarray, control: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How much more of a variance is due to each source than of a control's.

    By the jackknife over the rows, which both have in common.

    Args:
        values (`np.ndarray` of shape `(row, column, …, value)`): See [`variance_shares`].
        control (`np.ndarray` of that shape): The same rows and columns of the control.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).

    Returns:
        Four `np.ndarray` of shape `(…, 3)`: difference, lower and upper limit, and the two-sided p-value of no
        difference; all but the first NaN where [`variance_share_intervals`] has no limits.
    """
    difference = variance_shares(values) - variance_shares(control)
    if len(values) < 3:
        nothing = np.full_like(difference, np.nan)
        return difference, nothing, nothing, nothing
    ours, theirs = _pseudo_values(values), _pseudo_values(control)
    low, high = mean_interval(ours - theirs, confidence=confidence)
    centre, half = _centre(ours) - _centre(theirs), (high - low) / 2
    p_values = not_zero_test(ours - theirs + centre - (ours - theirs).mean(0))
    return difference, np.clip(centre - half, -1, 1), np.clip(centre + half, -1, 1), p_values


def _centre(pseudo: np.ndarray) -> np.ndarray:
    """The jackknife's estimate, as near as a share can be to it: an interval around it has the ends that can be."""
    return np.clip(pseudo.mean(0), 0, 1)


def _pseudo_values(values: np.ndarray) -> np.ndarray:
    """Tukey's pseudo-values of the shares, a row each; NaN where rows are alike."""
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    without = np.stack([_divided(_components(np.delete(values, row, axis=0))) for row in range(count)])
    pseudo = count * _divided(_components(values)) - (count - 1) * without
    alike = (np.ptp(values, axis=0) == 0).all((0, -1))
    return np.where(alike[..., None], np.nan, pseudo)
