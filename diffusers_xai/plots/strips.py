"""The process as rows of images, one row for each sample."""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.over_frames import is_of_sound, over_frames
from diffusers_xai.plots.style import evenly_spaced_steps, record_at, result_image, time_label
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb


def process_strip(profile: DiffusionProfile, name: str = "samples", count: int = 11) -> go.Figure:
    """Draws images of the process at equal distances, one row for each sample; the last one is the result.

    Args:
        profile (`DiffusionProfile`): A profile that holds `name`.
        name (`str`): `"samples"` for the states x_t, `"x0"` for the images x̂_0 that the network predicts from them,
            `"images"` for the same decoded. Of videos, the middle frame is drawn; of latents, three channels.
        count (`int`): Number of images in a row, the result included.

    Raises:
        KeyError: if the profile does not hold `name`.

    Source: thesis fig. 5.3, 5.4.
    """
    return _strip(profile, name, "x<sub>t</sub>" if name == "samples" else "x̂<sub>0</sub>", count, to_rgb)


def attention_strip(profile: DiffusionProfile, count: int = 11, *, shared_scale: bool = False) -> go.Figure:
    """Draws the attention maps A_t at the times of [`process_strip`], one row for each sample, and the result.

    Of sound, one map for each sample: its frames from left to right, every recorded step from top to bottom.

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
    array = profile["attention_outputs"]
    if is_of_sound(array):
        maps = [array.isel(sample=sample) for sample in range(array.sizes["sample"])]
        return over_frames(maps, _row_labels(symbol, len(maps)), scale_title, shared_scale=shared_scale)
    return _strip(profile, "attention_outputs", symbol, count, shared_scale=shared_scale, scale_title=scale_title)


def _strip(
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
    array, has_result = profile[name], result_image(profile, 0) is not None
    steps = evenly_spaced_steps(array, count - 1 if has_result else count)
    labels = [time_label(array, step) for step in steps]
    rows = []
    for sample in range(array.sizes["sample"]):
        row = [
            Tile(to_values(record_at(array, step, sample)), f"{symbol} at {label} (step {step})")
            for step, label in zip(steps, labels, strict=True)
        ]
        result = result_image(profile, sample)
        if result is not None:
            row.append(Tile(to_rgb(result), "the result"))
        rows.append(row)
    row_labels = _row_labels(symbol, len(rows))
    return tile_grid(rows, [*labels, "result"] if has_result else labels, row_labels, **grid)


def _row_labels(symbol: str, samples: int) -> list[str]:
    return [symbol] if samples == 1 else [f"{symbol}, sample {i}" for i in range(samples)]
