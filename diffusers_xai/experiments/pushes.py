"""Runs that are pushed once: in their state, or in what a layer puts out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.experiments.sampling import Sampling, generators
from diffusers_xai.interventions import LayerEdit
from diffusers_xai.pipelines import XAIPipeline


@dataclass(frozen=True)
class Push:
    """What is added, and where.

    Attributes:
        step (`int`): The step whose state x_t is changed, from 1 on, or in which the layer's output is.
        amount (`torch.Tensor`): Of the shape of one state or of one output of the layer.
        layer (`str`, *optional*): The layer; the state if `None`.
    """

    step: int
    amount: torch.Tensor
    layer: str | None = None


def pushed_images(pipe: XAIPipeline, sampling: Sampling, seed: int, pushes: Sequence[Push | None]) -> torch.Tensor:
    """Final images of runs of one seed, all with the same noise, each with its push, or none.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled, with its first label.
        seed (`int`): The seed.
        pushes (sequence of `Push` or `None`): One for each run.

    Returns:
        `torch.Tensor` of shape `(push, channel, height, width)`: In [-1, 1].
    """
    size = sampling.batch_size
    return torch.cat(
        [_together(pipe, sampling, seed, pushes[start : start + size]) for start in range(0, len(pushes), size)]
    )


def layer_push(layer: str, step: int, amounts: torch.Tensor) -> LayerEdit:
    """The edit that adds a row of `amounts` to a layer's output for each image, in all branches of guidance."""

    def pushed(output: torch.Tensor) -> torch.Tensor:
        branches = len(output) // len(amounts)
        return output + amounts.to(output).repeat(branches, *[1] * (amounts.ndim - 1))

    return LayerEdit(layer, pushed, steps=[step])


def _together(pipe: XAIPipeline, sampling: Sampling, seed: int, pushes: Sequence[Push | None]) -> torch.Tensor:
    places = {(push.step, push.layer) for push in pushes if push is not None}
    amounts = {place: _rows(pushes, place) for place in places}

    def push_state(pipe: XAIPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        amount = amounts.get((step + 1, None))
        return {} if amount is None else {"sample": tensors["sample"] + amount.to(tensors["sample"])}

    edits = [layer_push(layer, step, amounts[step, layer]) for step, layer in places if layer is not None]
    output: Any = pipe(
        class_labels=sampling.labels[0] if sampling.labels else None,
        batch_size=len(pushes),
        num_inference_steps=sampling.steps,
        generator=generators([seed], len(pushes)),
        guidance_scale=sampling.guidance_scale,
        edits=edits,
        callback_on_step_end=push_state,
        output_type="pt",
    )
    return 2 * output.images.float().cpu() - 1


def _rows(pushes: Sequence[Push | None], place: tuple[int, str | None]) -> torch.Tensor:
    """What is added in a place, a row for each run."""
    amounts = [push.amount if push is not None and (push.step, push.layer) == place else None for push in pushes]
    shape = next(amount for amount in amounts if amount is not None)
    return torch.stack([torch.zeros_like(shape) if amount is None else amount for amount in amounts])
