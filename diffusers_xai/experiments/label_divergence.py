"""Where the runs of two labels part (thesis fig. 5.13 to 5.15)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.experiments.base import label_text, provenance
from diffusers_xai.experiments.curves import band
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import generators, over_seeds
from diffusers_xai.explainers import AttentionMaps, Samples
from diffusers_xai.measures import structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import TEMPLATE


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int],
    seeds: Sequence[int] = range(30),
    num_inference_steps: int = 1000,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
) -> ExperimentResult:
    """SSIM of the states, and distance of the attention maps, of two runs from the same noise with different labels.

    Source: thesis section 5.3.1, fig. 5.14, 5.15, D.1; eq. 4.1.8, 4.1.10.

    Args:
        pipe ([`XAIPipeline`]): A conditional model with attention.
        labels (`Sequence[int]`): Two labels.
        seeds (`Sequence[int]`): A pair of runs for each.
        num_inference_steps (`int`): Denoising steps; a hundred of them are compared.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time, two for a seed.

    Returns:
        `ExperimentResult`: `ssim` and `attention_distance` (Frobenius norm of the difference of A_t) of dims (seed,
        step), and `final_ssim` (seed).
    """
    if len(labels) != 2 or labels[0] == labels[1]:
        raise ValueError(f"expected two different labels to compare, got {list(labels)}")
    every = max(1, num_inference_steps // 100)

    def measure(part: list[int]) -> xr.Dataset:
        count = len(part)
        output: Any = pipe(
            class_labels=[labels[0]] * count + [labels[1]] * count,
            num_inference_steps=num_inference_steps,
            generator=generators(part, copies=2),
            guidance_scale=guidance_scale,
            record=[Samples(every=every), AttentionMaps(every=every)],
            output_type="pt",
        )
        profile = output.profile
        samples = torch.from_numpy(profile["samples"].values).unflatten(1, (2, count))
        final = torch.from_numpy(profile["final_sample"].values).unflatten(0, (2, count))
        maps = profile["attention_map"]
        if "branch" in maps.dims:
            maps = maps.sel(branch="cond")
        halves = np.split(maps.values.astype(np.float64), 2, axis=1)
        ssim = np.stack([structural_similarity(a, b).numpy() for a, b in samples])
        coords = {"step": profile["samples"]["step"], "timestep": profile["samples"]["timestep"]}
        distance = np.linalg.norm((halves[0] - halves[1]).reshape(*halves[0].shape[:2], -1), axis=-1)
        return xr.Dataset(
            {
                "ssim": (("seed", "step"), ssim.T),
                "attention_distance": (("seed", "step"), distance.T),
                "final_ssim": ("seed", structural_similarity(final[0], final[1]).numpy()),
            },
            coords,
        )

    data = over_seeds(measure, seeds, batch_size=max(1, batch_size // 2), description="two labels, same noise")
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    return ExperimentResult("label-divergence", data, settings)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws SSIM above, the distance of the attention maps below, over the process."""
    data, settings = result.data, result.settings
    names = " and ".join(label_text(settings, label) for label in settings["labels"])
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    timesteps = data["timestep"].values
    for row, variable in enumerate(("ssim", "attention_distance"), start=1):
        part = go.Figure()
        band(part, timesteps, data[variable], names)
        for trace in part.data:
            figure.add_trace(trace.update(showlegend=bool(trace.showlegend is not False and row == 1)), row, 1)
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_xaxes(title="timestep t", row=2)
    figure.update_yaxes(title="SSIM of x<sub>t</sub>", row=1)
    figure.update_yaxes(title="distance of A<sub>t</sub>", row=2)
    figure.update_layout(template=TEMPLATE, height=620)
    return figure
