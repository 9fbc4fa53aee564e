"""What a denoiser predicts: the noise ε, the clean image x_0 or a velocity, and how they follow from each other.

In all of them the denoiser sees x_t = signal · x_0 + noise · ε. The factors are numbers, or tensors that broadcast.
"""

import torch

from diffusers_xai.passed import Scheduler


KINDS = ("epsilon", "sample", "v_prediction", "trigflow", "flow")
Factor = torch.Tensor | float


def clean_and_noise(
    kind: str, prediction: torch.Tensor, noisy: torch.Tensor, signal: Factor, noise: Factor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean image x̂_0 and the noise ε that a prediction implies.

    Args:
        kind (`str`): Of `KINDS`: a scheduler's `prediction_type`, or `"flow"` for the velocity ε − x_0 of flow
            matching, where signal + noise = 1.
        prediction (`torch.Tensor`): What was predicted.
        noisy (`torch.Tensor` of the same shape): x_t.
        signal (`float` or `torch.Tensor`): The factor of x_0.
        noise (`float` or `torch.Tensor`): The factor of ε.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: x̂_0 and ε, neither clipped.

    Raises:
        ValueError: If the kind is not known.

    Source: Ho et al. 2020, eq. 15; Salimans and Ho 2022, appendix D (v); Lu and Song 2024 (TrigFlow, the same on the
    unit circle); Liu et al. 2022 (flow).
    """
    if kind == "epsilon":
        return (noisy - noise * prediction) / signal, prediction
    if kind == "sample":
        return prediction, (noisy - signal * prediction) / noise
    if kind in ("v_prediction", "trigflow"):
        return signal * noisy - noise * prediction, signal * prediction + noise * noisy
    if kind == "flow":
        return noisy - noise * prediction, noisy + signal * prediction
    raise ValueError(f"Expected a kind of prediction from {KINDS}, got {kind!r}.")


def prediction_from(
    kind: str, clean: torch.Tensor, added: torch.Tensor, signal: Factor, noise: Factor
) -> torch.Tensor:
    """The prediction that is right for a clean image and its noise: the inverse of [`clean_and_noise`].

    Args:
        kind (`str`): Of `KINDS`.
        clean (`torch.Tensor`): x_0.
        added (`torch.Tensor` of the same shape): ε.
        signal (`float` or `torch.Tensor`): The factor of x_0.
        noise (`float` or `torch.Tensor`): The factor of ε.

    Raises:
        ValueError: If the kind is not known.
    """
    if kind == "epsilon":
        return added
    if kind == "sample":
        return clean
    if kind in ("v_prediction", "trigflow"):
        return signal * added - noise * clean
    if kind == "flow":
        return added - clean
    raise ValueError(f"Expected a kind of prediction from {KINDS}, got {kind!r}.")


def is_flow(scheduler: Scheduler) -> bool:
    """Whether the scheduler's states lie on straight lines from noise to image: (1 − σ) · x_0 + σ · ε."""
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "shift" in config and not hasattr(scheduler, "alphas_cumprod")
