"""Pure functions on batched tensors that measure similarity, distance and activity."""

from diffusers_xai.measures.distance import layer_distance
from diffusers_xai.measures.error import mean_squared_error, peak_signal_to_noise_ratio
from diffusers_xai.measures.masks import (
    as_mask,
    mask_from_box,
    mask_from_drawing,
    mask_from_png,
    mask_from_polygon,
    mask_from_runs,
    mask_to_runs,
)
from diffusers_xai.measures.max_channel import Mask, channel_sums, max_channel, resize_mask, top_channels
from diffusers_xai.measures.registry import MEASURES, Measure
from diffusers_xai.measures.ssim import ssim_contrast, ssim_luminance, ssim_structure, structural_similarity


__all__ = [
    "MEASURES",
    "Mask",
    "Measure",
    "as_mask",
    "channel_sums",
    "layer_distance",
    "mask_from_box",
    "mask_from_drawing",
    "mask_from_png",
    "mask_from_polygon",
    "mask_from_runs",
    "mask_to_runs",
    "max_channel",
    "mean_squared_error",
    "peak_signal_to_noise_ratio",
    "resize_mask",
    "ssim_contrast",
    "ssim_luminance",
    "ssim_structure",
    "structural_similarity",
    "top_channels",
]
