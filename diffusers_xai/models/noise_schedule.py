"""How much noise there is at a timestep, as a closed form must know it, and whose schedulers agree."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.schedulers import DDPMScheduler

from diffusers_xai.prediction import is_flow


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_TOLERANCE = 1e-5  # of ᾱ, which schedulers compute in single precision


class NoiseSchedule:
    """The part of noise in the denoiser's input at any timestep.

    The input is √ᾱ x_0 + √(1 − ᾱ) ε, or in flow matching (1 − σ) x_0 + σ ε with σ = t / T, which is the former with
    ᾱ = (1 − σ)² / ((1 − σ)² + σ²), times √((1 − σ)² + σ²).

    Args:
        config (`Mapping`): `prediction_type` and the fields of a schedule, as in a scheduler's config.

    Raises:
        ValueError: If the kind of prediction is not known.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.prediction_type = config["prediction_type"]
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"Expected `prediction_type` in {PREDICTION_TYPES}, got {self.prediction_type!r}.")
        self.is_flow = self.prediction_type == "flow_prediction"
        self._steps = config["num_train_timesteps"]
        self._alphas = _alphas({name: config[name] for name in FIELDS})

    def alphas_cumprod(self, timestep: torch.Tensor | float) -> torch.Tensor:
        """ᾱ at timesteps `(batch,)`, float64; between two of them log ((1 − ᾱ) / ᾱ) is linear, as schedulers have it.

        Raises:
            ValueError: If a timestep lies outside the schedule.
        """
        times = torch.as_tensor(timestep).double().reshape(-1).cpu()
        if self.is_flow:
            if not ((times > 0) & (times <= self._steps)).all():
                raise ValueError(f"Expected timesteps above 0, up to {self._steps}, got {times.tolist()}.")
            sigma = times / self._steps
            return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
        last = self._steps - 1
        if not ((times >= 0) & (times <= last)).all():
            raise ValueError(f"Expected timesteps in 0..{last}, got {times.tolist()}.")
        below = times.floor().long()
        share = times - below
        alphas = self._alphas[below]
        logits = torch.lerp(alphas.logit(), self._alphas[(below + 1).clamp(max=last)].logit(), share)
        return torch.where(share == 0, alphas, logits.sigmoid())

    def scale(self, timestep: torch.Tensor | float) -> torch.Tensor:
        """How large the denoiser's input is beside √ᾱ x_0 + √(1 − ᾱ) ε, at timesteps `(batch,)`, float64."""
        times = torch.as_tensor(timestep).double().reshape(-1).cpu()
        if not self.is_flow:
            return torch.ones_like(times)
        sigma = times / self._steps
        return torch.hypot(1 - sigma, sigma)

    def check(self, scheduler: SchedulerMixin) -> None:
        """Refuses a scheduler whose timesteps mean other amounts of noise, or that reads the output otherwise.

        Raises:
            ValueError: If it does.
        """
        name = type(scheduler).__name__
        theirs = schedule_of(scheduler, None)
        kind = theirs["prediction_type"]
        advice = "Fit the denoiser with this scheduler, or make the scheduler from the config of that one."
        if kind != self.prediction_type:
            raise ValueError(
                f"Expected a scheduler of `prediction_type={self.prediction_type!r}`, which the denoiser was made for,"
                f" got {name} of {kind!r}. {advice}"
            )
        alphas = None if self.is_flow else scheduler.alphas_cumprod.double().cpu()
        same = theirs["num_train_timesteps"] == self._steps
        if not same or (alphas is not None and (alphas - self._alphas).abs().max() > _TOLERANCE):
            raise ValueError(
                f"Expected a scheduler with the noise schedule that the denoiser was made for, got {name} with"
                f" another: the same timestep would mean another amount of noise. {advice}"
            )


def schedule_of(scheduler: SchedulerMixin, prediction_type: str | None) -> dict[str, Any]:
    """The noise schedule and the kind of prediction of a scheduler, as fields of a denoiser's config.

    Args:
        scheduler: A scheduler of diffusers.
        prediction_type (`str`, *optional*): Instead of the scheduler's.

    Raises:
        ValueError: If its timesteps tell neither ᾱ nor the σ of flow matching.
    """
    config = scheduler.config
    steps = config.get("num_train_timesteps", 1000)
    if is_flow(scheduler):
        if config.get("invert_sigmas") or prediction_type not in (None, "flow_prediction"):
            raise ValueError(
                "Expected a flow from noise to image that predicts its velocity, got"
                f" {type(scheduler).__name__}(invert_sigmas={config.get('invert_sigmas', False)}) and"
                f" `prediction_type={prediction_type!r}`."
            )
        return {"num_train_timesteps": steps, "prediction_type": "flow_prediction"}
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "Expected a scheduler with `alphas_cumprod`, such as DDPMScheduler, or of flow matching, got"
            f" {type(scheduler).__name__}."
        )
    kind = prediction_type or config.get("prediction_type", "epsilon")
    if kind == "flow_prediction":
        raise ValueError(f"Expected a scheduler of flow matching for {kind!r}, got {type(scheduler).__name__}.")
    fields = {name: config[name] for name in FIELDS if name in config}
    if fields.get("trained_betas") is not None:
        fields["trained_betas"] = [float(beta) for beta in fields["trained_betas"]]
    alphas = scheduler.alphas_cumprod.double().cpu()
    said = _alphas({"num_train_timesteps": steps, **fields})
    if len(said) != len(alphas) or (said - alphas).abs().max() > _TOLERANCE:  # it made them in a way of its own
        before = torch.cat([alphas.new_ones(1), alphas[:-1]])
        fields = {"num_train_timesteps": len(alphas), "trained_betas": (1 - alphas / before).tolist()}
    return {**fields, "prediction_type": kind}


def _alphas(fields: Mapping[str, Any]) -> torch.Tensor:
    return DDPMScheduler(**fields).alphas_cumprod.double()
