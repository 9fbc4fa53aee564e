"""How much layers change from step to step."""

from collections.abc import Sequence

import plotly.graph_objects as go

from diffusers_xai.plots.style import curves_over_time, layer_label, layer_path, layers_over_time, line_style
from diffusers_xai.profile import DiffusionProfile


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
    figure = curves_over_time(curves[0], "LayerDist")
    for index, (path, curve) in enumerate(zip(paths, curves, strict=True)):
        figure.add_scatter(
            x=curve["timestep"].values,
            y=curve.values,
            mode="lines",
            name=layer_label(profile, path, sep=" "),
            line=line_style(index),
            hovertemplate="%{y:.4g}",
        )
    figure.update_layout(height=420)
    figure.update_yaxes(type="log", dtick=1, minor={"ticks": "outside", "showgrid": True})  # layers differ by orders
    return figure
