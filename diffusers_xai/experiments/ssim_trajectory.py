"""How much each step changes the state (thesis fig. 5.6)."""

import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import label_text, seed_curves
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline


def measure(pipe: XAIPipeline, sampling: Sampling) -> xr.Dataset:
    """SSIM of each state with the next one, for every seed.

    Source: thesis eq. 4.1.8, fig. 5.6.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.

    Returns:
        `xarray.Dataset`: `ssim` of dims (seed, step).
    """

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(every=sampling.steps)])
        return profile["measures/ssim"].rename(sample="seed").transpose("seed", "step").to_dataset(name="ssim")

    return sampling.over_seeds(measure_batch, "SSIM of neighbouring states")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the mean over the seeds, their scatter, and the interval of the mean."""
    labels = result.settings["labels"]
    name = label_text(result.settings, labels[0]) if labels else "all"
    return seed_curves(result.data["ssim"], "SSIM of x<sub>t</sub> and the next state", name)


EXPERIMENT = register(
    Experiment(
        "ssim-trajectory",
        "How much each step changes the image",
        "SSIM between each state of the process and the next, for many seeds. High values mean that a step changes"
        " little. The line is the mean over the seeds, the light band one standard deviation of the seeds, the dark"
        " band the 95 % interval of the mean.",
        "thesis eq. 4.1.8, fig. 5.6",
        measure,
        plot,
    )
)
