"""diffusers' U-Nets built of `Attention` modules."""

from diffusers.models.attention_processor import Attention
from torch import nn

from diffusers_xai.denoisers.base import Denoiser


class UNet2DDenoiser(Denoiser):
    """`UNet2DModel`: `Attention` adds its residual inside, so that the output of its last projection is tapped."""

    def attention_outputs(self) -> dict[str, nn.Module]:
        """Every `Attention` module, read at its last projection."""
        return {path: self.layers[f"{path}.to_out.1"] for path in self.softmax_attention()}

    def softmax_attention(self) -> dict[str, nn.Module]:
        """Every `Attention` module."""
        return {path: module for path, module in self.layers.items() if isinstance(module, Attention)}


class UNet2DConditionDenoiser(UNet2DDenoiser):
    """`UNet2DConditionModel` (Stable Diffusion): self-attention `attn1` and cross-attention `attn2`."""
