"""From when on a label no longer changes the image (thesis fig. 5.17, D.2)."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis import paired_difference, predetermination_index, share_interval, summary
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, label_text, null_name
from diffusers_xai.experiments.judging import Judge, judged, named_attributes
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import Q, excess_columns, in_table, interval_text
from diffusers_xai.labels import attributes_of
from diffusers_xai.measures import structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE, line_style
from diffusers_xai.plots.tiles import Tile, tile_rows
from diffusers_xai.profile.pictures import to_rgb


THRESHOLD = 0.9


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    switches: int | None = None,
    judge: Judge | None = None,
    null: Null = "gaussian",
    **options: Any,
) -> xr.Dataset:
    """Switches the label at several steps and compares the image with the unswitched run's.

    The steps before a switch are done only once, see `switch_sweep`. The control is the same of two Gaussians that
    are fitted to the model's own samples of the two labels.

    Source: thesis section 5.3.2, fig. 5.17, D.2.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled: the label to start with, and the one to switch to.
        switches (`int`, *optional*): How many switches, evenly spread, the first one at step 0; 20, or as many as
            steps where there are fewer, if `None`.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes in images `(image,
            channel, height, width)` in [-1, 1], as a tensor `(image, attribute)`; NaN of those it does not know.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, a pipeline, or `"none"`.
        options: Passed to `switch_sweep`, such as `callback_on_step_end`.

    Returns:
        `xarray.Dataset`: `ssim` of dims (seed, switch) with the coordinates `step` and `share` (part of the steps
        done before the switch), `index` (seed), `null_ssim` and `null_index`, and the final states `images` (run, rgb,
        height, width) of the first seed, the unswitched run first. With a judge, its probabilities `judged` (seed,
        run, attribute), and `lock_in` (seed, attribute): the share of the process after which a switch no longer
        changes whether the attribute is seen, NaN where a switch at the beginning does not change it either; and the
        same of the control's images, `null_judged` and `null_lock_in`.

    Raises:
        ValueError: If there are fewer than two switches or more than steps, or there is a judge and the model's
            attributes have no names.
    """
    switches = min(20, sampling.steps) if switches is None else switches
    if not 2 <= switches <= sampling.steps:
        raise ValueError(f"Expected switches in 2..{sampling.steps}, got {switches}.")
    attributes = [] if judge is None else named_attributes(pipe)
    other = null_pipeline(null, pipe, sampling)
    pipe.scheduler.set_timesteps(sampling.steps)
    calls = len(pipe.scheduler.timesteps)
    steps = [calls * i // switches for i in range(switches)]
    coords = {"step": ("switch", steps), "share": ("switch", np.array(steps) / calls)}
    coords["timestep"] = ("switch", [float(pipe.scheduler.timesteps[step]) for step in steps])

    def sweep(which: XAIPipeline, part: list[int]) -> torch.Tensor:
        first, second = sampling.labels
        return switch_sweep(
            which,
            first,
            second,
            part,
            steps,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            max_rows=sampling.batch_size,
            **options,
        )

    def measure_batch(part: list[int]) -> xr.Dataset:
        data = xr.Dataset(coords=coords)
        for prefix, which in (("", pipe), ("null_", other)):
            if which is None:
                continue
            final = sweep(which, part)
            data[f"{prefix}ssim"] = ("seed", "switch"), _to_unswitched(final)
            if not prefix:
                images = final.transpose(0, 1).float().cpu().numpy()
                data["images"] = ("seed", "run", "rgb", "height", "width"), images
            if judge is not None:
                told = judged(judge, final, pipe, attributes).numpy()
                data[f"{prefix}judged"] = ("seed", "run", "attribute"), told
        return data if judge is None else data.assign_coords(attribute=attributes)

    data = sampling.over_seeds(
        measure_batch, "label switches", seeds_at_once=max(1, sampling.batch_size // 4), of_first=["images"]
    )
    for prefix in ("", "null_"):
        if f"{prefix}ssim" in data:
            data[f"{prefix}index"] = predetermination_index(data[f"{prefix}ssim"], THRESHOLD)
        if f"{prefix}judged" in data:
            data[f"{prefix}lock_in"] = _lock_in(data, prefix)
    return data.assign_attrs(threshold=THRESHOLD)


def _to_unswitched(final: torch.Tensor) -> np.ndarray:
    """SSIM of each switched run to the first one, of dims (seed, switch)."""
    return torch.stack([structural_similarity(final[0], switched) for switched in final[1:]], dim=1).cpu().numpy()


def _seen(data: xr.Dataset, prefix: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Whether an attribute is seen without a switch (seed, attribute), and after each (seed, attribute, switch)."""
    seen = data[f"{prefix}judged"] > 0.5
    after = seen.isel(run=slice(1, None)).rename(run="switch").assign_coords(share=("switch", data["share"].values))
    return seen.isel(run=0), after


def _lock_in(data: xr.Dataset, prefix: str) -> xr.DataArray:
    before, after = _seen(data, prefix)
    changed = after.isel(switch=0, drop=True) != before  # never where nothing is known: NaN is not seen
    return predetermination_index((after == before).astype(float), 0.5).where(
        changed.drop_vars("share", errors="ignore")
    )


def plot(result: ExperimentResult) -> go.Figure:
    """Draws SSIM to the unswitched image over the step of the switch, with the index and its interval."""
    data, settings = result.data, result.settings
    index = summary(data["index"])
    first, second = (label_text(settings, label) for label in settings["labels"])
    share = 100 * data["share"].values
    figure = go.Figure()
    low, high = 100 * float(index["low"]), 100 * float(index["high"])
    figure.add_vrect(low, high, fillcolor="#e69f00", opacity=0.25, line_width=0)
    figure.add_vline(
        100 * float(index["mean"]), line={"color": "#e69f00", "width": 2},
        annotation={"text": f"index {float(index['mean']):.2f} ({low / 100:.2f}–{high / 100:.2f})"},
        annotation_position="bottom right",
    )  # fmt: skip
    figure.add_hline(
        settings["threshold"], line={"color": MUTED_COLOR, "dash": "dot", "width": 1},
        annotation={"text": f"alike from {settings['threshold']}", "font": {"color": MUTED_COLOR}},
        annotation_position="top left",
    )  # fmt: skip
    band(figure, share, data["ssim"], f"{first} → {second}")
    if "null_ssim" in data:
        band(figure, share, data["null_ssim"], null_name(settings), muted=True)
    figure.update_layout(
        template=TEMPLATE,
        height=440,
        showlegend=True,
        xaxis={"title": "share of the steps done before the switch (%)", "range": [0, 100]},
        yaxis={"title": "SSIM to the unswitched image", "range": [min(0.0, float(data["ssim"].min())), 1.02]},
    )
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws what the judge sees after each switch, or else the final images of the first seed."""
    return _plot_attributes(result) if "judged" in result.data else _plot_first_seed(result)


def _plot_first_seed(result: ExperimentResult) -> go.Figure:
    data = result.data
    captions = ["never switched"]
    for step, ssim in zip(data["step"].values, data["ssim"].isel(seed=0).values, strict=True):
        captions.append(f"at step {step}: SSIM {ssim:.2f}")
    images = data["images"].values
    return tile_rows([Tile(to_rgb(image), text, text) for image, text in zip(images, captions, strict=True)], 6)


def _plot_attributes(result: ExperimentResult) -> go.Figure:
    """In how many seeds each attribute on which the labels differ is seen, over the step of the switch."""
    data, settings = result.data, result.settings
    attributes = _switched_attributes(result)
    figure = make_subplots(
        cols=max(1, len(attributes)), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"{name.replace('_', ' ')} seen by the judge" for name in attributes],
    )  # fmt: skip
    share = np.append(100 * data["share"].values, 100)  # a switch after the last step changes nothing
    first, second = (label_text(settings, label) for label in settings["labels"])
    kinds = {"": ("the model", line_style(0)), "null_": (null_name(settings), {"color": MUTED_COLOR, "dash": "dot"})}
    for column, attribute in enumerate(attributes, start=1):
        for place, (prefix, (name, line)) in enumerate(kinds.items()):
            if f"{prefix}judged" not in data:
                continue
            before, after = _seen(data, prefix)
            seen = np.column_stack([x.sel(attribute=attribute).transpose("seed", ...) for x in (after, before)])
            rate = seen.mean(0)
            intervals = [share_interval(int(n), len(seen)) for n in seen.sum(0)]
            low, high = (np.array(limits) for limits in zip(*intervals, strict=True))
            figure.add_scatter(
                x=share + 0.8 * place, y=rate, name=name, mode="lines+markers", line=line, showlegend=column == 1,
                error_y={"array": high - rate, "arrayminus": rate - low, "color": line["color"], "thickness": 1},
                row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(
        title=f"share of the steps done before the switch (%)<br>0: only {second}<br>100: only {first}"
    )
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_yaxes(title="share of the seeds", col=1)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(
        template=TEMPLATE, height=460, showlegend=True, legend={"y": 1.16}, margin={"b": 108, "t": 96}
    )


def _switched_attributes(result: ExperimentResult) -> list[str]:
    """The attributes on which the two labels differ, and of which the judge tells."""
    names, judged = result.settings["attributes"], result.data["judged"]
    first, second = (attributes_of(label, names) for label in result.settings["labels"])
    known = judged.notnull().all(["seed", "run"]).values
    return [name for name, told in zip(names, known, strict=True) if (name in first) != (name in second) and told]


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM to the unswitched image for each switch and the index, of the model, the control, and the excess."""
    data = result.data
    rows = [
        {"": f"SSIM, switch after {share:.0%} of the steps", **excess_columns(data.isel(switch=i), "ssim")}
        for i, share in enumerate(data["share"].values)
    ]
    rows.append({"": "predetermination index", **excess_columns(data, "index")})
    if "lock_in" in data:
        for attribute in _switched_attributes(result):
            part = data.sel(attribute=attribute)
            columns = {"the model": part["lock_in"]}
            if "null_lock_in" in data:
                columns |= {"control": part["null_lock_in"], "excess": part["lock_in"] - part["null_lock_in"]}
            seen = {name: values.dropna("seed") for name, values in columns.items()}
            row: dict[str, Any] = {name: _of_some_seeds(values) for name, values in seen.items()}
            if "excess" in seen:
                if not seen["excess"].size:
                    row["excess"] = ""  # no seed in which both change
                row[Q] = float(paired_difference(seen["excess"])["p_value"]) if seen["excess"].size > 1 else np.nan
            rows.append({"": f"lock-in of {attribute}", **row})
    return in_table(rows)


def _of_some_seeds(values: xr.DataArray) -> str:
    """A mean with its interval and the number of seeds, of those in which a switch changes what is seen."""
    count = values.sizes["seed"]
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    return f"{interval_text(summary(values))}, {seeds}" if count else "never seen to change"


register(
    Experiment(
        "predetermination",
        "From when on the label no longer matters",
        "The label is switched at up to twenty steps of the process, and each image is compared with that of the run"
        " that was never switched. The index is the share of the process after which a switch leaves the image alike"
        " (SSIM of at least 0.9), with the 95 % interval over the seeds. Grey: the same of two Gaussians that are"
        " fitted to the model's samples of the two labels. With a judge, below: in how many seeds it sees each"
        " attribute after a switch (Clopper–Pearson intervals), in the model's images and in the Gaussians'; the"
        " table tells when an attribute locks in, over the seeds in which a switch changes whether it is seen."
        " Without one, the images of the first seed.",
        "thesis section 5.3.2, fig. 5.17, D.2",
        measure,
        plot,
        nulls=("gaussian",),
        labels=2,
        steps=50,
        runs=12.0,
        plot_images=plot_images,
        table=table,
        judged=True,
    )
)
