"""The public names. `diffusers_xai/__init__.py` imports each from its place here when it is first asked for."""

from .checkpoints import demo_checkpoint
from .explainers import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
)
from .interventions import ChannelAblation, LabelSwitch
from .models import ConvNextUNet2DModel, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, ModelMixin
from .pipelines import XAIPipeline, XAIPipelineOutput, covariance_null
from .profile import DiffusionProfile
from .recording import record

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
