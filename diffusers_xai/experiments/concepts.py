"""Which units know where a concept is, and what the image loses with them (GAN dissection)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from diffusers_xai.analysis import Overlap, benjamini_hochberg, overlap, summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import block_layers, innermost
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.concept_figures import plot, plot_images
from diffusers_xai.experiments.concept_losses import LEVEL, columns_of_lost, losses_of
from diffusers_xai.experiments.judging import Judge, Seen, told_by
from diffusers_xai.experiments.maps import pooled, resized
from diffusers_xai.experiments.noised_pictures import Concepts, Masks, NoisedPictures
from diffusers_xai.experiments.own_runs import OwnRuns
from diffusers_xai.experiments.sampling import Sampling, check_takes_prompt
from diffusers_xai.experiments.tables import difference_columns, in_table, interval_text
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.recording.edits import EditSpec


TIMES = (0.9, 0.7, 0.5, 0.3, 0.1)  # parts of the training's timesteps
IMAGES = 64
_UNITS_AT_ONCE = 64
_SHOWN = 4  # pictures of the images' figure


def measure(
    pipe: Any,
    sampling: Sampling,
    *,
    concepts: Concepts | tuple[torch.Tensor, Masks] | None = None,
    prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    images: int = IMAGES,
    layers: Sequence[str] | None = None,
    times: Sequence[float] = TIMES,
    units: int = 4,
    draws: int = 2,
    judge: Judge | Seen | None = None,
    null: str = "permuted-masks",
) -> xr.Dataset:
    """Agreement of every unit with every concept, and ablation of the best units of each.

    Pictures whose masks are known are noised to several timesteps, and the network sees each of them once: x_t =
    √ᾱ x_0 + √(1 − ᾱ) ε. A unit is a channel of a layer; its map, enlarged to the picture's size, is compared with the
    masks (see `analysis.overlap`). Then the `units` best units of a concept, all of the layer and time of the best
    one, are set to zero at every step of runs from the seeds, and so are as many random units of that layer that are
    about as active.

    Of any other pipeline of diffusers that returns pictures, layers are looked at in the states of its own runs, and
    the masks are those of what the runs end in. Pictures are then averaged to 64 pixels at most, layers' maps to 16.

    Source: Bau et al. 2019, *GAN Dissection*.

    Args:
        pipe ([`XAIPipeline`] or `DiffusionPipeline`): The model.
        sampling ([`Sampling`]): What is sampled.
        prompt (`str`, *optional*): Of a pipeline that takes one, and
        arguments (`Mapping[str, Any]`, *optional*): what else its call takes, such as a size. Of others than
            [`XAIPipeline`].
        concepts (`Callable`): Takes finished samples of the model, `(image, 3, height, width)` in [-1, 1], and returns
            the masks of every concept by name, bool `(image, height, width)`; or pictures of its own, as many and as
            large, and their masks. Or such a pair, without a function. The network sees pictures that come with masks
            without a label, if it was trained for that.
        images (`int`): How many pictures.
        layers (`Sequence[str]`, *optional*): Globs of layers; those in the blocks if `None`.
        times (`Sequence[float]`): Timesteps as parts of the training's, in [0, 1).
        units (`int`): How many units are ablated together.
        draws (`int`): How many groups of random units, at least one.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes, see `Judge`; of other
            pipelines than [`XAIPipeline`], the probability `(image,)` of anything by name. With it, what an image has
            lost without the units is told beside its pixels: an attribute that was there before, and is not any more.
        null (`str`): `"permuted-masks"`, each picture with the masks of another one, and random units; or `"none"`.

    Returns:
        `xarray.Dataset`: `iou` and `q_value` (corrected for all tests; NaN where nothing can be tested) of dims
        (concept, unit, time), `null_iou` and `null_q_value` with permuted masks; coordinates `layer` and `channel` on
        `unit`, `timestep` on `time`. `inside` and `outside` (seed, concept): how much the image changes by the
        ablation, the mean of |difference| where the concept usually lies, and elsewhere; `null_inside` and
        `null_outside` (seed, concept, draw) by that of random units. With a judge its probabilities, `judged_intact`
        (seed, attribute), `judged` (seed, concept, attribute) after the ablation, and `null_judged` (seed, concept,
        draw, attribute). `ablated` (concept, member) are the best units,
        as positions on `unit`, and `best_time` (concept) their time. Of some `pictures` (shown, rgb, height, width):
        `mask` and `map`, that of the best unit (concept, shown, height, width). Of the first seed: `intact` (rgb,
        height, width) and `without` (concept, rgb, height, width).

    Raises:
        ValueError: If there is no function, what it returns does not fit, the scheduler tells no ᾱ, the pipeline
            returns no pictures, there is a judge and the model's attributes have no names, an [`XAIPipeline`] is given
            a prompt or arguments, `draws` is below 1, or a layer has fewer than twice `units` channels.
    """
    if concepts is None:
        raise ValueError("concepts: expected a function `concepts` that tells where concepts are, got none.")
    if isinstance(pipe, XAIPipeline) and (prompt is not None or arguments):
        got = "a prompt" if prompt is not None else f"arguments {list(arguments or {})}"
        raise ValueError(f"concepts: expected labels alone of a call of an XAIPipeline, got {got}.")
    if prompt is not None:
        check_takes_prompt("concepts", pipe, arguments or {})
    if draws < 1 and null != "none":
        raise ValueError(f"concepts: expected `draws` of at least 1, got {draws}.")
    denoiser = get_denoiser(pipe)
    wanted = layers if layers is not None else block_layers(denoiser)
    if not wanted:
        raise ValueError(f"concepts: expected a network with layers, got {denoiser.name}.")
    paths = list(denoiser.resolve_layers(wanted))
    paths = paths if layers is not None else innermost(denoiser, paths)
    source: NoisedPictures | OwnRuns
    if isinstance(pipe, XAIPipeline):
        source = NoisedPictures(pipe, sampling, {p: denoiser.layers[p] for p in paths}, times, concepts, images)
    else:
        given = {**({} if prompt is None else {"prompt": prompt}), **(arguments or {})}
        source = OwnRuns(pipe, sampling, given, paths, times, concepts, images)
    pictures, masks, timesteps = source.pictures, source.masks, source.timesteps
    order = np.random.default_rng(0).permutation(images)
    size = pictures.shape[-2:]
    stacked = np.stack(list(masks.values()))
    telling = _telling(stacked)
    found: list[list[Overlap]] = []
    shown: list[list[np.ndarray]] = []
    activity = []
    for time in range(len(timesteps)):
        maps = source.maps(time)
        activity.append(np.concatenate([np.abs(values).mean((0, 2, 3)) for values in maps.values()]))
        found.append([])
        shown.append([])
        for some in (part for values in maps.values() for part in _few_units(values)):
            enlarged = resized(some, size, "bilinear")
            found[-1].append(overlap(enlarged, stacked, order))
            shown[-1].append(enlarged[telling])
    widths = {path: values.shape[1] for path, values in maps.items()}
    narrow = [path for path, width in widths.items() if width < 2 * units]
    if narrow:
        raise ValueError(f"concepts: expected layers of at least {2 * units} channels, got {', '.join(narrow)}.")
    layer_of = np.repeat(list(widths), list(widths.values()))
    channel_of = np.concatenate([np.arange(width) for width in widths.values()])
    coords = {
        "layer": ("unit", [denoiser.short_name(str(path)) for path in layer_of]),
        "channel": ("unit", channel_of),
    }
    data = _tested(found, list(masks), timesteps, coords, permuted=null != "none")

    chosen, when, edits = [], [], []
    for iou in data["iou"].values:
        unit, time = np.unravel_index(iou.argmax(), iou.shape)
        here = np.flatnonzero(layer_of == layer_of[unit])
        best = here[np.argsort(-iou[here, time])[:units]]
        random = of_like_activity(activity[time], layer_of, best, 0 if null == "none" else draws)
        for group in (best, *random):
            edits.append([ChannelAblation(str(layer_of[unit]), channels=channel_of[group])])
        chosen.append(best)
        when.append(time)
    usual = np.stack([mask.mean(0) for mask in masks.values()])
    effects = sampling.over_seeds(
        lambda part: _effects(source, part, edits, usual, None if judge is None else told_by(judge, pipe)),
        "ablations of units",
        seeds_at_once=1,
        of_first=["intact", "without"],
    )
    data = data.assign(
        ablated=(("concept", "member"), np.array(chosen)),
        best_time=("concept", when),
        pictures=(("shown", "rgb", "height", "width"), pictures[telling].numpy()),
        mask=(("concept", "shown", "height", "width"), stacked[:, telling]),
        map=(
            ("concept", "shown", "height", "width"),
            np.stack(
                [np.concatenate(shown[time], axis=1)[:, best[0]] for best, time in zip(chosen, when, strict=True)]
            ),
        ),
        inside=effects["inside"].isel(group=0),
        outside=effects["outside"].isel(group=0),
        intact=effects["intact"],
        without=effects["without"],
    )
    names = ["inside", "outside"]
    if judge is not None:
        data = data.assign(judged=effects["judged"].isel(group=0), judged_intact=effects["judged_intact"])
        names.append("judged")
    if null != "none":
        of_random = effects[names].isel(group=slice(1, None)).rename(group="draw")
        data = data.assign({f"null_{name}": values for name, values in of_random.items()})
    return data


def _few_units(values: np.ndarray) -> list[np.ndarray]:
    """Maps (image, unit, …) by units, as many as are enlarged and compared at a time."""
    return np.split(values, range(_UNITS_AT_ONCE, values.shape[1], _UNITS_AT_ONCE), axis=1)


def _telling(masks: np.ndarray) -> list[int]:
    """The pictures to show, which have as many of the concepts as can be; masks (concept, image, height, width)."""
    has = masks.reshape(*masks.shape[:2], -1).max(axis=-1)
    missing = np.ones(len(masks), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(_SHOWN, masks.shape[1])):
        gain = (has & missing[:, None]).sum(0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        missing &= ~has[:, chosen[-1]]
    return chosen


def _tested(
    found: list[list[Overlap]],
    concepts: Sequence[str],
    timesteps: Sequence[int],
    units: Mapping[str, Any],
    permuted: bool,
) -> xr.Dataset:
    """Agreement (concept, unit, time) of what was found by time and layer, its p-values corrected for all tests."""
    dims = ("concept", "unit", "time")
    arrays = {
        name: np.stack([np.concatenate([getattr(layer, name) for layer in row], axis=1) for row in found], axis=2)
        for name in ("iou", "p_value", "null_iou", "null_p_value")
    }
    data = {}
    for prefix in ("", "null_") if permuted else ("",):
        p_values = arrays[f"{prefix}p_value"]
        data[f"{prefix}iou"] = (dims, arrays[f"{prefix}iou"])
        data[f"{prefix}q_value"] = (dims, benjamini_hochberg(p_values.ravel()).reshape(p_values.shape))
    return xr.Dataset(data, {"concept": list(concepts), "timestep": ("time", list(timesteps)), **units})


def of_like_activity(
    activity: np.ndarray, layers: np.ndarray, chosen: np.ndarray, draws: int, seed: int = 0
) -> list[np.ndarray]:
    """Groups of random units of the chosen ones' layer: for each of those, one of the nearest in activity."""
    source = np.random.default_rng(seed)
    groups = []
    for _ in range(draws):
        free = [unit for unit in np.flatnonzero(layers == layers[chosen[0]]) if unit not in chosen]
        group = []
        for unit in chosen:
            nearest = sorted(free, key=lambda other: abs(activity[other] - activity[unit]))[: len(chosen)]
            group.append(source.choice(nearest))
            free.remove(group[-1])
        groups.append(np.array(group))
    return groups


def _effects(
    source: NoisedPictures | OwnRuns,
    part: list[int],
    edits: Sequence[Sequence[EditSpec]],
    usual: np.ndarray,
    seen: Seen | None,
) -> xr.Dataset:
    """How much each edit changes a seed's image, where the concept usually lies and elsewhere, and what is seen."""
    (seed,) = part
    finals = np.concatenate([source.finals(seed, [[]]), source.finals(seed, edits)])
    intact, *rest = pooled(finals, usual.shape[1:]).astype(np.float32)
    changed = np.stack(rest).reshape(len(usual), -1, *intact.shape)
    change = np.abs(changed - intact).mean(2)  # (concept, group, height, width)
    inside, outside = (
        (change * weight[:, None]).sum((2, 3)) / weight.sum((1, 2))[:, None] for weight in (usual, 1 - usual)
    )
    dims = ("seed", "concept", "group")
    data = xr.Dataset(
        {
            "inside": (dims, inside[None]),
            "outside": (dims, outside[None]),
            "intact": (("seed", "rgb", "height", "width"), intact[None]),
            "without": (("seed", "concept", "rgb", "height", "width"), changed[None, :, 0]),
        }
    )
    if seen is None:
        return data
    told = {name: np.asarray(values, dtype=np.float64) for name, values in seen(torch.from_numpy(finals)).items()}
    first, *others = np.stack(list(told.values()), axis=-1)
    judged = np.stack(others).reshape(*inside.shape, -1)
    return data.assign(
        judged_intact=(("seed", "attribute"), first[None]), judged=((*dims, "attribute"), judged[None])
    ).assign_coords(attribute=list(told))


def table(result: ExperimentResult) -> pd.DataFrame:
    """For every concept: the best unit, how many agree, and what the image loses with the best ones."""
    data = result.data
    layers, channels = data["layer"].values, data["channel"].values
    rows = []
    for concept in data["concept"].values.tolist():
        part = data.sel(concept=concept)
        unit, time = int(part["ablated"][0]), int(part["best_time"])
        best, agree = float(part["iou"][unit, time]), int(_agree(part["q_value"]).sum())
        row: dict[str, Any] = {
            "concept": concept,
            "best unit": f"{layers[unit]}, channel {channels[unit]}, t = {int(data['timestep'][time])}",
            "IoU": f"{best:.2f}",
            "units that agree": f"{agree} of {part.sizes['unit']}",
        }
        if "null_iou" in data:
            null, null_agree = float(part["null_iou"].max()), int(_agree(part["null_q_value"]).sum())
            row |= {"best IoU, others' masks": f"{null:.2f}", "excess of IoU": f"{round(best - null, 2) + 0.0:+.2f}"}
            row |= {"units that agree, others' masks": str(null_agree), "excess of units": f"{agree - null_agree:+d}"}
        row["change in its place, without the best units"] = interval_text(summary(part["inside"]))
        if "null_inside" in data:
            random = part["null_inside"].mean("draw")
            row["without random units"] = interval_text(summary(random))
            row |= difference_columns(part["inside"], random, " over random units")
        row["change elsewhere"] = interval_text(summary(part["outside"]))
        row |= difference_columns(part["inside"], part["outside"], " over elsewhere")
        rows.append(row | (columns_of_lost(losses_of(part)) if "judged" in part else {}))
    return in_table(rows)


def _agree(q_values: xr.DataArray) -> xr.DataArray:
    """Units (…, unit, time) that agree at one time at least."""
    return (q_values <= LEVEL).any("time")


register(
    Experiment(
        "concepts",
        "Which units draw a part of the image",
        "Pictures whose parts are known are noised, and each unit (a channel of a layer) is compared with each part:"
        " the intersection over union (IoU) of its highest values with the part's masks. Above: the best unit's IoU,"
        " by layer and by time; control, the same with the masks of other pictures, which keeps where a part usually"
        " lies. A unit agrees where its IoU is beyond that of masks dealt at random, at most 5 % of such finds"
        " being false (Benjamini and Hochberg). Below: how much the image changes if the best units are set to zero in"
        " the whole run, in the part's usual place and elsewhere, beside random units of the same layer that are about"
        " as active. A part's units draw it only where its place changes more than elsewhere, and more than without"
        " random units. With a judge, last: the share of the seeds with an attribute that lose it without the units,"
        " or how far its probability falls in these on average if the judge tells one;"
        " bold is surely more or less than without random ones (exact paired test, 5 % after correction for all"
        " cells). The images show the best unit of each part, and the first seed's image without the best ones.",
        "Bau et al. 2019, GAN Dissection",
        measure,
        plot,
        seeds=8,
        steps=25,
        runs=lambda concepts: 1.0 + 3 * concepts,
        once=2300.0,  # of the model inside the package: most of it, as long as the comparison with the masks takes
        nulls=("permuted-masks",),
        plot_images=plot_images,
        table=table,
        judged=True,
        needs="concepts",
        may_take="prompt",
    )
)
