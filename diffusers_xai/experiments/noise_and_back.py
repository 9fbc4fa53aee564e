"""Up to which noise a model is a denoiser of any image, and from where on it makes its own."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.analysis import falling_crossing, interval_worth, ratio_of_means
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, label_text, limits_of, null_name, short_label
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling, generators
from diffusers_xai.experiments.tables import crossing_columns, excess_columns, in_table
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.label_evidence import ancestral
from diffusers_xai.pipelines.noise_and_back import noise_and_back
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


SETS = ("own", "another set")
HALF = 0.5


def measure(
    pipe: XAIPipeline, sampling: Sampling, *, levels: int | None = None, null: Null = "gaussian", max_rows: int = 64
) -> xr.Dataset:
    """Noises images of both labels to several times, denoises them all under the first label, and compares.

    An image has come back as far as it is nearer to what it was than an image made afresh is: 1 less the mean squared
    error, as a share of that of fresh images. t* is where half is lost. Images of the first label are the model's own;
    those of the second are of another set, which the model under the first label does not make.

    Source: Deja et al. 2022.

    Args:
        pipe ([`XAIPipeline`]): A conditional model; whatever its scheduler, it is sampled by DDPM.
        sampling ([`Sampling`]): What is sampled: the label that denoises, and that of the other set.
        levels (`int`, *optional*): How many times are tried, evenly spread; if `None` 8, or all steps of fewer.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, a pipeline, or `"none"`: what denoises the same images in the
            model's place.
        max_rows (`int`, defaults to 64): Images in one call of the network.

    Returns:
        `xarray.Dataset`: `error` (seed, set, level) and `fresh_error` (seed, set), mean squared errors to the images
        before; `returned` (seed, set, level), in [−∞, 1], with the coordinate `timestep`, rising: each seed's part in
        the ratio of the means, see `ratio_of_means`; `kept` (seed, set, level), half the error of fresh images less
        that of those that came back, whose mean is 0 at t*; `turn` (set, limit): t* with its interval, NaN where half
        is never lost; each with `null_` of the control. Of the first seed `before` (set, rgb, height, width) and
        `after` (set, level, rgb, height, width).

    Raises:
        ValueError: If there are fewer steps than levels, or the scheduler has no ᾱ.
    """
    levels = min(8, sampling.steps) if levels is None else levels
    if not 2 <= levels <= sampling.steps:
        raise ValueError(f"Expected levels in 2..{sampling.steps}, got {levels}")
    run = ancestral(pipe)
    other = null_pipeline(null, pipe, sampling)
    control = None if other is None else ancestral(other)
    run.scheduler.set_timesteps(sampling.steps)
    timesteps = [float(t) for t in run.scheduler.timesteps]
    starts = [len(timesteps) * i // levels for i in range(levels)][::-1]  # the least noise first
    options: dict[str, Any] = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance_scale}

    def sampled(which: XAIPipeline, part: list[int], label: int, shift: int = 0) -> torch.Tensor:
        output: Any = which(
            [label] * len(part), generator=generators([seed + shift for seed in part]), output_type="pt", **options
        )
        return output.images.float().cpu() * 2 - 1

    def returned(which: XAIPipeline, part: list[int], before: torch.Tensor, prefix: str) -> xr.Dataset:
        noise = [seed + OTHER_NOISE for seed in part]
        first = sampling.labels[0]
        fresh = sampled(which, part, first, 2 * OTHER_NOISE)
        after = torch.stack(
            [
                noise_and_back(which, images, first, noise, starts, max_rows=max_rows, **options).float().cpu()
                for images in before
            ]
        )  # (set, level, seed, …)
        error = (after.clamp(-1, 1) - before[:, None]).double().square().mean((-3, -2, -1))
        of_fresh = (fresh - before).double().square().mean((-3, -2, -1))
        data = xr.Dataset(
            {
                f"{prefix}error": (("seed", "set", "level"), error.permute(2, 0, 1).numpy()),
                f"{prefix}fresh_error": (("seed", "set"), of_fresh.T.numpy()),
            }
        )
        if not prefix:
            data["before"] = ("seed", "set", "rgb", "height", "width"), before.transpose(0, 1).numpy()
            data["after"] = ("seed", "set", "level", "rgb", "height", "width"), after.permute(2, 0, 1, 3, 4, 5).numpy()
        return data

    def measure_batch(part: list[int]) -> xr.Dataset:
        before = torch.stack([sampled(run, part, label) for label in sampling.labels])
        data = returned(run, part, before, "")
        return data if control is None else data.merge(returned(control, part, before, "null_"))

    data = sampling.over_seeds(measure_batch, "to noise and back", of_first=["before", "after"])
    data = data.assign_coords(set=list(SETS), timestep=("level", [timesteps[start] for start in starts]))
    for prefix in ("", "null_") if control is not None else ("",):
        error, fresh = data[f"{prefix}error"], data[f"{prefix}fresh_error"]
        data[f"{prefix}returned"] = 1 - ratio_of_means(error, fresh).transpose(*error.dims)
        data[f"{prefix}kept"] = (HALF * fresh - error).transpose(*error.dims)  # so that fresh images scatter, too
        found = falling_crossing(data[f"{prefix}kept"], 0, along="level")
        data[f"{prefix}turn"] = found.to_dataarray("limit").transpose("set", "limit")
    return data.assign_attrs(scheduler=type(run.scheduler).__name__)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws how far images of both sets come back, over the time that they were noised to, with t*."""
    data, settings = result.data, result.settings
    figure = go.Figure()
    times = data["timestep"].values
    figure.add_hline(HALF, line={"color": MUTED_COLOR, "dash": "dot", "width": 1})
    for index, (name, label) in enumerate(zip(SETS, settings["labels"], strict=True)):
        part = data.sel(set=name)
        band(figure, times, part["returned"], f"{name}: {label_text(settings, label)}", index)
        early, estimate, late = limits_of(part["turn"])
        if np.isfinite(estimate):
            color = LINE_COLORS[index]
            if not interval_worth(data.sizes["seed"]):  # else it may cover all of the process
                figure.add_vrect(early, late, fillcolor=color, opacity=0.15, line_width=0)
            figure.add_vline(
                estimate, line={"color": color, "width": 1}, annotation={"text": f"t* = {estimate:.0f}"},
                annotation_position="top left" if index else "bottom right",
            )  # fmt: skip
    for index, name in enumerate(SETS if "null_returned" in data else ()):
        band(figure, times, data["null_returned"].sel(set=name), f"{null_name(settings)}, {name}", index, muted=True)
    return figure.update_layout(
        template=TEMPLATE,
        height=440,
        showlegend=True,
        xaxis={"title": "noised to the timestep t"},
        yaxis={"title": "come back (0: as a fresh image)", "range": [-0.25, 1.05]},
    )


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws an image of each set, and what comes back of it from each time."""
    data, settings = result.data, result.settings
    times = [f"t = {t:.0f}" for t in data["timestep"].values]
    rows = []
    for before, after in zip(data["before"].values, data["after"].values, strict=True):
        row = [Tile(to_rgb(image), f"back from {t}") for image, t in zip(after, times, strict=True)]
        rows.append([Tile(to_rgb(before), "before"), *row])
    names = [f"{name}<br>{short_label(settings, label)}" for name, label in zip(SETS, settings["labels"], strict=True)]
    return tile_grid(rows, ["before", *times], names)


def table(result: ExperimentResult) -> pd.DataFrame:
    """t* of both sets, and how far they come back from each time: of the model, of the control, and the excess."""
    data = result.data
    levels = range(data.sizes["level"])
    columns = [(name, "t*", crossing_columns(data.sel(set=name), "kept", "turn", 0, "level")) for name in SETS]
    for name in SETS:
        part = data.sel(set=name)
        texts = [f"come back from t = {t:.0f}" for t in data["timestep"].values]
        columns += [(name, texts[i], excess_columns(part.isel(level=i), "returned")) for i in levels]
    return in_table([{"images": name, "": what, **texts} for name, what, texts in columns])


register(
    Experiment(
        "noise-and-back",
        "Up to which noise it is a denoiser, and from where on a generator",
        "Images of two labels are noised to a time t and denoised from there under the first label. Up to some"
        " noise images of the other label come back as well as the label's own: there the model only denoises."
        " From more of it they come back as something that the first label makes: there it generates. 1 is the"
        " very image, 0 one that is no nearer to it than an image made afresh; t*, with the 95 % interval, is"
        " where half is lost. Grey: the same images denoised by Gaussians fitted to the model's samples. The"
        " images are those of the first seed.",
        "Deja et al. 2022",
        measure,
        plot,
        nulls=("gaussian",),
        labels=2,
        seeds=16,
        runs=12.0,
        steps=50,
        plot_images=plot_images,
        table=table,
    )
)
