"""The best denoiser of a mixture of labelled Gaussians."""

from collections.abc import Sequence
from typing import Any

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
from diffusers_xai.models.covariances import (
    log_density,
    make_covariance,
    posterior_covariance,
    posterior_mean,
    rank_of_images,
)
from diffusers_xai.models.noise_schedule import schedule_of
from diffusers_xai.passed import Scheduler


class MixtureDenoiser(LabelledDenoiser):
    r"""The denoiser of Gaussians of which each belongs to a label, weighted by their probability given x_t.

    Under a label the mixture is that of the label's components, under the null label that of all. P(y | x_t) is exact
    ([`label_posterior`]).

    The fields beside these are those of [`ClosedFormDenoiser`].

    Parameters:
        num_components (`int`, *optional*, defaults to 2): Number of Gaussians.
        covariance_type (`str`, *optional*, defaults to `"low_rank"`): See [`GaussianDenoiser`].
        rank (`int`, *optional*): Number of principal components of each; all if `None`.
        shared_covariance (`bool`, *optional*, defaults to `True`): One covariance for all components.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, ...] = 32,
        in_channels: int = 3,
        num_components: int = 2,
        covariance_type: str = "low_rank",
        rank: int | None = None,
        shared_covariance: bool = True,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        num_class_embeds: int | None = 2,
        null_class_label: int = -1,
        class_attributes: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self._build()
        self.posterior_weights = PosteriorWeights(num_components)
        self.means = nn.Parameter(torch.zeros(num_components, self._dim), requires_grad=False)
        self.covariances = nn.ModuleList(
            make_covariance(covariance_type, self.sample_shape, rank)
            for _ in range(1 if shared_covariance else num_components)
        )

    @classmethod
    def fit(
        cls,
        images: torch.Tensor | np.ndarray,
        labels: Sequence[int] | torch.Tensor,
        scheduler: Scheduler,
        *,
        covariance_type: str = "low_rank",
        rank: int | None = None,
        shared_covariance: bool = True,
        prediction_type: str | None = None,
        num_class_embeds: int | None = None,
        null_class_label: int = -1,
        class_attributes: Sequence[str] | None = None,
    ) -> "MixtureDenoiser":
        """The denoiser of one Gaussian for each label, with the mean and the covariance of the label's images.

        Args:
            images (`torch.Tensor` or `np.ndarray` of shape `(image, channel, height, width)`): In the range of the
                denoiser's samples, mostly [-1, 1]. The denoiser has their dtype.
            labels (sequence of `int`): One for each image, from 0 on. A label without images is none of the
                mixture's, and refused when the denoiser is called with it.
            scheduler: Whose noise schedule is taken.
            covariance_type (`str`, defaults to `"low_rank"`): `"low_rank"`, `"spectrum"` or `"shrunk"`.
            rank (`int`, *optional*): Number of principal components of each covariance; as many as the images of the
                smallest label determine if `None`.
            shared_covariance (`bool`, defaults to `True`): One covariance within all labels, which few images of a
                label determine; otherwise one for each.
            prediction_type (`str`, *optional*): The scheduler's if `None`.
            num_class_embeds (`int`, *optional*): Number of labels; the largest one and 1 if `None`.
            null_class_label (`int`, defaults to -1): The label that means "no label".
            class_attributes (sequence of `str`, *optional*): Names of the label's bits, most significant first.

        Raises:
            ValueError: If the images do not determine the covariances, a label is out of range, or the scheduler's
                timesteps tell no noise level.
        """
        images = as_images(images)
        labels, number = as_labels(labels, len(images), num_class_embeds)
        present, members, counts = labels.unique(return_inverse=True, return_counts=True)
        vectors = images.flatten(1)
        means = torch.stack([vectors[members == component].mean(0) for component in range(len(present))])
        centred = vectors - means[members]
        low_rank = covariance_type == "low_rank"
        # Every mean that was subtracted takes a degree of freedom.
        determining = len(images) - len(present) + 1 if shared_covariance else int(counts.min())
        denoiser = cls(
            **shape_of(images),
            **schedule_of(scheduler, prediction_type),
            num_components=len(present),
            covariance_type=covariance_type,
            rank=rank_of_images(determining, vectors.shape[1], rank) if low_rank else None,
            shared_covariance=shared_covariance,
            num_class_embeds=number,
            null_class_label=null_class_label,
            class_attributes=None if class_attributes is None else tuple(class_attributes),
        )
        denoiser.means.data = means
        for component, held in enumerate(denoiser.covariances):
            held.fit_(centred if shared_covariance else centred[members == component])
        denoiser._set_shares(present, counts.to(images.dtype))
        return denoiser

    @classmethod
    def from_moments(
        cls,
        means: torch.Tensor,
        covariances: torch.Tensor,
        scheduler: Scheduler,
        *,
        labels: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
        rank: int | None = None,
        prediction_type: str | None = None,
        null_class_label: int = -1,
    ) -> "MixtureDenoiser":
        """The denoiser of Gaussians that are given.

        Args:
            means (`torch.Tensor` of shape `(component, channel, height, width)`): The denoiser has their dtype.
            covariances (`torch.Tensor` of shape `(component or 1, dim, dim)`): One for all, or one for each.
            scheduler: Whose noise schedule is taken.
            labels (sequence of `int`, *optional*): The label of each component; each its own if `None`.
            shares (sequence of `float`, *optional*): How much of the data is of each component; all alike if `None`.
            rank (`int`, *optional*): Number of principal components to keep of each; all if `None`.
            prediction_type (`str`, *optional*): The scheduler's if `None`.
            null_class_label (`int`, defaults to -1): The label that means "no label".

        Raises:
            ValueError: If the shapes do not fit, or the scheduler's timesteps tell no noise level.
        """
        means = as_images(means)
        count, dim = len(means), means[0].numel()
        if covariances.shape[1:] != (dim, dim) or len(covariances) not in (1, count):
            raise ValueError(f"Expected 1 or {count} covariances ({dim}, {dim}), got {tuple(covariances.shape)}.")
        of_components, number = as_labels(range(count) if labels is None else labels, count, None)
        weights = torch.ones(count) if shares is None else torch.as_tensor(shares, dtype=means.dtype)
        if weights.shape != (count,) or not (weights > 0).all():
            raise ValueError(f"Expected {count} positive `shares`, got {shares}.")
        denoiser = cls(
            **shape_of(means),
            **schedule_of(scheduler, prediction_type),
            num_components=count,
            rank=rank or dim,
            shared_covariance=len(covariances) == 1,
            num_class_embeds=number,
            null_class_label=null_class_label,
        )
        denoiser.means.data = means.flatten(1)
        for held, covariance in zip(denoiser.covariances, covariances.to(means.dtype), strict=True):
            held.set_(covariance)
        denoiser._set_shares(of_components, weights.to(means.dtype))
        return denoiser

    def _gaussians(self) -> list[tuple[Any, torch.Tensor]]:
        """Covariance and mean of each component."""
        held = [*self.covariances]
        return list(zip(held if len(held) > 1 else held * len(self.means), self.means, strict=True))

    def _log_likelihood(self, x: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
        return torch.stack([log_density(covariance, mean, x, alphas) for covariance, mean in self._gaussians()], 1)

    def _means(self, x: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
        """E[x_0 | x_t, component] `(batch, component, dim)`."""
        return torch.stack([posterior_mean(covariance, mean, x, alphas) for covariance, mean in self._gaussians()], 1)

    def _mean(self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        shares = self.posterior_weights(self._log_likelihood(x, alphas), weights)
        return (shares[:, None] @ self._means(x, alphas))[:, 0]

    def _covariance(
        self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None, directions: torch.Tensor
    ) -> torch.Tensor:
        shares = self.posterior_weights(self._log_likelihood(x, alphas), weights)
        means = self._means(x, alphas)
        away = means - shares[:, None] @ means
        between = (directions @ away.mT * shares[:, None]) @ away
        within = [
            share[:, None, None] * posterior_covariance(covariance, alphas, directions)
            for share, (covariance, _) in zip(shares.unbind(1), self._gaussians(), strict=True)
        ]
        return between + torch.stack(within).sum(0)
