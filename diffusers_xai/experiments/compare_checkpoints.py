"""Where in depth and time two checkpoints part, or those of a training."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import block_layers, innermost
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band
from diffusers_xai.experiments.nulls import Null, null_pipeline, on_states_of
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling
from diffusers_xai.experiments.tables import difference_columns, in_table, interval_text
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.measures import structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import COLOR_SCALE, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import pick_branch
from diffusers_xai.taps.scheduler import copy_scheduler


MOMENTS = 6  # at which pictures are kept
_GROUP = "activations/"


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    others: Sequence[XAIPipeline] = (),
    layers: Sequence[str] | None = None,
    records: int = 10,
    null: Null = "random-weights",
) -> xr.Dataset:
    """How far each layer of other checkpoints is from the first one's in equal states, and how far their runs part.

    The distance is ‖b − a‖ / √(‖a‖² + ‖b‖²) of the two outputs a and b: 0 where they are equal, 1 where they have
    nothing in common (are orthogonal), whatever their sizes. All networks see the states of the first one's runs: a
    layer can only differ if it, or one before it, has other weights. The runs themselves start from the same noise and
    then go their own ways.

    Source: thesis eq. 4.1.8, 4.1.10, here between checkpoints.

    Args:
        pipe ([`XAIPipeline`]): The checkpoint that the others are compared with.
        sampling ([`Sampling`]): What is sampled.
        others (`Sequence[XAIPipeline]`): One or more checkpoints of the same architecture, in the order of their
            training if they come from one.
        layers (`Sequence[str]`, *optional*): Globs of layers; the blocks' layers, and those outside of blocks, if
            `None`.
        records (`int`): How many steps are recorded, evenly spread.
        null (`str` or [`XAIPipeline`]): `"random-weights"`, which sees the same states, a pipeline with the same
            layers, or `"none"`.

    Returns:
        `xarray.Dataset`: `distance` (seed, checkpoint, layer, step), layers in the order in which they run, and `ssim`
        of the runs' states (seed, checkpoint, step) and of the images, `final_ssim` (seed, checkpoint). Controls:
        `null_distance` (seed, layer, step), and `null_ssim` (seed, step) and `null_final_ssim` (seed) of two runs of
        the first checkpoint from different noise. Of the first seed, `x0` at six moments, with the coordinate
        `moment_timestep`, and the result, of dims (run, moment, rgb, height, width) and (run, rgb, height, width).
        Where the other checkpoints are called by one word and a number, `step-500` and `step-1000`, the coordinate
        `trained` (checkpoint) has the numbers.

    Raises:
        ValueError: If there is no other checkpoint, or one has another architecture or other timesteps.
    """
    if not others:
        raise ValueError("compare-checkpoints: expected at least two checkpoints, got one.")
    names = _names([pipe, *others])
    for name, other in zip(names[1:], others, strict=True):
        _check_alike(pipe, other, name, sampling.steps)
    denoiser = get_denoiser(pipe)
    patterns = list(layers) if layers is not None else ["*", *block_layers(denoiser)]
    random = null_pipeline(null, pipe, sampling)
    every = sampling.every(records)
    layers_of = Activations(layers=patterns, every=every)

    def measure_batch(part: list[int]) -> xr.Dataset:
        first = sampling.profile(pipe, part, [Samples(measures=()), layers_of])
        paths = [name.removeprefix(_GROUP) for name in first if name.startswith(_GROUP)]
        paths = paths if layers is not None else innermost(denoiser, paths)

        def distances(other: XAIPipeline) -> xr.DataArray:
            seen = on_states_of(first, other, sampling, part, [layers_of])
            return xr.concat([_distance(first[_GROUP + path], seen[_GROUP + path]) for path in paths], "layer")

        states = first["samples"].isel(step=slice(None, None, every))
        runs = [sampling.profile(other, part, [Samples(every=every, measures=())]) for other in others]
        finals = [profile["final_sample"] for profile in (first, *runs)]
        clean = [first["x0"].isel(step=slice(None, None, every)), *(run["x0"] for run in runs)]
        moments = np.unique(np.linspace(0, len(states) - 1, MOMENTS).round().astype(int))
        pictures = _pictures(clean).isel(step=moments)
        data = xr.Dataset(
            {
                "distance": xr.concat([distances(other) for other in others], "checkpoint"),
                "ssim": xr.concat([_ssim(states, run["samples"]) for run in runs], "checkpoint"),
                "final_ssim": xr.concat([_ssim(finals[0], final) for final in finals[1:]], "checkpoint"),
                "x0": pictures.rename(step="moment").drop_vars(["moment", "timestep", "sigma"]),
                "final": _pictures(finals),
            },
            {"moment_timestep": ("moment", pictures["timestep"].values)},
        )
        if null != "none":
            apart = [seed + OTHER_NOISE for seed in part]
            unrelated = sampling.profile(pipe, apart, [Samples(every=every, measures=())])
            data["null_ssim"] = _ssim(states, unrelated["samples"])
            data["null_final_ssim"] = _ssim(finals[0], unrelated["final_sample"])
        if random is not None:
            data["null_distance"] = distances(random)
        return data.assign_coords(layer=[denoiser.short_name(path) for path in paths])

    # The layers of a seed are kept until their distances are taken: few seeds at a time.
    at_once = max(1, sampling.batch_size // 8)
    data = sampling.over_seeds(measure_batch, "checkpoints", seeds_at_once=at_once, of_first=["x0", "final"])
    data = data.transpose("seed", "checkpoint", "layer", ...)
    data = data.assign_coords(checkpoint=names[1:], run=names).assign_attrs(checkpoints=names)
    trained = _trained(names[1:])
    return data if trained is None else data.assign_coords(trained=("checkpoint", trained))


def _names(pipes: Sequence[XAIPipeline]) -> list[str]:
    """What the checkpoints are called: the last part of their path, with a number where it stands twice."""
    names: list[str] = []
    for number, pipe in enumerate(pipes, 1):
        name = Path(str(pipe.config.get("_name_or_path") or f"checkpoint {number}")).name
        names.append(f"{name} ({number})" if name in names else name)
    return names


def _trained(names: Sequence[str]) -> list[int] | None:
    """How long each checkpoint was trained, where the names are one word with different numbers."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    words = {match and match[1] for match in found}
    numbers = [int(match[2]) for match in found if match]
    return numbers if len(words) == 1 and len(numbers) == len(set(numbers)) > 1 else None


def _check_alike(pipe: XAIPipeline, other: XAIPipeline, name: str, steps: int) -> None:
    """Refuses networks whose layers do not correspond, and runs whose steps do not."""
    ours, theirs = ({key: tuple(value.shape) for key, value in p.unet.state_dict().items()} for p in (pipe, other))
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"compare-checkpoints: expected checkpoints of one architecture, got {name} with {len(differing)} other"
            f" tensors, for example {key}: {theirs.get(key)} instead of {ours.get(key)}."
        )
    timesteps = []
    for scheduler in (pipe.scheduler, other.scheduler):
        scheduler = copy_scheduler(scheduler)
        scheduler.set_timesteps(steps)
        timesteps.append(scheduler.timesteps.tolist())
    if timesteps[0] != timesteps[1]:
        raise ValueError(f"compare-checkpoints: expected schedulers of the same timesteps, got others of {name}.")


def _distance(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """‖b − a‖ / √(‖a‖² + ‖b‖²) of a layer's outputs a and b, (seed, step); 0 of two that are zero."""
    first = pick_branch(first, "cond")
    a, b = (
        pick_branch(array, "cond").transpose("step", "sample", ...).values.astype(np.float64)
        for array in (first, second)
    )
    inner = tuple(range(2, a.ndim))
    apart, size = ((b - a) ** 2).sum(inner), (a**2 + b**2).sum(inner)
    values = np.sqrt(apart / np.where(size > 0, size, 1))
    return _over_seeds(values, first)


def _ssim(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """SSIM of images (…, sample, channel, height, width), (seed, …)."""
    a, b = (torch.from_numpy(array.values) for array in (first, second))
    values = structural_similarity(a.flatten(0, -4), b.flatten(0, -4)).reshape(a.shape[:-3])
    return _over_seeds(values.numpy(), first)


def _over_seeds(values: np.ndarray, like: xr.DataArray) -> xr.DataArray:
    """Values ([step,] sample) -> ([seed,] step), with the times of `like`."""
    if values.ndim == 1:
        return xr.DataArray(values, dims="seed")
    return xr.DataArray(values.T, {"step": like["step"], "timestep": like["timestep"]}, ("seed", "step"))


def _pictures(arrays: Sequence[xr.DataArray]) -> xr.DataArray:
    """Images of every run (seed, run, …, rgb, height, width)."""
    joined = xr.concat(list(arrays), "run").rename(sample="seed", channel="rgb")
    return joined.transpose("seed", "run", ...)


def table(result: ExperimentResult) -> pd.DataFrame:
    """Distance from the first checkpoint, layer by layer, the mean over the steps; in the last row SSIM of the images.

    The control of the layers are random weights, that of the images those of other noise; the excess is what a
    checkpoint's number is more than the control's.
    """
    data = result.data
    names, controlled = data["checkpoint"].values.tolist(), "null_distance" in data
    rows: list[dict[str, Any]] = []
    for layer in [*data["layer"].values.tolist(), None]:
        number, dims = ("final_ssim", {}) if layer is None else ("distance", {"layer": layer})
        part = data[[number, *([f"null_{number}"] if controlled else [])]].sel(dims)
        part = part.mean("step") if "step" in part.dims else part
        row: dict[str, Any] = {"": "SSIM of the images" if layer is None else layer}
        row |= {f"checkpoint: {name}": interval_text(summary(part[number].sel(checkpoint=name))) for name in names}
        if controlled:
            control = part[f"null_{number}"]
            row["control"] = interval_text(summary(control))
            for name in names:
                row |= difference_columns(part[number].sel(checkpoint=name), control, f": {name}")
        rows.append(row)
    return in_table(rows)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the layers' distances over the time, of several checkpoints over these; below, SSIM of the runs.

    Both over the training where the checkpoints' names tell how long it was.
    """
    data = result.data
    in_training = "trained" in data.coords
    data = data.sortby("trained") if in_training else data
    names, layers = (data[dim].values.tolist() for dim in ("checkpoint", "layer"))
    distance = data["distance"].mean("seed")
    one = len(names) == 1
    shown = distance.isel(checkpoint=0) if one else distance.mean("step").transpose("layer", "checkpoint")
    null = data["null_distance"].mean(["seed", "step"]).values[:, None] if "null_distance" in data else None
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        column_widths=[0.93, 0.07],
        row_heights=[0.65, 0.35],
        horizontal_spacing=0.02,
        vertical_spacing=0.14,
    )
    most = max(float(shown.max()), 0.0 if null is None else float(null.max()))
    scale = {
        "colorscale": COLOR_SCALE, "zmin": 0, "zmax": most or 1, "y": layers,
        "colorbar": {"title": {"text": "distance"}, "y": 1, "yanchor": "top", "len": 0.6},
    }  # fmt: skip
    x = data["timestep"].values if one else data["trained"].values if in_training else names
    hover = ("t = %{x:.0f}" if one else "%{x}") + "<br>%{y}: %{z:.3f}<extra></extra>"
    figure.add_heatmap(z=shown.transpose("layer", ...).values, x=x, hovertemplate=hover, **scale)
    if null is not None:
        random = {**scale, "showscale": False, "hovertemplate": "%{y}: %{z:.3f}<extra></extra>"}
        figure.add_heatmap(z=null, x=["control"], row=1, col=2, **random)
    if in_training:
        _draw_training(figure, data)
    else:
        _draw_runs(figure, data)
        above = {"title": "timestep t", "autorange": "reversed"} if one else {"title": "checkpoint"}
        figure.update_xaxes(**above, row=1, col=1)
    figure.update_yaxes(autorange="reversed", automargin=True, dtick=1, tickfont={"size": 11}, row=1)
    figure.update_yaxes(showticklabels=False, row=1, col=2)
    figure.update_yaxes(title="SSIM" if in_training else "SSIM of x<sub>t</sub>", row=2, col=1)
    figure.update_layout(template=TEMPLATE, height=360 + 16 * len(layers), legend={"y": -0.12, "yanchor": "top"})
    return figure


def _draw_runs(figure: go.Figure, data: xr.Dataset) -> None:
    """SSIM of the runs' states over the time, a line for each checkpoint."""
    place: dict[str, Any] = {"row": 2, "col": 1}
    for index, name in enumerate(data["checkpoint"].values.tolist()):
        band(figure, data["timestep"].values, data["ssim"].sel(checkpoint=name), name, index, **place)
    if "null_ssim" in data:
        band(figure, data["timestep"].values, data["null_ssim"], "control: other noise", muted=True, **place)
    figure.update_xaxes(title="timestep t", range=[float(data["timestep"].max()), 0], **place)


def _draw_training(figure: go.Figure, data: xr.Dataset) -> None:
    """SSIM of the images, and of two earlier states, over the training; its numbers below both panels."""
    place: dict[str, Any] = {"row": 2, "col": 1}
    trained, count = data["trained"].values, data.sizes["step"]
    curves = {f"t = {data['timestep'].values[i]:.0f}": data["ssim"].isel(step=i) for i in (count // 2, 3 * count // 4)}
    for index, (name, ssim) in enumerate({**curves, "the images": data["final_ssim"]}.items()):
        band(figure, trained, ssim.transpose("seed", "checkpoint"), name, index, **place)
    if "null_final_ssim" in data:
        null = data["null_final_ssim"].expand_dims(checkpoint=len(trained), axis=1)
        band(figure, trained, null, "control: images of other noise", muted=True, **place)
    word = str(data["checkpoint"].values[0]).rstrip("0123456789").strip("-_. ") or "checkpoint"
    for row in (1, 2):
        figure.update_xaxes(title=word, tickvals=trained, ticktext=[f"{n:,}" for n in trained], row=row, col=1)


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed's predicted clean images at six moments, and the results, a row for each checkpoint."""
    data = result.data
    times = [f"t = {t:.0f}" for t in data["moment_timestep"].values]
    names = data["run"].values.tolist()
    rows = [
        [
            Tile(to_rgb(image), f"{name}, {time}")
            for image, time in zip((*clean, final), (*times, "result"), strict=True)
        ]
        for name, clean, final in zip(names, data["x0"].values, data["final"].values, strict=True)
    ]
    return tile_grid(rows, [*times, "result"], names)


register(
    Experiment(
        "compare-checkpoints",
        "Where two checkpoints part, in depth and in time",
        "Above: how far the output of each layer is from that of the first checkpoint (0: equal, 1: nothing in common)"
        " when both networks see the same states, those of the first one's runs; layers in the order in which they"
        " run, from top to bottom. The first row that is not dark is where the weights begin to differ. With several"
        " checkpoints, those of a training, there is a column for each, the mean over the process; names that end in"
        " numbers, such as step-500 and step-1000, are an axis. Control: the same network with random weights, in the"
        " same colours. Below: SSIM of the runs' states, which start from one noise and go their own ways (over the"
        " training, if that is the axis); grey, two runs of the first checkpoint from different noise. The images are"
        " the predicted clean images of the first seed, a row for each checkpoint.",
        "thesis eq. 4.1.8, 4.1.10, here between checkpoints",
        measure,
        plot,
        seeds=16,
        steps=50,
        runs=5.0,
        nulls=("random-weights",),
        plot_images=plot_images,
        table=table,
        needs="checkpoints",
    )
)
