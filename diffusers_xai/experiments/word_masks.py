"""Words' maps beside masks of what the words stand for."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr
from diffusers import DiffusionPipeline

from diffusers_xai.experiments.figures import dots
from diffusers_xai.experiments.maps import resized
from diffusers_xai.experiments.noised_pictures import Masks
from diffusers_xai.experiments.sampling import generators
from diffusers_xai.experiments.tables import against
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR


# A finished picture (3, height, width) in [-1, 1], the prompt and the seed -> masks (height, width) by word, or a
# picture of its own, of that size, which shows what the prompt says, and its masks.
WordConcepts = Callable[[torch.Tensor, str, int], Masks | tuple[torch.Tensor, Masks]]
MAP, CHANGE, MIDDLE, RANDOM, OTHERS, CHANCE = "map", "change", "middle", "random weights", "another's mask", "chance"
_CALLBACK = "callback_on_step_end"


def picture_and_masks(
    concepts: WordConcepts, image: np.ndarray, prompt: str, seed: int, words: Sequence[str]
) -> tuple[torch.Tensor | None, xr.DataArray]:
    """The function's own picture, if it gives one, and the masks (word, height, width); empty of words without one.

    Raises:
        ValueError: If they do not fit the image `(height, width, rgb)`, or no word has a mask.
    """
    own = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    answer = concepts(own, prompt, seed)
    picture, masks = answer if isinstance(answer, tuple) else (None, answer)
    if picture is not None and torch.as_tensor(picture).shape != own.shape:
        raise ValueError(f"words: expected a picture of shape {tuple(own.shape)}, got {tuple(picture.shape)}.")
    told: Mapping[str, Any] = {str(name): np.asarray(mask) for name, mask in masks.items()}
    if not set(words) & set(told):
        raise ValueError(f"words: expected masks of some of {', '.join(words)}, got those of {', '.join(told)}.")
    for name, mask in told.items():
        if mask.shape != image.shape[:2] or mask.dtype != bool:
            raise ValueError(
                f"words: expected bool masks of shape {image.shape[:2]}, got {mask.dtype} {mask.shape} of {name!r}."
            )
    values = np.stack([told.get(word, np.zeros(image.shape[:2], bool)) for word in words])
    return picture, xr.DataArray(values, dims=("word", "mask_height", "mask_width"))


def seeing(pipe: DiffusionPipeline, picture: torch.Tensor, seed: int) -> dict[str, Any]:
    """Arguments of the pipeline's call with which it sees a picture `(3, height, width)`, noised, in every step.

    Its own state is replaced between the steps by the picture with as much noise, always the same noise. The first
    step sees noise alone, as in every run.

    Raises:
        ValueError: If the pipeline lets nobody replace its state, or has no autoencoder for pictures.
    """
    for name, there in (
        ("a `vae`", getattr(pipe, "vae", None)),
        ("callbacks", _CALLBACK in inspect.signature(pipe.__call__).parameters),
    ):
        if not there:
            raise ValueError(f"To see a picture, expected a pipeline with {name}, got {type(pipe).__name__}.")
    vae = pipe.vae
    with torch.no_grad():
        encoded = vae.encode(picture[None].to(vae.device, vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    latents = (latents - (vae.config.get("shift_factor") or 0)) * vae.config.get("scaling_factor", 1.0)
    noise = torch.randn(latents.shape, generator=generators([seed])[0]).to(latents)

    def replace(pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> dict[str, Any]:
        state, scheduler = given["latents"], pipe.scheduler
        if state.shape != latents.shape:
            raise ValueError(
                f"To see a picture, expected states of shape {tuple(latents.shape)}, got {tuple(state.shape)}."
            )
        if step + 1 == len(scheduler.timesteps):
            return {}
        timesteps = scheduler.timesteps[step + 1 : step + 2]
        if hasattr(scheduler, "scale_noise"):
            return {"latents": scheduler.scale_noise(latents, timesteps, noise).to(state)}
        return {"latents": scheduler.add_noise(latents, noise, timesteps).to(state)}

    return {_CALLBACK: replace, "callback_on_step_end_tensor_inputs": ["latents"]}


def agreement(data: xr.Dataset) -> xr.Dataset:
    """Intersection over union of maps with masks: of as many places as the mask has, where the map is highest.

    Args:
        data (`xarray.Dataset`): `seen_map` and, optionally, `null_seen_map` of dims (seed, word, step, height, width);
            `seen_changed` (seed, word, height, width), and `mask` (seed, word, mask_height, mask_width).

    Returns:
        `xarray.Dataset`: `iou` (seed, word, by), of the map's mean over the steps, of what changes without the word,
        and of the controls: the image's middle, the map with random weights, the map with the mask of another seed,
        and chance. `iou_by_step` (seed, word, step), of the map. NaN where a mask is empty or covers everything.
    """
    masks = data["mask"].transpose("seed", "word", ...).values
    size = masks.shape[-2:]
    steps = resized(data["seen_map"].transpose("seed", "word", "step", ...).values, size, "bilinear")
    rows, columns = (np.linspace(-1, 1, 2 * length + 1)[1::2] for length in size)
    share = masks.mean((-2, -1))
    found = {
        MAP: _iou(steps.mean(2), masks),
        CHANGE: _iou(resized(data["seen_changed"].transpose("seed", "word", ...).values, size, "bilinear"), masks),
        MIDDLE: _iou(np.broadcast_to(-(rows[:, None] ** 2) - columns**2, masks.shape), masks),
        OTHERS: _iou(steps.mean(2), np.roll(masks, 1, axis=0)) if len(masks) > 1 else np.full(share.shape, np.nan),
        CHANCE: np.where((share > 0) & (share < 1), share / (2 - share), np.nan),
    }
    if "null_seen_map" in data:
        blind = data["null_seen_map"].transpose("seed", "word", "step", ...).values
        found[RANDOM] = _iou(resized(blind.mean(2), size, "bilinear"), masks)
    by_step = np.stack([_iou(steps[:, :, step], masks) for step in range(steps.shape[2])], axis=-1)
    return xr.Dataset(
        {
            "iou": (("seed", "word", "by"), np.stack(list(found.values()), axis=-1)),
            "iou_by_step": (("seed", "word", "step"), by_step),
        },
        {"by": list(found)},
    )


def _iou(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Maps and masks (seed, word, height, width) -> (seed, word)."""
    found = np.full(masks.shape[:2], np.nan)
    for index in np.ndindex(found.shape):
        mask = masks[index].ravel()
        count = int(mask.sum())
        if 0 < count < mask.size:
            inside = mask[np.argsort(-maps[index].ravel(), kind="stable")[:count]].sum()
            found[index] = inside / (2 * count - inside)
    return found


def agreement_rows(row: Mapping[str, Any], iou: xr.DataArray) -> list[dict[str, Any]]:
    """The IoU (seed, by) of one word's map, and of what changes without it, as rows of a table that begin so."""
    names = {MIDDLE: "the middle", RANDOM: "random weights", OTHERS: "another's mask", CHANCE: "chance"}
    controls = {name: iou.sel(by=by, drop=True) for by, name in names.items() if by in iou["by"]}
    changes = {name: values for name, values in controls.items() if name in ("the middle", "chance")}
    return [
        *against({**row, "": "IoU of its map with the mask"}, iou.sel(by=MAP, drop=True), controls),
        *against({**row, "": "IoU of what changes"}, iou.sel(by=CHANGE, drop=True), changes),
    ]


def plot_agreement(figure: go.Figure, iou: xr.DataArray, **place: Any) -> None:
    """Draws the IoU of each word's map with the mask, beside that of what changes and the controls."""
    shown = [
        (MAP, "the word's map", LINE_COLORS[0], "diamond"),
        (CHANGE, "what changes without it", LINE_COLORS[1], "diamond"),
        (MIDDLE, "control: the middle", MUTED_COLOR, "square-open"),
        (RANDOM, "control: random weights", MUTED_COLOR, "circle-open"),
        (OTHERS, "control: another image's mask", MUTED_COLOR, "x-thin-open"),
        (CHANCE, "chance", MUTED_COLOR, "line-ns-open"),
    ]
    shown = [entry for entry in shown if entry[0] in iou["by"]]
    offsets = np.linspace(-0.3, 0.3, len(shown))
    groups = [
        (name, iou.sel(by=by), color, symbol, offset)
        for (by, name, color, symbol), offset in zip(shown, offsets, strict=True)
    ]
    dots(figure, groups, **place)
