"""Whether a direction inside the network does what the label does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.analysis import summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import label_text
from diffusers_xai.experiments.jacobians import middle_layer
from diffusers_xai.experiments.judging import Judge, judged_attributes, named_attributes, probabilities
from diffusers_xai.experiments.pushes import layer_push
from diffusers_xai.experiments.sampling import MAX_HELD, Sampling, generators
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.profile.selection import pick_branch


KINDS = {
    "layer": "h, along the difference of the labels' means",
    "random": "control: h, random directions",
    "pixels": "no network: the image, along the difference of mean images",
}
PREFIXES = {"layer": "", "random": "null_", "pixels": "pixel_"}


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layer: str | None = None,
    strengths: Sequence[float] = (0.5, 1.0, 2.0),
    judge: Judge | None = None,
    null: str = "random-direction",
) -> xr.Dataset:
    """Runs of one label whose layer h is moved at every step by the mean difference that another label makes there.

    The direction of a step is the mean over the *other* seeds, of the first 64, of h with the second label less h with
    the first, so that no seed is tested on its own runs. It is added to h by `LayerEdit` in runs of the first label,
    and the image is compared with that of the second label: the share of the label's change that the edit makes is the
    projection of its change on the label's. Controls: a random direction of the same norm at each step; and, without
    the network, the mean difference of the finished images, added to the image.

    Source: Haas et al. 2023, *Discovering Interpretable Directions in the Semantic Latent Space of Diffusion Models*;
    Kwon et al. 2023 (h-space).

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled: the label of the runs, and the other one.
        layer (`str`, *optional*): Name of the layer h, one that puts out maps; the middle block if `None`, or
            what stands for it in a network without.
        strengths (`Sequence[float]`): How many times the difference is added.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes in images `(image,
            channel, height, width)` in [-1, 1], as a tensor `(image, attribute)`.
        null (`str`): `"random-direction"`, or `"none"`.

    Returns:
        `xarray.Dataset`: Of dims (seed, strength): `share`, of the label's change, 1 being all of it, and `else`, the
        norm of the change beside it as a share of the label's; of random directions `null_share` and `null_else`, of
        the mean images `pixel_share` and `pixel_else`. With a judge `judged` (seed, kind, strength, attribute), and
        `judged_labels` (seed, run, attribute) of both labels' own images, of the attributes in which they differ.
        Of the first three seeds, the dim `shown`: `images` (shown, kind, strength, rgb, height, width) and
        `label_images` (shown, run, rgb, height, width).

    Raises:
        ValueError: If there is no strength, or no layer with maps.
        KeyError: If there is no such layer.
    """
    if not strengths:
        raise ValueError("Expected at least one strength, got none")
    attributes = [] if judge is None else named_attributes(pipe)
    differing = [] if judge is None else judged_attributes(pipe, sampling.labels)
    path = middle_layer(pipe, layer)
    if path is None:
        telling = telling_layers(get_denoiser(pipe))
        path = telling[len(telling) // 2]
    name = f"activations/{path}"
    every = ("seed", "step", "channel", "height", "width")

    def differences(part: list[int]) -> xr.Dataset:
        what = [Samples(steps=[0], x0=False, measures=()), Activations(layers=[path])]
        profile = sampling.profile(pipe, part, what, labels=sampling.labels)
        values = pick_branch(profile[name], "cond")
        if values.dims[2:] != every[2:]:
            raise ValueError(f"{path}: expected a layer that puts out maps, got dims {values.dims}")
        first, second = np.split(values.values.astype(np.float32), 2, axis=1)
        images = np.split(profile["final_sample"].values.clip(-1, 1), 2)
        return xr.Dataset(
            {
                "change": (("seed", "step", *(f"h_{d}" for d in every[2:])), np.swapaxes(second - first, 0, 1)),
                "label_images": (("seed", "run", "rgb", "height", "width"), np.stack(images, 1)),
            }
        )

    known = replace(sampling, seeds=sampling.seeds[:MAX_HELD]).over_seeds(differences, "both labels")
    known["image_change"] = known["label_images"].diff("run").isel(run=0)
    totals = known.sum("seed")

    def edited(part: list[int]) -> xr.Dataset:
        mine = known if set(part) <= set(known["seed"].values.tolist()) else differences(part).assign_coords(seed=part)
        mine = mine.sel(seed=part)
        own = mine["label_images"].values
        mine["image_change"] = mine["label_images"].diff("run").isel(run=0)
        intact, label_change = own[:, 0], mine["image_change"].values.astype(np.float64)
        directions, pixels = (_of_others(totals[name], mine[name], known) for name in ("change", "image_change"))
        ways = {"layer": torch.from_numpy(directions)}
        if null != "none":
            ways["random"] = _as_long(ways["layer"], part)
        images = {
            kind: np.stack([_run(pipe, sampling, part, path, s * amounts) for s in strengths], 1)
            for kind, amounts in ways.items()
        }
        images["pixels"] = np.stack([(intact + s * pixels).clip(-1, 1) for s in strengths], 1)
        every_image = np.stack(list(images.values()), 1)
        change = every_image.astype(np.float64) - intact[:, None, None]
        norm = np.square(label_change).sum((1, 2, 3))
        share = np.einsum("nkschw,nchw->nks", change, label_change) / norm[:, None, None]
        beside = change - share[..., None, None, None] * label_change[:, None, None]
        dims = ("seed", "kind", "strength")
        data = xr.Dataset(
            {
                "share": (dims, share),
                "else": (dims, np.sqrt(np.square(beside).sum((3, 4, 5)) / norm[:, None, None])),
                "images": ((*dims, "rgb", "height", "width"), every_image),
                "label_images": (("seed", "run", "rgb", "height", "width"), own),
            },
            {"kind": list(images), "strength": list(map(float, strengths))},
        )
        if judge is not None:
            for key, pictures in (("judged", every_image), ("judged_labels", own)):
                flat = torch.from_numpy(pictures.reshape(-1, *pictures.shape[-3:])).float()
                told = probabilities(judge, flat, pipe).numpy().reshape(*pictures.shape[:-3], -1)
                data[key] = (*(dims if key == "judged" else ("seed", "run")), "attribute"), told
            data = data.assign_coords(attribute=attributes).sel(attribute=differing)
        return data

    data = sampling.over_seeds(edited, "moved along the label", of_few=["images", "label_images"])
    for key in ("share", "else"):
        by_kind = data[key]
        for kind in by_kind["kind"].values.tolist():
            data[f"{PREFIXES[kind]}{key}"] = by_kind.sel(kind=kind, drop=True)
    return data.assign_attrs(layer=get_denoiser(pipe).short_name(path))


def _of_others(total: xr.DataArray, values: xr.DataArray, known: xr.Dataset) -> np.ndarray:
    """For each seed of `values` (seed, …) the mean over the other `known` seeds, whose sum is `total`."""
    inside = values["seed"].isin(known["seed"])
    others = (total - values.where(inside, 0)) / (known.sizes["seed"] - inside)
    return others.transpose(*values.dims).values.astype(np.float32)


def _as_long(directions: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Random directions with the norms of `directions` (seed, step, …) at each step."""
    sources = [torch.Generator().manual_seed(10**6 + seed) for seed in seeds]
    noise = torch.stack([torch.randn(directions.shape[1:], generator=source) for source in sources])
    sizes = directions.flatten(2).norm(dim=2) / noise.flatten(2).norm(dim=2)
    return sizes.view(*sizes.shape, *[1] * (noise.ndim - 2)) * noise


def _run(pipe: XAIPipeline, sampling: Sampling, seeds: list[int], path: str, amounts: torch.Tensor) -> np.ndarray:
    """Images of the first label, whose layer is moved by `amounts` (seed, step, …)."""
    output: Any = pipe(
        class_labels=sampling.labels[0],
        batch_size=len(seeds),
        num_inference_steps=sampling.steps,
        generator=generators(seeds),
        guidance_scale=sampling.guidance_scale,
        edits=[layer_push(path, step, amounts[:, step]) for step in range(amounts.shape[1])],
        output_type="pt",
    )
    return (2 * output.images.float() - 1).cpu().numpy()


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the share of the label's change over the strength, of the direction and of its controls."""
    data = result.data
    first, second = (label_text(result.settings, label) for label in result.settings["labels"])
    figure = go.Figure()
    for kind in data["kind"].values.tolist():
        facts = summary(data[f"{PREFIXES[kind]}share"])
        color = {"layer": LINE_COLORS[0], "random": MUTED_COLOR, "pixels": LINE_COLORS[1]}[kind]
        figure.add_scatter(
            x=data["strength"].values, y=facts["mean"].values, name=KINDS[kind], mode="lines+markers",
            line={"color": color, "dash": "solid" if kind == "layer" else "dot"},
            error_y={"array": (facts["high"] - facts["mean"]).values, "thickness": 1.5},
        )  # fmt: skip
    figure.add_hline(
        1, line={"color": MUTED_COLOR, "dash": "dot"}, annotation={"text": "the label itself"},
        annotation_position="top left",
    )  # fmt: skip
    figure.update_xaxes(title="times the difference was added", rangemode="tozero")
    figure.update_yaxes(title=f"share of the change from {first}<br>to {second}")
    return figure.update_layout(template=TEMPLATE, height=440, showlegend=True, margin={"l": 120})


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws, of three seeds, both labels' images, and between them the first label's, moved."""
    data = result.data
    strengths = data["strength"].values.tolist()
    rows: list[list[Tile | None]] = []
    names = []
    for k in range(data.sizes["shown"]):
        first, second = data["label_images"].isel(shown=k).values
        for kind in [kind for kind in ("layer", "random", "pixels") if kind in data["kind"].values]:
            moved = data["images"].isel(shown=k).sel(kind=kind).values
            tiles = [Tile(to_rgb(image), f"{s:g} times") for s, image in zip(strengths, moved, strict=True)]
            ends = (Tile(to_rgb(first), "first label"), Tile(to_rgb(second), "second label"))
            rows.append([ends[0], *tiles, ends[1]] if kind == "layer" else [None, *tiles, None])
            seed = f"seed {data['seed'].values[k]}, "
            names.append(seed + {"layer": "h", "random": "random", "pixels": "no network"}[kind])
    return tile_grid(rows, ["first label", *(f"{s:g} ×" for s in strengths), "second label"], names)


def table(result: ExperimentResult) -> pd.DataFrame:
    """Share of the label's change and what else changes, beside a random direction and the mean image."""
    data = result.data
    rows: list[dict[str, Any]] = []
    for name, text in (("share", "share of the label's change"), ("else", "change beside it")):
        for strength in data["strength"].values.tolist():
            part = data.sel(strength=strength)
            for control in [kind for kind in ("random", "pixels") if kind in data["kind"].values]:
                pair = xr.Dataset({name: part[name], f"null_{name}": part[f"{PREFIXES[control]}{name}"]})
                rows.append({"": text, "times": strength, "against": KINDS[control], **excess_columns(pair, name)})
    if "judged" in data:
        for attribute in data["attribute"].values.tolist():
            ends = data["judged_labels"].sel(attribute=attribute).mean("seed").values
            told = data["judged"].sel(attribute=attribute)
            for strength in data["strength"].values.tolist():
                kinds = {
                    kind: told.sel(strength=strength, kind=kind, drop=True) for kind in data["kind"].values.tolist()
                }
                pair = xr.Dataset({f"{PREFIXES[kind]}seen": values for kind, values in kinds.items()})
                text = f"{attribute} by the judge; {ends[0]:.2f} and {ends[1]:.2f} of the labels"
                columns = excess_columns(pair, "seen", verdicts=True)
                rows.append({"": text, "times": strength, "against": KINDS["random"], **columns})
    return in_table(rows)


register(
    Experiment(
        "label-directions",
        "Whether a direction inside does what the label does",
        "In runs of the first label, the output h of a layer in the middle is moved at every step by the mean"
        " difference that the second label makes there in other seeds' runs, once, half or twice. The curve tells how"
        " much of the change of the image that the label itself makes is made so: the projection on it, 1 being all of"
        " it. Grey: random directions of the same norm. The other dotted line needs no network: the mean difference of"
        " the labels' finished images, added to the image. Below, the first seeds.",
        "Haas et al. 2023; beyond the thesis",
        measure,
        plot,
        nulls=("random-direction",),
        labels=2,
        seeds=16,
        judged=True,
        min_seeds=2,  # the direction is that of the others
        runs=8,
        steps=50,
        plot_images=plot_images,
        table=table,
    )
)
