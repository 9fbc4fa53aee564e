"""Where the pixels of a region look, early and late in the process (thesis fig. 5.8, 5.9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots
from scipy.ndimage import distance_transform_edt

from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, null_name
from diffusers_xai.experiments.maps import (
    by_noised_image,
    clean_image_volume,
    energy,
    identity_volume,
    max_channel_maps,
)
from diffusers_xai.experiments.nulls import Null, noise_ratio, null_pipeline, state_size
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import in_table, rows_over_time
from diffusers_xai.explainers import GradientMaps, GradientVolume, Samples
from diffusers_xai.measures import Mask
from diffusers_xai.measures.masks import region_or_middle
from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.prediction import is_flow
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb


TIMES = (0.95, 0.7, 0.6, 0.1)  # parts of the training's timesteps; thesis: t = 950, 700, 600, 100
NUMBERS = {
    "reached_step": "PGV of μ: input pixels<br>above the volume's mean",
    "reached_noise": "PGV of ε: input pixels<br>above the volume's mean",
    "radius": "radius of x̂<sub>0</sub>'s gradient (px)",
}


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    layers: Sequence[str] | None = None,
    null: Null = "gaussian",
) -> xr.Dataset:
    """The gradient of a region to every input pixel, at four moments, of three outputs.

    The thesis's objects are the gradient volumes of ε and of the DDPM mean μ, of which it shows what lies above the
    volume's mean. Both hold the identity, x_t itself, in a part that depends on the noise level alone. The gradient of
    the clean image x̂_0 holds none of it. All three are linear in one another (the clipping of x̂_0 left out).

    The control is the Gaussian fitted to the model's own samples, whose gradient is known: what pixels that covary
    have to do with each other, without any network.

    Source: thesis eq. 4.1.2, fig. 5.8, 5.9; METHOD: section 9.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        mask (`(height, width)` bool): The region whose pixels ask; a square in the middle if `None`.
        layers (`Sequence[str]`, *optional*): Globs of the layers whose gradient maps are kept; an early, a middle and
            a late attention layer if `None`, or layers of such blocks in a network without attention.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, `"random-weights"`, a pipeline, or `"none"`.

    Returns:
        `xarray.Dataset`: Of dims (seed, step): `inside`, the share of x̂_0's squared gradient within the region,
        `radius`, its root mean square distance in pixels to the nearest pixel of the region, `reached_step` and
        `reached_noise`, the share of input pixels whose gradient of μ or ε lies above the volume's mean, on average
        over the region's pixels. Of the first three seeds `energy`, the root of the squares summed, of dims (shown,
        step, height, width), and `final` (shown, channel, height, width). The same of the control, their names
        beginning with `null_`; and `mask`.
        Of the first seed, `gradient_map` (layer, step, height, width) and `gradient_channel` (layer, step): the map
        of the channel whose gradient has the largest absolute sum.
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(_spread_layers(denoiser) if layers is None else layers))
    region = region_or_middle(mask, pipe.sample_shape[-2:])
    times = [timestep_at(pipe, time) for time in TIMES]
    volume = GradientVolume(mask=region, of="noise", channels="separate", timesteps=times)
    what = [Samples(timesteps=times), volume, GradientMaps(layers=paths, mask=region, of="noise", timesteps=times)]
    other = null_pipeline(null, pipe, sampling)

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, what)
        model_volume = by_noised_image(_by_seed(profile["gradient_volume"]), pipe.scheduler)
        sigmas = noise_ratio(profile["measures/ssim"]["sigma"].astype(np.float64), pipe.scheduler)  # of every step
        data = _numbers(model_volume, sigmas, region)
        if other is not None:
            known = isinstance(other.unet, ClosedFormDenoiser)
            theirs = (
                _known_volume(other, profile, model_volume, region, sampling)
                if known
                else by_noised_image(
                    _by_seed(sampling.profile(other, part, [volume])["gradient_volume"]), other.scheduler
                )
            )
            numbers = _numbers(theirs, sigmas, region)
            data = data.assign({f"null_{name}": array for name, array in numbers.data_vars.items()})
        gradients = max_channel_maps(profile, [f"gradient_maps/{path}" for path in paths], region.shape, absolute=True)
        return (
            data.assign(
                final=profile["final_sample"].rename(sample="seed"),
                gradient_map=gradients["map"],
                gradient_channel=gradients["channel"],
            )
            .reset_coords(drop=True)
            .assign_coords(
                timestep=("step", model_volume["timestep"].values),
                layer=[denoiser.short_name(path) for path in paths],
            )
        )

    data = sampling.over_seeds(
        measure_batch,
        "gradient volumes",
        seeds_at_once=max(1, sampling.batch_size // 8),
        of_first=["gradient_map", "gradient_channel"],
        of_few=["energy", "null_energy", "final"],
    )
    return data.assign(mask=(("height", "width"), region))


def _by_seed(volume: xr.DataArray) -> xr.DataArray:
    if "branch" in volume.dims:
        volume = volume.sel(branch="cond", drop=True)
    return volume.rename(sample="seed").transpose("seed", "step", "pixel", ...)


def _known_volume(
    null: XAIPipeline, profile: DiffusionProfile, like: xr.DataArray, region: np.ndarray, sampling: Sampling
) -> xr.DataArray:
    """The volume of the noise that a denoiser in closed form predicts in the run's states."""
    rows, columns = np.argwhere(region).T
    directions = torch.zeros(1, len(rows), *null.unet.sample_shape, device=null.device)
    directions[:, torch.arange(len(rows)), :, rows, columns] = 1
    flow = is_flow(null.scheduler)
    sizes = state_size(profile["samples"]["sigma"].values.astype(np.float64), null.scheduler)
    volumes = []
    for states, t, size in zip(profile["samples"].values, like["timestep"].values, sizes, strict=True):
        x = torch.from_numpy(states).to(null.device)
        labels = torch.full((len(x),), sampling.labels[0], device=x.device) if sampling.labels else None
        by_input = null.unet.jacobian_product(x if flow else x / size, float(t), directions, labels)
        volumes.append(by_input.cpu().double().numpy() * (size if flow else 1))
    sigma = like["sigma"]
    clean = like.copy(data=np.stack(volumes, axis=1)) / np.sqrt(1 + sigma**2)
    return (identity_volume(like) - clean) * np.sqrt(1 + 1 / sigma**2)


def _numbers(volume: xr.DataArray, sigmas: xr.DataArray, region: np.ndarray) -> xr.Dataset:
    """What the result says of a volume of the noise; `sigmas` are those of all steps."""
    clean = clean_image_volume(volume)
    alpha = 1 / (1 + volume["sigma"].astype(np.float64) ** 2)
    after = volume["step"] + 1
    alphas = np.append(1 / (1 + sigmas.values.astype(np.float64) ** 2), 1.0)
    previous = xr.DataArray(alphas[np.minimum(after.values, len(alphas) - 1)], dims="step")
    of_clean = (previous / alpha) ** 0.5 * (1 - alpha / previous) / (1 - alpha)  # of √ᾱ x̂_0
    of_state = (alpha / previous) ** 0.5 * (1 - previous) / (1 - alpha)
    mean = of_clean * clean + of_state * identity_volume(volume)
    squares = energy(clean)
    within = xr.DataArray(region, dims=("height", "width"))
    far = xr.DataArray(distance_transform_edt(~region) ** 2, dims=("height", "width"))
    total = squares.sum(["height", "width"])
    return xr.Dataset(
        {
            "inside": squares.where(within).sum(["height", "width"]) / total,
            "radius": np.sqrt((squares * far).sum(["height", "width"]) / total),
            "reached_step": _reached(mean),
            "reached_noise": _reached(volume.astype(np.float64)),
            "energy": np.sqrt(squares).astype(np.float32),
        }
    ).transpose("seed", "step", ...)


def _reached(volume: xr.DataArray) -> xr.DataArray:
    """Share of a volume's entries above its mean, the input's colours summed, as the thesis draws it."""
    summed = volume.sum("channel")
    dims = ["pixel", "height", "width"]
    return (summed > summed.mean(dims)).mean(dims)


def _spread_layers(denoiser: Denoiser) -> list[str]:
    """An early, a middle and a late attention layer, or the last layers of such blocks where there is no attention."""
    names = telling_layers(denoiser)
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the thesis's two measures of spread and ours over the process, each with its control."""
    data = result.data
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08, subplot_titles=list(NUMBERS.values()))
    for column, name in enumerate(NUMBERS, start=1):
        place: dict[str, Any] = {"showlegend": column == 1, "row": 1, "col": column}
        band(figure, data["timestep"].values, data[name], "the model", **place)
        if f"null_{name}" in data:
            null = data[f"null_{name}"]
            band(figure, data["timestep"].values, null, null_name(result.settings), muted=True, **place)
    figure.update_xaxes(title="timestep t", autorange="reversed")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(tickformat=".0%", col=1)
    figure.update_yaxes(tickformat=".0%", col=2)
    figure.update_annotations(font={"size": 12})
    return figure.update_layout(template=TEMPLATE, height=380, legend={"y": 1.2}, margin={"t": 100})


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the energy of two seeds and of the control, and the gradient maps of the first seed's layers."""
    data = result.data
    region = data["mask"].values.astype(bool)
    times = [f"t = {t:.0f}" for t in data["timestep"].values]
    rows: list[list[Tile | None]] = []
    names = []
    for seed in data["shown"].values[:2]:
        part = data.sel(shown=seed)
        row = [Tile(m, t, outline=region) for m, t in zip(part["energy"].values, times, strict=True)]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result", outline=region)])
        names.append(f"seed {seed}")
    if "null_energy" in data:
        maps = data["null_energy"].isel(shown=0).values
        rows.append([*(Tile(m, t, outline=region) for m, t in zip(maps, times, strict=True)), None])
        names.append("control")
    for layer in data["layer"].values.tolist():
        part = data.sel(layer=layer)
        tiles = zip(part["gradient_map"].values, times, part["gradient_channel"].values, strict=True)
        row = [Tile(np.abs(m), f"{layer}, {t}", f"channel {int(c)}", outline=region) for m, t, c in tiles]
        rows.append([*row, None])
        names.append(layer)
    return tile_grid(rows, [*times, "result"], names, scale_title="size of the gradient, each map in its own range")


def table(result: ExperimentResult) -> pd.DataFrame:
    """Each measure at each moment: of the model, of the control, and the excess."""
    measures = {
        "reached_step": "PGV of μ: share of input pixels above the volume's mean",
        "reached_noise": "PGV of ε: the same",
        "radius": "radius of x̂_0's gradient (px)",
        "inside": "share of x̂_0's squared gradient within the region",
    }
    return in_table([row for name, words in measures.items() for row in rows_over_time(result.data, name, words)])


register(
    Experiment(
        "localisation",
        "Where the pixels of a region look",
        "How the outlined region depends on every pixel of the input, at four moments. Left and middle, as the thesis"
        " counts: how much of the input lies above the mean of the gradient volume, of the scheduler's mean μ and of"
        " the noise ε. Right: how far from the region the gradient of the predicted clean image x̂_0 lies, in pixels"
        " (root mean square). Grey: the control. Where that is a Gaussian with the mean and covariance of the model's"
        " own samples, all this is known without a network. Only what differs from it is a property of the"
        " network. Below, the size of x̂_0's gradient for two seeds and the control, and the gradient of the region in"
        " three layers, by the channel it depends on most.",
        "thesis eq. 4.1.2, fig. 5.8, 5.9",
        measure,
        plot,
        nulls=("gaussian", "random-weights"),
        seeds=8,
        steps=100,
        runs=1.5,
        calls=4.6,
        region="eyes",
        plot_images=plot_images,
        table=table,
    )
)
