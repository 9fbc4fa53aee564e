"""What a model family is: its layers, tokens -> grid, guidance branches. The default serves any denoiser."""

from diffusers_xai.denoisers.base import Denoiser, stated_channels
from diffusers_xai.denoisers.call import DenoiserCall
from diffusers_xai.denoisers.find import get_denoiser, networks_of
from diffusers_xai.denoisers.layouts import Layout, layout_of, register_layout


__all__ = [
    "Denoiser",
    "DenoiserCall",
    "Layout",
    "get_denoiser",
    "layout_of",
    "networks_of",
    "register_layout",
    "stated_channels",
]
