"""Counts, means and covariances over the seeds of a folder of parts, a file at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from diffusers_xai.analysis import Moments
from diffusers_xai.experiments.parts import PART, read_part


MAX_COVARIANCES = 1000  # numbers of a variable: of more, there are means and deviations alone
_BLOCK = 16
_RUNS = ["measured", "labels", "variable"]
_STATISTICS = ["count", "mean", "std", "low", "high", "covariance"]


def moments_over_seeds(folder: str | os.PathLike) -> pd.DataFrame:
    """What is known of every number over all seeds that a folder of parts has, see `Experiment.run`.

    One file is in memory at a time, and the moments of those before, see [`Moments`].

    Args:
        folder (`str` or `os.PathLike`): The folder; it may still grow.

    Returns:
        `pandas.DataFrame`: A row for each number that there is of a seed. `measured` and `labels` tell which runs,
        `variable` and the columns of its coordinates which number; `count` is that of the seeds that have it, `mean`,
        `std` (`ddof=1`), `low` and `high` (95 % t-interval of the mean) are over them. `covariance` are those with all
        numbers of the variable, in the order of the rows; None of variables with more than 1000.

    Raises:
        FileNotFoundError: If there is no part.
        ValueError: If a part is damaged.
    """
    paths = sorted(Path(folder).glob(PART))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected parts of an experiment, got none")
    found: dict[tuple[str, tuple[int, ...], str], list[Moments]] = {}
    layouts: dict[tuple[str, tuple[int, ...], str], xr.DataArray] = {}
    for path in paths:
        data = read_part(path)
        for name, array in data.data_vars.items():
            if "seed" in array.dims:
                key = data.attrs["measured"], tuple(data.attrs["labels"]), str(name)
                values = array.transpose("seed", ...)
                layouts.setdefault(key, values.isel(seed=0, drop=True))
                found[key] = _merged(found.get(key), values.values.reshape(values.sizes["seed"], -1))
    if not found:  # pictures of the first seeds alone
        return pd.DataFrame(columns=[*_RUNS, *_STATISTICS])
    table = pd.concat([_rows(key, moments, layouts[key]) for key, moments in found.items()], ignore_index=True)
    coords = [name for name in table if name not in _STATISTICS]
    for name in coords:  # layers by their names in some numbers, by their places in others
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = table[name].map(str, na_action="ignore")
    return table[[*coords, *_STATISTICS]]


def _merged(before: list[Moments] | None, values: np.ndarray) -> list[Moments]:
    """The moments of blocks of numbers, of which there is one if they are few."""
    size = values.shape[1] if values.shape[1] <= MAX_COVARIANCES else _BLOCK
    new = [Moments.of(values[:, start : start + size]) for start in range(0, values.shape[1], max(size, 1))]
    return new if before is None else [a.merge(b) for a, b in zip(before, new, strict=True)]


def _rows(key: tuple[str, tuple[int, ...], str], moments: list[Moments], layout: xr.DataArray) -> pd.DataFrame:
    count, mean, variance = (
        np.concatenate([np.diagonal(getattr(part, name)) for part in moments])
        for name in ("count", "mean", "covariance")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.975, count - 1) * np.sqrt(variance / count)
    covariance = [row.tolist() for row in moments[0].covariance] if len(moments) == 1 else [None] * len(mean)
    of_each = [count.astype(int), mean, np.sqrt(variance), mean - half, mean + half, covariance]
    table = _coordinates(layout).assign(**dict(zip(_STATISTICS, of_each, strict=True)))
    for place, (name, value) in enumerate(zip(_RUNS, key, strict=True)):
        table.insert(place, name, [value] * len(table))
    return table


def _coordinates(layout: xr.DataArray) -> pd.DataFrame:
    """A row for each number of an array, in C order, with its coordinates."""
    if not layout.dims:
        return pd.DataFrame(index=[0])
    kept: Any = layout.to_dataset(name="_number")
    return kept.to_dataframe(dim_order=layout.dims).reset_index().drop(columns="_number")
