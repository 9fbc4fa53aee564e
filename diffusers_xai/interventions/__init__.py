"""What to change during a run: one intervention per file."""

from diffusers_xai.interventions.channel_ablation import ChannelAblation
from diffusers_xai.interventions.label_switch import LabelSwitch
from diffusers_xai.interventions.layer_edit import LayerEdit
from diffusers_xai.interventions.patch import Patch
from diffusers_xai.interventions.prompt_switch import PromptSwitch


__all__ = ["ChannelAblation", "LabelSwitch", "LayerEdit", "Patch", "PromptSwitch"]
