"""When a label is decided: what a run's own steps say about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import falling_crossing
from diffusers_xai.experiments import noise_and_back, predetermination
from diffusers_xai.experiments.base import SPANNED_LABELS, Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, limits_of, null_name, short_label
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import crossing_columns, in_table
from diffusers_xai.labels import attribute_words
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.label_evidence import ancestral, label_evidence
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import nearest


WHOLE = "the whole label"
# What is left of the doubt, as a share of that at the beginning, where the window opens, half is decided, it closes.
WINDOW = {"opens": 0.9, "half": 0.5, "closes": 0.1}
MOMENTS = 8  # of the first seed's run, of which pictures are kept


def measure(
    pipe: XAIPipeline, sampling: Sampling, *, switches: int = 10, null: Null = "gaussian", max_rows: int = 64
) -> xr.Dataset:
    """P(y | x_t) along runs by DDPM, from the likelihood of their steps under the means of every label.

    The labels take turns over the seeds, so that all are equally likely beforehand. Beside it, what a sweep of label
    switches from the first to the last label says on the same runs, see `predetermination`, and up to which noise
    images of either come back under the first one, see `noise_and_back`.

    In 200 repeats of 32 runs, the windows' 95 % intervals held the exact beginning, half and end of a mixture's doubt
    in 96 % of cases each; of 16 runs they hold 92, 96 and 91 %, as a few runs decide where it begins and ends.

    Source: Li and Chen 2024, *Critical windows*; Deja et al. 2022.

    Args:
        pipe ([`XAIPipeline`]): A conditional model; whatever its scheduler, it is sampled by DDPM.
        sampling ([`Sampling`]): What is sampled: the labels to tell apart.
        switches (`int`, defaults to 10): How many switches the sweep tries; 0 leaves it out, and what
            comes back from noise too.
        null (`str` or [`XAIPipeline`]): `"gaussian"` (fitted to 64 samples of each label), a pipeline, or `"none"`.
        max_rows (`int`, defaults to 64): Images in one call of the network.

    Returns:
        `xarray.Dataset`: `log_posterior` of dims (seed, step, label); `doubt` (seed, step, of): the entropy of the
        whole label and of each attribute in which the labels differ, as a share of that before the run, in [0, 1];
        `opens`, `half` and `closes` (of, limit): the timesteps where its mean over the seeds falls below 90 %, 50 %
        and 10 %, with their intervals, NaN where it does not; each of these with `null_` of the control. `switch_ssim`
        (seed, switch) and `switch_index` (seed) of the sweep; `back` (seed, set, level) and `back_turn` (set, limit),
        how much of the images comes back, and t*. Of the first seed, at eight moments: `sample` (moment,
        rgb, height, width), and `x0` (run, moment, …), the clean image that the first and the last label see in it.

    Raises:
        ValueError: If the scheduler has no ᾱ, or there are fewer than two steps.
    """
    if sampling.steps < 2:
        raise ValueError(f"Expected at least two steps, got {sampling.steps}.")
    run = ancestral(pipe)
    other = null_pipeline(null, pipe, sampling, num_samples=64 * len(set(sampling.labels)))
    control = None if other is None else ancestral(other)
    run.scheduler.set_timesteps(sampling.steps)
    timesteps = run.scheduler.timesteps.tolist()
    moments = [len(timesteps) * i // MOMENTS for i in range(MOMENTS)] if len(timesteps) >= MOMENTS else [0]

    def measure_batch(part: list[int]) -> xr.Dataset:
        given = [sampling.seeds.index(seed) % len(sampling.labels) for seed in part]
        kept: list[tuple[np.ndarray, np.ndarray]] = []

        def keep(step: int, states: torch.Tensor, x0: torch.Tensor) -> None:
            if step in moments:
                seen = x0[[0, -1]].transpose(0, 1)
                kept.append((states.float().cpu().numpy(), seen.float().cpu().numpy()))

        def posterior(
            which: XAIPipeline, observe: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
        ) -> tuple[tuple[str, ...], np.ndarray]:
            told = label_evidence(
                which, sampling.labels, given, part, num_inference_steps=sampling.steps, max_rows=max_rows,
                guidance_scale=sampling.guidance_scale, observe=observe,
            )  # fmt: skip
            return ("seed", "step", "label"), told.transpose(0, 1).numpy()

        data = xr.Dataset({"log_posterior": posterior(run, keep)})
        picture = ("rgb", "height", "width")
        data["sample"] = ("seed", "moment", *picture), np.stack([states for states, _ in kept], axis=1)
        data["x0"] = ("seed", "run", "moment", *picture), np.stack([x0 for _, x0 in kept], axis=2)
        if control is not None:
            data["null_log_posterior"] = posterior(control)
        return data

    data = sampling.over_seeds(measure_batch, "likelihood of the steps", of_first=["sample", "x0"])
    data = data.assign_coords(
        label=list(sampling.labels),
        timestep=("step", np.array(timesteps, dtype=float)),
        moment_timestep=("moment", np.array(timesteps, dtype=float)[moments]),
    )
    attributes = pipe.unet.config.get("class_attributes") or ()
    for prefix in ("", "null_") if control is not None else ("",):
        doubts = doubt(data[f"{prefix}log_posterior"], attributes)
        data[f"{prefix}doubt"] = doubts
        for name, level in WINDOW.items():
            limits = falling_crossing(doubts, level, method="arcsine")
            data[f"{prefix}{name}"] = limits.to_dataarray("limit").transpose("of", "limit")
    data = data.assign_attrs(scheduler=type(run.scheduler).__name__)
    return data if not switches else data.assign(_sweep(run, sampling, switches))


def doubt(log_posterior: xr.DataArray, attributes: Sequence[str]) -> xr.DataArray:
    """Entropy of the label and of its attributes, as a share of that before the run.

    Args:
        log_posterior (`xarray.DataArray`): log P of dims (…, label).
        attributes (`Sequence[str]`): Names of the labels' bits, most significant first.

    Returns:
        `xarray.DataArray` of dims (…, of), in [0, 1]: of the whole label, and of the attributes that are not the same
        in all labels.
    """
    labels = log_posterior["label"].values.tolist()
    groups = {WHOLE: np.eye(len(labels))}  # (label, answer)
    for i, name in enumerate(attributes):
        bit = np.array([label >> len(attributes) - 1 - i & 1 for label in labels])
        if 0 < bit.sum() < len(bit):
            groups[name] = np.stack([bit, 1 - bit], axis=1).astype(float)
    probability = np.exp(log_posterior.values)
    shares = []
    for answers in groups.values():
        before = answers.mean(0)
        shares.append(_entropy(probability @ answers) / _entropy(before))
    dims = (*(dim for dim in log_posterior.dims if dim != "label"), "of")
    coords = {name: log_posterior[name] for name in ("seed", "step", "timestep") if name in log_posterior.coords}
    return xr.DataArray(np.clip(np.stack(shares, axis=-1), 0, 1), dims=dims, coords={**coords, "of": list(groups)})


def _entropy(probability: np.ndarray) -> np.ndarray:
    return -(probability * np.log(np.where(probability > 0, probability, 1))).sum(-1)


def _sweep(run: XAIPipeline, sampling: Sampling, switches: int) -> dict[str, Any]:
    """What label switches say, and noising to the same timesteps and back."""
    pair = replace(sampling, labels=(sampling.labels[0], sampling.labels[-1]))
    swept = predetermination.measure(run, pair, switches=min(switches, sampling.steps), null="none")
    times = xr.DataArray(swept["timestep"].values, dims="switch")
    ssim = swept["ssim"].drop_vars(["step", "share", "timestep"]).assign_coords(switch_timestep=times)
    gone = noise_and_back.measure(run, pair, null="none")
    levels = xr.DataArray(gone["timestep"].values, dims="level")
    back = gone["returned"].drop_vars("timestep").assign_coords(back_timestep=levels)
    return {
        "switch_ssim": ssim,
        "switch_index": swept["index"],
        "back": back,
        "back_turn": gone["turn"],
    }


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the doubt over the process; below it the windows, the curve of the switches, and what comes back."""
    data, settings = result.data, result.settings
    names = data["of"].values.tolist()
    swept = "switch_ssim" in data
    figure = make_subplots(
        rows=4 if swept else 2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=[0.36, 0.22, 0.21, 0.21] if swept else [0.6, 0.4],
    )
    timesteps = data["timestep"].values
    for index, name in enumerate(names):
        band(figure, timesteps, data["doubt"].sel(of=name, drop=True), attribute_words(name), index, row=1, col=1)
    if "null_doubt" in data:
        doubts = data["null_doubt"].sel(of=WHOLE, drop=True)
        band(figure, timesteps, doubts, f"{null_name(settings)}, {WHOLE}", muted=True, row=1, col=1)
    for prefix in ("", "null_") if "null_doubt" in data else ("",):
        for index, name in enumerate(names):
            _add_window(figure, data, prefix, name, index)
    if swept:
        _add_sweep(figure, result, len(names))
    figure.update_yaxes(title="doubt left", range=[-0.02, 1.02], tickformat=".0%", row=1)
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[attribute_words(name) for name in names], row=2,
        range=[len(names) - 0.4, -0.6],
    )  # fmt: skip
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_xaxes(
        title="timestep t" + (" (below: of the switch, of the noise)" if swept else ""), row=2 + 2 * swept
    )
    return figure.update_layout(template=TEMPLATE, height=560 + 340 * swept, margin={"l": 150})


def _add_window(figure: go.Figure, data: xr.Dataset, prefix: str, name: str, index: int) -> None:
    """Adds a bar from where the window opens to where it closes, and half of it with its interval."""
    color = MUTED_COLOR if prefix else LINE_COLORS[index % len(LINE_COLORS)]
    height = index + (0.22 if prefix else -0.12)
    ends = [float(data[f"{prefix}{end}"].sel(of=name, limit="estimate")) for end in ("opens", "closes")]
    half = data[f"{prefix}half"].sel(of=name)
    early, estimate, late = limits_of(half)
    if np.isfinite(ends[0]):
        closed = np.isfinite(ends[1])
        figure.add_scatter(
            x=[ends[0], ends[1] if closed else 0], y=[height] * 2, mode="lines", opacity=0.35, showlegend=False,
            line={"color": color, "width": 6 if prefix else 12, "dash": "solid" if closed else "dot"},
            hovertemplate="%{x:.0f}", row=2, col=1,
        )  # fmt: skip
    if np.isfinite(estimate):
        figure.add_scatter(
            x=[estimate], y=[height], mode="markers", marker={"color": color, "size": 8}, showlegend=False,
            error_x={"array": [early - estimate], "arrayminus": [estimate - late], "color": color},
            hovertemplate="%{x:.0f}", row=2, col=1,
        )  # fmt: skip


def _add_sweep(figure: go.Figure, result: ExperimentResult, index: int) -> None:
    """Adds the curve of the switches, and below it how much comes back from noise, each with t*."""
    data, settings = result.data, result.settings
    bits = [short_label(settings, settings["labels"][i]) for i in (0, -1)]
    times = data["switch_timestep"].values
    band(figure, times, data["switch_ssim"], f"switch {bits[0]} → {bits[1]}", index, row=3, col=1)
    figure.update_yaxes(title="SSIM to the<br>unswitched image", range=[0, 1.02], row=3)
    for number, (kind, label) in enumerate(zip(noise_and_back.SETS, bits, strict=True)):
        part = data.sel(set=kind)
        place: dict[str, Any] = {"row": 4, "col": 1}
        band(figure, data["back_timestep"].values, part["back"], f"back, {label}", index + 1 + number, **place)
        early, estimate, late = limits_of(part["back_turn"])
        if np.isfinite(estimate):
            color = LINE_COLORS[(index + 1 + number) % len(LINE_COLORS)]
            figure.add_scatter(
                x=[estimate], y=[noise_and_back.HALF], mode="markers", marker={"color": color, "size": 8},
                error_x={"array": [early - estimate], "arrayminus": [estimate - late], "color": color},
                showlegend=False, hovertemplate="t* = %{x:.0f}", **place,
            )  # fmt: skip
    figure.update_yaxes(title="comes back<br>from noise", range=[-0.25, 1.05], row=4)


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed's states, and the clean images that the first and the last label see in them."""
    data, settings = result.data, result.settings
    times = [f"t = {t:.0f}" for t in data["moment_timestep"].values]
    first, last = settings["labels"][0], settings["labels"][-1]
    own = data["log_posterior"].isel(seed=0, label=0)
    sure = [f"{np.exp(float(own.isel(step=_step(data, t)))):.0%}" for t in data["moment_timestep"].values]
    rows: list[list[Tile | None]] = [
        [Tile(to_rgb(x), t, f"P = {p}") for x, t, p in zip(data["sample"].values, times, sure, strict=True)]
    ]
    for images in data["x0"].values:
        rows.append([Tile(to_rgb(x), t) for x, t in zip(images, times, strict=True)])
    bits = [short_label(settings, label) for label in (first, last)]
    names = [f"x<sub>t</sub> of<br>{bits[0]}", *(f"seen by<br>{text}" for text in bits)]
    return tile_grid(rows, times, names)


def _step(data: xr.Dataset, timestep: float) -> int:
    return nearest(data["timestep"].values, timestep)


def table(result: ExperimentResult) -> pd.DataFrame:
    """Where each window opens, is half decided and closes: of the model, of the control, and the excess."""
    data = result.data
    return in_table(
        [
            {
                "": attribute_words(name),
                "doubt left": f"{level:.0%}",
                **crossing_columns(data.sel(of=name, drop=True), "doubt", end, level, "step"),
            }
            for name in data["of"].values.tolist()
            for end, level in WINDOW.items()
        ]
    )


register(
    Experiment(
        "critical-window",
        "When a label is decided",
        "Runs by DDPM, of which each step is likelier under some labels' means than under others'. Bayes' rule makes"
        " P(y | x_t) of it, along one run and without a judge. Above: how much doubt (entropy) is left about the label"
        " and about each of its attributes, as a share of that before the run. Next, the windows in which it falls"
        " from 90 % to 10 %, with the point where half is left and its 95 % interval; grey, the same of Gaussians that"
        " are fitted to the model's samples of each label. Below: what a sweep of label switches says, which needs a"
        " run for each point. Last: how much of an image of the first label, and of the last, comes back under the"
        " first from noise of time t, with t*, where half is lost: from there on the network generates. The images are"
        " the states of the first seed, with the probability of its own label, and what the network sees in them under"
        " the first and the last label.",
        "Li and Chen 2024; thesis section 5.3.2 for the switches; Deja et al. 2022 for the way back",
        measure,
        plot,
        nulls=("gaussian",),
        labels=SPANNED_LABELS,
        seeds=32,
        steps=50,
        runs=lambda labels: 13.0 + labels,
        plot_images=plot_images,
        table=table,
    )
)
