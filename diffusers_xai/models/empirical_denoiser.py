"""The best denoiser of given images: what a network would be that has learned them by heart."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from diffusers_xai.models.closed_form import (
    LabelledDenoiser,
    PosteriorWeights,
    as_images,
    as_labels,
    shape_of,
)
from diffusers_xai.models.noise_schedule import schedule_of
from diffusers_xai.passed import Scheduler


class EmpiricalDenoiser(LabelledDenoiser):
    r"""The denoiser of a set of images: x̂_0 = Σ p_i x_i with p_i ∝ exp(−|x_t − √ᾱ x_i|² / 2(1 − ᾱ)).

    The p_i ([`posterior`]) are the exact share of each image in the prediction; under a label they are those of the
    label's images. At small t use float64: differences of large numbers decide there.

    The fields beside these are those of [`ClosedFormDenoiser`].

    Parameters:
        num_images (`int`, *optional*, defaults to 1): Number of images.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, ...] = 32,
        in_channels: int = 3,
        num_images: int = 1,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        num_class_embeds: int | None = None,
        null_class_label: int = -1,
        class_attributes: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self._build()
        self.posterior_weights = PosteriorWeights(num_images)
        self.images = nn.Parameter(torch.zeros(num_images, self._dim), requires_grad=False)

    @classmethod
    def fit(
        cls,
        images: torch.Tensor | np.ndarray,
        scheduler: Scheduler,
        labels: Sequence[int] | torch.Tensor | None = None,
        *,
        prediction_type: str | None = None,
        num_class_embeds: int | None = None,
        null_class_label: int = -1,
        class_attributes: Sequence[str] | None = None,
    ) -> "EmpiricalDenoiser":
        """The denoiser of these images.

        Args:
            images (`torch.Tensor` or `np.ndarray` of shape `(image, channel, height, width)`): In the range of the
                denoiser's samples, mostly [-1, 1]. The denoiser has their dtype.
            scheduler: Whose noise schedule is taken.
            labels (sequence of `int`, *optional*): One for each image, from 0 on.
            prediction_type (`str`, *optional*): The scheduler's if `None`.
            num_class_embeds (`int`, *optional*): Number of labels; the largest one and 1 if `None`.
            null_class_label (`int`, defaults to -1): The label that means "no label".
            class_attributes (sequence of `str`, *optional*): Names of the label's bits, most significant first.

        Raises:
            ValueError: If a label is out of range, or the scheduler's timesteps tell no noise level.
        """
        images = as_images(images)
        of_images = number = None
        if labels is not None:
            of_images, number = as_labels(labels, len(images), num_class_embeds)
        denoiser = cls(
            **shape_of(images),
            **schedule_of(scheduler, prediction_type),
            num_images=len(images),
            num_class_embeds=number,
            null_class_label=null_class_label,
            class_attributes=None if class_attributes is None else tuple(class_attributes),
        )
        denoiser.images.data = images.flatten(1).clone()
        denoiser._set_shares(of_images, torch.ones(len(images), dtype=images.dtype))
        return denoiser

    def _log_likelihood(self, x: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
        images = self.images.to(x)
        squares = alphas * images.square().sum(-1) - 2 * alphas.sqrt() * (x @ images.T)
        return -squares / (2 * (1 - alphas))

    def _mean(self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return self.posterior_weights(self._log_likelihood(x, alphas), weights) @ self.images.to(x)

    def _covariance(
        self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None, directions: torch.Tensor
    ) -> torch.Tensor:
        images = self.images.to(x)
        shares = self.posterior_weights(self._log_likelihood(x, alphas), weights)
        mean = shares @ images
        along = directions @ images.T - (directions @ mean[:, :, None])
        return (along * shares[:, None]) @ images
