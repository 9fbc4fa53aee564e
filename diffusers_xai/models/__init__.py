"""The thesis's network."""

from diffusers_xai.models.unet_convnext_2d import ConvNextUNet2DModel


__all__ = ["ConvNextUNet2DModel"]
