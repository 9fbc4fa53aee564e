"""The gradient of each layer's channel that matters most to the region of interest."""

from collections.abc import Sequence

import plotly.graph_objects as go

from diffusers_xai.plots.max_channel_maps import channel_maps
from diffusers_xai.profile import DiffusionProfile


def gradient_maps(
    profile: DiffusionProfile,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    sample: int = 0,
    shared_scale: bool = False,
) -> go.Figure:
    """Draws the gradient map g_{l,t} of its max channel c* for layers (rows) at a few steps (columns).

    Args:
        profile (`DiffusionProfile`): A profile that holds gradient maps.
        layers (`Sequence[str]`, *optional*): Module paths or aliases; every layer with maps by default.
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; ten of them by default.
        sample (`int`): Index of the sample.
        shared_scale (`bool`): One colour range for all maps instead of one for each.

    Raises:
        KeyError: for a layer that is not recorded.
        ValueError: if no maps are recorded.

    Source: thesis section 4.3, fig. 5.9.
    """
    return channel_maps(
        profile, "gradient_maps", layers, timesteps, None, sample, shared_scale, "diverging", "gradient"
    )
