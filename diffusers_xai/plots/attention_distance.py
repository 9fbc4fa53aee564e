"""How far the attention maps of two runs are apart."""

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.measures import layer_distance
from diffusers_xai.plots.style import LINE_COLORS, curves_over_time, record_at
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.selection import to_tensor


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
    mine, theirs = one["attention_outputs"], other["attention_outputs"]
    steps = sorted(set(mine["step"].values.tolist()) & set(theirs["step"].values.tolist()))
    if not steps:
        raise ValueError("Expected attention maps at a common step, got none; record both with the same interval.")
    maps = [np.stack([record_at(array, step, sample) for step in steps])[:, None] for array in (mine, theirs)]
    values = layer_distance(to_tensor(maps[0]), to_tensor(maps[1])).numpy()
    shown = mine.sel(step=steps)
    figure = curves_over_time(shown, "distance of A<sub>t</sub>")
    figure.add_scatter(
        x=shown["timestep"].values, y=values, mode="lines+markers", line={"color": LINE_COLORS[1], "width": 2},
        name="LayerDist", hovertemplate="%{y:.4g}", showlegend=False,
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure
