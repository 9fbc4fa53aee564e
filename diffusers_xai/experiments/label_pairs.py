"""The predetermination index of every pair of labels."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments import predetermination
from diffusers_xai.experiments.base import ALL_LABELS, Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import label_text, short_label
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import COLOR_SCALE, TEMPLATE


def measure(
    pipe: XAIPipeline, sampling: Sampling, *, switches: int | None = None, null: Null = "gaussian"
) -> xr.Dataset:
    """Sweeps the switch from every label to every other one.

    Source: thesis section 5.3.2, fig. 5.17, D.2.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled.
        switches (`int`, *optional*): See `predetermination`.
        null (`str` or [`XAIPipeline`]): `"gaussian"` (fitted to 64 samples of each label), a pipeline, or `"none"`.

    Returns:
        `xarray.Dataset`: `index`, `null_index` and `switched_ssim` (SSIM of the switch at step 0) of dims (seed,
        first, second); NaN where both are the same.

    Raises:
        ValueError: If there are fewer than two different labels.
    """
    labels, seeds = sampling.labels, sampling.seeds
    if len(set(labels)) < 2:
        raise ValueError(f"Expected at least two different labels, got {list(labels)}.")
    other = null_pipeline(null, pipe, sampling, num_samples=64 * len(sampling.labels)) or "none"
    names = {"index": "index", "switched_ssim": "ssim", **({} if other == "none" else {"null_index": "null_index"})}
    numbers = {name: np.full((len(seeds), len(labels), len(labels)), np.nan) for name in names}
    for i, j in permutations(range(len(labels)), 2):
        pair = replace(sampling, labels=(labels[i], labels[j]))
        data = predetermination.measure(pipe, pair, switches=switches, null=other).isel(switch=0)
        for name, source in names.items():
            numbers[name][:, i, j] = data[source].values
    dims = ("seed", "first", "second")
    coords = {"seed": list(seeds), "first": list(labels), "second": list(labels)}
    data = xr.Dataset({name: (dims, values) for name, values in numbers.items()}, coords)
    return data.assign_attrs(threshold=predetermination.THRESHOLD)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the mean index of each pair: the label to start with downwards, the one to switch to sideways."""
    index = result.data["index"].mean("seed")
    names = [label_text(result.settings, label) for label in index["first"].values.tolist()]
    bits = [short_label(result.settings, label) for label in index["first"].values.tolist()]
    text = np.char.mod("%.2f", np.nan_to_num(index.values))
    if "null_index" in result.data:
        null = np.nan_to_num(result.data["null_index"].mean("seed").values)
        text = np.char.add(text, np.char.mod(" (%.2f)", null))
    text = np.where(np.isfinite(index.values), text, "")
    figure = go.Figure(
        go.Heatmap(
            z=index.values, x=[f"→ {b}" for b in bits], y=names, zmin=0, zmax=1, colorscale=COLOR_SCALE, text=text,
            texttemplate="%{text}", colorbar={"title": "index"}, hoverongaps=False,
        )
    )  # fmt: skip
    return figure.update_layout(
        template=TEMPLATE,
        height=140 + 34 * len(names),
        xaxis={"side": "top", "showgrid": False},
        yaxis={"autorange": "reversed", "automargin": True, "showgrid": False},
        margin={"t": 60},
    )


def table(result: ExperimentResult) -> pd.DataFrame:
    """The index of each label, the mean over those it is switched to, beside the control's."""
    data, settings = result.data, result.settings
    numbers = data[[name for name in ("index", "null_index") if name in data]].mean("second")
    rows = [
        {"switched from": label_text(settings, label), **excess_columns(numbers.sel(first=label), "index")}
        for label in numbers["first"].values.tolist()
    ]
    rows.append({"switched from": "all labels", **excess_columns(numbers.mean("first"), "index")})
    return in_table(rows)


register(
    Experiment(
        "label-pairs",
        "How early each pair of labels is settled",
        "The index of the predetermination for every pair of labels that the model was trained on: the share of the"
        " process after which a switch from the label of the row to that of the column leaves the image alike, means"
        " over the seeds, in brackets those of Gaussians that are fitted to the model's samples of each label. Low"
        " values are pairs that are told apart early, or hardly at all.",
        "thesis section 5.3.2, fig. 5.17, D.2",
        measure,
        plot,
        nulls=("gaussian",),
        labels=ALL_LABELS,
        seeds=2,
        steps=50,
        table=table,
    )
)
