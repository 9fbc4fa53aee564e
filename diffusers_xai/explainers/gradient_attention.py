"""Gradient attention: the places by which a layer raises a score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.gradients import LayerGradientSpec
from diffusers_xai.recording.replay import StepGraph


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientAttention(LayerGradientSpec):
    """Records where a layer raises a score z of the predicted image: ReLU(Σ_k α_k A_k) over its channels A_k.

    α_k is the mean over all places of ∂z/∂A_k. The score is a judge's, or the sum of the output over a region. Arrays
    `gradient_attention/<layer>` of the dims of `activations/<layer>` without the channel, such as (step, sample,
    height, width), not negative; one backward pass for all layers.

    ```py
    GradientAttention("mid_block", judge=lambda images: classifier(images)[:, smiling])
    ```

    Args:
        layers (`str` or list of `str`): See [`Activations`]; layers with channels and places.
        judge (`Callable`, *optional*): Takes the output `(row, channel, height, width)`, a row for each image and
            guidance branch, and returns a score of each, `(row,)`, by differentiable operations: a logit rather than a
            probability, whose gradient vanishes. Of a latent model, what it gets are latents.
        mask, pixels: See [`GradientSpec`]; instead of a judge, the pixels whose sum is the score.
        of (`str`, defaults to `"x0"`): See [`GradientSpec`].
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer.
        TypeError: if `judge` is no function.
        ValueError: for both a judge and a region; before sampling, for a mask that does not fit the sample; at the
            first step, for a layer without channels or places, or a judge that returns something else.

    Source: Liu et al. 2020, *Towards Visually Explaining Variational Autoencoders*; Selvaraju et al. 2017, *Grad-CAM*.
    """

    judge: Callable[[torch.Tensor], torch.Tensor] | None = None
    of: str = "x0"
    group: ClassVar[str] = "gradient_attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None and not callable(self.judge):
            raise TypeError(f"Expected `judge` as a function of images, got {type(self.judge).__name__}.")
        if self.judge is not None and not (self.mask is None and self.pixels is None):
            raise ValueError("Expected a `judge`, or a `mask` or `pixels`, got both.")

    def answer(self, graph: StepGraph, run: Run) -> torch.Tensor:
        """The sum of the rows' scores."""
        if self.judge is None:
            return super().answer(graph, run)
        scores = self.judge(graph.output)
        rows = len(graph.output)
        if not isinstance(scores, torch.Tensor) or scores.shape != (rows,) or not scores.requires_grad:
            got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ValueError(
                f"GradientAttention: expected of `judge` a differentiable score of each image, shape ({rows},), got"
                f" {got}."
            )
        return scores.sum()

    def map_of(self, path: str, output: Labelled, gradient: torch.Tensor) -> Labelled:
        """The channels weighted by their mean gradients, what is positive of it."""
        if "channel" not in output.dims or len(output.dims) < 2:
            raise ValueError(
                f"GradientAttention: {path}: expected a layer with channels and places, got dims {output.dims}."
            )
        channel = 1 + output.dims.index("channel")
        places = [dim for dim in range(1, output.values.ndim) if dim != channel]
        weights = gradient.mean(dim=places, keepdim=True)
        rest = tuple(dim for dim in output.dims if dim != "channel")
        return Labelled((weights * output.values).sum(dim=channel).relu(), rest)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data, the judge by its name."""
        name = None if self.judge is None else getattr(self.judge, "__qualname__", type(self.judge).__name__)
        return {**super().to_dict(), "judge": name}
