"""What the figures and tables share: curves with their intervals, and how labels and means are written."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import summary
from diffusers_xai.plots.style import LINE_COLORS, curves_over_time


def band(figure: go.Figure, x: np.ndarray, values: xr.DataArray, name: str, index: int = 0) -> None:
    """Adds the mean over `seed`, a band of one standard deviation, and a darker one of the mean's interval."""
    color = LINE_COLORS[index % len(LINE_COLORS)]
    facts = summary(values)
    count = values.sizes["seed"]
    group = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip", "mode": "lines", "line": {"width": 0}}
    if count > 1:
        for low, high, opacity in (
            (facts["mean"] - facts["std"], facts["mean"] + facts["std"], 0.15),
            (facts["low"], facts["high"], 0.3),
        ):
            figure.add_scatter(x=x, y=high.values, **group)
            figure.add_scatter(x=x, y=low.values, fill="tonexty", fillcolor=_with_alpha(color, opacity), **group)
    label = name if count == 1 else f"{name}: mean of {count} seeds"
    dash = ("solid", "dash", "dot")[index % 3]
    figure.add_scatter(
        x=x,
        y=facts["mean"].values,
        name=label,
        legendgroup=name,
        mode="lines",
        line={"color": color, "width": 2.5, "dash": dash},
        hovertemplate="%{y:.4f}",
    )


def seed_curves(values: xr.DataArray, y_title: str, name: str) -> go.Figure:
    """One group of curves (seed, step) over the timesteps, drawn from T to 0."""
    figure = curves_over_time(values, y_title)
    band(figure, values["timestep"].values, values, name)
    figure.update_layout(showlegend=True, height=420)
    return figure


def _with_alpha(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def label_bits(settings: dict[str, Any], label: int) -> str:
    """A label in short: its bits, or its number where they have no names."""
    attributes = settings["attributes"]
    return f"{label:0{len(attributes)}b}" if attributes else f"label {label}"


def label_text(settings: dict[str, Any], label: int) -> str:
    """A label as a reader knows it: its bits, and the attributes that hold."""
    attributes, bits = settings["attributes"], label_bits(settings, label)
    if not attributes:
        return bits
    names = [name.replace("_", " ").lower() for name, bit in zip(attributes, bits, strict=True) if bit == "1"]
    return f"{bits} ({', '.join(names) or 'none'})"


def interval_text(facts: xr.Dataset) -> str:
    """What `analysis.summary` says of one mean, for a table: the mean and its interval."""
    return f"{float(facts['mean']):.3f} ({float(facts['low']):.3f} to {float(facts['high']):.3f})"
