"""The thesis's network."""

from diffusers import ModelMixin  # diffusers looks it up beside a class that it loads

from diffusers_xai.models.unet_convnext_2d import ConvNextUNet2DModel


__all__ = ["ConvNextUNet2DModel", "ModelMixin"]
