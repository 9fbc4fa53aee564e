"""The process as images (thesis fig. 5.3, 5.4)."""

import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb


MAX_ROWS = 4


def measure(pipe: XAIPipeline, sampling: Sampling) -> xr.Dataset:
    """The states x_t at ten moments, and the results.

    Source: thesis fig. 5.3, 5.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.

    Returns:
        `xarray.Dataset`: `samples` of dims (seed, step, channel, height, width) and `final` without the step.
    """

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(every=sampling.every(10))])
        samples = profile["samples"].rename(sample="seed").transpose("seed", "step", ...)
        data = xr.Dataset({"samples": samples, "final": profile["final_sample"].rename(sample="seed")})
        return data.reset_coords(drop=True).assign_coords(timestep=("step", samples["timestep"].values))

    return sampling.over_seeds(measure_batch, "process strips")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws a row of states for each seed."""
    data = result.data
    labels = [f"t = {t:.0f}" for t in data["timestep"].values]
    rows = []
    for seed in data["seed"].values[:MAX_ROWS]:
        part = data.sel(seed=seed)
        row = [Tile(to_rgb(x), label) for x, label in zip(part["samples"].values, labels, strict=True)]
        rows.append([*row, Tile(to_rgb(part["final"].values), "the result")])
    return tile_grid(rows, [*labels, "result"], [f"seed {seed}" for seed in data["seed"].values[:MAX_ROWS]])


EXPERIMENT = register(
    Experiment(
        "process",
        "From noise to an image",
        "The state x_t at ten moments of the process, from left to right, and the result, for several seeds.",
        "thesis fig. 5.3, 5.4",
        measure,
        plot,
        seeds=4,
    )
)
