"""Maps of sound: what lies on its frames, over the time of the process."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.plots.style import COLOR_SCALE, TEMPLATE, color_bar
from diffusers_xai.profile.selection import pick_branch


_ROW_HEIGHT, _GAP = 150, 24  # in CSS pixels
_TOP, _BOTTOM = 16, 104
_TIMES = 5  # that are written at the axis


def is_of_sound(array: xr.DataArray) -> bool:
    """Whether an array lies on frames that are no pictures."""
    return "frame" in array.dims and not {"height", "width"} & set(array.dims)


def over_frames(
    maps: Sequence[xr.DataArray], titles: Sequence[str], scale_title: str, *, shared_scale: bool = False
) -> go.Figure:
    """Draws maps (step, frame) below each other: the process runs downwards, the sound from left to right.

    Args:
        maps (sequence of `xarray.DataArray`): Of one recording; under guidance, the branch with the condition counts.
        titles (sequence of `str`): What the maps are.
        scale_title (`str`): Title of the colour bar.
        shared_scale (`bool`): One colour range for all maps instead of one for each.
    """
    height = len(maps) * (_ROW_HEIGHT + _GAP) + _TOP + _BOTTOM
    figure = make_subplots(
        rows=len(maps), shared_xaxes=True, vertical_spacing=_GAP / (height - _TOP - _BOTTOM) if len(maps) > 1 else 0
    )
    drawn = [pick_branch(array, "cond").transpose("step", "frame") for array in maps]
    for row, (shown, title) in enumerate(zip(drawn, titles, strict=True), 1):
        timesteps = [f"{float(t):.4g}" for t in shown["timestep"].values]
        values = shown.values.astype(np.float32)
        ranged = drawn if shared_scale else [shown]
        ends = [min(float(array.min()) for array in ranged), max(float(array.max()) for array in ranged)]
        words = [f"{end:.3g}" for end in ends] if shared_scale else ["low", "high"]
        bar = {**color_bar(scale_title), "tickvals": ends, "ticktext": words}
        figure.add_heatmap(
            z=values,
            customdata=np.repeat(np.array(timesteps)[:, None], values.shape[1], axis=1),
            colorscale=COLOR_SCALE,
            zmin=ends[0],
            zmax=ends[1],
            hovertemplate=f"{title}<br>frame %{{x}} at t = %{{customdata}}<br>value %{{z:.4g}}<extra></extra>",
            showscale=row == 1,
            colorbar=bar,
            row=row,
            col=1,
        )
        marks = np.unique(np.linspace(0, len(timesteps) - 1, min(_TIMES, len(timesteps))).round().astype(int))
        figure.update_yaxes(
            autorange="reversed",
            tickvals=marks,
            ticktext=[f"t = {timesteps[mark]}" for mark in marks],
            title=title,
            row=row,
            col=1,
        )
    figure.update_xaxes(title="frame of the sound, from its beginning to its end", row=len(maps), col=1)
    figure.update_layout(
        template=TEMPLATE, height=height, margin={"l": 110, "r": 16, "t": _TOP, "b": _BOTTOM}, dragmode=False
    )
    return figure
