"""A recorded array as rows of images over the process, one row for each sample."""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.style import evenly_spaced_steps, record_at, time_label
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb
from diffusers_xai.profile import DiffusionProfile


def strip(
    profile: DiffusionProfile,
    name: str,
    symbol: str,
    count: int,
    to_values: Callable[[np.ndarray], np.ndarray] = np.asarray,
    **grid: Any,
) -> go.Figure:
    """Draws `count` images at equal distances in the process; the last one is the result, where it is recorded.

    Args:
        profile (`DiffusionProfile`): A profile that holds `name`.
        name (`str`): Name of an array over steps and samples.
        symbol (`str`): What to call it in the figure.
        count (`int`): Number of images in a row, the result included.
        to_values (`Callable`): Turns one record into the `values` of a [`Tile`].
        **grid: Passed to [`tile_grid`].
    """
    array, result = profile[name], profile.get("final_sample")
    steps = evenly_spaced_steps(array, count if result is None else count - 1)
    labels = [time_label(array, step) for step in steps]
    rows = []
    for sample in range(array.sizes["sample"]):
        row = [
            Tile(to_values(record_at(array, step, sample)), f"{symbol} at {label} (step {step})")
            for step, label in zip(steps, labels, strict=True)
        ]
        if result is not None:
            row.append(Tile(to_rgb(result.isel(sample=sample).values), "the result"))
        rows.append(row)
    row_labels = [symbol if len(rows) == 1 else f"{symbol}, sample {i}" for i in range(len(rows))]
    return tile_grid(rows, labels if result is None else [*labels, "result"], row_labels, **grid)
