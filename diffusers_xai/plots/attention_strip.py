"""The attention maps of the process as a row of images."""

import plotly.graph_objects as go

from diffusers_xai.plots.strip import strip
from diffusers_xai.profile import DiffusionProfile


def attention_strip(profile: DiffusionProfile, count: int = 11, *, shared_scale: bool = False) -> go.Figure:
    """Draws the attention maps A_t at the times of [`process_strip`], one row for each sample, and the result.

    Args:
        profile (`DiffusionProfile`): A profile that holds `attention_outputs`.
        count (`int`): Number of images in a row, the result included.
        shared_scale (`bool`): One colour range for all maps, which shows how their strength changes. By default each
            map uses the whole range, which shows where each is strong.

    Raises:
        KeyError: if the profile holds no `attention_outputs`.

    Source: thesis section 4.3, fig. 4.4.
    """
    symbol = "A<sub>t</sub>"
    scale_title = symbol if shared_scale else f"{symbol}, in each map"
    return strip(profile, "attention_outputs", symbol, count, shared_scale=shared_scale, scale_title=scale_title)
