"""The public names. `diffusers_xai/__init__.py` imports each from its place here when it is first asked for."""

from .checkpoints import demo_checkpoint
from .denoisers import Layout, register_layout
from .explainers import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    DecodedImages,
    GradientAttention,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
    WordMaps,
)
from .interventions import ChannelAblation, LabelSwitch, LayerEdit, Patch, PromptSwitch
from .models import ConvNextUNet2DModel, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, ModelMixin
from .pipelines import XAIPipeline, XAIPipelineOutput, covariance_null
from .pipelines.modular import RecordProfile
from .profile import DiffusionProfile
from .recording import plan, record

__all__ = [
    "Activations",
    "AttentionOutputs",
    "AttentionWeights",
    "ChannelAblation",
    "ConvNextUNet2DModel",
    "DecodedImages",
    "DiffusionProfile",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GradientAttention",
    "GradientEnergy",
    "GradientMaps",
    "GradientVolume",
    "LabelSwitch",
    "LayerEdit",
    "Layout",
    "MixtureDenoiser",
    "ModelMixin",
    "Patch",
    "PromptSwitch",
    "RecordProfile",
    "Samples",
    "WordMaps",
    "XAIPipeline",
    "XAIPipelineOutput",
    "covariance_null",
    "demo_checkpoint",
    "plan",
    "record",
    "register_layout",
]
