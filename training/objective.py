"""What the network learns: targets, weights of the timesteps, and what a prediction implies."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from diffusers_xai.prediction import clean_and_noise, prediction_from


def _coefficients(scheduler: DDPMScheduler, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square roots of (alpha_bar_t, 1 - alpha_bar_t), each of shape (batch, 1, 1, 1)."""
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].reshape(-1, 1, 1, 1)
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def training_target(
    scheduler: DDPMScheduler, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network has to predict: the noise, v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0, or x_0.

    Args:
        scheduler (`DDPMScheduler`): Its `prediction_type` decides.
        clean (`torch.Tensor` of shape `(batch, channel, height, width)`): Images x_0 in [-1, 1].
        noise (`torch.Tensor` of the same shape): The noise that is added.
        timesteps (`torch.Tensor` of shape `(batch,)`, int64): 0-based timesteps.

    Source: thesis eq. 3.2.14 (noise); Salimans and Ho 2022 (v).
    """
    return prediction_from(scheduler.config.prediction_type, clean, noise, *_coefficients(scheduler, timesteps))


def implied_clean_and_noise(
    scheduler: DDPMScheduler, prediction: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The x_0 and the noise that a prediction means for the noisy images x_t, both (batch, channel, height, width)."""
    return clean_and_noise(scheduler.config.prediction_type, prediction, noisy, *_coefficients(scheduler, timesteps))


def min_snr_weights(
    scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float, power: float = 1.0
) -> torch.Tensor:
    """Weights of the loss on the prediction that equal min(SNR, gamma) ** power on the x_0 loss, shape (batch,).

    With SNR = alpha_bar / (1 - alpha_bar), an x_0 loss of weight w is a noise loss of w / SNR and a v loss of
    w / (SNR + 1). Power 1 is the published rule. A smaller power lifts the noisy timesteps, where what a label says is
    decided: SNR leaves next to nothing of their x_0 loss (0.0003 of it at t = 900 of the linear schedule).

    Source: Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting Strategy*.
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = snr.clamp(max=gamma) ** power
    return weights / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[scheduler.config.prediction_type]


def diffusion_loss(
    prediction: torch.Tensor, target: torch.Tensor, loss: str, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of each image's `"l1"` or `"l2"` loss, times its weight; a scalar."""
    pointwise = F.l1_loss if loss == "l1" else F.mse_loss
    per_image = pointwise(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    return (per_image if weights is None else per_image * weights).mean()


def draw_timesteps(batch_size: int, num_train_timesteps: int, stratified: bool, generator: torch.Generator):
    """Random timesteps in 0 .. num_train_timesteps - 1, int64 of shape (batch,).

    Stratified ones fall one into each of `batch_size` equal parts of the schedule, in random order: each is uniform
    by itself, but a batch's mean loss varies less.
    """
    if not stratified:
        return torch.randint(num_train_timesteps, (batch_size,), generator=generator)
    parts = torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)
    return (parts / batch_size * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
