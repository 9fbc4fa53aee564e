"""What the figures and tables share: curves with their intervals, and how labels and means are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import crossing_difference, summary
from diffusers_xai.labels import attributes_of, label_bits
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, curves_over_time


MIN_SURE = 8
MOMENTS = 8  # of a curve in a table


def band(
    figure: go.Figure,
    x: np.ndarray,
    values: xr.DataArray,
    name: str,
    index: int = 0,
    *,
    muted: bool = False,
    showlegend: bool | None = None,
    **place: Any,
) -> None:
    """Adds the mean over `seed`, a band of one standard deviation, and a darker one of the mean's interval.

    A control is `muted`: grey and dotted (a second one dash-dotted), without the band of one standard deviation.
    `place` is `row` and `col` of a figure of several parts, and the `legend` of that part.
    """
    color = MUTED_COLOR if muted else LINE_COLORS[index % len(LINE_COLORS)]
    facts = summary(values)
    count = values.sizes["seed"]
    group = {
        "legendgroup": name,
        "showlegend": False,
        "hoverinfo": "skip",
        "mode": "lines",
        "line": {"width": 0},
    } | place
    scatter = (facts["mean"] - facts["std"], facts["mean"] + facts["std"], 0.15)
    interval = (facts["low"], facts["high"], 0.3)
    if count > 1:
        for low, high, opacity in [interval] if muted else [scatter, interval]:
            figure.add_scatter(x=x, y=high.values, **group)
            figure.add_scatter(x=x, y=low.values, fill="tonexty", fillcolor=_with_alpha(color, opacity), **group)
    # The scatter of few seeds is hardly known itself: an interval from three is worth little if they are skewed.
    worth = ", too few for a sure interval" if count < MIN_SURE else ""
    dash = ("dot", "dashdot")[index % 2] if muted else ("solid", "dash", "dot")[index % 3]
    figure.add_scatter(
        x=x,
        y=facts["mean"].values,
        name=name if count == 1 or muted else f"{name}: mean of {count} seeds{worth}",
        legendgroup=name,
        mode="lines",
        line={"color": color, "width": 2.5, "dash": dash},
        hovertemplate="%{y:.4f}",
        showlegend=showlegend,
        **place,
    )


def dots(figure: go.Figure, groups: Sequence[tuple[str, xr.DataArray, str, str, float]], **place: Any) -> None:
    """Adds the means over `seed` with their intervals, items downwards.

    Args:
        figure (`go.Figure`): The figure.
        groups (sequence of `(name, values, color, symbol, offset)`): What is compared; the values of dims (seed,
            item), drawn that far below their item's row.
        **place: `row` and `col` of a figure of several parts, and the `legend` of that part.
    """
    for name, values, color, symbol, offset in groups:
        facts = summary(values)
        mean = facts["mean"].values
        figure.add_scatter(
            x=mean,
            y=np.arange(len(mean)) + offset,
            name=name,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9, "line": {"width": 2}},
            error_x={
                "array": facts["high"].values - mean, "arrayminus": mean - facts["low"].values, "color": color,
                "thickness": 1.5,
            },
            hovertemplate="%{x:.3f}",
            **place,
        )  # fmt: skip


def null_band(figure: go.Figure, result: Any, name: str) -> None:
    """Adds the control of a result's curve (seed, step), if it has one."""
    if f"null_{name}" in result.data:
        values = result.data[f"null_{name}"]
        band(figure, values["timestep"].values, values, null_name(result.settings), muted=True)


def null_name(settings: dict[str, Any]) -> str:
    """The control in words, for a legend."""
    words = {"gaussian": "Gaussians, no network", "random-weights": "random weights"}
    return f"control: {words.get(settings['null'], settings['null'].replace('-', ' '))}"


def seed_curves(values: xr.DataArray, y_title: str, name: str) -> go.Figure:
    """One group of curves (seed, step) over the timesteps, drawn from T to 0."""
    figure = curves_over_time(values, y_title)
    band(figure, values["timestep"].values, values, name)
    figure.update_layout(showlegend=True, height=420)
    return figure


def _with_alpha(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def short_label(settings: dict[str, Any], label: int) -> str:
    """A label in short: its bits, or its number where they have no names."""
    return label_bits(label, settings["attributes"]) if settings["attributes"] else f"label {label}"


def label_text(settings: dict[str, Any], label: int) -> str:
    """A label as a reader knows it: its bits, and the attributes that hold."""
    bits = short_label(settings, label)
    if not settings["attributes"]:
        return bits
    names = [name.replace("_", " ").lower() for name in attributes_of(label, settings["attributes"])]
    return f"{bits} ({', '.join(names) or 'none'})"


def limits_of(found: xr.DataArray) -> tuple[float, float, float]:
    """Early end, estimate and late end of what `analysis.falling_crossing` found."""
    early, estimate, late = (float(found.sel(limit=limit)) for limit in ("early", "estimate", "late"))
    return early, estimate, late


def crossing_text(found: xr.DataArray, name: str = "t") -> str:
    """A crossing with its interval, for a table."""
    early, estimate, late = limits_of(found)
    return f"{name} = {estimate:.0f} ({early:.0f} to {late:.0f})" if np.isfinite(estimate) else "never"


def crossing_columns(data: xr.Dataset, curves: str, found: str, threshold: float, along: str) -> dict[str, str]:
    """Where the mean curve falls through a threshold, its control and the excess, for a row of a table.

    Args:
        data (`xarray.Dataset`): The curves (seed, `along`) under the name `curves`, where their mean falls (limit)
            under `found`, each with `null_` of the control, if there is one.
        curves (`str`): The name of the curves, and
        found (`str`): of what was found.
        threshold (`float`): What was fallen through.
        along (`str`): The dim of the curves.
    """
    columns = {"the model": crossing_text(data[found])}
    if f"null_{curves}" in data:
        excess = crossing_difference(data[curves], data[f"null_{curves}"], threshold, along=along)
        mean, low, high = (float(excess[name]) for name in ("mean", "low", "high"))
        columns["control"] = crossing_text(data[f"null_{found}"])
        columns["excess"] = "" if np.isnan(mean) else f"{mean:+.0f}"
        if np.isfinite(low):
            columns["excess"] += f" ({low:+.0f} to {high:+.0f})"
    return columns


def interval_text(facts: xr.Dataset) -> str:
    """What `analysis.summary` says of one mean, for a table: the mean and its interval; of one value, only that."""
    mean, low, high = (float(facts[name]) for name in ("mean", "low", "high"))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})" if np.isfinite(low) else f"{mean:.3f}"


def excess_columns(data: xr.Dataset, name: str) -> dict[str, str]:
    """A number over the seeds, its control and the excess, for a row of a table; the control where there is one."""
    columns = {"the model": interval_text(summary(data[name]))}
    if f"null_{name}" in data:
        null = data[f"null_{name}"]
        columns |= {"control": interval_text(summary(null)), "excess": interval_text(summary(data[name] - null))}
    return columns


def rows_over_time(data: xr.Dataset, name: str, words: str) -> list[dict[str, str]]:
    """A curve (seed, step) at evenly spread records, the first and the last among them, as rows of a table."""
    timesteps = data[name]["timestep"].values
    records = np.unique(np.linspace(0, len(timesteps) - 1, MOMENTS).round().astype(int)).tolist()
    part = data[[key for key in (name, f"null_{name}") if key in data]]
    return [
        {"": words, "t": f"{timesteps[record]:.0f}", **excess_columns(part.isel(step=record), name)}
        for record in records
    ]


def worth(count: int) -> str:
    """What the intervals of so many seeds are worth, where that has to be said; else nothing."""
    if count == 1:
        return "One seed: no intervals."
    return f"{count} seeds: too few for a sure interval." if count < MIN_SURE else ""
