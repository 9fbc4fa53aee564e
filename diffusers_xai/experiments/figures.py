"""What the figures share: curves with their intervals, and how labels are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import interval_worth, summary
from diffusers_xai.labels import attribute_words, attributes_of, label_bits
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, curves_over_time


_FAINT = 0.6  # of the thin lines, which must be seen on a dark page
_AROUND, _LAST = "around", 10_000  # what marks the legend's entry of bands and thin lines, and its rank


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

    Of few seeds (see [`interval_worth`]) the intervals would be wider than the scatter, and neither is sure: each seed
    has a thin line instead. A control is `muted`: grey and dotted (a second one dash-dotted), without the band of one
    standard deviation. `place` is `row` and `col` of a figure of several parts, and the `legend` of that part. What is
    drawn around the means stands once in the legend, however many curves there are.
    """
    color = MUTED_COLOR if muted else LINE_COLORS[index % len(LINE_COLORS)]
    dash = ("dot", "dashdot")[index % 2] if muted else ("solid", "dash", "dot")[index % 3]
    facts = summary(values)
    count = values.sizes["seed"]
    group = {"x": x, "legendgroup": name, "showlegend": False, "hoverinfo": "skip", "mode": "lines"} | place
    scatter = (facts["mean"] - facts["std"], facts["mean"] + facts["std"], 0.15)
    interval = (facts["low"], facts["high"], 0.3)
    if not interval_worth(count):
        group["line"] = {"width": 0}
        for low, high, opacity in [interval] if muted else [scatter, interval]:
            figure.add_scatter(y=high.values, **group)
            figure.add_scatter(y=low.values, fill="tonexty", fillcolor=_with_alpha(color, opacity), **group)
    elif count > 1:
        for seed in values.transpose("seed", ...).values:
            figure.add_scatter(y=seed, line={"color": color, "width": 1, "dash": dash}, opacity=_FAINT, **group)
    figure.add_scatter(
        x=x,
        y=facts["mean"].values,
        name=name,
        legendgroup=name,
        mode="lines",
        line={"color": color, "width": 2.5, "dash": dash},
        hovertemplate="%{y:.4f}",
        showlegend=showlegend,
        **place,
    )
    told = any(trace.meta == _AROUND and trace.legend == place.get("legend") for trace in figure.data)
    if count > 1 and not told and showlegend is not False:
        _tell_what_is_around(figure, color, count, place)


def _tell_what_is_around(figure: go.Figure, color: str, count: int, place: dict[str, Any]) -> None:
    """Adds the legend's entry of bands and thin lines, in the colour of the first curve."""
    if interval_worth(count):
        text = f"thin: each of {count} seeds"
        look: dict[str, Any] = {"mode": "lines", "line": {"color": color, "width": 1}, "opacity": _FAINT}
    else:
        text = f"mean of {count} seeds;<br>dark: its 95 % interval;<br>light: one standard deviation"
        look = {"mode": "markers", "marker": {"symbol": "square", "size": 12, "color": _with_alpha(color, 0.4)}}
    figure.add_scatter(
        x=[None], y=[None], name=text, meta=_AROUND, hoverinfo="skip", legendrank=_LAST, **look, **place
    )  # fmt: skip


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
    names = [attribute_words(name).lower() for name in attributes_of(label, settings["attributes"])]
    return f"{bits} ({', '.join(names) or 'none'})"


def limits_of(found: xr.DataArray) -> tuple[float, float, float]:
    """Early end, estimate and late end of what `analysis.falling_crossing` found."""
    early, estimate, late = (float(found.sel(limit=limit)) for limit in ("early", "estimate", "late"))
    return early, estimate, late
