"""Explain how a diffusion model makes its image: the diffusion profile for diffusers."""

from diffusers import ModelMixin  # diffusers looks it up here when it loads our network

from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.explainers import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
)
from diffusers_xai.hub.registry import register_with_diffusers
from diffusers_xai.interventions import ChannelAblation, LabelSwitch
from diffusers_xai.models import ConvNextUNet2DModel, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from diffusers_xai.pipelines import XAIPipeline, XAIPipelineOutput, covariance_null
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import record


for _model in (ConvNextUNet2DModel, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser):
    register_with_diffusers(_model)

__all__ = [
    "Activations",
    "AttentionOutputs",
    "AttentionWeights",
    "ChannelAblation",
    "ConvNextUNet2DModel",
    "DiffusionProfile",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GradientEnergy",
    "GradientMaps",
    "GradientVolume",
    "LabelSwitch",
    "MixtureDenoiser",
    "ModelMixin",
    "Samples",
    "XAIPipeline",
    "XAIPipelineOutput",
    "covariance_null",
    "demo_checkpoint",
    "record",
]
