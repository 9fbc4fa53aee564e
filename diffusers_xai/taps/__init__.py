"""The only code that attaches to live objects. Every tap is a context manager that leaves nothing behind."""

from diffusers_xai.taps.eager import force_eager
from diffusers_xai.taps.modules import edit_output, first_tensor, tap_call, tap_output, with_first_tensor
from diffusers_xai.taps.scheduler import (
    SchedulerStep,
    copy_scheduler,
    noise_level,
    predicted_x0_and_noise,
    scale_model_input,
    tap_step,
)


__all__ = [
    "SchedulerStep",
    "copy_scheduler",
    "edit_output",
    "first_tensor",
    "force_eager",
    "noise_level",
    "predicted_x0_and_noise",
    "scale_model_input",
    "tap_call",
    "tap_output",
    "tap_step",
    "with_first_tensor",
]
