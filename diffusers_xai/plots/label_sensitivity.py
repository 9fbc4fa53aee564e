"""How much the label matters to the region of interest."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.labels import attribute_words
from diffusers_xai.plots.style import TEMPLATE, line_style, time_label
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.selection import pick_branch


def label_sensitivity(profile: DiffusionProfile, *, sample: int = 0) -> go.Figure:
    """Draws how strongly the selected output pixels respond to each channel of the label, one group of bars per time.

    A bar is the root mean square over the output pixels of the derivative by the label channel, where the channel's
    value is the same everywhere, as a share of all channels at that time. The sum is told below the group.

    Args:
        profile (`DiffusionProfile`): A profile that holds `label_sensitivity`.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: if the profile holds no `label_sensitivity`.
    """
    array = pick_branch(profile["label_sensitivity"].isel(sample=sample), "cond")
    if "height" in array.dims:
        array = array.sum(["height", "width"])
    squares: xr.DataArray = array.astype(np.float64) ** 2
    strength = (squares.mean("pixel") ** 0.5).transpose("step", "channel")
    total = strength.sum("channel").values
    shares = 100 * strength.values / np.where(total > 0, total, 1)[:, None]
    times = [
        f"{time_label(strength, int(step))}<br>sum {value:.2g}"
        for step, value in zip(strength["step"].values, total, strict=True)
    ]
    figure = go.Figure()
    for channel, name in enumerate(channel_names(profile, strength.sizes["channel"])):
        style = line_style(channel)
        figure.add_bar(
            x=times,
            y=shares[:, channel],
            name=name,
            marker={"color": style["color"]},
            customdata=strength.values[:, channel],
            hovertemplate=f"{name}: %{{y:.1f}} %<br>%{{customdata:.3g}}<extra></extra>",
        )
    figure.update_layout(
        template=TEMPLATE,
        height=340,
        barmode="group",
        bargap=0.3,
        xaxis={"title": None, "ticks": ""},
        yaxis={"title": "share of the label's influence", "ticksuffix": " %", "rangemode": "tozero"},
        showlegend=True,
    )
    return figure


def channel_names(profile: DiffusionProfile, count: int) -> list[str]:
    """Names of the label's channels, to be read: the attributes where each has its own."""
    attributes = [attribute_words(name) for name in profile.class_attributes]
    return attributes if len(attributes) == count else [f"label channel {i}" for i in range(count)]
