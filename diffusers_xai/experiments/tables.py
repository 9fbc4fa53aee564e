"""What the tables share: a number, its control and the excess, and q-values of all of them together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from diffusers_xai.analysis import benjamini_hochberg, crossing_difference, paired_difference, summary
from diffusers_xai.experiments.figures import limits_of


MOMENTS = 8  # of a curve in a table
Q = "q"  # a column of this name, or of this before ":" or " over", has p-values in the rows, q-values in the table


def in_table(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pd.DataFrame:
    """A table in which all p-values together have become q-values (Benjamini and Hochberg).

    Names that users chose, of checkpoints or of what a judge tells, stand in cells or behind a column's ": ", so that
    none can be taken for another column.

    Args:
        rows (sequence of `Mapping`, or `Mapping`): Rows by column, or columns. Those of `Q` hold p-values, NaN where
            nothing was tested.
    """
    table = pd.DataFrame(rows).astype(object)
    columns = [column for column in table if _has_q(column)]
    p_values = table[columns].to_numpy(dtype=np.float64)
    q_values = benjamini_hochberg(p_values.ravel()).reshape(p_values.shape)
    texts = np.where(q_values < 0.001, "< 0.001", np.char.mod("%.3f", q_values))
    table[columns] = np.where(np.isnan(q_values), "", texts)
    return table.fillna("")


def _has_q(column: Any) -> bool:
    """Whether a column has q-values."""
    return str(column) == Q or str(column).startswith((f"{Q}: ", f"{Q} over "))


def q_note(table: pd.DataFrame) -> str:
    """What the q-values of a table are, in words; nothing of a table without."""
    if not any(_has_q(column) for column in table):
        return ""
    return (
        "q: the p-value of no excess, corrected for all of this table (Benjamini and Hochberg). Of the excesses with q"
        " of at most 0.05, at most one in twenty is false on average. Intervals are not corrected."
    )


def crossing_text(found: xr.DataArray, name: str = "t") -> str:
    """A crossing with its interval, for a table; of a single value, only that."""
    early, estimate, late = limits_of(found)
    if not np.isfinite(estimate):
        return "never"
    interval = f" ({early:.0f} to {late:.0f})" if np.isfinite(early) else ""
    return f"{name} = {estimate:.0f}{interval}"


def crossing_columns(data: xr.Dataset, curves: str, found: str, threshold: float, along: str) -> dict[str, Any]:
    """Where the mean curve falls through a threshold, its control and the excess, for a row of a table.

    Args:
        data (`xarray.Dataset`): The curves (seed, `along`) under the name `curves`, where their mean falls (limit)
            under `found`, each with `null_` of the control, if there is one.
        curves (`str`): The name of the curves, and
        found (`str`): of what was found.
        threshold (`float`): What was fallen through.
        along (`str`): The dim of the curves.
    """
    columns: dict[str, Any] = {"the model": crossing_text(data[found])}
    if f"null_{curves}" in data:
        excess = crossing_difference(data[curves], data[f"null_{curves}"], threshold, along=along)
        mean, low, high = (float(excess[name]) for name in ("mean", "low", "high"))
        columns["control"] = crossing_text(data[f"null_{found}"])
        columns["excess"] = "" if np.isnan(mean) else f"{mean:+z.0f}"
        if np.isfinite(low):
            columns["excess"] += f" ({low:+z.0f} to {high:+z.0f})"
        columns[Q] = float(excess["p_value"])
    return columns


def interval_text(facts: xr.Dataset) -> str:
    """What `analysis.summary` says of one mean, for a table: the mean and its interval; of one value, only that."""
    mean, low, high = (float(facts[name]) for name in ("mean", "low", "high"))
    mean, low, high = (round(value, 3) + 0.0 for value in (mean, low, high))  # no "-0.000"
    return f"{mean:z.3f} ({low:z.3f} to {high:z.3f})" if np.isfinite(low) else f"{mean:z.3f}"


def excess_columns(data: xr.Dataset, name: str, *, verdicts: bool = False) -> dict[str, Any]:
    """A number over the seeds, its control and the excess, for a row of a table; the control where there is one.

    Args:
        data (`xarray.Dataset`): The numbers (seed,) under `name`, and those of the control under `null_` and it.
        name (`str`): Their name.
        verdicts (`bool`, defaults to `False`): Whether they are a judge's answers, see [`analysis.summary`].
    """
    columns: dict[str, Any] = {"the model": interval_text(summary(data[name], verdicts=verdicts))}
    if f"null_{name}" in data:
        null = data[f"null_{name}"]
        columns["control"] = interval_text(summary(null, verdicts=verdicts))
        columns |= difference_columns(data[name], null, verdicts=verdicts)
    return columns


def difference_columns(
    values: xr.DataArray, others: xr.DataArray, of: str = "", *, verdicts: bool = False
) -> dict[str, Any]:
    """The excess of numbers over others, seed by seed, and its p-value; `of` is added to the columns' names."""
    facts = paired_difference(values, others, verdicts=verdicts)
    return {f"excess{of}": interval_text(facts), f"{Q}{of}": float(facts["p_value"])}


def against(
    row: Mapping[str, Any], values: xr.DataArray, controls: Mapping[str, xr.DataArray]
) -> list[dict[str, Any]]:
    """A number over the seeds beside each of several controls, as rows of a table that begin so."""
    return [
        {**row, "against": name, **excess_columns(xr.Dataset({"number": values, "null_number": control}), "number")}
        for name, control in controls.items()
    ]


def rows_over_time(data: xr.Dataset, name: str, words: str) -> list[dict[str, Any]]:
    """A curve (seed, step) at evenly spread records, the first and the last among them, as rows of a table."""
    timesteps = data[name]["timestep"].values
    records = np.unique(np.linspace(0, len(timesteps) - 1, MOMENTS).round().astype(int)).tolist()
    part = data[[key for key in (name, f"null_{name}") if key in data]]
    return [
        {"": words, "t": f"{timesteps[record]:.0f}", **excess_columns(part.isel(step=record), name)}
        for record in records
    ]
