"""Where the pixels of a region look, early and late in the process (thesis fig. 5.8, 5.9)."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import summary
from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.denoisers.blocks import layers_by_block, short_name
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.maps import clean_image_energy, max_channel_maps, region_or_middle
from diffusers_xai.experiments.sampling import Sampling, of_first_seed, timestep_at
from diffusers_xai.explainers import GradientMaps, GradientVolume, Samples
from diffusers_xai.measures import Mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb


TIMES = (0.95, 0.7, 0.6, 0.1)  # parts of the training's timesteps; thesis: t = 950, 700, 600, 100


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    layers: Sequence[str] | None = None,
) -> xr.Dataset:
    """The gradient of a region of the predicted clean image to every input pixel, at four moments.

    Source: thesis eq. 4.1.2, fig. 5.8, 5.9.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        mask (`(height, width)` bool): The region whose pixels ask; a square in the middle if `None`.
        layers (`Sequence[str]`, *optional*): Globs of the layers whose gradient maps are kept; an early, a middle and
            a late attention layer if `None`, or layers of such blocks in a network without attention.

    Returns:
        `xarray.Dataset`: `energy` (root of the sum of the squared gradients of the region's pixels) of dims (seed,
        step, height, width); of dims (seed, step) `inside`, the share of the squared gradient within the region, and
        `radius`, the root mean square distance in pixels to the nearest pixel of the region; `final` (seed, channel,
        height, width), and `mask`. Of the first seed, `gradient_map` (layer, step, height, width) and
        `gradient_channel` (layer, step): the map of the channel whose gradient has the largest absolute sum.
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(_spread_layers(denoiser) if layers is None else layers))
    region = region_or_middle(pipe, mask)
    distances = _distance_to(region)
    times = [timestep_at(pipe, time) for time in TIMES]
    what = [
        Samples(every=sampling.steps),
        GradientVolume(mask=region, of="noise", channels="separate", timesteps=times),
        GradientMaps(layers=paths, mask=region, of="noise", timesteps=times),
    ]

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, what)
        volume = profile["gradient_volume"].rename(sample="seed").transpose("seed", "step", "pixel", ...)
        squares = clean_image_energy(volume)
        within, far = (xr.DataArray(values, dims=("height", "width")) for values in (region, distances**2))
        total = squares.sum(["height", "width"])
        gradients = max_channel_maps(profile, [f"gradient_maps/{path}" for path in paths], region.shape, absolute=True)
        return (
            xr.Dataset(
                {
                    "energy": np.sqrt(squares),
                    "inside": squares.where(within).sum(["height", "width"]) / total,
                    "radius": np.sqrt((squares * far).sum(["height", "width"]) / total),
                    "final": profile["final_sample"].rename(sample="seed"),
                    "gradient_map": gradients["map"],
                    "gradient_channel": gradients["channel"],
                }
            )
            .reset_coords(drop=True)
            .assign_coords(
                timestep=("step", volume["timestep"].values),
                layer=[short_name(path, denoiser.aliases) for path in paths],
            )
        )

    data = sampling.over_seeds(measure_batch, "gradient volumes", seeds_at_once=max(1, sampling.batch_size // 8))
    return of_first_seed(data, "gradient_map", "gradient_channel").assign(mask=(("height", "width"), region))


def _spread_layers(denoiser: Denoiser) -> list[str]:
    """An early, a middle and a late attention layer, or the last layers of such blocks where there is no attention."""
    names = list(denoiser.attention_outputs())
    names = names or [paths[-1] for paths in layers_by_block(denoiser.module).values()]
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


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


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the gradient maps of the first seed: a row for each layer, a column for each moment."""
    data = result.data
    region = data["mask"].values.astype(bool)
    timesteps = data["timestep"].values
    layers = data["layer"].values.tolist()
    rows = [
        [
            Tile(maps[i], f"{layer}, t = {t:.0f}", caption=f"channel {int(channels[i])}", outline=region)
            for i, t in enumerate(timesteps)
        ]
        for layer, maps, channels in zip(
            layers, data["gradient_map"].values, data["gradient_channel"].values, strict=True
        )
    ]
    columns = [f"t = {t:.0f}" for t in timesteps]
    return tile_grid(rows, columns, layers, scale="diverging", scale_title="gradient, in each map")


EXPERIMENT = register(
    Experiment(
        "localisation",
        "Where the pixels of a region look",
        "How much the clean image that is predicted within the outline depends on every pixel of the input, at four"
        " moments (each map in its own range), for two seeds. Above: how much of the squared gradient lies inside the"
        " region, and its root mean square distance from it in pixels, means over all seeds. The maps of the layers"
        " show the gradient of the region by the channel it depends on most, of the first seed; blue and orange have"
        " opposite signs.",
        "thesis eq. 4.1.2, fig. 5.8, 5.9",
        measure,
        plot,
        seeds=8,
        steps=100,
        region="eyes",
        plot_images=plot_images,
    )
)
