"""What the layers of one block see (thesis fig. 5.5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import short_name
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb
from diffusers_xai.profile.selection import pick_branch


TIME = 0.2  # part of the training's timesteps; thesis: t = 200
MAX_ROWS = 4


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: str | Sequence[str] | None = None,
) -> xr.Dataset:
    """The most active channel of every kind of layer in one block, at t = 200.

    Source: thesis fig. 5.5, eq. 4.1.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`str` or a sequence, *optional*): Globs of layers with maps of one size; those of the first contracting
            block if `None`.

    Returns:
        `xarray.Dataset`: `map` of dims (seed, layer, height, width), `channel` (seed, layer), and `final`.
    """
    denoiser = get_denoiser(pipe)
    wanted = layers or (["downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"]
                        if denoiser.aliases else list(denoiser.attention_outputs())[:1])  # fmt: skip
    paths = list(denoiser.resolve_layers(wanted))
    time = timestep_at(pipe, TIME)

    def measure_batch(part: list[int]) -> xr.Dataset:
        what = [Samples(every=sampling.steps), Activations(layers=paths, timesteps=[time])]
        profile = sampling.profile(pipe, part, what)
        channels = [[profile.max_channel(p, timestep=time, sample=i) for p in paths] for i in range(len(part))]
        maps = [[_record(profile, path)[i, channels[i][j]] for j, path in enumerate(paths)] for i in range(len(part))]
        return xr.Dataset(
            {
                "map": (("seed", "layer", "map_height", "map_width"), np.array(maps, dtype=np.float32)),
                "channel": (("seed", "layer"), np.array(channels)),
                "final": (("seed", "rgb", "height", "width"), profile["final_sample"].values),
            },
            {"layer": [short_name(path, denoiser.aliases) for path in paths]},
        )

    return sampling.over_seeds(measure_batch, "layers of a block")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the maps of the channels, a row for each seed."""
    data = result.data
    layers = data["layer"].values.tolist()
    rows = []
    for seed in data["seed"].values[:MAX_ROWS]:
        part = data.sel(seed=seed)
        row = [
            Tile(part["map"].values[j], layer, caption=f"channel {int(part['channel'].values[j])}")
            for j, layer in enumerate(layers)
        ]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    names = [f"seed {seed}" for seed in data["seed"].values[:MAX_ROWS]]
    return tile_grid(rows, [*layers, "result"], names, scale_title="activation")


def _record(profile: Any, path: str) -> np.ndarray:
    return pick_branch(profile[f"activations/{path}"].isel(step=0), "cond").values


EXPERIMENT = register(
    Experiment(
        "layer-types",
        "What the layers of one block see",
        "The map of the most active channel c* of each layer of the first block at t = 200, each in its own range:"
        " convolutions keep edges and areas, attention weighs them.",
        "thesis fig. 5.5, eq. 4.1.4",
        measure,
        plot,
        seeds=4,
        steps=100,
    )
)
