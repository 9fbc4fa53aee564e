"""Where the runs of two labels part (thesis fig. 5.13 to 5.16)."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, label_text, null_name, short_label
from diffusers_xai.experiments.maps import by_noised_image, clean_image_volume, energy
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import excess_columns, in_table, rows_over_time
from diffusers_xai.explainers import AttentionOutputs, GradientVolume, Samples
from diffusers_xai.measures import Mask, structural_similarity
from diffusers_xai.measures.masks import region_or_middle
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import pick_branch


TIMES = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05)  # parts of the training's timesteps at which pictures are kept


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    null: Null = "gaussian",
) -> xr.Dataset:
    """SSIM of the states, and distance of the attention maps, of two runs from the same noise with different labels.

    Source: thesis section 5.3.1, fig. 5.13 to 5.16, D.1; eq. 4.1.2, 4.1.8, 4.1.10.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled.
        mask (`(height, width)` bool): The region whose gradient volume is kept; a square in the middle if `None`.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, a pipeline, or `"none"`. It has no attention maps.

    Returns:
        `xarray.Dataset`: `ssim` and, where there is attention, `attention_distance` (Frobenius norm of the difference
        of A_t) of dims (seed, step), and `final_ssim` (seed); `null_ssim` and `null_final_ssim` are the control's. Of
        the two runs of the first seed at six moments, with the coordinate `moment_timestep`: `sample` (run, moment,
        rgb, height, width), `attention_outputs` and `energy` (root of the sum of the squared gradients of the region's
        clean image) of dims (run, moment, height, width); and `mask`.
    """
    every = sampling.every(100)
    other = null_pipeline(null, pipe, sampling)
    has_attention = bool(get_denoiser(pipe).attention_outputs())

    def ssims(profile: DiffusionProfile, prefix: str = "") -> xr.Dataset:
        """SSIM of the two runs of each seed, along the process and of the images."""
        samples = torch.from_numpy(profile["samples"].values).unflatten(1, (2, -1))
        final = torch.from_numpy(profile["final_sample"].values).unflatten(0, (2, -1))
        ssim = np.stack([structural_similarity(a, b).numpy() for a, b in samples])
        return xr.Dataset(
            {
                f"{prefix}ssim": (("seed", "step"), ssim.T),
                f"{prefix}final_ssim": ("seed", structural_similarity(final[0], final[1]).numpy()),
            },
            {"step": profile["samples"]["step"], "timestep": profile["samples"]["timestep"]},
        )

    def measure_batch(part: list[int]) -> xr.Dataset:
        attention = [AttentionOutputs(every=every)] if has_attention else []
        profile = sampling.profile(pipe, part, [Samples(every=every), *attention], labels=sampling.labels)
        data = ssims(profile)
        if has_attention:
            maps = pick_branch(profile["attention_outputs"], "cond")
            halves = np.split(maps.values.astype(np.float64), 2, axis=1)
            distance = np.linalg.norm((halves[0] - halves[1]).reshape(*halves[0].shape[:2], -1), axis=-1)
            data = data.assign(attention_distance=(("seed", "step"), distance.T))
        if other is not None:
            theirs = sampling.profile(other, part, [Samples(every=every)], labels=sampling.labels)
            data = data.assign(ssims(theirs, "null_").data_vars)
        return data

    data = sampling.over_seeds(measure_batch, "two labels, same noise", seeds_at_once=max(1, sampling.batch_size // 2))
    region = region_or_middle(mask, pipe.sample_shape[-2:])
    pictures = _pictures(pipe, sampling, region, has_attention)
    return xr.merge([data, pictures]).assign(mask=(("height", "width"), region))


def _pictures(pipe: XAIPipeline, sampling: Sampling, region: np.ndarray, has_attention: bool) -> xr.Dataset:
    """States, attention maps and gradients of a seed's two runs at a few moments."""
    times = [timestep_at(pipe, time) for time in TIMES]
    what = [
        Samples(timesteps=times),
        GradientVolume(mask=region, of="noise", channels="separate", timesteps=times),
        *([AttentionOutputs(timesteps=times)] if has_attention else []),
    ]
    profile = sampling.profile(pipe, sampling.seeds[:1], what, labels=sampling.labels)
    volume = by_noised_image(profile["gradient_volume"], pipe.scheduler)
    squares = energy(clean_image_volume(volume)).transpose("sample", "step", ...)
    image = ("run", "moment", "rgb", "height", "width")
    attention = {}
    if has_attention:
        maps = pick_branch(profile["attention_outputs"], "cond")
        attention["attention_outputs"] = (("run", "moment", "height", "width"), np.swapaxes(maps.values, 0, 1))
    return xr.Dataset(
        {
            "sample": (image, np.swapaxes(profile["samples"].values, 0, 1)),
            **attention,
            "energy": (("run", "moment", "height", "width"), np.sqrt(squares.values).astype(np.float32)),
            "final": (("run", "rgb", "height", "width"), profile["final_sample"].values),
        },
        {"moment_timestep": ("moment", volume["timestep"].values)},
    )


def plot(result: ExperimentResult) -> go.Figure:
    """Draws SSIM above, the distance of the attention maps below, over the process."""
    data, settings = result.data, result.settings
    names = " and ".join(label_text(settings, label) for label in settings["labels"])
    shown = [name for name in ("ssim", "attention_distance") if name in data]  # closed forms have no attention
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    timesteps = data["timestep"].values
    for row, variable in enumerate(shown, start=1):
        place: dict[str, Any] = {"showlegend": row == 1, "row": row, "col": 1}
        band(figure, timesteps, data[variable], names, **place)
        if f"null_{variable}" in data:
            band(figure, timesteps, data[f"null_{variable}"], null_name(settings), muted=True, **place)
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_xaxes(title="timestep t", row=len(shown))
    for row, title in enumerate(("SSIM of x<sub>t</sub>", "distance of A<sub>t</sub>")[: len(shown)], start=1):
        figure.update_yaxes(title=title, row=row)
    figure.update_layout(template=TEMPLATE, height=310 * len(shown))
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws both runs of the first seed, one below the other: states, attention maps, gradients of the region."""
    data, settings = result.data, result.settings
    region = data["mask"].values.astype(bool)
    times = [f"t = {t:.0f}" for t in data["moment_timestep"].values]
    bits = [short_label(settings, label) for label in settings["labels"]]
    rows: list[list[Tile | None]] = []
    for run in range(2):
        images = [*data["sample"].values[run], data["final"].values[run]]
        names = [*times, "the result"]
        rows.append([Tile(to_rgb(image), name) for image, name in zip(images, names, strict=True)])
    kinds = {"attention_outputs": ("A<sub>t</sub>", None), "energy": ("gradients", region)}
    kinds = {name: kind for name, kind in kinds.items() if name in data}
    for name, (_, outline) in kinds.items():
        for run in range(2):
            maps = data[name].values[run]
            rows.append([*(Tile(m, t, outline=outline) for m, t in zip(maps, times, strict=True)), None])
    titles = ["x<sub>t</sub>", *(title for title, _ in kinds.values())]
    row_labels = [f"{title}<br>{label}" for title in titles for label in bits]
    return tile_grid(rows, [*times, "result"], row_labels, scale_title="each map in its own range")


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM of the states and of the images, and the distance of the attention maps, which no control has."""
    data = result.data
    rows = rows_over_time(data, "ssim", "SSIM of the states")
    rows.append({"": "SSIM of the images", **excess_columns(data, "final_ssim")})
    if "attention_distance" in data:
        rows += rows_over_time(data, "attention_distance", "distance of the attention maps")
    return in_table(rows)


register(
    Experiment(
        "label-divergence",
        "Where the runs of two labels part",
        "Two runs start from the same noise with different labels. Above: SSIM of their states, which is 1 as long as"
        " they are the same; grey, the same of two Gaussians that are fitted to the model's samples of the two"
        " labels. Below: the distance of their attention maps A_t, which the label changes before the states differ."
        " The images are the states, attention maps and gradients of the outlined region, of both runs of the first"
        " seed.",
        "thesis section 5.3.1, fig. 5.13 to 5.16, D.1",
        measure,
        plot,
        nulls=("gaussian",),
        labels=2,
        steps=100,
        runs=3.0,
        calls=2.5,
        region="eyes",
        plot_images=plot_images,
        table=table,
    )
)
