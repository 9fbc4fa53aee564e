"""The process as images, and what the layers of one block see (thesis fig. 5.3 to 5.5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import layer_names, provenance
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import over_seeds, profile_of
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb
from diffusers_xai.profile.selection import pick_branch


TIME = 0.2  # part of the training's timesteps; thesis: t = 200
_MAX_SEEDS = 4


def run_strip(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(4),
    num_inference_steps: int = 1000,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
) -> ExperimentResult:
    """The states x_t at ten moments, and the results, of the first four seeds.

    Source: thesis fig. 5.3, 5.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each of the first four.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time.

    Returns:
        `ExperimentResult`: `samples` of dims (seed, step, channel, height, width) and `final` without the step.
    """
    every = max(1, num_inference_steps // 10)

    def measure(part: list[int]) -> xr.Dataset:
        profile = profile_of(pipe, labels, part, num_inference_steps, guidance_scale, [Samples(every=every)])
        samples = profile["samples"].rename(sample="seed").transpose("seed", "step", ...)
        data = xr.Dataset({"samples": samples, "final": profile["final_sample"].rename(sample="seed")})
        return data.reset_coords(drop=True).assign_coords(timestep=("step", samples["timestep"].values))

    data = over_seeds(measure, list(seeds)[:_MAX_SEEDS], batch_size=batch_size, description="process strips")
    settings = provenance(
        pipe, list(seeds)[:_MAX_SEEDS], labels=list(labels), num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )  # fmt: skip
    return ExperimentResult("process", data, settings)


def plot_strip(result: ExperimentResult) -> go.Figure:
    """Draws a row of states for each seed."""
    data = result.data
    labels = [f"t = {t:.0f}" for t in data["timestep"].values]
    rows = []
    for seed in data["seed"].values:
        part = data.sel(seed=seed)
        row = [Tile(to_rgb(x), label) for x, label in zip(part["samples"].values, labels, strict=True)]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    return tile_grid(rows, [*labels, "result"], [f"seed {seed}" for seed in data["seed"].values.tolist()])


def run_layers(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(4),
    num_inference_steps: int = 100,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    layers: str | Sequence[str] | None = None,
) -> ExperimentResult:
    """The most active channel of every kind of layer in one block, at t = 200.

    Source: thesis fig. 5.5, eq. 4.1.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each of the first four.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time.
        layers (`str` or a sequence, *optional*): Globs of layers with maps of one size; those of the first contracting
            block if `None`.

    Returns:
        `ExperimentResult`: `map` of dims (seed, layer, height, width), `channel` (seed, layer), and `final`.
    """
    denoiser = get_denoiser(pipe)
    wanted = layers or (["downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"]
                        if denoiser.aliases else list(denoiser.attention_outputs())[:1])  # fmt: skip
    paths = list(denoiser.resolve_layers(wanted))
    time = TIME * pipe.scheduler.config.get("num_train_timesteps", 1000)

    def measure(part: list[int]) -> xr.Dataset:
        what = [Samples(every=num_inference_steps), Activations(layers=paths, timesteps=[time])]
        profile = profile_of(pipe, labels, part, num_inference_steps, guidance_scale, what)
        channels = [[profile.max_channel(p, timestep=time, sample=i) for p in paths] for i in range(len(part))]
        maps = [[_record(profile, path)[i, channels[i][j]] for j, path in enumerate(paths)] for i in range(len(part))]
        return xr.Dataset(
            {
                "map": (("seed", "layer", "map_height", "map_width"), np.array(maps, dtype=np.float32)),
                "channel": (("seed", "layer"), np.array(channels)),
                "final": (("seed", "rgb", "height", "width"), profile["final_sample"].values),
            },
            {"layer": layer_names(denoiser, paths)},
        )

    data = over_seeds(measure, list(seeds)[:_MAX_SEEDS], batch_size=batch_size, description="layers of a block")
    settings = provenance(
        pipe, list(seeds)[:_MAX_SEEDS], labels=list(labels), num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )  # fmt: skip
    return ExperimentResult("layer-types", data, settings)


def plot_layers(result: ExperimentResult) -> go.Figure:
    """Draws the maps of the channels, a row for each seed."""
    data = result.data
    layers = data["layer"].values.tolist()
    rows = []
    for seed in data["seed"].values:
        part = data.sel(seed=seed)
        row = [
            Tile(part["map"].values[j], layer, caption=f"channel {int(part['channel'].values[j])}")
            for j, layer in enumerate(layers)
        ]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    names = [f"seed {seed}" for seed in data["seed"].values.tolist()]
    return tile_grid(rows, [*layers, "result"], names, scale_title="activation")


def _record(profile: Any, path: str) -> np.ndarray:
    return pick_branch(profile[f"activations/{path}"].isel(step=0), "cond").values
