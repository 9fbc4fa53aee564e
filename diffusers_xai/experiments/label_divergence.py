"""Where the runs of two labels part (thesis fig. 5.13 to 5.16)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.experiments.base import label_bits, label_text, provenance
from diffusers_xai.experiments.curves import band
from diffusers_xai.experiments.region import clean_image_energy, region_or_middle
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import generators, over_seeds
from diffusers_xai.explainers import AttentionOutputs, GradientVolume, Samples
from diffusers_xai.measures import Mask, structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb
from diffusers_xai.profile.selection import pick_branch


TIMES = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05)  # parts of the training's timesteps at which pictures are kept


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int],
    seeds: Sequence[int] = range(30),
    num_inference_steps: int = 1000,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    mask: Mask | None = None,
) -> ExperimentResult:
    """SSIM of the states, and distance of the attention maps, of two runs from the same noise with different labels.

    Source: thesis section 5.3.1, fig. 5.13 to 5.16, D.1; eq. 4.1.2, 4.1.8, 4.1.10.

    Args:
        pipe ([`XAIPipeline`]): A conditional model with attention.
        labels (`Sequence[int]`): Two labels.
        seeds (`Sequence[int]`): A pair of runs for each.
        num_inference_steps (`int`): Denoising steps; a hundred of them are compared.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time, two for a seed.
        mask (`(height, width)` bool): The region whose gradient volume is kept; a square in the middle if `None`.

    Returns:
        `ExperimentResult`: `ssim` and `attention_distance` (Frobenius norm of the difference of A_t) of dims (seed,
        step), and `final_ssim` (seed). Of the two runs of the first seed at six moments, with the coordinate
        `moment_timestep`: `sample` (run, moment, rgb, height, width), `attention_outputs` and `energy` (root of the
        sum of the squared gradients of the region's clean image) of dims (run, moment, height, width); and `mask`.
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
            record=[Samples(every=every), AttentionOutputs(every=every)],
            output_type="pt",
        )
        profile = output.profile
        samples = torch.from_numpy(profile["samples"].values).unflatten(1, (2, count))
        final = torch.from_numpy(profile["final_sample"].values).unflatten(0, (2, count))
        maps = pick_branch(profile["attention_outputs"], "cond")
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
    region = region_or_middle(pipe, mask)
    pictures = _pictures(pipe, labels, list(seeds)[0], num_inference_steps, guidance_scale, region)
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    data = xr.merge([data, pictures]).assign(mask=(("height", "width"), region))
    return ExperimentResult("label-divergence", data, settings)


def _pictures(
    pipe: XAIPipeline, labels: Sequence[int], seed: int, num_inference_steps: int, guidance_scale: float,
    region: np.ndarray,
) -> xr.Dataset:  # fmt: skip
    """States, attention maps and gradients of a seed's two runs at a few moments."""
    times = [time * pipe.scheduler.config.get("num_train_timesteps", 1000) for time in TIMES]
    output: Any = pipe(
        class_labels=list(labels),
        num_inference_steps=num_inference_steps,
        generator=generators([seed], copies=2),
        guidance_scale=guidance_scale,
        record=[
            Samples(timesteps=times),
            AttentionOutputs(timesteps=times),
            GradientVolume(mask=region, of="noise", channels="separate", timesteps=times),
        ],
        output_type="pt",
    )
    profile = output.profile
    maps = pick_branch(profile["attention_outputs"], "cond")
    squares = clean_image_energy(profile["gradient_volume"]).transpose("sample", "step", ...)
    image = ("run", "moment", "rgb", "height", "width")
    return xr.Dataset(
        {
            "sample": (image, np.swapaxes(profile["samples"].values, 0, 1)),
            "attention_outputs": (("run", "moment", "height", "width"), np.swapaxes(maps.values, 0, 1)),
            "energy": (("run", "moment", "height", "width"), np.sqrt(squares.values).astype(np.float32)),
            "final": (("run", "rgb", "height", "width"), profile["final_sample"].values),
        },
        {"moment_timestep": ("moment", maps["timestep"].values)},
    )


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


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws both runs of the first seed, one below the other: states, attention maps, gradients of the region."""
    data, settings = result.data, result.settings
    region = data["mask"].values.astype(bool)
    times = [f"t = {t:.0f}" for t in data["moment_timestep"].values]
    bits = [label_bits(settings, label) for label in settings["labels"]]
    rows: list[list[Tile | None]] = []
    for run in range(2):
        images = [*data["sample"].values[run], data["final"].values[run]]
        names = [*times, "the result"]
        rows.append([Tile(to_rgb(image), name) for image, name in zip(images, names, strict=True)])
    for name, outline in (("attention_outputs", None), ("energy", region)):
        for run in range(2):
            maps = data[name].values[run]
            rows.append([*(Tile(m, t, outline=outline) for m, t in zip(maps, times, strict=True)), None])
    kinds = ("x<sub>t</sub>", "A<sub>t</sub>", "gradients")
    row_labels = [f"{kind}<br>{label}" for kind in kinds for label in bits]
    return tile_grid(rows, [*times, "result"], row_labels, scale_title="each map in its own range")
