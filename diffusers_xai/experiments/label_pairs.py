"""The predetermination index of every pair of labels."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments import predetermination
from diffusers_xai.experiments.base import label_bits, label_text, provenance
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import COLOR_SCALE, TEMPLATE


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int],
    seeds: Sequence[int] = range(4),
    num_inference_steps: int = 50,
    switches: int = 10,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
) -> ExperimentResult:
    """Sweeps the switch from every label to every other one.

    Source: thesis section 5.3.2, fig. 5.17, D.2.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        labels (`Sequence[int]`): Labels that the model was trained on, at least two.
        seeds (`Sequence[int]`): A sweep of each pair for each.
        num_inference_steps (`int`): Denoising steps.
        switches (`int`): How many switches, evenly spread; the first one is at step 0.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Rows of the network at a time.

    Returns:
        `ExperimentResult`: `index` and `switched_ssim` (SSIM of the switch at step 0) of dims (seed, first, second);
        NaN where both are the same.
    """
    if len(set(labels)) < 2:
        raise ValueError(f"expected at least two different labels, got {list(labels)}")
    count, seeds = len(labels), list(seeds)
    index, ssim = (np.full((len(seeds), count, count), np.nan) for _ in range(2))
    for i, j in permutations(range(count), 2):
        data = predetermination.run(
            pipe, labels=[labels[i], labels[j]], seeds=seeds, num_inference_steps=num_inference_steps,
            switches=switches, guidance_scale=guidance_scale, batch_size=batch_size,
        ).data  # fmt: skip
        index[:, i, j], ssim[:, i, j] = data["index"].values, data["ssim"].isel(switch=0).values
    dims = ("seed", "first", "second")
    coords = {"seed": seeds, "first": list(labels), "second": list(labels)}
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        threshold=predetermination.THRESHOLD,
    )  # fmt: skip
    data = xr.Dataset({"index": (dims, index), "switched_ssim": (dims, ssim)}, coords)
    return ExperimentResult("label-pairs", data, settings)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the mean index of each pair: the label to start with downwards, the one to switch to sideways."""
    index = result.data["index"].mean("seed")
    names = [label_text(result.settings, label) for label in index["first"].values.tolist()]
    bits = [label_bits(result.settings, label) for label in index["first"].values.tolist()]
    text = np.where(np.isfinite(index.values), np.char.mod("%.2f", np.nan_to_num(index.values)), "")
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
