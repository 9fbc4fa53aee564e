"""Where a word looks, and whether the image changes there without it."""

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from PIL import Image
from plotly.subplots import make_subplots

from diffusers_xai.analysis import summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, dots, interval_text
from diffusers_xai.experiments.sampling import Sampling, generators, of_first_seed
from diffusers_xai.explainers import Samples, WordMaps
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.recording import record


SHARE = 0.2  # of the image's places, which hold as large a share of the change by chance
MOMENTS = 3  # at which maps are drawn


def measure(
    pipe: Any,
    sampling: Sampling,
    *,
    prompt: str = "",
    words: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    records: int = 10,
    null: str = "random-weights",
) -> xr.Dataset:
    """How much of what a word changes lies where it looks.

    The pipeline runs with the prompt, and from the same noise without each of the words. What a word changes is the
    mean of |difference| of the two final samples over the channels; of that, the share is taken that lies in the fifth
    of the image at which the word looks most (see [`WordMaps`]). A map that knows nothing of the word gets a fifth.

    Source: Tang et al. 2023 (DAAM), here per step, and graded by what the word does.

    Args:
        pipe (`DiffusionPipeline`): Any pipeline of diffusers that takes a prompt and looks from the image to it.
        sampling ([`Sampling`]): What is sampled; without labels. `guidance_scale` goes to pipelines that take one.
        prompt (`str`): The prompt.
        words (`Sequence[str]`, *optional*): Words or phrases of the prompt; each word once if `None`.
        arguments (`Mapping[str, Any]`, *optional*): What else the pipeline's call takes, such as a size.
        records (`int`): How many steps are recorded, evenly spread.
        null (`str`): `"random-weights"`, the maps of the same networks with random weights, or `"none"`.

    Returns:
        `xarray.Dataset`: `covered` of dims (seed, word, step), and `covered_mean` (seed, word) of the map's mean over
        the steps; `centre`, of the fifth of the image that is nearest to its middle; `null_covered` and
        `null_covered_mean`. `change` (seed, word) is the mean of what the word changes. Of the first seed: `map`
        (word, step, …) and `changed` (word, …) over the sample's places; where the pipeline returns pictures, `image`
        (height, width, rgb) and `without` (word, height, width, rgb).

    Raises:
        ValueError: If there is no prompt, or a word is not in it.
    """
    words = list(dict.fromkeys(re.findall(r"[\w'-]+", prompt))) if words is None else list(words)
    if not words:
        raise ValueError(f"words: expected a `prompt` with words, got {prompt!r}")
    shortened = [without(prompt, word) for word in words]
    every = sampling.every(records)

    def run(text: str, part: list[int], specs: list) -> tuple[Any, Any]:
        with record(pipe, specs) as recording:
            output = pipe(
                **{**_call(pipe, sampling), **(arguments or {})},
                prompt=text,
                generator=generators(part)[0],
            )
        return recording.profile, output

    def measure_batch(part: list[int]) -> xr.Dataset:
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
                blind = run(prompt, part, [maps_of])[0]["word_maps"].rename(token="word")
            data = data.assign({f"null_{name}": values for name, values in _graded(blind, changed).items()})
        data = data.assign(map=maps, changed=changed).rename(sample="seed")
        image = _pictures(output)
        if image is not None:
            dims = ("seed", "image_height", "image_width", "rgb")
            data["image"] = dims, image
            data["without"] = ("word", *dims), np.stack([_pictures(result) for _, result in others])
        return data.assign_coords(word=words)

    # One image in a call: so every pipeline takes it, also one with a picture to start from.
    data = sampling.over_seeds(measure_batch, "words", seeds_at_once=1)
    data = data.transpose("seed", "word", "step", ...)
    kept = [name for name in ("map", "changed", "image", "without") if name in data]
    return of_first_seed(data, *kept).assign_attrs(prompt=prompt)


def without(prompt: str, word: str) -> str:
    """The prompt without a word, and without the space or comma that it leaves behind.

    Raises:
        ValueError: If the word is not in the prompt, or is all of it.
    """
    pattern = re.compile(rf"(?<![\w'-]){re.escape(word.strip())}(?![\w'-])", re.IGNORECASE)
    if not word.strip() or not pattern.search(prompt):
        raise ValueError(f"words: expected words of the prompt {prompt!r}, got {word!r}")
    text = re.sub(r"\s+", " ", pattern.sub("", prompt))
    text = re.sub(r"\s*,(\s*,)+", ",", re.sub(r"\s+,", ",", text)).strip(" ,")
    if not text:
        raise ValueError(f"words: expected a prompt with more than the word {word!r}, got {prompt!r}")
    return text


@contextmanager
def random_weights_inside(pipe: Any, seed: int = 10**6) -> Iterator[None]:
    """Draws the weights of a pipeline's denoisers anew, as before their training, while the context lasts."""
    networks = get_denoiser(pipe).components.values()
    trained = [copy.deepcopy(network.state_dict()) for network in networks]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for network in networks:
                for module in network.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
        yield
    finally:
        for network, weights in zip(networks, trained, strict=True):
            network.load_state_dict(weights)


def _call(pipe: Any, sampling: Sampling) -> dict[str, Any]:
    """What the pipeline's call takes of the sampling."""
    values = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance_scale}
    return {name: value for name, value in values.items() if name in inspect.signature(pipe.__call__).parameters}


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
    """A map that is higher the nearer a place is to the image's middle, in every frame alike."""
    distance = xr.zeros_like(changed, dtype=np.float64)
    for dim in _places(changed):
        if dim != "frame":
            steps = xr.DataArray(np.arange(changed.sizes[dim]) + 0.5, dims=dim)
            distance = distance + (steps / changed.sizes[dim] - 0.5) ** 2
    return -distance


def _pictures(output: Any) -> Any:
    """Finished pictures as an array (image, height, width, rgb), uint8, of videos the middle frame; else `None`."""
    images = output[0]
    if isinstance(images, np.ndarray) and images.ndim in (4, 5):
        frames = images[:, images.shape[1] // 2] if images.ndim == 5 else images
        return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)
    if not isinstance(images, list):
        return None
    images = [image[len(image) // 2] if isinstance(image, list) else image for image in images]
    if not all(isinstance(image, Image.Image) for image in images):
        return None
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def table(result: ExperimentResult) -> pd.DataFrame:
    """The share of each word's change that its map covers, beside the centre and random weights."""
    data = result.data
    rows = []
    for word in data["word"].values.tolist():
        part = data.sel(word=word)
        row = {"word": word, "change": interval_text(summary(part["change"]))}
        row["the word's map"] = interval_text(summary(part["covered_mean"]))
        row["the middle"] = interval_text(summary(part["centre"]))
        row["excess over the middle"] = interval_text(summary(part["covered_mean"] - part["centre"]))
        if "null_covered_mean" in data:
            row["random weights"] = interval_text(summary(part["null_covered_mean"]))
        rows.append(row)
    return pd.DataFrame(rows)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the covered share of each word with its controls; below, the same over the process."""
    data = result.data
    words = data["word"].values.tolist()
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.14, row_heights=[0.5, 0.5])
    groups = [("the word's map, mean over the steps", data["covered_mean"], LINE_COLORS[0], "diamond", -0.2)]
    groups.append(("control: the middle of the image", data["centre"], MUTED_COLOR, "square-open", 0.0))
    if "null_covered_mean" in data:
        groups.append(("control: random weights", data["null_covered_mean"], MUTED_COLOR, "circle-open", 0.2))
    dots(figure, groups, row=1, col=1)
    below: dict[str, Any] = {"row": 2, "col": 1}
    for index, word in enumerate(words):
        band(figure, data["timestep"].values, data["covered"].sel(word=word), word, index, **below)
    if "null_covered" in data:
        random = data["null_covered"].mean("word")
        band(figure, data["timestep"].values, random, "control: random weights, all words", muted=True, **below)
    figure.add_vline(SHARE, line={"color": MUTED_COLOR, "dash": "dot", "width": 1}, row=1, col=1)
    figure.add_hline(SHARE, line={"color": MUTED_COLOR, "dash": "dot", "width": 1}, row=2, col=1)
    title = "share of what the word changes, in the fifth that it looks at most (dotted: chance)"
    figure.update_xaxes(title=title, row=1, col=1)
    ticks = {"tickvals": list(range(len(words))), "ticktext": words}
    figure.update_yaxes(**ticks, autorange="reversed", automargin=True, row=1, col=1)
    figure.update_xaxes(title="timestep t", range=[float(data["timestep"].max()), 0], row=2, col=1)
    figure.update_yaxes(title="covered share", row=2, col=1)
    figure.update_layout(template=TEMPLATE, height=480 + 36 * len(words), legend={"y": -0.13, "yanchor": "top"})
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the first seed's image, each word's maps, what changes without the word, and the image without it."""
    data = result.data
    moments = np.unique(np.linspace(0, data.sizes["step"] - 1, MOMENTS).round().astype(int))
    columns = [*(f"t = {t:.0f}" for t in data["timestep"].values[moments]), "mean", "what changes"]
    if "image" in data:
        columns = ["the image", *columns, "without the word"]
    rows = []
    for word in data["word"].values.tolist():
        part = data.sel(word=word)
        maps, changed = (_middle_frame(part[name]) for name in ("map", "changed"))
        row = [Tile(maps.isel(step=moment).values, word) for moment in moments]
        row += [Tile(maps.mean("step").values, word), Tile(changed.values, f"without {word}")]
        if "image" in data:
            row = [Tile(data["image"].values, "the image"), *row, Tile(part["without"].values, f"without {word}")]
        rows.append(row)
    return tile_grid(rows, columns, data["word"].values.tolist(), scale_title="each map in its own range")


def _middle_frame(array: xr.DataArray) -> xr.DataArray:
    array = array.isel(frame=array.sizes["frame"] // 2) if "frame" in array.dims else array
    return array.astype(np.float32).transpose(..., *_places(array))


EXPERIMENT = register(
    Experiment(
        "words",
        "Where a word looks, and what it changes",
        "The pipeline runs with the prompt, and from the same noise without each word in turn; the difference is what"
        " the word changes. Above: the share of it that lies in the fifth of the image at which the word looks most,"
        " by the softmax weights of all layers. Chance is a fifth. Controls: the fifth nearest to the middle of the"
        " image, where most things happen, and the maps of the same networks with random weights. Below: the same"
        " share over the process. A map says where its word acts only as far as it covers more than both controls. The"
        " images are those of the first seed.",
        "Tang et al. 2023 (DAAM), here per step and graded",
        measure,
        plot,
        seeds=8,
        steps=25,
        nulls=("random-weights",),
        plot_images=plot_images,
        table=table,
        needs="prompt",
    )
)
