"""What a judge no longer sees in an image without a concept's units."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import benjamini_hochberg, paired_difference
from diffusers_xai.analysis.statistics import are_verdicts
from diffusers_xai.experiments.patch_effects import in_words
from diffusers_xai.experiments.tables import Q, excess_columns
from diffusers_xai.plots.style import COLOR_SCALE


LEVEL = 0.05  # of the share of false discoveries


def losses_of(data: xr.Dataset) -> xr.Dataset:
    """How much of each attribute is lost by a concept's ablation, (seed, concept, attribute), where it was there.

    Of a judge that tells probabilities it is how far they fall. The control's is that of the first random units: the
    mean of several would be no answer of yes or no.
    """
    before = data["judged_intact"].where(data["judged_intact"] > 0.5)
    lost = {"lost": before - data["judged"]}
    if "null_judged" in data:
        lost["null_lost"] = before - data["null_judged"].isel(draw=0, drop=True)
    return xr.Dataset(lost)


def columns_of_lost(lost: xr.Dataset) -> dict[str, Any]:
    """What was lost (seed, attribute) of each attribute that two seeds have had, for a row of the table."""
    columns: dict[str, Any] = {}
    for name in lost["attribute"].values.tolist():
        told = lost.sel(attribute=name, drop=True).dropna("seed")
        if told.sizes["seed"] > 1:
            words = {"the model": "lost", "control": "lost without random units", "excess": "excess of losses", Q: Q}
            found = excess_columns(told, "lost", verdicts=True)
            columns |= {f"{words[column]}: {in_words(name)}": text for column, text in found.items()}
    return columns


def draw_lost(figure: go.Figure, lost: xr.Dataset, concepts: Sequence[str]) -> None:
    """The mean loss in the seeds that had an attribute, without the best units and without random ones, last row."""
    counts = lost["lost"].notnull().sum("seed").isel(concept=0, drop=True)
    lost = lost.sel(attribute=counts > 0)
    names = [f"{in_words(name)}<br>(n = {int(counts.sel(attribute=name))})" for name in lost["attribute"].values]
    sure = surely_lost(lost)
    told = lost.to_array().values
    what_is_lost = "share lost " if are_verdicts(told[np.isfinite(told)]) else "mean fall of the probability<br>"
    for column, (name, what) in enumerate((("lost", "the best"), ("null_lost", "random")), 1):
        if name not in lost:
            continue
        share = lost[name].mean("seed").transpose("concept", "attribute").values
        text = np.char.mod("%.2f", share + 0.0)
        text = np.where(sure, np.char.add(np.char.add("<b>", text), "</b>"), text) if column == 1 else text
        figure.add_heatmap(
            z=share, x=names, y=list(concepts), zmin=0, zmax=1, colorscale=COLOR_SCALE, showscale=False, text=text,
            texttemplate="%{text}", row=3, col=column,
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:.2f}} lost without {what} units<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title=f"{what_is_lost}without {what} units", row=3, col=column)
        figure.update_yaxes(
            autorange="reversed", type="category", showticklabels=column == 1, automargin=True, row=3, col=column
        )


def surely_lost(lost: xr.Dataset) -> np.ndarray:
    """Cells (concept, attribute) of which surely more, or less, is lost than without random units; or than nothing."""
    against = lost["null_lost"] if "null_lost" in lost else xr.zeros_like(lost["lost"])
    p_values = np.full((lost.sizes["concept"], lost.sizes["attribute"]), np.nan)
    for place in np.ndindex(p_values.shape):
        cell = dict(zip(("concept", "attribute"), place, strict=True))
        values = lost["lost"].isel(cell).dropna("seed")
        if values.sizes["seed"] > 1:
            others = against.isel(cell).sel(seed=values["seed"])
            p_values[place] = float(paired_difference(values, others, verdicts=True)["p_value"])
    return benjamini_hochberg(p_values.ravel()).reshape(p_values.shape) <= LEVEL
