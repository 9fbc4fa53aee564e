"""Gradient attention of layers over time."""

from collections.abc import Sequence

import plotly.graph_objects as go

from diffusers_xai.plots.style import (
    evenly_spaced_steps,
    layer_label,
    layer_path,
    layers_with_maps,
    record_at,
    step_at,
    time_label,
)
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile


GROUP = "gradient_attention"


def gradient_attention(
    profile: DiffusionProfile,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    sample: int = 0,
    shared_scale: bool = False,
) -> go.Figure:
    """Draws where layers (rows) raise the score, at a few steps (columns).

    Args:
        profile (`DiffusionProfile`): A profile that holds gradient attention.
        layers (`Sequence[str]`, *optional*): Module paths or aliases; every layer with maps by default.
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; ten of them by default.
        sample (`int`): Index of the sample.
        shared_scale (`bool`): One colour range for all maps instead of one for each.

    Raises:
        KeyError: for a layer that is not recorded.
        ValueError: if no maps are recorded.

    Source: Liu et al. 2020, *Towards Visually Explaining Variational Autoencoders*.
    """
    paths = [layer_path(profile, layer) for layer in (layers_with_maps(profile, GROUP) if layers is None else layers)]
    if not paths:
        raise ValueError(
            "Expected gradient attention with a height and a width, got none; record `GradientAttention(layers=…)`."
        )
    first = profile[f"{GROUP}/{paths[0]}"]
    if timesteps is None:
        timesteps = [float(first["timestep"].sel(step=step)) for step in evenly_spaced_steps(first, 10)]
    rows = []
    for path in paths:
        array, label = profile[f"{GROUP}/{path}"], layer_label(profile, path, group=GROUP)
        steps = [step_at(array, t) for t in timesteps]
        rows.append([Tile(record_at(array, step, sample), f"{label}, {time_label(array, step)}") for step in steps])
    title = "gradient attention"
    return tile_grid(
        rows,
        [time_label(first, step_at(first, t)) for t in timesteps],
        [layer_label(profile, path, sep="<br>", group=GROUP) for path in paths],
        shared_scale=shared_scale,
        scale_title=title if shared_scale else f"{title}, in each map",
    )
