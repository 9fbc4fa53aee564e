"""The best denoiser of Gaussian data."""

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from diffusers_xai.models.closed_form import ClosedFormDenoiser, as_images, shape_of
from diffusers_xai.models.covariances import make_covariance, posterior_covariance, posterior_mean, rank_of_images
from diffusers_xai.models.noise_schedule import schedule_of
from diffusers_xai.passed import Scheduler


class GaussianDenoiser(ClosedFormDenoiser):
    r"""The denoiser of data from N(m, Σ): x̂_0 = m + √ᾱ Σ (ᾱΣ + (1 − ᾱ)I)⁻¹ (x_t − √ᾱ m).

    Fitted to images or to a model's own samples it is the *covariance null*: what an explanation shows when nothing
    but the mean and the covariance of the pixels is known. Its derivative does not depend on the sample.

    ```py
    denoiser = GaussianDenoiser.fit(images, pipe.scheduler)  # images (N, C, H, W) in [-1, 1]
    XAIPipeline(denoiser, pipe.scheduler)(record=[GradientEnergy(mask=eyes)])
    ```

    The fields beside these are those of [`ClosedFormDenoiser`].

    Parameters:
        covariance_type (`str`, *optional*, defaults to `"low_rank"`): `"low_rank"`, principal components (all of them:
            any covariance); `"spectrum"`, the same at every place; or `"shrunk"`, the images' own drawn towards that
            of their spectrum as far as few images leave it to chance.
        rank (`int`, *optional*): Number of principal components; all if `None`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, ...] = 32,
        in_channels: int = 3,
        covariance_type: str = "low_rank",
        rank: int | None = None,
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
        self.mean = torch.nn.Parameter(torch.zeros(self._dim), requires_grad=False)
        self.covariance = make_covariance(covariance_type, self.sample_shape, rank)

    @classmethod
    def fit(
        cls,
        images: torch.Tensor | np.ndarray,
        scheduler: Scheduler,
        *,
        covariance_type: str = "low_rank",
        rank: int | None = None,
        prediction_type: str | None = None,
    ) -> "GaussianDenoiser":
        """The denoiser of the Gaussian with the images' mean and covariance (divided by their number).

        At 32 px it takes seconds. Few images do not determine a covariance: take `"shrunk"`, or, of images with more
        than 4096 values, `"spectrum"`, or a `rank` well below their number, and the variance beside the components is
        spread evenly.

        Args:
            images (`torch.Tensor` or `np.ndarray` of shape `(image, channel, height, width)`): In the range of the
                denoiser's samples, mostly [-1, 1]. The denoiser has their dtype.
            scheduler: Whose noise schedule is taken.
            covariance_type (`str`, defaults to `"low_rank"`): `"low_rank"`, `"spectrum"` or `"shrunk"`.
            rank (`int`, *optional*): Number of principal components; all that the images determine if `None`.
            prediction_type (`str`, *optional*): The scheduler's if `None`.

        Raises:
            ValueError: If the images do not determine a covariance, or the scheduler's timesteps tell no noise level.
        """
        images = as_images(images)
        vectors = images.flatten(1)
        low_rank = covariance_type == "low_rank"
        denoiser = cls(
            **shape_of(images),
            **schedule_of(scheduler, prediction_type),
            covariance_type=covariance_type,
            rank=rank_of_images(len(images), vectors.shape[1], rank) if low_rank else None,
        )
        denoiser.mean.data = vectors.mean(0)
        denoiser.covariance.fit_(vectors - denoiser.mean)
        return denoiser

    @classmethod
    def from_moments(
        cls,
        mean: torch.Tensor,
        covariance: torch.Tensor,
        scheduler: Scheduler,
        *,
        rank: int | None = None,
        prediction_type: str | None = None,
    ) -> "GaussianDenoiser":
        """The denoiser of a Gaussian whose mean `(channel, height, width)` and covariance `(dim, dim)` are given.

        Args:
            mean (`torch.Tensor` of shape `(channel, height, width)`): Of the images. The denoiser has its dtype.
            covariance (`torch.Tensor` of shape `(dim, dim)`): Symmetric, dim = channel · height · width.
            scheduler: Whose noise schedule is taken.
            rank (`int`, *optional*): Number of principal components to keep; all if `None`.
            prediction_type (`str`, *optional*): The scheduler's if `None`.

        Raises:
            ValueError: If the shapes do not fit, or the scheduler's timesteps tell no noise level.
        """
        mean = as_images(mean[None])
        dim = mean.numel()
        if covariance.shape != (dim, dim) or not torch.allclose(covariance, covariance.T, atol=1e-6):
            raise ValueError(
                f"Expected a symmetric covariance of shape ({dim}, {dim}), got {tuple(covariance.shape)}."
            )
        fields = {**shape_of(mean), **schedule_of(scheduler, prediction_type), "rank": rank or dim}
        denoiser = cls(**fields)
        denoiser.mean.data = mean.flatten()
        denoiser.covariance.set_(covariance.to(mean.dtype))
        return denoiser

    def _mean(self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return posterior_mean(self.covariance, self.mean, x, alphas)

    def _covariance(
        self, x: torch.Tensor, alphas: torch.Tensor, weights: torch.Tensor | None, directions: torch.Tensor
    ) -> torch.Tensor:
        return posterior_covariance(self.covariance, alphas, directions)
