"""What patches of layers in bands of the process make of an image, by any measures: effects and their maps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product, zip_longest

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import benjamini_hochberg, paired_difference, summary
from diffusers_xai.denoisers import Denoiser
from diffusers_xai.denoisers.blocks import layers_by_block, telling_layers
from diffusers_xai.experiments.base import ExperimentResult
from diffusers_xai.experiments.figures import short_label
from diffusers_xai.experiments.judging import Seen
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.labels import attribute_words
from diffusers_xai.pipelines.patch_sweep import PatchSite
from diffusers_xai.plots.style import DIVERGING_COLOR_SCALE, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


LEVEL = 0.05
ALL_BRANCHES = "all"  # of guidance, patched together
_COLUMNS = 5  # of maps beside each other, at most
_LEAST_SHOWN = 0.5  # of a probability: less of a difference is not seen
# Seeds -> the images (run, seed, channel, height, width): of the source, of the base, and of the base with each patch.
Sweep = Callable[[list[int]], torch.Tensor]
# Images and the source's (seed, channel, height, width) -> how near they are, (seed,), by the name of a measure.
Nearness = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bands_of(steps: int, bands: int) -> list[range]:
    """Equal parts of the process, and where they are several, all of it.

    Raises:
        ValueError: If there are more bands than steps.
    """
    if not 1 <= bands <= steps:
        raise ValueError(f"Expected bands in 1..{steps}, got {bands}.")
    edges = [steps * i // bands for i in range(bands + 1)]
    parts = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    return parts + ([range(steps)] if bands > 1 else [])


def sites_of(
    paths: Sequence[str], bands: Sequence[range], branches: Sequence[str | None] = (None,)
) -> list[PatchSite]:
    """Every layer in every band, for every branch, bands of a layer one after the other; all branches if `None`."""
    return [PatchSite([path], part, branch) for branch in branches for path in paths for part in bands]


def effects_of_patches(
    sampling: Sampling,
    sweep: Sweep,
    null_sweep: Sweep | None,
    near: Mapping[str, Nearness],
    seen: Seen | None,
    layers: Sequence[str],
    bands: Sequence[range],
    timesteps: Sequence[float],
    seeds_at_once: int,
    branches: Sequence[str] = (),
) -> xr.Dataset:
    """Effects (m(patched) − m(base)) / (m(source) − m(base)) of every patch over the seeds.

    Args:
        sampling ([`Sampling`]): The seeds.
        sweep (`Callable`): Gives the images of the source, of the base, and with every patch.
        null_sweep (`Callable`, *optional*): The same with patches of another source, as a control. Its effects are
            those towards the source of `sweep`.
        near (mapping from name to `Callable`): How near images are to the source's, as m; 0 is not needed to be best.
        seen (`Callable`, *optional*): Probabilities of things in images by name, which are further measures m.
        layers (`Sequence[str]`): Names of the layers, and
        bands (`Sequence[range]`): the steps in which each is patched: the patches are all pairs, as of `sites_of`.
        timesteps (`Sequence[float]`): Of the steps; at the latest when `sweep` has returned.
        seeds_at_once (`int`): Seeds in one call of the sweeps.
        branches (`Sequence[str]`): Names of the guidance branches, where each is patched by itself: a dim more, the
            first one of the patches.

    Returns:
        `xarray.Dataset`: `effect` and `null_effect` (seed, layer, band, of), with `branches` (seed, branch, …); NaN
        where source and base do not differ, with the coordinates `start`, `stop` and `timestep` on `band`, and
        `judged` on `of`, whether `seen` told it; `whole` (run, rgb, height, width), source and base of the first seed,
        and `images` (layer, band, …), its patched runs.

    Raises:
        ValueError: If what `seen` tells has the name of another measure.
    """
    sizes = {**({"branch": len(branches)} if branches else {}), "layer": len(layers), "band": len(bands)}
    patches, shape = tuple(sizes), tuple(sizes.values())

    def scores(final: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """M of runs (run, seed, …) whose goal is (seed, …): (seed, run, of), the names, and what is too little."""
        found = {
            name: torch.stack([nearness(run, goal).double() for run in final], 1) for name, nearness in near.items()
        }
        told = [] if seen is None else [seen(run.clamp(-1, 1)) for run in final]
        check_names(told[0] if told else (), near)
        for name in told[0] if told else ():
            found[name] = torch.stack([torch.as_tensor(answer[name]).double() for answer in told], dim=1)
        least = torch.tensor([1e-12 if name in near else _LEAST_SHOWN for name in found]).double()
        return torch.stack(list(found.values()), dim=-1), list(found), least

    def effects(final: torch.Tensor, goal: torch.Tensor) -> xr.DataArray:
        """Of runs (run, seed, …), the unpatched one first."""
        values, names, least = scores(final, goal)
        whole = scores(goal[None], goal)[0] - values[:, :1]
        # A share of hardly any difference says nothing.
        effect = ((values[:, 1:] - values[:, :1]) / whole).where(whole.abs() >= least, torch.nan)
        return xr.DataArray(
            effect.unflatten(1, shape).numpy(),
            dims=("seed", *patches, "of"),
            coords={"of": names, "judged": ("of", [name not in near for name in names])},
        )

    def measure_batch(part: list[int]) -> xr.Dataset:
        final = sweep(part).float().cpu()
        data = xr.Dataset({"effect": effects(final[1:], final[0])})
        data["timesteps"] = ("seed", "step"), [list(timesteps)] * len(part)
        picture = ("rgb", "height", "width")
        data["whole"] = ("seed", "run", *picture), final[:2].transpose(0, 1).numpy()
        patched = final[2:].unflatten(0, shape)
        data["images"] = ("seed", *patches, *picture), patched.movedim(len(shape), 0).numpy()
        if null_sweep is not None:
            data["null_effect"] = effects(null_sweep(part)[1:].float().cpu(), final[0])
        return data

    pictures = ["whole", "images"]
    data = sampling.over_seeds(measure_batch, "patches", seeds_at_once=seeds_at_once, of_first=pictures)
    times = data["timesteps"].isel(seed=0).values
    if branches:
        data = data.assign_coords(branch=list(branches))
    return data.drop_vars("timesteps").assign_coords(
        layer=list(layers),
        start=("band", [band.start for band in bands]),
        stop=("band", [band.stop for band in bands]),
        timestep=("band", [times[band.start] for band in bands]),
    )


def layers_to_patch(denoiser: Denoiser, layers: Sequence[str] | None) -> list[str]:
    """Paths of the layers that names match, in that order.

    By default the first convolution, of each block what it hands on to the next and over its last skip, and the last
    convolution.
    """
    if layers is None:
        first, last = ([layer] if layer in denoiser.layers else [] for layer in ("conv_in", "conv_out"))
        blocks = []
        for block, group in layers_by_block(denoiser.module).items():
            # Before the size changes. An attention layer here has its residual; `.attn` is what it adds.
            kept = [path for path in group if "sampl" not in path and not path.endswith(".attn")]
            attention = [path for path in kept if ".attentions." in path]  # comes after its residual block
            blocks += [block] if block == "mid_block" else (attention or kept)[-1:]
        layers = [*first, *blocks, *last] or telling_layers(denoiser)
    return list(dict.fromkeys(path for name in layers for path in denoiser.resolve_layers([name])))


def _cells(effect: xr.DataArray, judged: bool) -> tuple[xr.Dataset, np.ndarray]:
    """Mean and interval of each cell (layer, band) over the seeds that tell, and whether it is surely not 0.

    The latter by t-tests, of a judge's verdicts exact ones, at 5 % after Benjamini and Hochberg's correction for all
    cells.
    """
    values = effect.dropna("seed")
    if values.sizes["seed"] < 2:
        empty = xr.full_like(effect.isel(seed=0, drop=True), np.nan)
        return xr.Dataset({name: empty for name in ("mean", "low", "high")}), np.zeros(empty.shape, bool)
    p_values = paired_difference(values, verdicts=judged)["p_value"].values
    sure = benjamini_hochberg(p_values.ravel()).reshape(p_values.shape) <= LEVEL
    return summary(values, verdicts=judged), sure


def plot_effects(result: ExperimentResult) -> go.Figure:
    """Draws a map of effects for each measure, layers downwards, time to the right, and below the control's.

    Where each branch of guidance is patched by itself, each has a row of maps.
    """
    data = result.data
    measures = data["of"].values.tolist()
    branches = data["branch"].values.tolist() if "branch" in data.dims else [None]
    kinds = [(kind, branch) for kind in ("effect", "null_effect") if kind in data for branch in branches]
    columns = min(len(measures), _COLUMNS if len(measures) <= _COLUMNS else -(-len(measures) // 2))
    rows_of_kind = -(-len(measures) // columns)
    rows = rows_of_kind * len(kinds)
    places = [divmod(index, columns) for index in range(len(measures))]
    titles = [""] * (rows * columns)
    for number, (kind, branch) in enumerate(kinds):
        before = f"{branch_words(branch)}<br>" if branch else ""
        for of, (row, column) in zip(measures, places, strict=True):
            count = data["effect"].sel(of=of).dropna("seed").sizes["seed"]
            title = f"{in_words(of)} (n = {count})" if kind == "effect" else f"control: {in_words(of)}"
            titles[(number * rows_of_kind + row) * columns + column] = before + title
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.24 / rows,
        subplot_titles=titles,
    )  # fmt: skip
    size = 10 if columns < 4 else 9  # of the numbers, which stand close
    for number, (kind, branch) in enumerate(kinds):
        for of, (row, column) in zip(measures, places, strict=True):
            place = {"row": number * rows_of_kind + row + 1, "col": column + 1}
            effect = data[kind].sel({"of": of, **({"branch": branch} if branch else {})})
            facts, sure = _cells(effect, bool(data["judged"].sel(of=of)))
            mean = facts["mean"].transpose("layer", "band").values
            rounded = np.nan_to_num(mean).round(2) + 0.0  # no −0
            text = np.where(np.isfinite(mean), np.char.mod("%.2f", rounded), "")
            text = np.where(sure, np.char.add(np.char.add("<b>", text), "</b>"), text)
            limits = np.stack([facts[end].transpose("layer", "band").values for end in ("low", "high")], -1)
            figure.add_heatmap(
                z=mean, x=_band_names(data), y=data["layer"].values, zmin=-1, zmax=1, text=text, customdata=limits,
                texttemplate="%{text}", textfont={"size": size}, colorscale=DIVERGING_COLOR_SCALE, showscale=False,
                hoverongaps=False, **place,
                hovertemplate="%{y}, %{x}: %{z:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True, ticks="")  # which look like minus signs
    figure.update_xaxes(showgrid=False, tickangle=0, tickfont={"size": 11}, type="category")
    figure.add_annotation(  # once: under each map it would run into the next one's
        text="columns: patched from t on, up to the next column", showarrow=False,
        xref="paper", yref="paper", x=0.5, y=0, yanchor="top", yshift=-30,
    )  # fmt: skip
    figure.update_annotations(font={"size": 13})
    height = 150 + rows * ((90 if branches[0] else 70) + 24 * data.sizes["layer"])
    return figure.update_layout(template=TEMPLATE, height=height, margin={"t": 50, "r": 40, "b": 70})


def in_words(of: str) -> str:
    """A measure's name for a reader."""
    return "image" if of == "pixels" else attribute_words(of).lower()


def branch_words(branch: str) -> str:
    """A branch's name for a reader."""
    return {"cond": "conditional", "uncond": "unconditional", ALL_BRANCHES: "all branches"}.get(branch, branch)


def check_names(names: Iterable[str], own: Iterable[str]) -> None:
    """Refuses names of what a function of the user's tells that stand for another measure.

    Raises:
        ValueError: If one is, or reads like, one of the experiment's `own`, or another one.
    """
    taken = {word: name for name in own for word in (name, in_words(name))}
    for name in names:
        same = taken.get(name, taken.get(in_words(name)))
        if same is not None:
            raise ValueError(f"Expected a name that no other measure has, got {name!r}, which reads like {same!r}.")
        taken[in_words(name)] = name


def _band_names(data: xr.Dataset) -> list[str]:
    """The timestep at which each band begins."""
    whole = (data["stop"].values == data["stop"].values.max()) & (data["start"].values == 0)
    many = data.sizes["band"] > 1
    return ["all" if every and many else f"{t:.0f}" for every, t in zip(whole, data["timestep"].values, strict=True)]


def plot_patched(result: ExperimentResult) -> go.Figure:
    """Draws the first seed: what each patch makes of the base, and left of it the base and the source themselves.

    Of each branch by itself, those that patch in the last band, which is all of the process.
    """
    data, settings = result.data, result.settings
    captions = "prompts" not in settings  # prompts are too long to stand over a tile
    if settings.get("between") == "seeds":
        base, source, captions = "the seed's noise", "other noise", True
    else:
        base, source = settings.get("prompts") or [short_label(settings, label) for label in settings["labels"]]
    bands = _band_names(data)
    whole = data["whole"].values
    unpatched = [
        Tile(to_rgb(whole[1]), f"base: {base}", f"base {base if captions else ''}"),
        Tile(to_rgb(whole[0]), f"source: {source}", f"source {source if captions else ''}"),
    ]
    layers = data["layer"].values.tolist()
    if "branch" in data.dims:
        patched = data["images"].isel(band=-1).transpose("layer", "branch", ...)
        names = [branch_words(branch) for branch in data["branch"].values.tolist()]
    else:
        patched = data["images"]
        names = ["always" if band == "all" else f"from t = {band}" for band in bands]
    rows: list[list[Tile | None]] = []
    for layer, first in zip_longest(layers, unpatched):
        images = np.empty(0) if layer is None else patched.sel(layer=layer).values
        rows.append([first, *(Tile(to_rgb(x), f"{layer}, {name}") for x, name in zip(images, names, strict=False))])
    return tile_grid(rows, ["not patched", *names], [*layers, *[""] * (len(rows) - len(layers))])


def table_of_effects(result: ExperimentResult) -> pd.DataFrame:
    """The effect of every patch with its interval, of each measure, the control's, and the excess over it."""
    data = result.data
    bands, rows = _band_names(data), []
    branches = data["branch"].values.tolist() if "branch" in data.dims else [None]
    for branch, layer in product(branches, data["layer"].values):
        for i, band in enumerate(bands):
            row = {**({"branch": branch_words(branch)} if branch else {}), "layer": layer, "from t": band}
            at = {"layer": layer, **({"branch": branch} if branch else {})}
            for of in data["of"].values.tolist():
                cell = data.sel(of=of, **at).isel(band=i)
                judged, name = bool(data["judged"].sel(of=of)), in_words(of)
                told = cell[[kind for kind in ("effect", "null_effect") if kind in data]].dropna("seed")
                if told.sizes["seed"] > 1:
                    columns = excess_columns(told, "effect", verdicts=judged)
                else:
                    columns = dict.fromkeys(("the model", *(("control", "excess") if len(told) > 1 else ())), "")
                row |= {f"{column}: {name}": text for column, text in columns.items()}
            rows.append(row)
    return in_table(rows)
