"""How much each step changes the state (thesis fig. 5.6)."""

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments.base import label_text, provenance
from diffusers_xai.experiments.curves import seed_curves
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import over_seeds, profile_of
from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(30),
    num_inference_steps: int = 1000,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
) -> ExperimentResult:
    """SSIM of each state with the next one, for every seed.

    Source: thesis eq. 4.1.8, fig. 5.6.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each.
        num_inference_steps (`int`): Denoising steps. SSIM of neighbours depends on how far apart they are.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time.

    Returns:
        `ExperimentResult`: `ssim` of dims (seed, step).
    """

    def measure(part: list[int]) -> xr.Dataset:
        profile = profile_of(
            pipe, labels, part, num_inference_steps, guidance_scale, [Samples(every=num_inference_steps)]
        )
        return profile["measures/ssim"].rename(sample="seed").transpose("seed", "step").to_dataset(name="ssim")

    data = over_seeds(measure, seeds, batch_size=batch_size, description="SSIM of neighbouring states")
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    return ExperimentResult("ssim-trajectory", data, settings)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the mean over the seeds, their scatter, and the interval of the mean."""
    labels = result.settings["labels"]
    name = label_text(result.settings, labels[0]) if labels else "all"
    return seed_curves(result.data["ssim"], "SSIM of x<sub>t</sub> and the next state", name)
