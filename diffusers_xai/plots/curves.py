"""Measures over the process: how much a run changes from step to step, and how far two runs are apart."""

from collections.abc import Sequence

import plotly.graph_objects as go

from diffusers_xai.measures import MEASURES
from diffusers_xai.plots.style import (
    LINE_COLORS,
    curves_over_time,
    layer_label,
    layer_path,
    layers_over_time,
    line_style,
)
from diffusers_xai.profile import DiffusionProfile


def ssim_trajectory(profile: DiffusionProfile) -> go.Figure:
    """Draws SSIM between each state of the process and the next: one thin line per sample, their mean bold.

    Args:
        profile (`DiffusionProfile`): A profile that holds `measures/ssim`, or `samples` to compute it from.

    Source: thesis eq. 4.1.8, fig. 5.6.
    """
    values = profile.trajectory("ssim")
    timesteps = values["timestep"].values
    figure = curves_over_time(values, _axis_title("ssim", "of neighbouring states"))
    count = values.sizes["sample"]
    if count > 1:
        for sample in range(count):
            line = {"color": LINE_COLORS[0], "width": 1}
            y = values.isel(sample=sample).values
            figure.add_scatter(x=timesteps, y=y, name=f"sample {sample}", line=line, opacity=0.4, showlegend=False)
    name = "SSIM" if count == 1 else f"mean of {count} samples"
    line = {"color": LINE_COLORS[0], "width": 1.5 if count == 1 else 3}
    figure.add_scatter(x=timesteps, y=values.mean("sample").values, name=name, line=line, showlegend=count > 1)
    figure.update_traces(mode="lines", hovertemplate="%{y:.4f}")
    return figure


def layer_distances(profile: DiffusionProfile, layers: Sequence[str] | None = None) -> go.Figure:
    """Draws LayerDist between neighbouring recorded steps for several layers, averaged over the samples.

    Args:
        profile (`DiffusionProfile`): A profile that holds activations of at least two steps.
        layers (`Sequence[str]`, *optional*): Module paths or aliases. By default every attention layer, or every layer
            where none of them is one.

    Raises:
        KeyError: for a layer that is not recorded.
        ValueError: if activations of fewer than two steps are recorded.

    Source: thesis eq. 4.1.10, fig. 5.7.
    """
    paths = [layer_path(profile, layer) for layer in (layers_over_time(profile) if layers is None else layers)]
    if not paths:
        raise ValueError("Expected activations of at least two steps, got none; record `Activations(layers=…)`.")
    curves = [profile.trajectory("distance", layer=path).mean("sample") for path in paths]
    figure = curves_over_time(curves[0], _axis_title("distance"))
    for index, (path, curve) in enumerate(zip(paths, curves, strict=True)):
        figure.add_scatter(
            x=curve["timestep"].values,
            y=curve.values,
            mode="lines" if curve.size > 1 else "markers",
            name=layer_label(profile, path, sep=" "),
            line=line_style(index),
            hovertemplate="%{y:.4g}",
        )
    figure.update_layout(height=420)
    figure.update_yaxes(type="log", tickformat="~g", minor={"ticks": "outside", "showgrid": True})  # orders apart
    return figure


def run_similarity(intact: DiffusionProfile, edited: DiffusionProfile) -> go.Figure:
    """Draws SSIM between the states x_t of two runs at equal times, averaged over the samples.

    Args:
        intact (`DiffusionProfile`): A profile that holds `samples`.
        edited (`DiffusionProfile`): The changed run.

    Raises:
        KeyError: if one of the two holds no `samples`.
        ValueError: if they have no recorded step in common.

    Source: thesis eq. 4.1.8, fig. 5.14.
    """
    values = intact.compare(edited, measure="ssim").mean("sample")
    figure = curves_over_time(values, _axis_title("ssim", "between the two runs"))
    figure.add_scatter(
        x=values["timestep"].values,
        y=values.values,
        mode="lines",
        name="SSIM",
        line={"color": LINE_COLORS[0], "width": 2},
        hovertemplate="%{y:.4f}",
        showlegend=False,
    )
    equal = MEASURES["ssim"].of_equals
    span = max(equal - float(values.min()), 0.01)
    figure.update_yaxes(range=[equal - 1.05 * span, equal + 0.05 * span])
    return figure


def attention_distance(one: DiffusionProfile, other: DiffusionProfile, *, sample: int = 0) -> go.Figure:
    """Draws LayerDist between the attention maps A_t of two runs at the steps that both have recorded.

    Args:
        one (`DiffusionProfile`): A profile that holds `attention_outputs`.
        other (`DiffusionProfile`): Another one.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: if one of the two holds no `attention_outputs`.
        ValueError: if they have no recorded step in common.

    Source: thesis eq. 4.1.10, fig. A.1.
    """
    values = one.compare(other, measure="attention_distance").isel(sample=sample)
    figure = curves_over_time(values, _axis_title("attention_distance"))
    figure.add_scatter(
        x=values["timestep"].values, y=values.values, mode="lines+markers", line={"color": LINE_COLORS[1], "width": 2},
        name="LayerDist", hovertemplate="%{y:.4g}", showlegend=False,
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure


def _axis_title(name: str, between: str = "") -> str:
    """What a measure is called and which of its values means that the compared are equal."""
    measure = MEASURES[name]
    return f"{measure.title} {between}".rstrip() + f" ({measure.of_equals:g} = equal)"
