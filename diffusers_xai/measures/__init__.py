"""Pure functions on batched tensors that measure similarity, distance and activity."""

from diffusers_xai.measures.distance import layer_distance
from diffusers_xai.measures.max_channel import channel_sums, max_channel, resize_mask
from diffusers_xai.measures.registry import MEASURES, Measure
from diffusers_xai.measures.ssim import structural_similarity


__all__ = [
    "MEASURES",
    "Measure",
    "channel_sums",
    "layer_distance",
    "max_channel",
    "resize_mask",
    "structural_similarity",
]
