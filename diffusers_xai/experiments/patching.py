"""Which layer carries a label, and when: outputs of one run put into another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots
from scipy import stats

from diffusers_xai.analysis import benjamini_hochberg, summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import layers_by_block, telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import interval_text, short_label
from diffusers_xai.experiments.judging import Judge, judged, judged_attributes
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling, of_first_seed
from diffusers_xai.measures import Mask, as_mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from diffusers_xai.plots.style import DIVERGING_COLOR_SCALE, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


PIXELS = "pixels"
LEVEL = 0.05
BETWEEN = ("labels", "seeds")


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    bands: int = 4,
    between: str = "labels",
    branch: str | None = None,
    mask: Mask | None = None,
    judge: Judge | None = None,
    null: str = "same-label",
    max_rows: int = 64,
) -> xr.Dataset:
    """Patches every layer in every band of the process, and measures how much of the other run comes over.

    The runs of the first label are patched with outputs of runs of the second one from the same noise. The effect of
    a patch is (m(patched) − m(base)) / (m(source) − m(base)): 0 of a patch that changes nothing, 1 of one that makes
    the run the source's. m is the nearness to the source's image (less the mean squared error to it), and with a judge
    also the probability of each attribute on which the labels differ.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing).

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled: the label that is patched, and the label that it is patched with.
        layers (sequence of `str`, *optional*): Layers, each patched alone; if `None` the first convolution, the last
            layer of every block, and the last convolution, which is the network's whole answer.
        bands (`int`, defaults to 4): Equal parts of the process; besides, all of it.
        between (`str`, defaults to `"labels"`): `"seeds"` takes the source's noise, too, from another seed.
        branch (`str`, *optional*): The guidance branch that is patched, `"cond"` or `"uncond"`; both if `None`.
        mask (array of shape `(height, width)`, bool, *optional*): Where layers are patched; everywhere if `None`. The
            distance to the source is measured there, too.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes, see `Judge`.
        null (`str`): `"same-label"`: the same patches from runs of the *base's* label and other noise, which shows
            what is due to foreign activations and not to the label. Or `"none"`.
        max_rows (`int`, defaults to 64): Images in one call of the network.

    Returns:
        `xarray.Dataset`: `effect` and `null_effect` of dims (seed, layer, band, of), NaN where source and base do not
        differ in the measure; the coordinates `start` and `stop` are the bands' steps. `whole` (run, rgb, height,
        width), the source and the base of the first seed, and `images` (layer, band, rgb, height, width), its patched
        runs.

    Raises:
        ValueError: If the bands are more than the steps, or there is a judge and the model's attributes have no names.
        KeyError: If a name matches no layer.
    """
    if between not in BETWEEN:
        raise ValueError(f"Expected between in {BETWEEN}, got {between!r}.")
    names = judged_attributes(pipe, sampling.labels) if judge is not None else []
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(default_layers(denoiser) if layers is None else layers))
    mask = None if mask is None else as_mask(mask, pipe.sample_shape[-2:])
    pipe.scheduler.set_timesteps(sampling.steps)
    timesteps = [float(t) for t in pipe.scheduler.timesteps]
    if not 1 <= bands <= len(timesteps):
        raise ValueError(f"Expected bands in 1..{len(timesteps)}, got {bands}.")
    edges = [len(timesteps) * i // bands for i in range(bands + 1)]
    parts = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)] + (
        [range(len(timesteps))] if bands > 1 else []
    )
    sites = [PatchSite([path], part, branch) for path in paths for part in parts]
    base, source = sampling.labels

    def sweep(part: list[int], other: int, shift: int) -> torch.Tensor:
        return patch_sweep(
            pipe, base, other, part, sites, mask=mask, num_inference_steps=sampling.steps, max_rows=max_rows,
            guidance_scale=sampling.guidance_scale, source_seeds=[seed + shift for seed in part] if shift else None,
        )  # fmt: skip

    def scores(final: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """M of runs (run, seed, …) whose goal is (seed, …): (seed, run, of)."""
        near = torch.stack([-_squared_error(run, goal, mask) for run in final], dim=1)[..., None]
        return near if judge is None else torch.cat([near, judged(judge, final, pipe, names).double()], dim=-1)

    def effects(final: torch.Tensor, goal: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray]:
        """(seed, layer, band, of) of runs (run, seed, …), the unpatched one first."""
        values, of_goal = scores(final, goal), scores(goal[None], goal)
        whole = of_goal - values[:, :1]
        # A share of hardly any difference says nothing; of a probability, less than half is not seen.
        least = torch.tensor([1e-12, *[0.5] * len(names)]).double()
        effect = ((values[:, 1:] - values[:, :1]) / whole).where(whole.abs() >= least, torch.nan)
        return ("seed", "layer", "band", "of"), effect.unflatten(1, (len(paths), len(parts))).numpy()

    def measure_batch(part: list[int]) -> xr.Dataset:
        final = sweep(part, source if between == "labels" else base, OTHER_NOISE if between == "seeds" else 0)
        final = final.float().cpu()
        data = xr.Dataset({"effect": effects(final[1:], final[0])})
        picture = ("rgb", "height", "width")
        data["whole"] = ("seed", "run", *picture), final[:2].transpose(0, 1).numpy()
        patched = final[2:].unflatten(0, (len(paths), len(parts)))
        data["images"] = ("seed", "layer", "band", *picture), patched.permute(2, 0, 1, 3, 4, 5).numpy()
        if null != "none":
            data["null_effect"] = effects(sweep(part, base, 2 * OTHER_NOISE)[1:].float().cpu(), final[0])
        return data

    data = sampling.over_seeds(measure_batch, "patches", seeds_at_once=max(1, min(sampling.batch_size, max_rows // 4)))
    return of_first_seed(data, "whole", "images").assign_coords(
        layer=[denoiser.short_name(path) for path in paths],
        of=[PIXELS, *names],
        start=("band", [part.start for part in parts]),
        stop=("band", [part.stop for part in parts]),
        timestep=("band", [timesteps[part.start] for part in parts]),
    )


def default_layers(denoiser: Any) -> list[str]:
    """The first and the last convolution, and of each block what it hands on to the next and over its last skip."""
    ends = [layer for layer in ("conv_in", "conv_out") if layer in denoiser.layers]
    blocks = []
    for block, group in layers_by_block(denoiser.module).items():
        # Before the size changes. An attention layer here has its residual; `.attn` is what it adds.
        kept = [path for path in group if "sampl" not in path and not path.endswith(".attn")]
        attention = [path for path in kept if ".attentions." in path]  # comes after its residual block
        blocks += [block] if block == "mid_block" else (attention or kept)[-1:]
    return [*ends, *blocks] or telling_layers(denoiser)


def _squared_error(images: torch.Tensor, goal: torch.Tensor, mask: Any) -> torch.Tensor:
    squares = (images.double() - goal.double()).square().mean(1)
    return squares.mean((1, 2)) if mask is None else squares[:, torch.as_tensor(mask)].mean(1)


def _cells(effect: xr.DataArray) -> tuple[xr.Dataset, np.ndarray]:
    """Mean and interval of each cell (layer, band) over the seeds that tell, and whether it is surely not 0.

    The latter by t-tests at 5 % after Benjamini and Hochberg's correction for all cells.
    """
    values = effect.dropna("seed")
    if values.sizes["seed"] < 2:
        empty = xr.full_like(effect.isel(seed=0, drop=True), np.nan)
        return xr.Dataset({name: empty for name in ("mean", "low", "high")}), np.zeros(empty.shape, bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        facts = summary(values)
        t = facts["mean"] / (facts["std"] / np.sqrt(values.sizes["seed"]))
    p = 2 * stats.t.sf(np.abs(t.values), values.sizes["seed"] - 1)
    return facts, benjamini_hochberg(p.ravel()).reshape(p.shape) <= LEVEL


def plot(result: ExperimentResult) -> go.Figure:
    """Draws a map of effects for each measure, layers downwards, time to the right, and below the control's."""
    data = result.data
    measures = data["of"].values.tolist()
    kinds = ["effect", *(["null_effect"] if "null_effect" in data else [])]
    titles = [
        f"{_words(of, result)} (n = {data['effect'].sel(of=of).dropna('seed').sizes['seed']})" for of in measures
    ]
    figure = make_subplots(
        rows=len(kinds), cols=len(measures), shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=0.24 / len(kinds),
        subplot_titles=titles + [f"control: {_words(of, result)}" for of in measures] * (len(kinds) - 1),
    )  # fmt: skip
    for row, kind in enumerate(kinds, start=1):
        for column, of in enumerate(measures, start=1):
            facts, sure = _cells(data[kind].sel(of=of))
            mean = facts["mean"].transpose("layer", "band").values
            text = np.where(np.isfinite(mean), np.char.mod("%.2f", np.nan_to_num(mean)), "")
            text = np.where(sure, np.char.add(np.char.add("<b>", text), "</b>"), text)
            half = (facts["high"] - facts["mean"]).transpose("layer", "band").values
            figure.add_heatmap(
                z=mean, x=_band_names(data), y=data["layer"].values, zmin=-1, zmax=1, text=text, customdata=half,
                texttemplate="%{text}", textfont={"size": 10}, colorscale=DIVERGING_COLOR_SCALE, showscale=False,
                hoverongaps=False,
                hovertemplate="%{y}, %{x}: %{z:.3f} ± %{customdata:.3f}<extra></extra>", row=row, col=column,
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_xaxes(showgrid=False, tickangle=0, tickfont={"size": 11}, type="category")
    figure.update_xaxes(title={"text": "patched from t on", "font": {"size": 12}}, row=len(kinds))
    figure.update_annotations(font={"size": 13})
    height = 150 + len(kinds) * (70 + 24 * data.sizes["layer"])
    return figure.update_layout(template=TEMPLATE, height=height, margin={"t": 50})


def _words(of: str, result: ExperimentResult) -> str:
    return "image" if of == PIXELS else of.replace("_", " ").lower()


def _band_names(data: xr.Dataset) -> list[str]:
    """The timestep at which each band begins."""
    whole = (data["stop"].values == data["stop"].values.max()) & (data["start"].values == 0)
    many = data.sizes["band"] > 1
    return ["all" if every and many else f"{t:.0f}" for every, t in zip(whole, data["timestep"].values, strict=True)]


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed: the source and the base, and below them what each patch makes of the base."""
    data, settings = result.data, result.settings
    bands = _band_names(data)
    base, source = (short_label(settings, label) for label in settings["labels"])
    whole = data["whole"].values
    first: list[Tile | None] = [None] * len(bands)
    first[0], first[1 if len(bands) > 1 else 0] = (
        Tile(to_rgb(whole[1]), f"base {base}", f"base {base}"),
        Tile(to_rgb(whole[0]), f"source {source}", f"source {source}"),
    )
    rows = [first]
    for layer in data["layer"].values:
        images = data["images"].sel(layer=layer).values
        rows.append([Tile(to_rgb(x), f"{layer}, {band}") for x, band in zip(images, bands, strict=True)])
    columns = ["patched always" if band == "all" else f"from t = {band} on" for band in bands]
    return tile_grid(rows, columns, ["no patch", *data["layer"].values.tolist()])


def table(result: ExperimentResult) -> pd.DataFrame:
    """The effect of every patch with its interval, of each measure."""
    data = result.data
    bands, rows = _band_names(data), []
    for layer in data["layer"].values:
        for i, band in enumerate(bands):
            row = {"layer": layer, "from t": band}
            for of in data["of"].values.tolist():
                for kind, who in (("effect", ""), ("null_effect", "control: ")):
                    if kind in data:
                        values = data[kind].sel(of=of, layer=layer).isel(band=i).dropna("seed")
                        row[f"{who}{_words(of, result)}"] = interval_text(summary(values)) if values.size > 1 else ""
            rows.append(row)
    return pd.DataFrame(rows)


EXPERIMENT = register(
    Experiment(
        "patching",
        "Which layer carries the label, and when",
        "Two runs from the same noise with different labels. A layer's output, in a quarter of the process or in"
        " all of it, is taken from the run of the other label. The number tells how much of the other run comes"
        " over: 0 nothing, 1 all of it; bold where it is surely not 0 (t-test, 5 % after correction for all cells)."
        " First for the image as a whole, and with a judge for each attribute on which the labels differ, over the"
        " seeds in which it sees a difference. The first convolution takes the label in, and the last one is the"
        " network's whole answer. Below, the control: the same patches from a run of the same label and other noise."
        " The images are those of the first seed.",
        "Vig et al. 2020; Meng et al. 2022",
        measure,
        plot,
        nulls=("same-label",),
        labels=2,
        seeds=16,
        steps=25,
        runs=30.0,
        plot_images=plot_images,
        table=table,
        judged=True,
    )
)
