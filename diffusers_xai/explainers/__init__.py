"""What to record: one method per file, with what it taps and how it becomes labelled arrays."""

from diffusers_xai.explainers.activations import Activations
from diffusers_xai.explainers.attention_outputs import AttentionOutputs
from diffusers_xai.explainers.attention_weights import AttentionWeights
from diffusers_xai.explainers.decoded_images import DecodedImages
from diffusers_xai.explainers.gradient_attention import GradientAttention
from diffusers_xai.explainers.gradient_energy import GradientEnergy
from diffusers_xai.explainers.gradient_maps import GradientMaps
from diffusers_xai.explainers.gradient_volume import GradientVolume
from diffusers_xai.explainers.samples import Samples
from diffusers_xai.explainers.word_maps import WordMaps


__all__ = [
    "Activations",
    "AttentionOutputs",
    "AttentionWeights",
    "DecodedImages",
    "GradientAttention",
    "GradientEnergy",
    "GradientMaps",
    "GradientVolume",
    "Samples",
    "WordMaps",
]
