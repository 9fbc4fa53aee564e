"""The process as images (thesis fig. 5.3, 5.4)."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.nulls import forward_path
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


NAMES = {"samples": "seed {}", "null_samples": "its image<br>noised"}


def measure(pipe: XAIPipeline, sampling: Sampling, *, null: str = "forward-noising") -> xr.Dataset:
    """The states x_t at ten moments, and the results.

    Source: thesis fig. 5.3, 5.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        null (`str`): `"forward-noising"` or `"none"`.

    Returns:
        `xarray.Dataset`: `samples` and `null_samples`, the finished images noised to the same moments, of dims (shown,
        step, channel, height, width), and `final` without the step, of the first three seeds.
    """

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(every=sampling.every(10))])
        samples = profile["samples"].rename(sample="seed").transpose("seed", "step", ...)
        final = profile["final_sample"].rename(sample="seed")
        data = xr.Dataset({"samples": samples, "final": final})
        if null == "forward-noising":
            path = forward_path(final.values, samples["sigma"].values, part, pipe.scheduler)
            data["null_samples"] = samples.copy(data=np.stack([*path][::-1], axis=1))
        return data.reset_coords(drop=True).assign_coords(timestep=("step", samples["timestep"].values))

    return sampling.over_seeds(measure_batch, "process strips", of_few=["samples", "null_samples", "final"])


def plot(result: ExperimentResult) -> go.Figure:
    """Draws a row of states for each seed."""
    data = result.data
    labels = [f"t = {t:.0f}" for t in data["timestep"].values]
    shown = [(seed, name) for seed in data["shown"].values for name in NAMES if name in data]
    rows = []
    for seed, name in shown:
        part = data.sel(shown=seed)
        row = [Tile(to_rgb(x), label) for x, label in zip(part[name].values, labels, strict=True)]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    return tile_grid(rows, [*labels, "result"], [NAMES[name].format(seed) for seed, name in shown])


EXPERIMENT = register(
    Experiment(
        "process",
        "From noise to an image",
        "The state x_t at ten moments of the process, from left to right, and the result, for several seeds. Below"
        " each, the same image noised to the same moments, without a network: what noise alone hides.",
        "thesis fig. 5.3, 5.4",
        measure,
        plot,
        nulls=("forward-noising",),
        seeds=4,
        runs=1.0,
    )
)
