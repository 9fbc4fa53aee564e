"""What to change during a run: one intervention per file."""

from diffusers_xai.interventions.channel_ablation import ChannelAblation
from diffusers_xai.interventions.label_switch import LabelSwitch
from diffusers_xai.interventions.spec import Edits, EditSpec, check_samples, count_samples, edits_with_samples


__all__ = [
    "ChannelAblation",
    "EditSpec",
    "Edits",
    "LabelSwitch",
    "check_samples",
    "count_samples",
    "edits_with_samples",
]
