"""What to record: one method per file, with what it taps and how it becomes labelled arrays."""

from diffusers_xai.explainers.activations import Activations
from diffusers_xai.explainers.attention_maps import AttentionMaps
from diffusers_xai.explainers.attention_weights import AttentionWeights
from diffusers_xai.explainers.gradient_maps import GradientMaps
from diffusers_xai.explainers.gradient_volume import GradientVolume
from diffusers_xai.explainers.plan import RecordingPlan
from diffusers_xai.explainers.recording import Recording
from diffusers_xai.explainers.samples import Samples
from diffusers_xai.explainers.spec import RecordSpec


__all__ = [
    "Activations",
    "AttentionMaps",
    "AttentionWeights",
    "GradientMaps",
    "GradientVolume",
    "RecordSpec",
    "Recording",
    "RecordingPlan",
    "Samples",
]
