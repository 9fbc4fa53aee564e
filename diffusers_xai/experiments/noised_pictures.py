"""Pictures whose parts are known, and what a network's layers make of them when they are noised."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling, generators
from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.recording.edits import EditSpec
from diffusers_xai.taps import tap_output


Masks = Mapping[str, np.ndarray]
# Finished samples (image, 3, height, width) in [-1, 1] -> masks by name, or pictures of its own and their masks.
Concepts = Callable[[torch.Tensor], Masks | tuple[torch.Tensor, Masks]]


def pictures_with_masks(
    pipe: XAIPipeline, sampling: Sampling, concepts: Concepts | tuple[torch.Tensor, Masks], count: int
) -> tuple[torch.Tensor, Masks, bool]:
    """Pictures (image, rgb, height, width), the masks of the concepts on them, and whether they came with the masks.

    Otherwise they are the model's own.
    """
    answer: Any = concepts
    if callable(concepts):
        own = _own_pictures(pipe, sampling, count)
        answer = concepts(own)
    given = isinstance(answer, tuple)
    pictures, masks = answer if given else (own, answer)
    pictures = torch.as_tensor(pictures)
    if pictures.shape != (count, *pipe.sample_shape):
        raise ValueError(
            f"concepts: expected pictures of shape {(count, *pipe.sample_shape)}, got {tuple(pictures.shape)}."
        )
    checked = checked_masks(masks, (count, *pictures.shape[-2:]))
    return pictures.to(pipe.unet.dtype), checked, given


def checked_masks(masks: Masks, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The masks of every concept by name.

    Raises:
        ValueError: If there are none, or one is no bool array of this shape (image, height, width), empty, or
            everywhere.
    """
    checked = {str(name): np.asarray(mask) for name, mask in masks.items()}
    for name, mask in checked.items():
        if mask.shape != shape or mask.dtype != bool or not mask.any() or mask.all():
            raise ValueError(
                f"concepts: expected bool masks of shape {shape} that are neither empty nor everywhere, got"
                f" {mask.dtype} {mask.shape} with {int(mask.sum())} pixels of {name!r}."
            )
    if not checked:
        raise ValueError("concepts: expected the masks of at least one concept, got none.")
    return checked


def _own_pictures(pipe: XAIPipeline, sampling: Sampling, count: int) -> torch.Tensor:
    seeds = [OTHER_NOISE + number for number in range(count)]
    parts = [seeds[start : start + sampling.batch_size] for start in range(0, count, sampling.batch_size)]
    what = [Samples(every=sampling.steps, x0=False, measures=())]
    finals = [sampling.profile(pipe, part, what)["final_sample"].values for part in parts]
    return torch.from_numpy(np.concatenate(finals)).clamp(-1, 1)


def label_of_pictures(pipe: XAIPipeline, sampling: Sampling, given: bool) -> int | None:
    """What the network is told of the pictures: nothing of those that have labels of their own, where it can be."""
    null = pipe.unet.config.get("null_class_label")
    if given and null is not None and pipe.unet.config.get("num_class_embeds") is not None:
        return null
    return sampling.labels[0] if sampling.labels else None


class NoisedPictures:
    """Pictures whose masks are known, noised; the network sees each of them once, at each of several moments.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`Mapping[str, nn.Module]`): Layers by name.
        times (`Sequence[float]`): Moments, as parts of the training's timesteps.
        concepts: See `concepts.measure`.
        count (`int`): Pictures.

    Raises:
        ValueError: If masks do not fit, or the scheduler tells no ᾱ.
    """

    def __init__(
        self,
        pipe: XAIPipeline,
        sampling: Sampling,
        layers: Mapping[str, nn.Module],
        times: Sequence[float],
        concepts: Concepts | tuple[torch.Tensor, Masks],
        count: int,
    ):
        if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
            raise ValueError(
                f"concepts: expected a scheduler with ᾱ, to noise pictures by, got {type(pipe.scheduler).__name__}."
            )
        self._pipe, self._sampling, self._layers = pipe, sampling, layers
        self.timesteps = [round(time * (len(pipe.scheduler.alphas_cumprod) - 1)) for time in times]
        self.pictures, self.masks, given = pictures_with_masks(pipe, sampling, concepts, count)
        self._label = label_of_pictures(pipe, sampling, given)

    def maps(self, time: int) -> dict[str, np.ndarray]:
        """What every layer puts out at a moment, by its place: (image, channel, height, width) by name."""
        return layers_of_noised(
            self._layers, self._pipe, self.pictures, self.timesteps[time], self._label, self._sampling.batch_size
        )

    def finals(self, seed: int, edits: Sequence[Sequence[EditSpec]]) -> np.ndarray:
        """The image of a seed with each of several edits, `(edit, rgb, height, width)`."""
        what = [Samples(every=self._sampling.steps, x0=False, measures=())]
        size = self._sampling.batch_size
        parts = [edits[start : start + size] for start in range(0, len(edits), size)]
        runs = [self._sampling.profile(self._pipe, [seed], what, part) for part in parts]
        return np.concatenate([run["final_sample"].values for run in runs])


def layers_of_noised(
    layers: Mapping[str, nn.Module],
    pipe: XAIPipeline,
    pictures: torch.Tensor,
    timestep: int,
    label: int | None,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """What layers put out for x_t = √ᾱ x_0 + √(1 − ᾱ) ε of every picture: (image, channel, height, width) by name.

    Layers of vectors, as those of times and labels, are left out.
    """
    alpha = float(pipe.scheduler.alphas_cumprod[timestep])
    sources = generators([2 * OTHER_NOISE + number for number in range(len(pictures))])
    noise = torch.stack([torch.randn(pictures.shape[1:], generator=source) for source in sources])
    noised = (alpha**0.5 * pictures + (1 - alpha) ** 0.5 * noise).to(pipe.unet.dtype)
    kept: dict[str, list[np.ndarray]] = {}

    def keep(path: str, output: torch.Tensor) -> None:
        if output.ndim == 4:
            kept.setdefault(path, []).append(output.float().cpu().numpy())

    with torch.no_grad(), ExitStack() as stack:
        for path, module in layers.items():
            stack.enter_context(tap_output(module, partial(keep, path)))
        for x in noised.split(batch_size):
            labels = None if label is None else torch.full((len(x),), label, device=pipe.device)
            pipe.unet(x.to(pipe.device), timestep, class_labels=labels)
    return {path: np.concatenate(values) for path, values in kept.items()}


def finished_pictures(output: Any) -> Any:
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
