"""How much more than another's, seed by seed: differences with intervals that cover, and their tests."""

from functools import lru_cache

import numpy as np
import xarray as xr
from scipy import stats
from scipy.optimize import brentq
from scipy.special import gammaln, xlogy

from diffusers_xai.analysis.statistics import are_verdicts, not_zero_test, summary


_NUISANCE = 101  # probabilities that are tried of what is not asked about
_MOST = 200  # pairs of which all outcomes are counted


def paired_difference(
    values: xr.DataArray, others: xr.DataArray | float = 0.0, dim: str = "seed", *, verdicts: bool = False
) -> xr.Dataset:
    """Mean of `values − others` along a dim, with its interval, and the test that it is 0.

    Student's, but of verdicts exact: see [`verdict_difference`].

    Args:
        values (`xarray.DataArray`): Values with the dim `dim`.
        others (`xarray.DataArray` or `float`, defaults to 0): Those of the same seeds that they are compared with.
        dim (`str`, defaults to `"seed"`): What to average over.
        verdicts (`bool`, defaults to `False`): Whether they are a judge's answers: where all are 0 or 1, the interval
            and the test are exact.

    Returns:
        `xarray.Dataset`: `mean`, `std`, `low`, `high` and `count` as of [`summary`], and `p_value` (two-sided), NaN of
        a single value.
    """
    difference = values - others
    facts = summary(difference, dim)
    axis, count = difference.get_axis_num(dim), difference.sizes[dim]
    exact = verdicts and are_verdicts(values.values) and are_verdicts(np.asarray(others))
    if not exact or count < 2:
        return facts.assign(p_value=facts["mean"].copy(data=not_zero_test(difference.values, axis=axis)))
    plus, minus = ((difference.values == sign).sum(axis) for sign in (1, -1))
    found = np.vectorize(verdict_difference, otypes=[float] * 3)(plus, minus, count)
    return facts.assign(
        {name: facts["mean"].copy(data=x) for name, x in zip(("low", "high", "p_value"), found, strict=True)}
    )


@lru_cache(maxsize=4096)
def verdict_difference(plus: int, minus: int, count: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Exact interval of a difference of two probabilities, from pairs of answers of yes or no; and its exact test.

    It inverts two one-sided tests by Tango's score, whose tails are taken at the worst of the probabilities that are
    not asked about. So it covers at least as often as it says, and excludes 0 just where p is below 1 − `confidence`.
    Of more than 200 pairs, the tails are those of the normal distribution: Tango's own interval, no longer exact.

    Source: Tango 1998 (the score); Suissa and Shuster 1991 (the test); Chan and Zhang 1999 (its inversion).

    Args:
        plus (`int`): Pairs of a yes and a no.
        minus (`int`): Pairs of a no and a yes.
        count (`int`): All pairs, those of equal answers included.
        confidence (`float`, defaults to 0.95): Coverage, in (0, 1).

    Returns:
        `tuple[float, float, float]`: lower and upper limit in [−1, 1], and the two-sided p-value of no difference.

    Raises:
        ValueError: If the counts do not fit.
    """
    if min(plus, minus) < 0 or plus + minus > count or count < 1:
        raise ValueError(f"Expected counts out of at least one pair, got {plus} and {minus} of {count}.")
    alpha = (1 - confidence) / 2
    p_value = min(1.0, 2 * min(_tail(plus, minus, count, 0.0), _tail(minus, plus, count, 0.0)))
    return _lower(plus, minus, count, alpha), -_lower(minus, plus, count, alpha), p_value


def _lower(plus: int, minus: int, count: int, alpha: float) -> float:
    estimate = (plus - minus) / count
    if estimate == -1:
        return -1.0
    return float(brentq(lambda x: _tail(plus, minus, count, x) - alpha, -1.0, estimate, xtol=1e-5))


def _tail(plus: int, minus: int, count: int, difference: float) -> float:
    """The largest probability of a score at least as high as that of the counts, if the difference is as given."""
    if count > _MOST:
        return float(stats.norm.sf(_score(plus, minus, count, difference)))
    first, second = (x.ravel() for x in np.meshgrid(*[np.arange(count + 1)] * 2, indexing="ij"))
    first, second = (x[first + second <= count] for x in (first, second))
    rest = count - first - second
    extreme = _score(first, second, count, difference) >= _score(plus, minus, count, difference) - 1e-9
    first, second, rest = (x[extreme, None] for x in (first, second, rest))
    ways = gammaln(count + 1) - gammaln(first + 1) - gammaln(second + 1) - gammaln(rest + 1)
    of_minus = np.linspace(max(0.0, -difference), (1 - difference) / 2, _NUISANCE)
    of_plus = of_minus + difference
    equal = np.maximum(1 - of_plus - of_minus, 0)
    return float(np.exp(ways + xlogy(first, of_plus) + xlogy(second, of_minus) + xlogy(rest, equal)).sum(0).max())


def _score(plus: np.ndarray | int, minus: np.ndarray | int, count: int, difference: float) -> np.ndarray:
    """Tango's: the distance from a difference, in standard errors at the likeliest probabilities that have it."""
    away = np.asarray(plus) - minus - count * difference
    linear = np.asarray(plus) + minus - (2 * count - np.asarray(plus) + minus) * difference
    constant = np.asarray(minus) * difference * (1 - difference)
    of_minus = (linear + np.sqrt(np.maximum(linear**2 + 8 * count * constant, 0))) / (4 * count)
    variance = count * (2 * of_minus + difference * (1 - difference))
    with np.errstate(divide="ignore", invalid="ignore"):
        score = away / np.sqrt(np.maximum(variance, 0))
    return np.where(np.abs(away) < 1e-9, 0.0, score)


def ratio_of_means(numerator: xr.DataArray, denominator: xr.DataArray, dim: str = "seed") -> xr.DataArray:
    """For each seed its part in the ratio of two means, r + (x − r·y) / ȳ: their mean is x̄ / ȳ, exactly.

    How they scatter is how the ratio does, to first order, the denominator's own scatter included: an interval of
    their mean is one of the ratio.

    Source: Cochran 1977, *Sampling Techniques*, section 6.3.

    Args:
        numerator (`xarray.DataArray`): x, with the dim `dim`.
        denominator (`xarray.DataArray`): y of the same seeds, whose mean is not 0.
        dim (`str`, defaults to `"seed"`): What to average over.
    """
    mean = denominator.mean(dim)
    ratio = numerator.mean(dim) / mean
    return ratio + (numerator - ratio * denominator) / mean
