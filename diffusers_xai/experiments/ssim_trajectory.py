"""How much each step changes the state (thesis fig. 5.6)."""

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import label_text, null_band, seed_curves
from diffusers_xai.experiments.nulls import Null, forward_path, null_pipeline
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import in_table, rows_over_time
from diffusers_xai.explainers import Samples
from diffusers_xai.measures import structural_similarity
from diffusers_xai.pipelines import XAIPipeline


def measure(pipe: XAIPipeline, sampling: Sampling, *, null: Null = "forward-noising") -> xr.Dataset:
    """SSIM of each state with the next one, for every seed.

    The control: the same of the finished images as noise is added to them. The states of an ideal model have that law,
    so that a difference is an error of the model.

    Source: thesis eq. 4.1.8, fig. 5.6.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled. SSIM of neighbours depends on how far apart they are.
        null (`str` or [`XAIPipeline`]): `"forward-noising"`, `"gaussian"`, a pipeline, or `"none"`.

    Returns:
        `xarray.Dataset`: `ssim` and `null_ssim` of dims (seed, step).
    """
    other = null_pipeline(null, pipe, sampling)

    def run(which: XAIPipeline, part: list[int]) -> tuple[xr.DataArray, np.ndarray]:
        profile = sampling.profile(which, part, [Samples(every=sampling.steps)])
        ssim = profile["measures/ssim"].rename(sample="seed").transpose("seed", "step")
        return ssim, profile["final_sample"].values

    def measure_batch(part: list[int]) -> xr.Dataset:
        ssim, final = run(pipe, part)
        data = ssim.to_dataset(name="ssim")
        if null == "forward-noising":
            path = forward_path(final, ssim["sigma"].values, part, pipe.scheduler)
            data["null_ssim"] = ssim.copy(data=_neighbours(path, final).T)
        elif other is not None:
            data["null_ssim"] = run(other, part)[0]
        return data

    return sampling.over_seeds(measure_batch, "SSIM of neighbouring states")


def _neighbours(path: Iterable[np.ndarray], final: np.ndarray) -> np.ndarray:
    """SSIM of each state with the next, of dims (step, seed), from noise to the image."""
    states = map(torch.from_numpy, itertools.chain([final], path))
    return np.stack([structural_similarity(a, b).numpy() for b, a in itertools.pairwise(states)][::-1])


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the mean over the seeds, their scatter, the interval of the mean, and the control."""
    labels = result.settings["labels"]
    name = label_text(result.settings, labels[0]) if labels else "all"
    figure = seed_curves(result.data["ssim"], "SSIM of x<sub>t</sub> and the next state", name)
    null_band(figure, result, "ssim")
    return figure


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM at a few moments: of the model, of the control, and the excess."""
    return in_table(rows_over_time(result.data, "ssim", "SSIM with the next state"))


register(
    Experiment(
        "ssim-trajectory",
        "How much each step changes the image",
        "SSIM between each state of the process and the next, for many seeds. High values mean that a step changes"
        " little. The line is the mean over the seeds. Grey: the same of the finished images as noise is added to"
        " them, where there is no network. An ideal model cannot be told from it; where the curves part, the model"
        " errs.",
        "thesis eq. 4.1.8, fig. 5.6",
        measure,
        plot,
        nulls=("forward-noising", "gaussian"),
        runs=1.0,
        table=table,
    )
)
