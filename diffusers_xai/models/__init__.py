"""The thesis's network, and denoisers whose answer is known."""

from diffusers import ModelMixin  # diffusers looks it up beside a class that it loads

from diffusers_xai.models.closed_form import ClosedFormDenoiser
from diffusers_xai.models.empirical_denoiser import EmpiricalDenoiser
from diffusers_xai.models.gaussian_denoiser import GaussianDenoiser
from diffusers_xai.models.mixture_denoiser import MixtureDenoiser
from diffusers_xai.models.unet_convnext_2d import ConvNextUNet2DModel


__all__ = [
    "ClosedFormDenoiser",
    "ConvNextUNet2DModel",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "ModelMixin",
]
