"""By which places the layers raise a score of the image (gradient attention)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import benjamini_hochberg, paired_difference, summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import null_name
from diffusers_xai.experiments.judging import Judge, named_attributes, probabilities
from diffusers_xai.experiments.maps import resized
from diffusers_xai.experiments.nulls import Null, null_pipeline, on_states_of
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import in_table, rows_over_time
from diffusers_xai.explainers import GradientAttention, Samples
from diffusers_xai.labels import attributes_of
from diffusers_xai.measures import Mask
from diffusers_xai.measures.masks import region_or_middle
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import DIVERGING_COLOR_SCALE, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import pick_branch


TIMES = (0.9, 0.7, 0.5, 0.3, 0.1)  # parts of the training's timesteps
SUM = "sum over the region"
LEVEL = 0.05  # of the share of false discoveries


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    layers: Sequence[str] | None = None,
    judge: Judge | None = None,
    null: Null = "random-weights",
) -> xr.Dataset:
    """The share of each layer's gradient attention that lies in a region, at five moments.

    A layer's map is ReLU(Σ_k α_k A_k) over its channels A_k, with α_k the mean over all places of ∂z/∂A_k; z is the
    sum of x̂_0 over the region, or a judge's logit of it, for each attribute that the label has (all four of a
    label that has none). Maps are compared at their own resolution: a place counts by the share of it that lies in the
    region. What is nowhere positive counts as spread evenly. Chance is the region's share of the image. The control is
    the same network with random weights, in the same states.

    Source: Liu et al. 2020, *Towards Visually Explaining Variational Autoencoders*.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        mask (`(height, width)` bool, *optional*): The region: whose sum is the score, or where what the judge sees
            lies; a square in the middle if `None`.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`, or the last layers of
            the blocks of a network without attention.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes in images `(image,
            channel, height, width)` in [-1, 1], as a tensor `(image, attribute)`, by differentiable operations.
        null (`str` or [`XAIPipeline`]): `"random-weights"`, a pipeline with the same layers, or `"none"`.

    Returns:
        `xarray.Dataset`: `inside` (seed, score, layer, step), in [0, 1], and `null_inside` of the control; `most`
        (layer), what a map of that size has inside if it is one place, the best. Of the first seed `map` (score,
        layer, step, height, width), enlarged, and `final` (rgb, height, width); `mask` (height, width). The attribute
        `chance` is the region's share of the image.

    Raises:
        ValueError: If there is a judge and the model's attributes have no names, or what it tells is not
            differentiable; if a layer has no channels or places.
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(layers if layers is not None else telling_layers(denoiser)))
    region = region_or_middle(mask, pipe.sample_shape[-2:])
    other = null_pipeline(null, pipe, sampling)
    specs = _specs(pipe, sampling, region, judge, paths)

    def measure_batch(part: list[int]) -> xr.Dataset:
        scores = []
        for spec in specs.values():
            profile = sampling.profile(pipe, part, [Samples(x0=False, measures=()), spec])
            data = _shares(profile, paths, region)
            if other is not None:
                theirs = _shares(on_states_of(profile, other, sampling, part, [spec]), paths, region)
                data["null_inside"] = theirs["inside"]
            scores.append(data)
        final = ("seed", "rgb", "height", "width"), profile["final_sample"].values
        return xr.concat(scores, "score").transpose("seed", "score", ...).assign(final=final)

    data = sampling.over_seeds(
        measure_batch,
        "gradient attention",
        seeds_at_once=max(1, sampling.batch_size // 2),  # gradients through all layers are held
        of_first=["map", "most", "final"],
    )
    names = [denoiser.short_name(path) for path in paths]
    return (
        data.assign_coords(score=list(specs), layer=names)
        .assign(most=data["most"].isel(score=0))
        .assign(mask=(("height", "width"), region))
        .assign_attrs(chance=float(region.mean()))
    )


def _specs(
    pipe: XAIPipeline, sampling: Sampling, region: np.ndarray, judge: Judge | None, paths: list[str]
) -> dict[str, GradientAttention]:
    """What to record of each score, by its name."""
    times = [timestep_at(pipe, time) for time in TIMES]
    if judge is None:
        return {SUM: GradientAttention(paths, mask=region, timesteps=times)}
    attributes = named_attributes(pipe)
    has = attributes_of(sampling.labels[0], attributes) if sampling.labels else []

    def logit(index: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.logit(probabilities(judge, images, pipe)[:, index], eps=1e-6)

    return {
        name: GradientAttention(paths, judge=logit(attributes.index(name)), timesteps=times)
        for name in has or attributes
    }


def _shares(profile: DiffusionProfile, paths: Sequence[str], region: np.ndarray) -> xr.Dataset:
    """Each layer's maps (seed, layer, step, height, width) enlarged to the image's size, and their share inside."""
    arrays = [pick_branch(profile[f"gradient_attention/{path}"], "cond") for path in paths]
    maps = [array.transpose("sample", "step", ...).values for array in arrays]
    covered = [resized(region[None], own.shape[-2:], "area")[0] for own in maps]  # how much of a place is inside
    dims = ("seed", "layer", "step")
    return xr.Dataset(
        {
            "inside": (dims, np.stack([_share(*both) for both in zip(maps, covered, strict=True)], 1)),
            "map": ((*dims, "height", "width"), np.stack([resized(own, region.shape, "bilinear") for own in maps], 1)),
            "most": (("seed", "layer"), [[part.max() for part in covered]] * len(maps[0])),
        },
        {"step": arrays[0]["step"].values, "timestep": ("step", arrays[0]["timestep"].values)},
    )


def _share(maps: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """The share of maps (…, height, width) that lies in what is `covered`; of empty ones, that of the region."""
    total = maps.sum((-2, -1), dtype=np.float64)
    share = (maps * covered).sum((-2, -1), dtype=np.float64) / np.where(total > 0, total, 1)
    return np.where(total > 0, share, covered.mean())


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the share inside the region, layers downwards, time to the right, and beside it the control's.

    A row for each score. Bold is what surely differs from the control, or from chance without one.
    """
    data, chance = result.data, result.settings["chance"]
    scores = data["score"].values.tolist()
    kinds = [name for name in ("inside", "null_inside") if name in data]
    titles = [text for score in scores for text in (_words(score), null_name(result.settings))[: len(kinds)]]
    figure = make_subplots(
        rows=len(scores), cols=len(kinds), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles,
        vertical_spacing=0.3 / len(scores),
    )  # fmt: skip
    times = [f"{t:.0f}" for t in data["timestep"].values]
    sure = _sure(data["inside"] - (data["null_inside"] if len(kinds) > 1 else chance))
    for row, score in enumerate(scores, start=1):
        for column, kind in enumerate(kinds, start=1):
            facts = summary(data[kind].sel(score=score, drop=True).transpose("seed", "layer", "step"))
            mean = facts["mean"].values
            text = np.char.mod("%.0f %%", 100 * mean)
            if column == 1:
                bold = sure.sel(score=score).transpose("layer", "step").values
                text = np.where(bold, np.char.add(np.char.add("<b>", text), "</b>"), text)
            figure.add_heatmap(
                z=np.log2(np.maximum(mean, 1e-9) / chance), zmin=-2, zmax=2, colorscale=DIVERGING_COLOR_SCALE,
                x=times, y=data["layer"].values, text=text, texttemplate="%{text}", textfont={"size": 11},
                customdata=np.stack([facts["mean"], facts["low"], facts["high"]], axis=-1), showscale=False,
                hovertemplate="%{y}, t = %{x}: %{customdata[0]:.1%} (%{customdata[1]:.1%} to %{customdata[2]:.1%})"
                "<extra></extra>", row=row, col=column,
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True, ticks="")
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_xaxes(title={"text": f"timestep t (white: chance, {chance:.1%})", "font": {"size": 12}})
    figure.update_annotations(font={"size": 13})
    height = 90 + len(scores) * (70 + 26 * data.sizes["layer"])
    return figure.update_layout(template=TEMPLATE, height=height, margin={"t": 50, "r": 40})


def _sure(excess: xr.DataArray) -> xr.DataArray:
    """Where the mean over the seeds is surely not 0: t-tests at 5 %, corrected for all cells."""
    p_values = paired_difference(excess)["p_value"]
    return p_values.copy(data=(benjamini_hochberg(p_values.values.ravel()) <= LEVEL).reshape(p_values.shape))


def _words(score: str) -> str:
    return score if score == SUM else f"logit of {score.replace('_', ' ')}"


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the maps of the first seed over its image, with the region's outline."""
    data = result.data
    region = data["mask"].values.astype(bool)
    times = [f"t = {t:.0f}" for t in data["timestep"].values]
    image = to_rgb(data["final"].values)
    rows, names = [], []
    for score in data["score"].values.tolist():
        for layer in data["layer"].values.tolist():
            maps = data["map"].sel(score=score, layer=layer).values
            shares = data["inside"].sel(score=score, layer=layer).isel(seed=0).values
            tiles = zip(maps, times, shares, strict=True)
            row = [
                Tile(m, f"{layer}, {t}", f"{share:.0%} inside" if m.any() else "0 everywhere", outline=region)
                for m, t, share in tiles
            ]
            rows.append([*row, Tile(image, "the result", outline=region)])
            names.append(layer if score == SUM else f"{score.replace('_', ' ')}<br>{layer}")
    return tile_grid(
        rows, [*times, "result"], names, scale_title="how much it raises the score, each map in its range"
    )


def table(result: ExperimentResult) -> pd.DataFrame:
    """The share inside the region of each layer at each moment: of the model, of the control, and the excess."""
    data = result.data
    rows = []
    for score in data["score"].values.tolist():
        for layer in data["layer"].values.tolist():
            part = data[[n for n in ("inside", "null_inside") if n in data]].sel(score=score, layer=layer, drop=True)
            rows += [
                {"score": _words(score), "layer": layer, **{key: text for key, text in row.items() if key}}
                | {"at most": f"{float(data['most'].sel(layer=layer)):.3f}"}
                for row in rows_over_time(part, "inside", "")
            ]
    return in_table(rows).assign(chance=f"{result.settings['chance']:.3f}")


register(
    Experiment(
        "gradient-attention",
        "By which places layers raise a score",
        "How much of a layer's gradient attention lies in the outlined region, at five moments: the places by which"
        " the layer raises the sum of the predicted clean image over the region or, with a judge, its logit of each"
        " attribute that the label has. A place of a coarse map counts by the share of it that lies in the region, so"
        " that even the best map has no more inside than the table says. Chance is the region's share of the image:"
        " orange is more, blue less. Beside"
        " it, the same network with random weights in the same states; bold is a share that surely differs from that"
        " (t-test, 5 % after correction for all cells). Only as far as it exceeds both does a map say where the"
        " score is made. Below, the maps of the first seed.",
        "Liu et al. 2020; Selvaraju et al. 2017 (Grad-CAM), here per step and graded",
        measure,
        plot,
        nulls=("random-weights",),
        seeds=16,
        steps=50,
        runs=4.0,
        region="eyes",
        judged=True,
        plot_images=plot_images,
        table=table,
    )
)
