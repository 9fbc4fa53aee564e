"""The process as images (thesis fig. 5.3, 5.4)."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.nulls import forward_path
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import in_table, rows_over_time
from diffusers_xai.explainers import Samples
from diffusers_xai.measures import structural_similarity
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
        `xarray.Dataset`: `ssim` and `null_ssim` (seed, step), SSIM of the states to the result. Of the first three
        seeds, `samples` and `null_samples`, the finished images noised to the same moments, of dims (shown, step,
        channel, height, width), and `final` without the step.
    """

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(every=sampling.every(10))])
        samples = profile["samples"].rename(sample="seed").transpose("seed", "step", ...)
        final = profile["final_sample"].rename(sample="seed")
        data = xr.Dataset({"samples": samples, "final": final})
        if null == "forward-noising":
            path = forward_path(final.values, samples["sigma"].values, part, pipe.scheduler)
            data["null_samples"] = samples.copy(data=np.stack([*path][::-1], axis=1))
        for prefix in ("", "null_"):
            if f"{prefix}samples" in data:
                data[f"{prefix}ssim"] = ("seed", "step"), _to_the_result(data[f"{prefix}samples"], final)
        return data.reset_coords(drop=True).assign_coords(timestep=("step", samples["timestep"].values))

    return sampling.over_seeds(measure_batch, "process strips", of_few=["samples", "null_samples", "final"])


def _to_the_result(states: xr.DataArray, final: xr.DataArray) -> np.ndarray:
    """SSIM of states (seed, step, …) to the results (seed, …), of dims (seed, step)."""
    images = torch.from_numpy(final.values)
    found = [structural_similarity(torch.from_numpy(x), images) for x in np.moveaxis(states.values, 1, 0)]
    return torch.stack(found, dim=1).numpy()


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


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM to the result at each moment: of the states, of the noised results, and the excess."""
    return in_table(rows_over_time(result.data, "ssim", "SSIM to the result"))


register(
    Experiment(
        "process",
        "From noise to an image",
        "The state x_t at ten moments of the process, from left to right, and the result, for several seeds. Below"
        " each, the same image noised to the same moments, without a network: what noise alone hides. The table has"
        " the SSIM of both to the result.",
        "thesis fig. 5.3, 5.4",
        measure,
        plot,
        nulls=("forward-noising",),
        seeds=4,
        runs=1.0,
        table=table,
    )
)
