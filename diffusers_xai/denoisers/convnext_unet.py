"""The thesis's ConvNeXt U-Net."""

from functools import cached_property
from typing import cast

from torch import nn

from diffusers_xai.denoisers.base import Denoiser


class ConvNextUNetDenoiser(Denoiser):
    """`ConvNextUNet2DModel`: layers also go by the names of *The Annotated Diffusion Model*."""

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Article paths (`downs.1.2.fn`) -> module paths."""
        return cast(dict[str, str], self.module.layer_aliases)

    def attention_outputs(self) -> dict[str, nn.Module]:
        """The layers "fn": attention with its norm, before the residual sum."""
        return {path: module for path, module in self.layers.items() if path.endswith(".attn")}

    def softmax_attention(self) -> dict[str, nn.Module]:
        """The bottleneck's attention, where its config says softmax."""
        if self.module.config.mid_attention_type != "softmax":
            return {}
        return {path: module for path, module in self.attention_outputs().items() if path.startswith("mid_block.")}
