"""Where each word of the prompt looks at the image."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.over_frames import is_of_sound, over_frames
from diffusers_xai.plots.style import (
    evenly_spaced_steps,
    predicted_images,
    record_at,
    result_image,
    step_at,
    time_label,
)
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb


def word_maps(
    profile: DiffusionProfile, words: Sequence[str] | None = None, count: int = 11, *, sample: int = 0
) -> go.Figure:
    """Draws the map of every word over the predicted images, at equal distances; last the mean over the result.

    Each map uses the whole colour range: maps tell where, their values (at the pointer) how much. Of sound, one map
    for each word: its frames from left to right, every recorded step from top to bottom.

    Args:
        profile (`DiffusionProfile`): A profile that holds `word_maps`.
        words (sequence of `str`, *optional*): Some of its words; all if `None`.
        count (`int`): Number of columns, the mean included; of images.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: if the profile holds no `word_maps`, or none of a word.

    Source: Tang et al. 2023 (DAAM), fig. 1; here also step by step.
    """
    array = profile["word_maps"]
    available = [str(word) for word in array["token"].values]
    words = available if words is None else list(words)
    unknown = sorted(set(words) - set(available))
    if unknown:
        raise KeyError(f"Expected words from {available}, got {unknown}.")
    if is_of_sound(array):
        maps = [array.isel(token=available.index(word), sample=sample) for word in words]
        return over_frames(maps, [html.escape(word) for word in words], "share of attention, in each map")
    steps = evenly_spaced_steps(array, count - 1)
    labels = [time_label(array, step) for step in steps]
    predicted, result = predicted_images(profile), result_image(profile, sample)
    backdrops = [
        _grey(_nearest(profile, predicted, float(array["timestep"].sel(step=step)), sample)) for step in steps
    ]
    rows: list[list[Tile | None]] = []
    for word in words:
        of_word = array.isel(token=available.index(word))
        name = html.escape(word)
        row: list[Tile | None] = [
            Tile(record_at(of_word, step, sample), f"{name} at {label} (step {step})", backdrop=backdrop)
            for step, label, backdrop in zip(steps, labels, backdrops, strict=True)
        ]
        mean = np.mean([record_at(of_word, int(step), sample) for step in of_word["step"].values], axis=0)
        row.append(Tile(mean, f"{name}, the mean over the recorded steps", backdrop=_grey(result)))
        rows.append(row)
    return tile_grid(
        rows, [*labels, "mean"], [html.escape(word) for word in words], scale_title="share of attention, in each map"
    )


def _nearest(profile: DiffusionProfile, name: str | None, timestep: float, sample: int) -> np.ndarray | None:
    return None if name is None else record_at(profile[name], step_at(profile[name], timestep), sample)


def _grey(image: np.ndarray | None) -> np.ndarray | None:
    """The picture without its colours, which would mix with those of the map."""
    if image is None:
        return None
    rgb = to_rgb(image)
    return np.repeat(rgb.mean(axis=2, keepdims=True).round().astype(np.uint8), 3, axis=2)
