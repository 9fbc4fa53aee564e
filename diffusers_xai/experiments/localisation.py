"""Where the pixels of a region look, early and late in the process (thesis fig. 5.8, 5.9)."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import summary
from diffusers_xai.experiments.base import provenance
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import over_seeds, profile_of
from diffusers_xai.explainers import GradientVolume, Samples
from diffusers_xai.measures import Mask, as_mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb


TIMES = (0.95, 0.7, 0.6, 0.1)  # parts of the training's timesteps; thesis: t = 950, 700, 600, 100


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(8),
    num_inference_steps: int = 100,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    mask: Mask | None = None,
) -> ExperimentResult:
    """The gradient of a region of the predicted clean image to every input pixel, at four moments.

    Source: thesis eq. 4.1.2, fig. 5.8, 5.9.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time.
        mask (`(height, width)` bool): The region whose pixels ask; a square in the middle if `None`.

    Returns:
        `ExperimentResult`: `energy` (root of the sum of the squared gradients of the region's pixels) of dims (seed,
        step, height, width); of dims (seed, step) `inside`, the share of the squared gradient within the region, and
        `radius`, the root mean square distance in pixels to the nearest pixel of the region; `final` (seed, channel,
        height, width), and `mask`.
    """
    height, width = pipe._sample_shape[-2:]
    if mask is None:
        region = np.zeros((height, width), dtype=bool)
        region[3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = True
    else:
        region = as_mask(mask, (height, width))
    distances = _distance_to(region)
    train_timesteps = pipe.scheduler.config.get("num_train_timesteps", 1000)
    times = [time * train_timesteps for time in TIMES]
    what = [
        Samples(every=num_inference_steps),
        GradientVolume(mask=region, of="noise", channels="separate", timesteps=times),
    ]

    def measure(part: list[int]) -> xr.Dataset:
        profile = profile_of(pipe, labels, part, num_inference_steps, guidance_scale, what)
        volume = profile["gradient_volume"].rename(sample="seed").transpose("seed", "step", "pixel", ...)
        squares = (_of_clean_image(volume) ** 2).sum(["pixel", "channel"])
        total = squares.sum(["height", "width"])
        within, far = (xr.DataArray(x, dims=("height", "width")) for x in (region, distances**2))
        final = profile["final_sample"].rename(sample="seed")
        return (
            xr.Dataset(
                {
                    "energy": np.sqrt(squares),
                    "inside": squares.where(xr.DataArray(region, dims=("height", "width"))).sum(["height", "width"])
                    / total,
                    "radius": np.sqrt(
                        (squares * xr.DataArray(distances**2, dims=("height", "width"))).sum(["height", "width"])
                        / total
                    ),
                    "final": final,
                }
            )
            .reset_coords(drop=True)
            .assign_coords(timestep=("step", volume["timestep"].values))
        )

    data = over_seeds(measure, seeds, batch_size=max(1, batch_size // 8), description="gradient volumes")
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    return ExperimentResult("localisation", data.assign(mask=(("height", "width"), region)), settings)


def _of_clean_image(volume: xr.DataArray) -> xr.DataArray:
    """The volume of the predicted noise as that of the predicted clean image, but for a factor of each step.

    x̂_0 is a multiple of x_t - s ε with s = √(1 - ᾱ), whatever the network predicts. In the volume of the noise
    itself, a network that predicts x_0 shows little but the identity.
    """
    sigma = volume["sigma"].astype(np.float64)
    gradient = -(sigma / np.sqrt(1 + sigma**2)) * volume.astype(np.float64)
    identity = (volume["row"] == xr.DataArray(np.arange(volume.sizes["height"]), dims="height")) & (
        volume["column"] == xr.DataArray(np.arange(volume.sizes["width"]), dims="width")
    )
    return gradient + identity


def _distance_to(region: np.ndarray) -> np.ndarray:
    """Distance in pixels of every pixel to the nearest one of the region."""
    inside = np.argwhere(region)
    everywhere = np.indices(region.shape).reshape(2, -1).T
    return np.sqrt(((everywhere[:, None] - inside[None]) ** 2).sum(-1).min(1)).reshape(region.shape)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the energy of two seeds at each moment, with the shares inside the region over all seeds."""
    data = result.data
    region = data["mask"].values.astype(bool)
    timesteps = data["timestep"].values
    inside, radius = summary(data["inside"]), summary(data["radius"])
    labels = [
        f"t = {t:.0f}<br>{100 * float(inside['mean'][i]):.0f} % inside, radius {float(radius['mean'][i]):.1f}"
        for i, t in enumerate(timesteps)
    ]
    rows = []
    for seed in data["seed"].values[:2]:
        part = data.sel(seed=seed)
        row = [Tile(part["energy"].values[i], f"t = {t:.0f}", outline=region) for i, t in enumerate(timesteps)]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result", outline=region)])
    names = [f"seed {seed}" for seed in data["seed"].values[:2].tolist()]
    figure = tile_grid(rows, [*labels, "result"], names, scale_title="energy of the gradients")
    return figure.update_layout(margin={"t": 56})
