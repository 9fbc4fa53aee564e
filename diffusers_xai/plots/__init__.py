"""Figures of a profile: each function takes a `DiffusionProfile` and returns a `plotly.graph_objects.Figure`."""

from diffusers_xai.plots.attention_strip import attention_strip
from diffusers_xai.plots.layer_distances import layer_distances
from diffusers_xai.plots.max_channel_maps import max_channel_maps
from diffusers_xai.plots.process_strip import process_strip
from diffusers_xai.plots.ssim_trajectory import ssim_trajectory


__all__ = ["attention_strip", "layer_distances", "max_channel_maps", "process_strip", "ssim_trajectory"]
