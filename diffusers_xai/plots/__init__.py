"""Figures of a profile: each function takes a `DiffusionProfile` and returns a `plotly.graph_objects.Figure`."""

from diffusers_xai.plots.channel_maps import channel_map, gradient_attention, gradient_maps, max_channel_maps
from diffusers_xai.plots.curves import attention_distance, layer_distances, run_similarity, ssim_trajectory
from diffusers_xai.plots.gradient_energy import gradient_energy
from diffusers_xai.plots.gradient_volume import gradient_volume
from diffusers_xai.plots.label_sensitivity import label_sensitivity
from diffusers_xai.plots.run_pair import run_pair
from diffusers_xai.plots.strips import attention_strip, process_strip
from diffusers_xai.plots.unet_schematic import unet_schematic
from diffusers_xai.plots.word_maps import word_maps


__all__ = [
    "attention_distance",
    "attention_strip",
    "channel_map",
    "gradient_attention",
    "gradient_energy",
    "gradient_maps",
    "gradient_volume",
    "label_sensitivity",
    "layer_distances",
    "max_channel_maps",
    "process_strip",
    "run_pair",
    "run_similarity",
    "ssim_trajectory",
    "unet_schematic",
    "word_maps",
]
