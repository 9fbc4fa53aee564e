"""The only code that attaches to live objects. Every tap is a context manager that leaves nothing behind."""

from diffusers_xai.taps.caches import cache_of
from diffusers_xai.taps.eager import force_eager
from diffusers_xai.taps.exclusive import exclusive
from diffusers_xai.taps.graph import check_weights_stay, keep_graph
from diffusers_xai.taps.modules import edit_output, first_tensor, tap_call, tap_output, tap_whole_call, with_tensor
from diffusers_xai.taps.noise import NoiseLevel, noise_level, x0_and_noise
from diffusers_xai.taps.scheduler import SchedulerStep, copy_scheduler, scale_model_input, tap_step


__all__ = [
    "NoiseLevel",
    "SchedulerStep",
    "cache_of",
    "check_weights_stay",
    "copy_scheduler",
    "edit_output",
    "exclusive",
    "first_tensor",
    "force_eager",
    "keep_graph",
    "noise_level",
    "scale_model_input",
    "tap_call",
    "tap_output",
    "tap_step",
    "tap_whole_call",
    "with_tensor",
    "x0_and_noise",
]
