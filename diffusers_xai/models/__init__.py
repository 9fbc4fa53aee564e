"""The thesis's network, and denoisers whose answer is known."""

from diffusers import ModelMixin  # diffusers looks it up beside a class that it loads
from diffusers.pipelines import pipeline_loading_utils

from diffusers_xai.models.closed_form import ClosedFormDenoiser
from diffusers_xai.models.empirical_denoiser import EmpiricalDenoiser
from diffusers_xai.models.gaussian_denoiser import GaussianDenoiser
from diffusers_xai.models.mixture_denoiser import MixtureDenoiser
from diffusers_xai.models.unet_convnext_2d import ConvNextUNet2DModel


# Lets `DiffusionPipeline.from_pretrained` find our networks by `["diffusers_xai", "ConvNextUNet2DModel"]`: diffusers
# refuses to load a component from a library that it does not know. The registry is private, so that a test holds it.
for _library in ("diffusers_xai", __name__):
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(_library, {})
for _model in (ConvNextUNet2DModel, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser):
    _model.__module__ = "diffusers_xai"

__all__ = [
    "ClosedFormDenoiser",
    "ConvNextUNet2DModel",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "ModelMixin",
]
