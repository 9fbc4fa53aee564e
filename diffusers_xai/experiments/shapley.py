"""Who did it: which attribute of the label, in which half of the process; the label or the seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import (
    paired_difference,
    shapley_values,
    summary,
    variance_share_difference,
    variance_share_intervals,
    variance_shares,
)
from diffusers_xai.experiments.base import SPANNED_LABELS, Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import null_name, short_label
from diffusers_xai.experiments.judging import Judge, Seen, checked_names, judged, judged_attributes, numbers_of
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.patch_effects import check_names, in_words
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import Q, excess_columns, in_table, interval_text
from diffusers_xai.labels import labels_between
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.label_tree import label_tree
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE, TEXT_COLOR
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


IMAGE = "image"
HALVES = ("first half", "second half")
SOURCES = ("seed", "label", "both together")
MAX_ATTRIBUTES = 4  # 256 runs of each seed


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    judge: Judge | None = None,
    measure: Seen | None = None,
    null: Null = "gaussian",
    max_rows: int = 64,
) -> xr.Dataset:
    """Exact Shapley values of the label's attributes in each half of the process, and the shares of a variance.

    A player is an attribute in a half: out of the game it is as in the first label, in it as in the last one. All
    coalitions are sampled, from the same noise. What they are worth is the nearness to the image of the last label (1
    less the mean squared error to it, as a share of the first label's), with a judge the probability of each
    attribute that is not the same in all labels, and whatever a function of yours measures. Besides, how much of the
    variance of the pixels (of the first 64 seeds), and of each of these probabilities and numbers, over the seeds and
    the unswitched labels is due to either.

    Source: Shapley 1953; Searle, Casella and McCulloch 1992.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled: two labels and all between, see `labels_between`.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes, see `Judge`.
        measure (`Callable`, *optional*): From images `(image, channel, height, width)`, float32 in [-1, 1], to a dict
            of a number for each image, `(image,)`, by name.
        null (`str` or [`XAIPipeline`]): `"gaussian"` (fitted to 64 samples of each label), a pipeline, or `"none"`.
        max_rows (`int`, defaults to 64): Images in one call of the network.

    Returns:
        `xarray.Dataset`: `share` of dims (seed, of, attribute, half), whose sum is `gain` (seed, of), v of all less v
        of none; `variance` (of, source, limit) with the estimate and its interval, NaN of a single seed; each with
        `null_` of the control, and `excess_variance` the difference, with `excess_p_value` (of, source). `images`
        (first, second, rgb, height, width) of the first seed.

    Raises:
        ValueError: If the labels are not two with all between, or differ in more than four attributes; if `measure`
            returns something else.
    """
    labels, attributes = list(sampling.labels), pipe.unet.config.get("class_attributes") or ()
    if labels != labels_between(labels[0], labels[-1], attributes):
        raise ValueError(f"Expected two labels and all between them, as of `labels_between`, got {labels}")
    players = judged_attributes(pipe, labels) if attributes else ["label"]
    if len(players) > MAX_ATTRIBUTES:
        raise ValueError(f"Expected labels that differ in at most {MAX_ATTRIBUTES} attributes, got {len(players)}")
    names = judged_attributes(pipe, labels) if judge is not None else []
    numbers = checked_names(measure, pipe) if measure is not None else []
    check_names([*names, *numbers], [IMAGE])
    other = null_pipeline(null, pipe, sampling, num_samples=64 * len(labels))
    count, bits = len(labels), (2,) * len(players)

    def measured(which: XAIPipeline, part: list[int], prefix: str) -> xr.Dataset:
        final = label_tree(
            which, labels, part, num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale,
            max_rows=max_rows,
        ).float().cpu()  # fmt: skip
        error = (final.double() - final[-1, -1].double()).square().mean((-3, -2, -1))
        worth = [1 - error / error[0, 0]]
        if judge is not None:
            told = judged(judge, final.flatten(0, 1), pipe, names).double()  # (seed, run, attribute)
            worth += told.permute(2, 1, 0).unflatten(1, (count, count)).unbind(0)
        if measure is not None:
            found = numbers_of(measure, final.flatten(0, 2))
            worth += [found[name].unflatten(0, error.shape) for name in numbers]
        table = torch.stack(worth).permute(3, 0, 1, 2).numpy()  # (seed, of, first, second)
        values = shapley_values(table.reshape(*table.shape[:2], *bits, *bits), 2 * len(players))
        halves = values.reshape(*values.shape[:2], 2, len(players)).swapaxes(-1, -2)
        steady = torch.stack([final[i, i] for i in range(count)], dim=1).numpy()  # (seed, label, …)
        data = xr.Dataset(
            {
                f"{prefix}share": (("seed", "of", "attribute", "half"), halves),
                f"{prefix}gain": (("seed", "of"), table[:, :, -1, -1] - table[:, :, 0, 0]),
                f"{prefix}worth": (("seed", "of", "first", "second"), table),
                f"{prefix}steady": (("seed", "label", "rgb", "height", "width"), steady),
            }
        )
        if not prefix:
            picture = final.permute(2, 0, 1, 3, 4, 5).numpy()
            data["images"] = ("seed", "first", "second", "rgb", "height", "width"), picture
        return data

    def measure_batch(part: list[int]) -> xr.Dataset:
        parts = [measured(pipe, part, "")] + ([] if other is None else [measured(other, part, "null_")])
        return xr.merge(parts)

    data = sampling.over_seeds(
        measure_batch, "coalitions", seeds_at_once=max(1, max_rows // 8), of_first=["images"],
        of_held=["steady", "null_steady"],
    )  # fmt: skip
    data = data.assign_coords(
        of=[IMAGE, *names, *numbers], attribute=players, half=list(HALVES), first=labels, second=labels, label=labels
    )
    varying = {prefix: _varying(data, prefix) for prefix in (("",) if other is None else ("", "null_"))}
    for prefix, parts in varying.items():
        data[f"{prefix}variance"] = _limits(_shares, parts)["limits"]
    if other is not None:
        excess = _limits(variance_share_difference, *varying.values())
        data = data.assign(excess_variance=excess["limits"], excess_p_value=excess["p_value"])
    return data.drop_dims("held")


def _varying(data: xr.Dataset, prefix: str) -> list[np.ndarray]:
    """What varies with seed and label, (seed, label, value) each: the pixels, then every probability."""
    steady, worth = data[f"{prefix}steady"].values, data[f"{prefix}worth"].values[:, 1:]
    diagonal = worth[:, :, range(worth.shape[2]), range(worth.shape[3])]  # (seed, of, label)
    return [steady.reshape(*steady.shape[:2], -1), *(diagonal[:, i, :, None] for i in range(diagonal.shape[1]))]


def _shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = variance_share_intervals(values)
    return variance_shares(values), low, high


def _limits(function: Callable[..., tuple[np.ndarray, ...]], *parts: list[np.ndarray]) -> xr.Dataset:
    """What a function finds in each part: `limits` (of, source, limit) and, of an excess, `p_value` (of, source)."""
    count = 3 if len(parts) == 1 else 4
    found = np.stack(
        [
            np.stack(function(*values)) if len(values[0]) > 1 else np.full((count, 3), np.nan)  # of a single seed
            for values in zip(*parts, strict=True)
        ]
    )
    coords = {"source": list(SOURCES), "limit": ["estimate", "low", "high"]}
    limits = xr.Dataset({"limits": (("of", "source", "limit"), found[:, :3].swapaxes(1, 2))}, coords)
    return limits if count == 3 else limits.assign(p_value=(("of", "source"), found[:, 3]))


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the shares of each attribute in each half, a panel for each measure; right, those of the variance."""
    data, settings = result.data, result.settings
    measures = data["of"].values.tolist()
    titles = [f"{in_words(of)}: {what}" for of in measures for what in ("who did it", "its variance")]
    figure = make_subplots(
        rows=len(measures), cols=2, column_widths=[0.68, 0.32], horizontal_spacing=0.1,
        vertical_spacing=0.12 / len(measures), shared_xaxes=True, subplot_titles=titles,
    )  # fmt: skip
    players = [in_words(name) for name in data["attribute"].values]
    whiskers = {"thickness": 1.5, "color": TEXT_COLOR}
    for row, of in enumerate(measures, start=1):
        for index, half in enumerate(HALVES):
            for prefix in ("", "null_") if "null_share" in data else ("",):
                facts = summary(data[f"{prefix}share"].sel(of=of, half=half))
                color = MUTED_COLOR if prefix else LINE_COLORS[index]
                name = f"{null_name(settings)}, of the half to its left" if prefix else half
                figure.add_bar(
                    x=players, y=facts["mean"].values, name=name, legendgroup=name, marker_color=color,
                    offsetgroup=f"{prefix}{half}", showlegend=row == 1 and not (prefix and index),
                    legendrank=3 if prefix else 1 + index,
                    error_y={"array": (facts["high"] - facts["mean"]).values, **whiskers}, row=row, col=1,
                )  # fmt: skip
        for prefix in ("", "null_") if "null_variance" in data else ("",):
            part = data[f"{prefix}variance"].sel(of=of)
            estimate, low, high = (part.sel(limit=limit).values for limit in ("estimate", "low", "high"))
            figure.add_bar(
                x=list(SOURCES), y=estimate, marker_color=MUTED_COLOR if prefix else LINE_COLORS[2],
                offsetgroup=f"{prefix}variance", showlegend=False,
                error_y={"array": high - estimate, "arrayminus": estimate - low, **whiskers}, row=row, col=2,
            )  # fmt: skip
    figure.update_yaxes(title="Shapley value", automargin=True, col=1, zeroline=True)
    figure.update_yaxes(tickformat=".0%", range=[0, 1], col=2)
    height = 110 + 240 * len(measures)
    legend = {"yref": "container", "y": 1, "yanchor": "top"}  # above the titles
    return figure.update_layout(template=TEMPLATE, height=height, barmode="group", margin={"t": 70}, legend=legend)


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed under every label of the first half, downwards, and of the second, to the right."""
    data, settings = result.data, result.settings
    names = [short_label(settings, label) for label in data["first"].values.tolist()]
    rows = [
        [Tile(to_rgb(image), f"{first}, then {second}") for image, second in zip(row, names, strict=True)]
        for row, first in zip(data["images"].values, names, strict=True)
    ]
    return tile_grid(rows, [f"then {name}" for name in names], [f"first {name}" for name in names])


def table(result: ExperimentResult) -> pd.DataFrame:
    """Each player's value of the model, of the control, and the excess; then the shares of the variance."""
    data = result.data
    rows: list[dict[str, Any]] = []
    for of in data["of"].values.tolist():
        part = data.sel(of=of)
        for name in data["attribute"].values.tolist():
            for half in HALVES:
                facts = excess_columns(part.sel(attribute=name, half=half), "share")
                rows.append({"of": in_words(of), "": f"{in_words(name)}, {half}", **facts})
        facts = excess_columns(part, "gain")
        if of != IMAGE:  # of one seed a judge's answer to each, yes or no
            for prefix, who in (("", "the model"), ("null_", "control")):
                if f"{prefix}worth" in data:
                    last, first = (part[f"{prefix}worth"].isel(first=i, second=i, drop=True) for i in (-1, 0))
                    facts[who] = interval_text(paired_difference(last, first, verdicts=True))
        rows.append({"of": in_words(of), "": "sum: all less none", **facts})
        for source in SOURCES:
            columns: dict[str, Any] = {"": f"variance due to {source}"}
            for prefix, who in (("", "the model"), ("null_", "control"), ("excess_", "excess")):
                if f"{prefix}variance" in data:
                    limits = part[f"{prefix}variance"].sel(source=source)
                    at = {limit: float(limits.sel(limit=limit)) for limit in ("estimate", "low", "high")}
                    known = f" ({at['low']:.0%} to {at['high']:.0%})" if np.isfinite(at["low"]) else ""
                    columns[who] = f"{at['estimate']:.0%}{known}" if np.isfinite(at["estimate"]) else ""  # none varies
                    if prefix == "excess_":
                        columns[Q] = float(part["excess_p_value"].sel(source=source))
            rows.append({"of": in_words(of), **columns})
    return in_table(rows)


register(
    Experiment(
        "shapley",
        "Who did it: attribute and half of the process, label or seed",
        "Every attribute on which two labels differ takes part or not in each half of the process, in all"
        " combinations and from the same noise. The bars are the Shapley values: what each one adds on average"
        " over all orders of joining, so that they sum to what all of them change together. First for the image (1"
        " is that of the last label), then, with a judge, for the probability of each attribute, and for each number"
        " of a measure of your own, in its unit. Right: how much"
        " of the variance over seeds and labels is due to the seed, to the label, and to both together (two-way"
        " analysis of variance, intervals by the jackknife over the seeds). Grey: the same of Gaussians that are"
        " fitted to the model's samples of each label. The images are those of the first seed.",
        "Shapley 1953; Searle, Casella and McCulloch 1992",
        measure,
        plot,
        nulls=("gaussian",),
        labels=SPANNED_LABELS,
        seeds=8,
        runs=lambda labels: (labels + labels**2) / 2,
        steps=25,
        plot_images=plot_images,
        table=table,
        judged=True,
    )
)
