"""What to change during a run: one intervention per file."""

from diffusers_xai.interventions.channel_ablation import ChannelAblation
from diffusers_xai.interventions.label_switch import LabelSwitch


__all__ = ["ChannelAblation", "LabelSwitch"]
