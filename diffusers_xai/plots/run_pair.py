"""Two runs side by side: an intact one and one that was changed."""

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.measures import structural_similarity
from diffusers_xai.plots.style import evenly_spaced_steps, record_at, result_image, time_label
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import to_tensor


def run_pair(
    intact: DiffusionProfile, edited: DiffusionProfile, count: int = 11, *, name: str = "x0", sample: int = 0
) -> go.Figure:
    """Draws what two runs of the same noise made at equal times, their difference below, and the results last.

    The difference is the mean over the colours of the absolute difference; SSIM between the two is told below it.

    Args:
        intact (`DiffusionProfile`): The run to compare with; holds `final_sample`, and `name` where more than the
            result is to be drawn.
        edited (`DiffusionProfile`): The changed run, with the same arrays.
        count (`int`): Number of columns, the result included.
        name (`str`): `"x0"` for the predicted images x̂_0, `"images"` for the same decoded, `"samples"` for the states
            x_t.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: if one of the two holds no `final_sample`.
        ValueError: if their images are of different sizes.

    Source: thesis fig. 5.10 to 5.13.
    """
    pairs, labels = [], []
    if name in intact and name in edited:
        steps = sorted(set(intact[name]["step"].values.tolist()) & set(edited[name]["step"].values.tolist()))
        for step in evenly_spaced_steps(intact[name].sel(step=steps), count - 1):
            pairs.append([record_at(profile[name], step, sample) for profile in (intact, edited)])
            labels.append(time_label(intact[name], step))
    found = (result_image(profile, sample) for profile in (intact, edited))
    results = [result for result in found if result is not None]
    if len(results) < 2:
        raise KeyError("Expected two profiles with `final_sample` or `final_image`, got one without.")
    pairs.append(results)
    labels.append("result")
    rows: list[list[Tile | None]] = [[], [], []]
    for (one, other), label in zip(pairs, labels, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"Expected images of equal shapes in both runs, got {one.shape} and {other.shape}.")
        one, other = one.clip(-1, 1), other.clip(-1, 1)
        rows[0].append(Tile(to_rgb(one), f"intact, {label}"))
        rows[1].append(Tile(to_rgb(other), f"changed, {label}"))
        rows[2].append(Tile(np.abs(one - other).mean(axis=0), f"difference, {label}", _similarity(one, other)))
    return tile_grid(
        rows,
        labels,
        ["intact", "changed", "difference"],
        shared_scale=True,
        scale_title="absolute difference, colours from −1 to 1",
    )


def _similarity(one: np.ndarray, other: np.ndarray) -> str:
    if min(one.shape[1:]) < 7:  # the window of SSIM
        return ""
    return f"SSIM {structural_similarity(to_tensor(one[None]), to_tensor(other[None])).item():.3f}"
