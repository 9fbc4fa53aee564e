"""What the layers of one block see (thesis fig. 5.5)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.maps import max_channel_maps, pooled, standardised
from diffusers_xai.experiments.nulls import Null, null_pipeline, on_states_of
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import pick_branch


TIME = 0.2  # part of the training's timesteps; thesis: t = 200


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: str | Sequence[str] | None = None,
    null: Null = "random-weights",
) -> xr.Dataset:
    """The most active channel of every kind of layer in one block, at t = 200.

    Source: thesis fig. 5.5, eq. 4.1.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`str` or a sequence, *optional*): Globs of layers with maps of one size; those of the first contracting
            block if `None`.
        null (`str` or [`XAIPipeline`]): `"random-weights"`, which sees the same states, a pipeline with the same
            layers, or `"none"`.

    Returns:
        `xarray.Dataset`: `channel` (seed, layer), and `likeness` (seed, layer), the absolute correlation of its map
        with the grey image, averaged to the map's size. Of the first three seeds, `map` (shown, layer, map_height,
        map_width). The same of the control as `null_channel`, `null_likeness` and `null_map`; and `final`, the images.
    """
    denoiser = get_denoiser(pipe)
    wanted = layers or (["downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"]
                        if denoiser.aliases else telling_layers(denoiser)[:1])  # fmt: skip
    paths = list(denoiser.resolve_layers(wanted))
    time = timestep_at(pipe, TIME)
    other = null_pipeline(null, pipe, sampling)

    def measure_batch(part: list[int]) -> xr.Dataset:
        what = [Activations(layers=paths, timesteps=[time])]
        profile = sampling.profile(pipe, part, [Samples(), *what])
        final = profile["final_sample"].values
        data = _maps(profile, paths, "", final).assign(final=(("seed", "rgb", "height", "width"), final))
        if other is not None:
            seen = on_states_of(profile, other, sampling, part, what)
            data = data.assign(_maps(seen, paths, "null_", final).data_vars)
        return data.assign_coords(layer=[denoiser.short_name(path) for path in paths])

    return sampling.over_seeds(measure_batch, "layers of a block", of_few=["map", "null_map", "final"])


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the maps of the channels, a row for each seed."""
    data = result.data
    layers = data["layer"].values.tolist()
    names = {"": "seed {}", "null_": "random<br>weights"}
    shown = [(seed, name) for seed in data["shown"].values for name in names if f"{name}map" in data]
    rows = []
    for seed, name in shown:
        part = data.sel(seed=seed, shown=seed)
        maps = zip(part[f"{name}map"].values, layers, part[f"{name}channel"].values, strict=True)
        row = [Tile(values, layer, caption=f"channel {int(channel)}") for values, layer, channel in maps]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    row_labels = [names[name].format(seed) for seed, name in shown]
    return tile_grid(rows, [*layers, "result"], row_labels, scale_title="activation")


def table(result: ExperimentResult) -> pd.DataFrame:
    """How like the finished image each layer's map is: of the model, of the control, and the excess."""
    data = result.data
    numbers = data[[name for name in ("likeness", "null_likeness") if name in data]]
    return in_table(
        [
            {"likeness to the image": layer, **excess_columns(numbers.sel(layer=layer), "likeness")}
            for layer in data["layer"].values.tolist()
        ]
    )


def _maps(profile: DiffusionProfile, paths: Sequence[str], prefix: str, final: np.ndarray) -> xr.Dataset:
    """The maps of c*, the channels and how like the images the maps are, of the one step that is recorded."""
    names = [f"activations/{path}" for path in paths]
    size = pick_branch(profile[names[0]], "cond").shape[-2:]
    found = max_channel_maps(profile, names, size).isel(step=0).transpose("seed", "layer", ...)
    found = found.rename(height="map_height", width="map_width")
    grey = standardised(pooled(final.mean(1), size))[:, None]
    found["likeness"] = ("seed", "layer"), np.abs((standardised(found["map"].values) * grey).sum(-1))
    return found.rename({name: f"{prefix}{name}" for name in found.data_vars})


register(
    Experiment(
        "layer-types",
        "What the layers of one block see",
        "The map of the most active channel c* of each layer of the first block at t = 200, each in its own range:"
        " convolutions keep edges and areas, attention weighs them. Below each seed, the same network with random"
        " weights, shown the same states: what looks alike was not learned. The table has the absolute correlation of"
        " each map with the finished image.",
        "thesis fig. 5.5, eq. 4.1.4",
        measure,
        plot,
        nulls=("random-weights",),
        seeds=4,
        steps=100,
        table=table,
    )
)
