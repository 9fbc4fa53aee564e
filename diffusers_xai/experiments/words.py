"""Where a word looks, and whether the image changes there without it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from diffusers import DiffusionPipeline
from plotly.subplots import make_subplots

from diffusers_xai.analysis import summary
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, dots
from diffusers_xai.experiments.noised_pictures import finished_pictures
from diffusers_xai.experiments.nulls import random_weights_inside
from diffusers_xai.experiments.sampling import Sampling, arguments_of, check_takes_prompt, generators
from diffusers_xai.experiments.tables import against, in_table, interval_text
from diffusers_xai.experiments.word_masks import (
    WordConcepts,
    agreement,
    agreement_rows,
    picture_and_masks,
    plot_agreement,
    seeing,
)
from diffusers_xai.explainers import Samples, WordMaps
from diffusers_xai.plots.over_frames import is_of_sound, over_frames
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb
from diffusers_xai.prompts import without, words_of
from diffusers_xai.recording import record


SHARE = 0.2  # of the image's places, which hold as large a share of the change by chance
MOMENTS = 3  # at which maps are drawn
_OF_FIRST = ("map", "changed", "image", "without", "seen", "seen_map", "seen_changed", "mask")  # seed
MASKED_TOGETHER = 8  # seeds whose masks are each other's control


def measure(
    pipe: DiffusionPipeline,
    sampling: Sampling,
    *,
    prompt: str = "",
    words: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    records: int = 10,
    concepts: WordConcepts | None = None,
    null: str = "random-weights",
) -> xr.Dataset:
    """How much of what a word changes lies where it looks.

    The pipeline runs with the prompt, and from the same noise without each of the words. What a word changes is the
    mean of |difference| of the two final samples over the channels; of that, the share is taken that lies in the fifth
    of the image at which the word looks most (see [`WordMaps`]). A map that knows nothing of the word gets a fifth.

    With masks of what the words stand for, the maps are also compared with these, by intersection over union.

    Source: Tang et al. 2023 (DAAM), here per step, and graded by what the word does.

    Args:
        pipe (`DiffusionPipeline`): Any pipeline of diffusers that takes a prompt and looks from the image to it.
        sampling ([`Sampling`]): What is sampled; without labels. `guidance_scale` goes to pipelines that take one.
        prompt (`str`): The prompt.
        words (`Sequence[str]`, *optional*): Words or phrases of the prompt; `words_of` it if `None`.
        arguments (`Mapping[str, Any]`, *optional*): What else the pipeline's call takes, such as a size.
        records (`int`): How many steps are recorded, evenly spread.
        concepts (`Callable`, *optional*): Takes a seed's finished picture `(3, height, width)` in [-1, 1], the prompt
            and the seed, and returns bool masks `(height, width)` by word, those of a segmentation network, say; or a
            picture of its own that shows what the prompt says, and its masks. The pipeline then sees that picture,
            noised, in every step, and what a word changes is the mean of |difference| of x̂_0 over steps and channels.
        null (`str`): `"random-weights"`, the maps of the same networks with random weights, or `"none"`.

    Returns:
        `xarray.Dataset`: `covered` of dims (seed, word, step), and `covered_mean` (seed, word) of the map's mean over
        the steps; `centre`, of the fifth of the image that is nearest to its middle; `null_covered` and
        `null_covered_mean`. `change` (seed, word) is the mean of what the word changes. Of the first seed: `map`
        (word, step, …) and `changed` (word, …) over the sample's places; where the pipeline returns pictures, `image`
        (height, width, rgb) and `without` (word, height, width, rgb). With `concepts`, `iou` and `iou_by_step` (see
        `word_masks.agreement`), and of the first seed the picture that is `seen`, its `mask`, `seen_map` and
        `seen_changed`.

    Raises:
        ValueError: If there is no prompt, it is given as embeddings, or a word is not in it; if masks do not fit, or a
            pipeline cannot be shown a picture.
    """
    words = words_of(prompt) if words is None else list(words)
    if not words:
        raise ValueError(f"words: expected a `prompt` with words that may stand for something, got {prompt!r}")
    check_takes_prompt("words", pipe, arguments or {})
    shortened = [without(prompt, word) for word in words]
    every = sampling.every(records)

    def run(text: str, part: list[int], specs: list, **more: Any) -> tuple[Any, Any]:
        with record(pipe, specs) as recording:
            output = pipe(
                **{**arguments_of(pipe, sampling), **(arguments or {}), **more},
                prompt=text,
                generator=generators(part)[0],
            )
        return recording.profile, output

    def word_maps(part: list[int], **more: Any) -> xr.DataArray:
        return run(prompt, part, [WordMaps(words, every=every)], **more)[0]["word_maps"].rename(token="word")

    def seen(told: WordConcepts, part: list[int], image: Any, data: xr.Dataset) -> xr.Dataset:
        """Maps, what changes, and masks: of the picture that the function gives, or of the seed's own."""
        if image is None or len(image) != 1:
            raise ValueError("words: to compare with masks, expected a pipeline that returns a picture, got another.")
        picture, masks = picture_and_masks(told, image[0], prompt, part[0], words)
        found = data[[name for name in ("map", "changed", "null_map") if name in data]]
        shown = image
        if picture is not None:
            given = seeing(pipe, picture, part[0])
            predictions = [
                run(text, part, [Samples(every=every, measures=())], **given)[0]["x0"] for text in [prompt, *shortened]
            ]
            changed = [abs(other - predictions[0]).mean(["channel", "step"]) for other in predictions[1:]]
            found = xr.Dataset({"map": word_maps(part, **given), "changed": xr.concat(changed, "word")})
            if null != "none":
                with random_weights_inside(pipe):
                    found["null_map"] = word_maps(part, **given)
            shown = to_rgb(picture.numpy())[None]
        found = found.rename(
            {name: str(name).replace("map", "seen_map").replace("changed", "seen_changed") for name in found}
        )
        return found.assign(
            mask=masks.expand_dims(sample=1), seen=(("sample", "image_height", "image_width", "rgb"), shown)
        )

    def measure_seed(part: list[int]) -> xr.Dataset:
        maps_of = WordMaps(words, every=every)
        final = Samples(every=sampling.steps, x0=False, measures=())
        profile, output = run(prompt, part, [final, maps_of])
        others = [run(text, part, [final]) for text in shortened]
        whole = profile["final_sample"]
        changed = xr.concat([abs(other["final_sample"] - whole).mean("channel") for other, _ in others], "word")
        maps = profile["word_maps"].rename(token="word")
        data = _graded(maps, changed)
        data["centre"] = _covered(_near_the_middle(changed.isel(word=0, sample=0)), changed)
        data["change"] = changed.mean([dim for dim in changed.dims if dim not in ("word", "sample")])
        if null != "none":
            with random_weights_inside(pipe):
                blind = word_maps(part)
            data = data.assign({f"null_{name}": values for name, values in _graded(blind, changed).items()})
        data = data.assign(map=maps, changed=changed)
        image = finished_pictures(output)
        if concepts is not None:
            known = data if null == "none" else data.assign(null_map=blind)
            data = data.assign(seen(concepts, part, image, known))
        data = data.rename(sample="seed")
        if image is not None:
            dims = ("seed", "image_height", "image_width", "rgb")
            data["image"] = dims, image
            data["without"] = ("word", *dims), np.stack([finished_pictures(result) for _, result in others])
        return data.assign_coords(word=words)

    def measure_batch(part: list[int]) -> xr.Dataset:
        # One image in a call: so every pipeline takes it, also one with a picture to start from.
        data = xr.concat([measure_seed([seed]) for seed in part], "seed", data_vars="minimal")
        if concepts is not None:
            data = data.assign(agreement(data)).drop_vars("null_seen_map", errors="ignore")
        return data

    together = 1 if concepts is None else MASKED_TOGETHER
    data = sampling.over_seeds(
        measure_batch, "words", seeds_at_once=together, at_least=min(2, together), of_first=_OF_FIRST
    )
    return data.transpose("seed", "word", "step", ...).assign_attrs(prompt=prompt)


def _graded(maps: xr.DataArray, changed: xr.DataArray) -> xr.Dataset:
    """The covered share by step, and that of the map's mean over the steps."""
    return xr.Dataset({"covered": _covered(maps, changed), "covered_mean": _covered(maps.mean("step"), changed)})


def _covered(maps: xr.DataArray, changed: xr.DataArray) -> xr.DataArray:
    """The share of `changed` in the fifth of the places where `maps` are highest; NaN where nothing changed."""
    places = _places(changed)
    if {dim: maps.sizes.get(dim) for dim in places} != {dim: changed.sizes[dim] for dim in places}:
        raise ValueError(
            f"words: expected samples that lie as their maps do, got {dict(changed.sizes)} and {dict(maps.sizes)}"
        )
    maps, changed = (
        array.stack(place=places) for array in xr.broadcast(maps.drop_vars("word", errors="ignore"), changed)
    )
    count = max(1, round(SHARE * maps.sizes["place"]))
    maps = maps.transpose(..., "place")
    top = np.argsort(-maps.values, axis=-1, kind="stable")[..., :count]
    values = changed.transpose(*maps.dims).values.astype(np.float64)
    total = values.sum(-1)
    share = np.take_along_axis(values, top, axis=-1).sum(-1) / np.where(total > 0, total, np.nan)
    return maps.isel(place=0, drop=True).copy(data=share)


def _places(array: xr.DataArray) -> list[Any]:
    return [dim for dim in array.dims if dim not in ("word", "sample", "step")]


def _near_the_middle(changed: xr.DataArray) -> xr.DataArray:
    """A map that is higher the nearer a place is to the image's middle, in every frame alike; or to the sound's."""
    distance = xr.zeros_like(changed, dtype=np.float64)
    for dim in _places(changed):
        if dim != "frame" or is_of_sound(changed):
            steps = xr.DataArray(np.arange(changed.sizes[dim]) + 0.5, dims=dim)
            distance = distance + (steps / changed.sizes[dim] - 0.5) ** 2
    return -distance


def table(result: ExperimentResult) -> pd.DataFrame:
    """How much of each word's change its map covers, beside each control; with masks, how well it fits these."""
    data = result.data
    controls = {"the middle": data["centre"]}
    if "null_covered_mean" in data:
        controls["random weights"] = data["null_covered_mean"]
    rows: list[dict[str, Any]] = []
    for word in data["word"].values.tolist():
        part, of_word = data.sel(word=word), {name: values.sel(word=word) for name, values in controls.items()}
        rows.append({"word": word, "": "what it changes", "the model": interval_text(summary(part["change"]))})
        rows += against({"word": word, "": "share of that in its map"}, part["covered_mean"], of_word)
        rows += agreement_rows({"word": word}, part["iou"]) if "iou" in data else []
    return in_table(rows)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the covered share of each word with its controls; below, the same over the process."""
    data = result.data
    words = data["word"].values.tolist()
    titles = ["share of what a word changes, in the fifth that it looks at most", "the same, by the moment of the map"]
    titles += ["agreement with the masks (intersection over union)"] if "iou" in data else []
    heights = [36 * len(words) if index != 1 else 200 for index in range(len(titles))]
    gap = 110
    height = sum(heights) + gap * (len(titles) - 1)
    figure = make_subplots(
        rows=len(titles), cols=1, subplot_titles=titles, row_heights=heights, vertical_spacing=gap / height
    )
    places: list[dict[str, Any]] = [{"row": row, "col": 1, "legend": f"legend{row}"} for row in (1, 2, 3)]
    above, below, last = places
    groups = [("the word's map", data["covered_mean"], LINE_COLORS[0], "diamond", -0.2)]
    groups.append(("control: the middle", data["centre"], MUTED_COLOR, "square-open", 0.0))
    if "null_covered_mean" in data:
        groups.append(("control: random weights", data["null_covered_mean"], MUTED_COLOR, "circle-open", 0.2))
    dots(figure, groups, **above)
    for index, word in enumerate(words):
        band(figure, data["timestep"].values, data["covered"].sel(word=word), word, index, **below)
    if "null_covered" in data:
        random = data["null_covered"].mean("word")
        band(figure, data["timestep"].values, random, "control: random weights", muted=True, **below)
    line = {"color": MUTED_COLOR, "dash": "dot", "width": 1}
    figure.add_vline(SHARE, line=line, row=1, col=1)
    figure.add_hline(SHARE, line=line, row=2, col=1)
    if "iou" in data:
        plot_agreement(figure, data["iou"], **last)
    ticks = {"tickvals": list(range(len(words))), "ticktext": words}
    for row in range(1, len(titles) + 1, 2):
        figure.update_yaxes(**ticks, autorange="reversed", automargin=True, row=row, col=1)
        # Of a few seeds an interval may be wider than all that a share can be.
        figure.update_xaxes(autorangeoptions={"clipmin": -0.02, "clipmax": 1.02}, row=row, col=1)
    figure.update_xaxes(title="covered share (dotted: chance)", row=1, col=1)
    figure.update_xaxes(title="timestep t", range=[float(data["timestep"].max()), 0], row=2, col=1)
    figure.update_yaxes(title="covered share", row=2, col=1)
    place = {"x": 1.02, "xanchor": "left", "yanchor": "top", "orientation": "v", "font": {"size": 11}}
    tops = [1 - (sum(heights[:row]) + gap * row) / height for row in range(len(titles))]
    legends = {f"legend{row}": {**place, "y": y} for row, y in enumerate(tops, start=1)}
    return figure.update_layout(template=TEMPLATE, height=height + 130, margin={"r": 300, "t": 50}, **legends)


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed's image, each word's maps, what changes without the word, and the image without it.

    Of sound, a map of each word over its frames and the process, and below it what changes without the word.
    """
    data = result.data
    if is_of_sound(data["map"]):
        return _plot_sound(data)
    moments = np.unique(np.linspace(0, data.sizes["step"] - 1, MOMENTS).round().astype(int))
    columns = [*(f"t = {t:.0f}" for t in data["timestep"].values[moments]), "mean", "changes"]
    if "image" in data:
        columns = ["the image", *columns, "without"]
    if "seen" in data:
        data = data.assign(seen_mean=data["seen_map"].mean("step"))
        columns += ["known", "mean", "changes"]
    rows = []
    for word in data["word"].values.tolist():
        part = data.sel(word=word)
        maps, changed = (_middle_frame(part[name]) for name in ("map", "changed"))
        row = [Tile(maps.isel(step=moment).values, word) for moment in moments]
        row += [Tile(maps.mean("step").values, word), Tile(changed.values, f"without {word}")]
        if "image" in data:
            row = [Tile(data["image"].values, "the image"), *row, Tile(part["without"].values, f"without {word}")]
        if "seen" in data:
            mask = part["mask"].values
            outline = mask if mask.any() else None
            row.append(Tile(data["seen"].values, "a known picture", outline=outline))
            row += [
                Tile(_middle_frame(part[name]).values, word, outline=outline) for name in ("seen_mean", "seen_changed")
            ]
        rows.append(row)
    return tile_grid(rows, columns, data["word"].values.tolist(), scale_title="each map in its own range")


def _plot_sound(data: xr.Dataset) -> go.Figure:
    maps, titles = [], []
    for word in data["word"].values.tolist():
        changed = data["changed"].sel(word=word).expand_dims(step=1).assign_coords(timestep=("step", [0.0]))
        maps += [data["map"].sel(word=word), changed]
        titles += [html.escape(word), "what it<br>changes"]
    figure = over_frames(maps, titles, "each map in its own range")
    for row in range(2, len(maps) + 1, 2):
        figure.update_yaxes(showticklabels=False, row=row)
    return figure


def _middle_frame(array: xr.DataArray) -> xr.DataArray:
    array = array.isel(frame=array.sizes["frame"] // 2) if "frame" in array.dims else array
    return array.astype(np.float32).transpose(..., *_places(array))


register(
    Experiment(
        "words",
        "Where a word looks, and what it changes",
        "The pipeline runs with the prompt, and from the same noise without each word in turn; the difference is what"
        " the word changes. Above: the share of it that lies in the fifth of the image at which the word looks most,"
        " by the softmax weights of all layers. Chance is a fifth. Controls: the fifth nearest to the middle of the"
        " image, where most things happen, and the maps of the same networks with random weights. Below: the same"
        " share over the process. A map says where its word acts only as far as it covers more than both controls. The"
        " images are those of the first seed. With masks of what the words stand for, last: the"
        " intersection over union (IoU) of the map with the mask, of as many places as the mask has, on pictures whose"
        " masks are known; beside it that of what changes without the word at the same noise, and as controls the"
        " middle of the image, random weights and the mask of another picture.",
        "Tang et al. 2023 (DAAM), here per step and graded",
        measure,
        plot,
        seeds=8,
        steps=25,
        runs=lambda words: 2.0 + words,
        nulls=("random-weights",),
        plot_images=plot_images,
        table=table,
        needs="prompt",
        may_take="concepts",
    )
)
