"""The only code that attaches to live objects. Every tap is a context manager that leaves nothing behind."""

from diffusers_xai.taps.eager import force_eager
from diffusers_xai.taps.modules import edit_output, first_tensor, tap_call, tap_output, with_first_tensor
from diffusers_xai.taps.scheduler import SchedulerStep, noise_level, predicted_x0, tap_step


__all__ = [
    "SchedulerStep",
    "edit_output",
    "first_tensor",
    "force_eager",
    "noise_level",
    "predicted_x0",
    "tap_call",
    "tap_output",
    "tap_step",
    "with_first_tensor",
]
