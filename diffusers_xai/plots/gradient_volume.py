"""The gradient volume in three dimensions."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.style import (
    COLOR_SCALE,
    GRID_COLOR,
    TEMPLATE,
    color_bar,
    evenly_spaced_steps,
    record_at,
    step_at,
    time_label,
)
from diffusers_xai.profile import DiffusionProfile


_COLOR_BAR_HEIGHT = 56


def gradient_volume(
    profile: DiffusionProfile,
    timesteps: Sequence[float] | None = None,
    *,
    sample: int = 0,
    max_points: int = 3000,
) -> go.Figure:
    """Draws the values of the gradient volume above its mean as points, one scene per time.

    The input's columns run to the right and its rows down, as in the image; the selected output pixels lie one behind
    the other. Colours follow the value's logarithm, each scene in its own range.

    Args:
        profile (`DiffusionProfile`): A profile that holds `gradient_volume`.
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; three of them by default.
        sample (`int`): Index of the sample.
        max_points (`int`): At most this many are drawn in each scene, the greatest; its title tells of how many.

    Raises:
        KeyError: if the profile holds no `gradient_volume`.

    Source: thesis section 4.3, fig. 5.8.
    """
    array = profile["gradient_volume"]
    array = array.sum("channel", keep_attrs=True) if "channel" in array.dims else array
    if timesteps is None:
        steps = evenly_spaced_steps(array, 3)
    else:
        steps = [step_at(array, timestep) for timestep in timesteps]
    places = [f"({row}, {column})" for row, column in zip(array["row"].values, array["column"].values, strict=True)]
    ticks = np.unique(np.linspace(0, len(places) - 1, 5).astype(int))
    height, width = array.sizes["height"], array.sizes["width"]
    figure = go.Figure()
    for i, step in enumerate(steps):
        points, values, count = _above_mean(record_at(array, step, sample), max_points)
        pixels, rows, columns = points
        colors = np.log10(np.maximum(values, values.max() * 1e-6)) if (values > 0).any() else values
        figure.add_scatter3d(
            x=columns.astype(np.int16),
            y=pixels.astype(np.int16),
            z=rows.astype(np.int16),
            customdata=np.stack([values, array["row"].values[pixels], array["column"].values[pixels]], axis=1).astype(
                np.float32
            ),
            mode="markers",
            marker={
                "size": 3,
                "color": colors.astype(np.float32),
                "colorscale": COLOR_SCALE,
                "showscale": i == 0,
                "colorbar": {
                    **color_bar("value, in each scene, logarithmic"),
                    "xpad": 16,
                    "tickvals": [float(colors.min()), float(colors.max())],
                    "ticktext": ["low", "high"],
                },
            },
            hovertemplate="output pixel (%{customdata[1]:d}, %{customdata[2]:d})<br>input pixel (%{z}, %{x})"
            "<br>value %{customdata[0]:.4g}<extra></extra>",
            showlegend=False,
            scene=_scene(i),
        )
        title = (
            f"<b>{time_label(array, step)}</b><br>{count:,} of {record_at(array, step, sample).size:,} above the mean"
        )
        title += f"<br>the greatest {len(values):,} are drawn" if count > len(values) else "<br>all are drawn"
        left, right = i / len(steps), (i + 1) / len(steps)
        figure.add_annotation(
            x=(left + right) / 2,
            y=1,
            xref="paper",
            yref="paper",
            text=title,
            showarrow=False,
            xanchor="center",
            yanchor="bottom",
        )
        figure.update_layout(
            {
                _scene(i): {
                    "domain": {"x": [left, right], "y": [0, 1]},
                    "xaxis": _axis("input column", [0, width - 1]),
                    "yaxis": {
                        **_axis("output pixel", [0, len(places) - 1]),
                        "tickvals": ticks,
                        "ticktext": [places[k] for k in ticks],
                    },
                    "zaxis": _axis("input row", [height - 1, 0]),
                    "aspectmode": "manual",
                    "aspectratio": {"x": width / max(height, width), "y": 1.2, "z": height / max(height, width)},
                    "camera": {"eye": {"x": 1.4, "y": -2.3, "z": 0.85}, "center": {"x": -0.08, "y": 0, "z": -0.15}},
                    "dragmode": "turntable",
                }
            }
        )
    figure.update_layout(
        template=TEMPLATE, height=430 + _COLOR_BAR_HEIGHT, margin={"l": 0, "r": 0, "t": 64, "b": _COLOR_BAR_HEIGHT}
    )
    return figure


def _above_mean(volume: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Indices (3, point) and values of the greatest values above the mean, in rising order, and their full number."""
    flat = volume.ravel()
    above = np.flatnonzero(flat > flat.mean(dtype=np.float64))
    order = np.argsort(flat[above], kind="stable")[-max_points:]
    chosen = above[order]
    return np.stack(np.unravel_index(chosen, volume.shape)), flat[chosen], len(above)


def _scene(index: int) -> str:
    return f"scene{index + 1}" if index else "scene"


def _axis(title: str, limits: list[int]) -> dict:
    return {
        "title": {"text": title, "font": {"size": 12}},
        "range": [limits[0] - 0.5, limits[1] + 0.5] if limits[0] <= limits[1] else [limits[0] + 0.5, limits[1] - 0.5],
        "gridcolor": GRID_COLOR,
        "backgroundcolor": "#fafbfc",
        "showbackground": True,
        "zeroline": False,
        "showspikes": False,
        "tickfont": {"size": 10},
    }
