"""Any pipeline's own runs: the pictures that they end in, and what layers put out on the way there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffusers_xai.experiments.maps import pooled
from diffusers_xai.experiments.noised_pictures import Concepts, Masks, checked_masks, finished_pictures
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling, arguments_of, generators, timestep_at
from diffusers_xai.experiments.word_masks import seeing
from diffusers_xai.explainers import Activations
from diffusers_xai.profile.selection import pick_branch
from diffusers_xai.recording import record
from diffusers_xai.recording.edits import EditSpec


PICTURE, MAP = 64, 16  # pixels at most, to which pictures and layers' maps are averaged: so they fit into memory


class OwnRuns:
    """Runs of any pipeline that returns pictures; layers are looked at in the runs' own states.

    Where the function of the masks gives pictures of its own, runs see those in their place, see `word_masks.seeing`.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        sampling ([`Sampling`]): Steps and guidance.
        arguments (`Mapping[str, Any]`): What else its call takes, such as a prompt.
        paths (`Sequence[str]`): Layers; those that do not cover the image are left out.
        times (`Sequence[float]`): Moments, as parts of the training's timesteps.
        concepts: See `concepts.measure`.
        count (`int`): Pictures.

    Raises:
        ValueError: If the pipeline returns no pictures, masks do not fit, or no layer covers the image.
    """

    def __init__(
        self,
        pipe: Any,
        sampling: Sampling,
        arguments: Mapping[str, Any],
        paths: Sequence[str],
        times: Sequence[float],
        concepts: Concepts | tuple[torch.Tensor, Masks],
        count: int,
    ):
        self._pipe, self._arguments = pipe, {**arguments_of(pipe, sampling), **arguments}
        self._what = [Activations(list(paths), timesteps=[timestep_at(pipe, time) for time in times])]
        self._maps: list[dict[str, np.ndarray]] = []
        self.timesteps: list[int] = []
        seeds = [OTHER_NOISE + number for number in range(count)]
        answer: Any = concepts
        if callable(concepts):
            own = torch.stack([self._look(seed) for seed in seeds])
            answer = concepts(own)
        given = isinstance(answer, tuple)
        pictures, masks = answer if given else (own, answer)
        pictures = torch.as_tensor(pictures).float()
        if callable(concepts) and pictures.shape != own.shape:
            raise ValueError(f"concepts: expected pictures of shape {tuple(own.shape)}, got {tuple(pictures.shape)}.")
        checked = checked_masks(masks, (count, *pictures.shape[-2:]))
        if given:
            self._maps = []
            for seed, picture in zip(seeds, pictures, strict=True):
                self._look(seed, **seeing(pipe, picture, seed))
        if not self._maps[0]:
            raise ValueError(f"concepts: expected layers that cover the image, got {', '.join(paths)}.")
        self._size = tuple(min(PICTURE, length) for length in pictures.shape[-2:])
        self.pictures = torch.from_numpy(pooled(pictures.numpy(), self._size)).float()
        small = {name: pooled(mask, self._size) >= 0.5 for name, mask in checked.items()}
        self.masks = checked_masks(small, (count, *self._size))

    def maps(self, time: int) -> dict[str, np.ndarray]:
        """What every layer puts out at a moment, by its place: (image, channel, height, width) by name."""
        return {path: np.stack([maps[path][time] for maps in self._maps]).astype(np.float32) for path in self._maps[0]}

    def finals(self, seed: int, edits: Sequence[Sequence[EditSpec]]) -> np.ndarray:
        """The picture of a seed with each of several edits, `(edit, rgb, height, width)` in [-1, 1], in its size."""
        return torch.stack([self._run(seed, [], list(edit))[1] for edit in edits]).numpy()

    def _look(self, seed: int, **more: Any) -> torch.Tensor:
        """Keeps a run's maps, and returns its picture."""
        profile, picture = self._run(seed, self._what, [], **more)
        found = {}
        for name in profile:
            array = pick_branch(profile[name], "cond")
            if "frame" in array.dims:
                array = array.isel(frame=array.sizes["frame"] // 2)
            if {"channel", "height", "width"} <= set(array.dims):
                values = array.isel(sample=0).transpose("step", "channel", "height", "width").values
                size = tuple(min(MAP, length) for length in values.shape[-2:])
                found[name.removeprefix("activations/")] = pooled(values, size).astype(np.float16)
                self.timesteps = [round(float(t)) for t in array["timestep"].values]
        self._maps.append(found)
        return picture

    def _run(self, seed: int, what: list, edits: list[EditSpec], **more: Any) -> tuple[Any, torch.Tensor]:
        """Profile and picture `(3, height, width)` in [-1, 1] of a run."""
        with record(self._pipe, what, edits=edits) as recording:
            output = self._pipe(**{**self._arguments, **more}, generator=generators([seed])[0])
        pictures = finished_pictures(output)
        if pictures is None or len(pictures) != 1:
            raise ValueError(f"concepts: expected a pipeline that returns a picture, got {type(self._pipe).__name__}.")
        return recording.profile, torch.from_numpy(pictures[0]).permute(2, 0, 1).float() / 127.5 - 1
