"""Denoisers whose answer is known: what the best network would say of data that can be written down.

With x_t = √ᾱ x_0 + √(1 − ᾱ) ε, the best prediction of x_0 is its mean given x_t, and its derivative is the covariance
given x_t: ∂x̂_0/∂x_t = √ᾱ / (1 − ᾱ) · Cov[x_0 | x_t].
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from diffusers_xai.models.noise_schedule import NoiseSchedule
from diffusers_xai.passed import Scheduler
from diffusers_xai.prediction import clean_and_noise, prediction_from


class LabelWeights(nn.Module):
    """Writes a label as weights of the labels: 1 for itself, 0 for the others; for the null label, their shares.

    What the weights do is linear before it is normalised, so that the derivative by the weight of a label tells how
    the output would change if that label came in a little.

    Args:
        num_classes (`int`): Labels lie in `0 .. num_classes - 1`.
        null_label (`int`): The label that means "no label".
    """

    def __init__(self, num_classes: int, null_label: int):
        super().__init__()
        self.num_classes = num_classes
        self.null_label = null_label
        self.shares: torch.Tensor
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))

    def forward(self, class_labels: torch.Tensor) -> torch.Tensor:
        """`class_labels (batch,)` integers -> `(batch, num_classes)`."""
        is_null = class_labels == self.null_label
        one_hot = nn.functional.one_hot(class_labels.masked_fill(is_null, 0), self.num_classes)
        return torch.where(is_null[:, None], self.shares, one_hot.to(self.shares))


class PosteriorWeights(nn.Module):
    """The probability of each component given x_t: of each Gaussian of a mixture, or of each image.

    Args:
        num_components (`int`): Number of components.
    """

    def __init__(self, num_components: int):
        super().__init__()
        # Of which label each component is, and its share within the label.
        self.labels: torch.Tensor
        self.register_buffer("labels", torch.zeros(num_components, dtype=torch.long))
        self.shares: torch.Tensor
        self.register_buffer("shares", torch.full((num_components,), 1 / num_components))

    def forward(self, log_likelihood: torch.Tensor, label_weights: torch.Tensor | None) -> torch.Tensor:
        """Log-likelihoods `(batch, component)` up to a constant, weights `(batch, label)` -> `(batch, component)`."""
        weights = self.shares.to(log_likelihood).expand_as(log_likelihood)
        if label_weights is not None:
            weights = weights * label_weights.to(log_likelihood)[:, self.labels]
        largest = log_likelihood.detach().masked_fill(weights == 0, -torch.inf).amax(-1, keepdim=True)
        # The label's own components lie below zero. Others may lie far above, and count in derivatives alone.
        limit = math.log(torch.finfo(log_likelihood.dtype).max) / 2
        joint = weights * (log_likelihood - largest).clamp(max=limit).exp()
        return joint / joint.sum(-1, keepdim=True)


class ClosedFormDenoiser(ModelMixin, ConfigMixin):
    r"""The base of the denoisers whose answer is known; it is called as [`~diffusers.UNet2DModel`] is.

    Layers for recording: `class_embedding` (the labels' weights), `posterior_weights` (of mixtures and images) and
    `x0` (the predicted clean image). Everything is computed in single precision at least.

    The fields that all of them have in their config, beside those of a noise schedule (`num_train_timesteps`,
    `beta_start`, `beta_end`, `beta_schedule`, `trained_betas`, `rescale_betas_zero_snr`):

    Parameters:
        sample_size (`int` or `tuple[int, ...]`): Height and width of the samples; of videos, frames before them.
        in_channels (`int`): Their channels.
        prediction_type (`str`): What the output is: `"epsilon"`, `"sample"`, `"v_prediction"` or, of flow matching,
            `"flow_prediction"`; as the scheduler's.
        num_class_embeds (`int`, *optional*): Number of labels; `None` without labels.
        null_class_label (`int`): The label that means "no label".
        class_attributes (`tuple[str]`, *optional*): Names of the label's bits, most significant first.
    """

    def _build(self) -> None:
        """Makes what every denoiser has, from the config."""
        config = self.config
        size = config.sample_size
        self.sample_shape = (config.in_channels, *((size, size) if isinstance(size, int) else tuple(size)))
        self._schedule = NoiseSchedule(config)  # holds no buffer: it must not be rounded when the model is cast
        self.class_embedding = None
        if config.num_class_embeds is not None:
            if config.num_class_embeds < 1 or 0 <= config.null_class_label < config.num_class_embeds:
                raise ValueError(
                    f"Expected `null_class_label` outside 0..{config.num_class_embeds - 1}, where the labels are, got"
                    f" {config.null_class_label}."
                )
            self.class_embedding = LabelWeights(config.num_class_embeds, config.null_class_label)
        self.x0 = nn.Identity()

    @property
    def _dim(self) -> int:
        return math.prod(self.sample_shape)

    def alphas_cumprod(self, timestep: torch.Tensor | float) -> torch.Tensor:
        """ᾱ at timesteps `(batch,)`, float64; between two of them log ((1 − ᾱ) / ᾱ) is linear, as schedulers have it.

        In flow matching it is that of the input divided by √((1 − σ)² + σ²).

        Raises:
            ValueError: If a timestep lies outside the schedule.
        """
        return self._schedule.alphas_cumprod(timestep)

    def check_scheduler(self, scheduler: Scheduler) -> None:
        """Refuses a scheduler of another noise schedule or kind of prediction, with which the answers would be wrong.

        Pipelines of this package and [`record`] ask it before they begin.

        Raises:
            ValueError: If it is one.
        """
        self._schedule.check(scheduler)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""Predicts the output for a noisy sample.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, channel, height, width)`): The noisy sample x_t.
            timestep (`torch.Tensor` or `float` or `int`): The timestep, one for all or one per sample.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, integer dtype, *optional*):
                Labels in `0 .. num_class_embeds - 1`, or `null_class_label`, which `None` stands for.
            return_dict (`bool`, *optional*, defaults to `True`): Return a `UNet2DOutput` instead of a tuple.

        Returns:
            [`~diffusers.models.unets.unet_2d.UNet2DOutput`] or `tuple`: the output of the sample's shape and dtype.

        Raises:
            ValueError: for a sample, timesteps or labels that do not fit.
        """
        vectors, alphas, weights = self._prepare(sample, timestep, class_labels)
        x0 = self.x0(self._mean(vectors, alphas, weights).unflatten(1, self.sample_shape))
        alphas = alphas.reshape(-1, *[1] * len(self.sample_shape))
        signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
        added = clean_and_noise("sample", x0, vectors.view_as(x0), signal, noise)[1]
        kind = "flow" if self._schedule.is_flow else self.config.prediction_type
        output = prediction_from(kind, x0, added, signal, noise).to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def predict_x0(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The mean of x_0 given x_t; arguments as of [`forward`]."""
        vectors, alphas, weights = self._prepare(sample, timestep, class_labels)
        return self._mean(vectors, alphas, weights).unflatten(1, self.sample_shape).to(sample.dtype)

    def jacobian_product(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        directions: torch.Tensor,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """∂x̂_0/∂x_t times images, without ever forming it. It is symmetric: the product from either side is the same.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, channel, height, width)`): The noisy sample x_t.
            timestep (`torch.Tensor` or `float` or `int`): The timestep, one for all or one per sample.
            directions (`torch.Tensor` of shape `(batch_size or 1, direction, channel, height, width)`): The images.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): As of [`forward`].

        Returns:
            `torch.Tensor` of shape `(batch_size, direction, channel, height, width)`.
        """
        vectors, alphas, weights = self._prepare(sample, timestep, class_labels)
        directions = directions.to(vectors).flatten(2).expand(len(vectors), -1, -1)
        product = self._covariance(vectors, alphas, weights, directions)
        scale = alphas.sqrt() / (1 - alphas) / self._schedule.scale(timestep).to(vectors)[:, None]
        return (scale[:, :, None] * product).unflatten(2, self.sample_shape).to(sample.dtype)

    def jacobian(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """∂x̂_0/∂x_t as matrices `(batch_size, dim, dim)`, dim = channel · height · width; for small images."""
        directions = torch.eye(self._dim).view(1, self._dim, *self.sample_shape)
        return self.jacobian_product(sample, timestep, directions, class_labels).flatten(2)

    @abstractmethod
    def _mean(self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """E[x_0 | x_t] of `x (batch, dim)` at ᾱ `(batch, 1)` under label weights `(batch, label)`."""

    @abstractmethod
    def _covariance(
        self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None, directions: torch.Tensor
    ) -> torch.Tensor:
        """Cov[x_0 | x_t] times `directions (batch, direction, dim)`."""

    def _prepare(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x_t as vectors, ᾱ `(batch, 1)` and the labels' weights; refuses what does not fit."""
        if sample.shape[1:] != self.sample_shape:
            expected = ("batch", *self.sample_shape)
            raise ValueError(f"Expected `sample` of shape {expected}, got {tuple(sample.shape)}.")
        vectors = sample.to(torch.promote_types(torch.promote_types(sample.dtype, self.dtype), torch.float32))
        alphas = self.alphas_cumprod(timestep).to(vectors).expand(len(sample))[:, None]
        vectors = vectors.flatten(1) / self._schedule.scale(timestep).to(vectors)[:, None]
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("Expected `class_labels` None, as `num_class_embeds=None`, got labels.")
            return vectors, alphas, None
        count, null = self.config.num_class_embeds, self.config.null_class_label
        labels = torch.full((len(sample),), null) if class_labels is None else class_labels
        valid = labels.shape == (len(sample),) and not labels.is_floating_point()
        if not valid or not (((labels >= 0) & (labels < count)) | (labels == null)).all():
            raise ValueError(
                f"Expected `class_labels` as an integer tensor of shape ({len(sample)},) with values 0..{count - 1} or"
                f" the null label {null}, got {labels}."
            )
        return vectors, alphas, self.class_embedding(labels.to(sample.device))


class LabelledDenoiser(ClosedFormDenoiser):
    """The base of those that are made of components, each of a label."""

    def _prepare(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        prepared = super()._prepare(sample, timestep, class_labels)
        if class_labels is not None and self.class_embedding is not None:
            shares = self.class_embedding.shares.to(class_labels.device)[class_labels.clamp(min=0)]
            empty = class_labels[(shares == 0) & (class_labels != self.config.null_class_label)]
            if len(empty):
                raise ValueError(
                    f"Expected labels of which this denoiser has data, got {sorted(set(empty.tolist()))}."
                )
        return prepared

    def posterior(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The probability of each component given x_t `(batch_size, component)`; arguments as of [`forward`]."""
        vectors, alphas, weights = self._prepare(sample, timestep, class_labels)
        return self.posterior_weights(self._log_likelihood(vectors, alphas), weights)

    def label_posterior(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """P(y | x_t) of every label, `(batch_size, label)`.

        Raises:
            ValueError: If the denoiser has no labels.
        """
        if self.class_embedding is None:
            raise ValueError("Expected a denoiser with labels, got one with `num_class_embeds=None`.")
        weights = self.posterior(sample, timestep)
        shares = weights.new_zeros(len(weights), self.config.num_class_embeds)
        return shares.index_add(1, self.posterior_weights.labels, weights)

    @abstractmethod
    def _log_likelihood(self, x: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
        """The log of p(x_t | component) `(batch, component)`, up to a constant of the sample's own."""

    @torch.no_grad()
    def _set_shares(self, labels: torch.Tensor | None, shares: torch.Tensor) -> None:
        """Takes the components' labels and their overall shares `(component,)`."""
        shares = shares / shares.sum()
        if labels is not None and self.class_embedding is not None:
            of_labels = shares.new_zeros(self.config.num_class_embeds).index_add(0, labels, shares)
            self.posterior_weights.labels.copy_(labels)
            self.class_embedding.shares = of_labels
            shares = shares / of_labels[labels]
        self.posterior_weights.shares = shares


def as_images(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Images `(image, channel, height, width)`, videos or other latents as a floating point tensor.

    Raises:
        ValueError: If they are none, or not finite.
    """
    images = torch.as_tensor(images)
    if images.ndim < 3 or not images.is_floating_point() or not len(images):
        raise ValueError(
            "Expected images as floating point values of shape (image, channel, …, height, width), in the range of the"
            f" denoiser's samples, got {tuple(images.shape)} of {images.dtype}."
        )
    if not images.isfinite().all():
        raise ValueError("Expected finite images, got NaN or infinity.")
    return images


def shape_of(images: torch.Tensor) -> dict[str, Any]:
    """The images' size and channels, as fields of a denoiser's config."""
    channels, *size = images.shape[1:]
    square = len(size) == 2 and size[0] == size[1]
    return {"sample_size": size[0] if square else tuple(size), "in_channels": channels}


def as_labels(
    labels: Sequence[int] | torch.Tensor, count: int, num_class_embeds: int | None
) -> tuple[torch.Tensor, int]:
    """The labels `(image,)` and their number.

    Raises:
        ValueError: If they are not one integer of `0 .. num_class_embeds - 1` for each image, or a label has no image.
    """
    labels = torch.as_tensor(labels)
    if labels.shape != (count,) or labels.is_floating_point() or (count and labels.min() < 0):
        raise ValueError(f"Expected {count} labels, integers from 0 on, got {labels}.")
    number = int(labels.max()) + 1 if num_class_embeds is None else num_class_embeds
    if labels.max() >= number:
        raise ValueError(f"Expected labels in 0..{number - 1}, got {int(labels.max())}.")
    return labels.long(), number
