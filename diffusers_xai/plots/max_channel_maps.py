"""The channel of each layer that says most."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.plots.style import (
    evenly_spaced_steps,
    layer_label,
    layer_path,
    layers_with_maps,
    record_at,
    time_label,
)
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile


def max_channel_maps(
    profile: DiffusionProfile,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    mask: np.ndarray | None = None,
    sample: int = 0,
    shared_scale: bool = False,
) -> go.Figure:
    """Draws the map of the max channel c* for layers (rows) at a few steps (columns).

    Args:
        profile (`DiffusionProfile`): A profile that holds activations.
        layers (`Sequence[str]`, *optional*): Module paths or aliases; every layer with maps by default.
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; those of the
            other strips by default.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): Boolean mask that weights the choice of c*.
        sample (`int`): Index of the sample.
        shared_scale (`bool`): One colour range for all maps instead of one for each.

    Raises:
        KeyError: for a layer that is not recorded.
        ValueError: if no maps are recorded, or for a mask that is empty or not of the samples' size.

    Source: thesis eq. 4.1.4, fig. 5.5.
    """
    paths = [layer_path(profile, layer) for layer in (layers_with_maps(profile) if layers is None else layers)]
    if not paths:
        raise ValueError("Expected activations with a height and a width, got none; record `Activations(layers=…)`.")
    first = profile[f"activations/{paths[0]}"]
    if timesteps is None:
        timesteps = [float(first["timestep"].sel(step=step)) for step in evenly_spaced_steps(first, 10)]
    rows, row_labels = [], []
    for path in paths:
        row_labels.append(layer_label(profile, path, sep="<br>"))
        rows.append([_tile(profile, path, t, mask, sample) for t in timesteps])
    column_labels = [time_label(first, _step_at(first, t)) for t in timesteps]
    return tile_grid(
        rows,
        column_labels,
        row_labels,
        shared_scale=shared_scale,
        scale_title="activation" if shared_scale else "activation, in each map",
    )


def _tile(profile: DiffusionProfile, path: str, timestep: float, mask: np.ndarray | None, sample: int) -> Tile:
    array = profile[f"activations/{path}"]
    step = _step_at(array, timestep)
    channel = profile.max_channel(path, step=step, mask=mask, sample=sample)
    return Tile(
        record_at(array, step, sample)[channel],
        f"{layer_label(profile, path)}, channel {channel} of {array.sizes['channel']}<br>{time_label(array, step)}",
        f"c*={channel}",
    )


def _step_at(array: xr.DataArray, timestep: float) -> int:
    return int(array["step"].values[np.abs(array["timestep"].values - timestep).argmin()])
