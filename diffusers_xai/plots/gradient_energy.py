"""Which input pixels the region of interest depends on."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

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


def gradient_energy(
    profile: DiffusionProfile,
    timesteps: Sequence[float] | None = None,
    *,
    mask: np.ndarray | None = None,
    sample: int = 0,
) -> go.Figure:
    """Draws the energy √Σ_k g_k² of every input pixel, under the image x̂_0 that the network predicts then.

    The energy sums over the output pixels k of interest, whose outline is drawn. Colours follow its
    logarithm, in one range for all maps.

    Args:
        profile (`DiffusionProfile`): A profile that holds `gradient_energy`, or `gradient_volume` to compute it from.
        timesteps (`Sequence[float]`, *optional*): The nearest recorded steps are drawn; ten of them by default.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): The output pixels of interest; by default those of the
            volume, or none where only the energy is recorded.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: if the profile holds neither array.
    """
    array = profile["gradient_energy"] if "gradient_energy" in profile else _energy(profile["gradient_volume"])
    if mask is None and "gradient_energy" not in profile:
        mask = selected_pixels(profile["gradient_volume"])
    if timesteps is None:
        steps = evenly_spaced_steps(array, 10)
    else:
        steps = [step_at(array, timestep) for timestep in timesteps]
    labels = [time_label(array, step) for step in steps]
    energies: list[Tile | None] = [
        Tile(record_at(array, step, sample), f"energy at {label} (step {step})", outline=mask)
        for step, label in zip(steps, labels, strict=True)
    ]
    rows, row_labels = [energies], ["energy"]
    predicted, result = predicted_images(profile), result_image(profile, sample)
    if predicted is not None:
        images: list[Tile | None] = []
        for step in steps:
            shown = step_at(profile[predicted], float(array["timestep"].sel(step=step)))
            name = f"x̂<sub>0</sub> at {time_label(profile[predicted], shown)} (step {shown})"
            images.append(Tile(to_rgb(record_at(profile[predicted], shown, sample)), name, outline=mask))
        rows, row_labels = [images, energies], ["x̂<sub>0</sub>", "energy"]
    if result is not None and len(rows) == 2:
        rows[0].append(Tile(to_rgb(result), "the result", outline=mask))
        rows[1].append(None)
        labels.append("result")
    return tile_grid(rows, labels, row_labels, shared_scale=True, scale="log", scale_title="energy")


def selected_pixels(volume: xr.DataArray) -> np.ndarray:
    """The output pixels of a `gradient_volume` as a boolean array (height, width)."""
    mask = np.zeros((volume.sizes["height"], volume.sizes["width"]), dtype=bool)
    mask[volume["row"].values, volume["column"].values] = True
    return mask


def _energy(volume: xr.DataArray) -> xr.DataArray:
    """√Σ_k g_k² of a `gradient_volume`, its colours summed."""
    gradients = volume.sum("channel") if "channel" in volume.dims else volume
    return (gradients.astype(np.float64) ** 2).sum("pixel") ** 0.5
