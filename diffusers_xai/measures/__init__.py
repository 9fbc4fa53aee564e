"""Pure functions on batched tensors that measure similarity, distance and activity."""

from diffusers_xai.measures.distance import layer_distance
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
from diffusers_xai.measures.ssim import structural_similarity


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
    "resize_mask",
    "structural_similarity",
    "top_channels",
]
