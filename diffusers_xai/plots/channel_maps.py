"""Maps of layers: of the channel that says most in each, of one that is chosen, or of what raises a score."""

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

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


# The groups that can be drawn, in words, and what records them.
_SPECS = {
    "activations": ("activations", "Activations"),
    "gradient_maps": ("gradient_maps", "GradientMaps"),
    "gradient_attention": ("gradient attention", "GradientAttention"),
}


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
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; ten of them by default.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): Boolean mask that weights the choice of c*.
        sample (`int`): Index of the sample.
        shared_scale (`bool`): One colour range for all maps instead of one for each.

    Raises:
        KeyError: for a layer that is not recorded.
        ValueError: if no maps are recorded, or for a mask that is empty or not of the samples' size.

    Source: thesis eq. 4.1.4, fig. 5.5.
    """
    return _channel_maps(profile, "activations", layers, timesteps, mask, sample, shared_scale, "linear", "activation")


def gradient_maps(
    profile: DiffusionProfile,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    sample: int = 0,
    shared_scale: bool = False,
) -> go.Figure:
    """Draws the gradient map g_{l,t} of its max channel c* for layers (rows) at a few steps (columns).

    Arguments and errors are those of [`max_channel_maps`]; the profile holds gradient maps.

    Source: thesis section 4.3, fig. 5.9.
    """
    return _channel_maps(
        profile, "gradient_maps", layers, timesteps, None, sample, shared_scale, "diverging", "gradient"
    )


def channel_map(
    profile: DiffusionProfile,
    layer: str,
    *,
    step: int,
    channel: int,
    group: str = "activations",
    mask: np.ndarray | None = None,
    sample: int = 0,
) -> go.Figure:
    """Draws one channel of a layer at a recorded step, beside the channel that is most active then.

    Args:
        profile (`DiffusionProfile`): A profile that holds `<group>/<layer>`.
        layer (`str`): Module path or alias.
        step (`int`): A recorded step.
        channel (`int`): The channel.
        group (`str`): `"activations"` or `"gradient_maps"`.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): Where the most active channel is sought.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: for a layer or a step that is not recorded.
        ValueError: for a channel that the layer does not have.
    """
    path = layer_path(profile, layer)
    array = profile[f"{group}/{path}"]
    count = array.sizes["channel"]
    if not 0 <= channel < count:
        raise ValueError(f"Expected `channel` in 0..{count - 1} for {layer}, got {channel}.")
    record = record_at(array, step, sample)
    best = profile.max_channel(f"{group}/{path}", step=step, mask=mask, sample=sample)
    name = f"{layer_label(profile, path, group=group)}, {time_label(array, step)}"
    tiles: list[Tile | None] = [
        Tile(record[index], f"{name}, channel {index}", f"channel {index}") for index in (channel, best)
    ]
    gradients = group == "gradient_maps"
    row = f"{layer_label(profile, path, group=group)}<br>{time_label(array, step)}"
    return tile_grid(
        [tiles], ["chosen", "max channel c*"], [row], shared_scale=True,
        scale="diverging" if gradients else "linear", scale_title="gradient" if gradients else "activation",
    )  # fmt: skip


def gradient_attention(
    profile: DiffusionProfile,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    sample: int = 0,
    shared_scale: bool = False,
) -> go.Figure:
    """Draws where layers (rows) raise the score, at a few steps (columns).

    Arguments and errors are those of [`max_channel_maps`]; the profile holds gradient attention.

    Source: Liu et al. 2020, *Towards Visually Explaining Variational Autoencoders*.
    """

    def tile(path: str, array: xr.DataArray, step: int) -> Tile:
        label = layer_label(profile, path, group="gradient_attention")
        values = record_at(array, step, sample)
        return Tile(values, f"{label}, {time_label(array, step)}", "" if values.any() else "0 everywhere")

    return _layer_maps(
        profile, "gradient_attention", layers, timesteps, tile, shared_scale, "linear", "gradient attention"
    )


def _channel_maps(
    profile: DiffusionProfile,
    group: str,
    layers: Sequence[str] | None,
    timesteps: Sequence[float] | None,
    mask: np.ndarray | None,
    sample: int,
    shared_scale: bool,
    scale: str,
    scale_title: str,
) -> go.Figure:
    """The figure of [`max_channel_maps`], of the arrays `<group>/<layer>`."""

    def tile(path: str, array: xr.DataArray, step: int) -> Tile:
        channel = profile.max_channel(f"{group}/{path}", step=step, mask=mask, sample=sample)
        title = f"{layer_label(profile, path, group=group)}, channel {channel} of {array.sizes['channel']}"
        return Tile(record_at(array, step, sample)[channel], f"{title}<br>{time_label(array, step)}", f"c*={channel}")

    return _layer_maps(profile, group, layers, timesteps, tile, shared_scale, scale, scale_title)


def _layer_maps(
    profile: DiffusionProfile,
    group: str,
    layers: Sequence[str] | None,
    timesteps: Sequence[float] | None,
    tile: Callable[[str, xr.DataArray, int], Tile],
    shared_scale: bool,
    scale: str,
    scale_title: str,
) -> go.Figure:
    """A map for each layer (rows) and time (columns): the tiles of the arrays `<group>/<layer>` at their steps."""
    paths = [layer_path(profile, layer) for layer in (layers_with_maps(profile, group) if layers is None else layers)]
    if not paths:
        name, spec = _SPECS[group]
        raise ValueError(f"Expected {name} with a height and a width, got none; record `{spec}(layers=…)`.")
    arrays = [profile[f"{group}/{path}"] for path in paths]
    first = arrays[0]
    if timesteps is None:
        timesteps = [float(first["timestep"].sel(step=step)) for step in evenly_spaced_steps(first, 10)]
    return tile_grid(
        [[tile(path, array, step_at(array, t)) for t in timesteps] for path, array in zip(paths, arrays, strict=True)],
        [time_label(first, step_at(first, t)) for t in timesteps],
        [layer_label(profile, path, sep="<br>", group=group) for path in paths],
        shared_scale=shared_scale,
        scale=scale,
        scale_title=scale_title if shared_scale else f"{scale_title}, in each map",
    )
