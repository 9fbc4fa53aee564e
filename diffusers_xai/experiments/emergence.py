"""When the final image's structure shows in the layers, and when in the state itself (thesis chapter 5)."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis.structure import edge_strength, foreground, map_correlation
from diffusers_xai.backbones import get_backbone
from diffusers_xai.experiments.base import layer_names, provenance
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import over_seeds, profile_of
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE, line_style


STATE = "x_t"


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(30),
    num_inference_steps: int = 100,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    layers: Sequence[str] | None = None,
    records: int = 25,
) -> ExperimentResult:
    """Correlation of each layer's map, and of the state x_t, with the edges and the foreground of the final image.

    A layer's map is its output summed over the channels (its part of A_t), up-sampled bilinearly. Chance is what the
    same maps show of the image of another seed.

    Source: METHOD: thesis chapter 5's claim that structure shows in `mid_attn.fn` before it shows in x_t, as a number.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each, at least two.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time, at least two.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`.
        records (`int`): How many steps are looked at, evenly spread.

    Returns:
        `ExperimentResult`: `correlation` and `chance` (absolute Pearson correlations) of dims (seed, target, layer,
        step), the first layer being x_t itself; `lead` (seed, target, layer): by how much of the process a layer's
        correlation exceeds 0.3, at two records in turn, before that of x_t does; negative if later, NaN if never.
    """
    if len(seeds) < 2 or batch_size < 2:
        raise ValueError(f"expected at least two seeds at a time, got {len(seeds)} seeds and batch_size {batch_size}")
    backbone = get_backbone(pipe)
    paths = list(backbone.resolve_layers(layers or list(backbone.attention_outputs())))
    every = max(1, num_inference_steps // records)

    def measure(part: list[int]) -> xr.Dataset:
        profile = profile_of(
            pipe,
            labels,
            part,
            num_inference_steps,
            guidance_scale,
            [Samples(every=every), Activations(layers=paths, every=every)],
        )
        samples, final = profile["samples"], profile["final_sample"].values
        size = samples.shape[-2:]
        maps = [samples.values.mean(2)] + [_layer_map(profile[f"activations/{path}"], size) for path in paths]
        # x_t is compared by its own edges too: whichever shows more of the image is taken.
        edges = edge_strength(samples.values)
        targets = {"edges": edge_strength(final), "foreground": foreground(final)}
        correlation: list[np.ndarray] = []
        chance: list[np.ndarray] = []
        for target in targets.values():
            other = np.roll(target, 1, axis=0)  # the next seed's image
            for store, wanted in ((correlation, target), (chance, other)):
                values = np.stack([map_correlation(m, wanted) for m in maps])  # layer, step, seed
                values[0] = np.maximum(values[0], map_correlation(edges, wanted))
                store.append(values)
        dims = ("target", "layer", "step", "seed")
        return xr.Dataset(
            {"correlation": (dims, np.stack(correlation)), "chance": (dims, np.stack(chance))},
            {
                "target": list(targets),
                "layer": [STATE, *layer_names(backbone, paths)],
                "step": samples["step"].values,
                "timestep": ("step", samples["timestep"].values),
            },
        ).transpose("seed", "target", "layer", "step")

    data = over_seeds(measure, seeds, batch_size=max(2, batch_size // 2), description="structure in the layers")
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        threshold=THRESHOLD,
    )  # fmt: skip
    return ExperimentResult("emergence", data.assign(lead=_lead(data["correlation"], num_inference_steps)), settings)


THRESHOLD = 0.3


def _layer_map(activations: xr.DataArray, size: tuple[int, ...]) -> np.ndarray:
    """Output summed over channels, at the sample's size: (step, sample, height, width)."""
    if "branch" in activations.dims:
        activations = activations.sel(branch="cond")
    summed = torch.from_numpy(activations.values.astype(np.float32)).sum(2)
    return F.interpolate(summed, size=size, mode="bilinear", align_corners=False).numpy()


def _lead(correlation: xr.DataArray, num_inference_steps: int) -> xr.DataArray:
    """Part of the process between a layer's first step above the threshold and that of x_t."""
    above = correlation > THRESHOLD
    above = above & above.shift(step=-1, fill_value=True)  # at two records in turn: a single one may be chance
    first = xr.where(above, correlation["step"], np.inf).min("step") / num_inference_steps
    state = xr.where(np.isfinite(first.sel(layer=STATE, drop=True)), first.sel(layer=STATE, drop=True), 1.0)
    return xr.where(np.isfinite(first), state - first, np.nan).transpose("seed", "target", "layer")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the correlations over the process, x_t first, with chance dotted: edges above, foreground below."""
    data = result.data
    timesteps = data["timestep"].values
    targets = data["target"].values.tolist()
    figure = make_subplots(rows=len(targets), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, target in enumerate(targets, start=1):
        part = data.sel(target=target)
        for index, layer in enumerate(part["layer"].values.tolist()):
            line = {**line_style(index), "width": 4 if layer == STATE else 2}
            name = "x<sub>t</sub> itself" if layer == STATE else layer
            figure.add_scatter(
                x=timesteps, y=part["correlation"].sel(layer=layer).mean("seed").values, name=name, legendgroup=layer,
                showlegend=row == 1, mode="lines", line=line, row=row, col=1,
            )  # fmt: skip
        chance = {"color": MUTED_COLOR, "dash": "dot", "width": 1.5}
        figure.add_scatter(
            x=timesteps, y=part["chance"].mean(["seed", "layer"]).values, name="chance", legendgroup="chance",
            showlegend=row == 1, mode="lines", line=chance, row=row, col=1,
        )  # fmt: skip
        figure.add_hline(THRESHOLD, line={"color": MUTED_COLOR, "width": 1}, row=row, col=1)
        figure.update_yaxes(title=f"correlation with the {target}", row=row)
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_xaxes(title="timestep t", row=len(targets))
    return figure.update_layout(template=TEMPLATE, height=680)
