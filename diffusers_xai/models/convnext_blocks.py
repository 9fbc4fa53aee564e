"""The blocks of a ConvNeXt U-Net: down, mid and up."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from diffusers_xai.models.convnext_attention import ConvNextAttention


class AttentionResidual(nn.Module):
    """`x + attn(x)`; `attn`'s own output is the thesis's layer "fn"."""

    def __init__(self, channels: int, heads: int, head_dim: int, linear: bool, norm_eps: float):
        super().__init__()
        self.attn = ConvNextAttention(channels, heads, head_dim, linear, norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return hidden_states + self.attn(hidden_states)


class ConvNextBlock2D(nn.Module):
    """Depthwise 7x7, time shift, GroupNorm, two 3x3 convs with GELU between, and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int | None, norm_eps: float):
        super().__init__()
        self.time_emb_proj = nn.Linear(temb_channels, in_channels) if temb_channels else None
        self.depthwise_conv = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.net = nn.Sequential(
            nn.GroupNorm(1, in_channels, eps=norm_eps),
            nn.Conv2d(in_channels, 2 * out_channels, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, 2 * out_channels, eps=norm_eps),
            nn.Conv2d(2 * out_channels, out_channels, 3, padding=1),
        )
        same_width = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same_width else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """(B, in_channels, H, W) and the time embedding (B, temb_channels) -> (B, out_channels, H, W)."""
        inner = self._depthwise(hidden_states)
        if self.time_emb_proj is not None and temb is not None:
            inner = inner + self.time_emb_proj(F.gelu(temb))[:, :, None, None]
        return self.net(inner) + self.conv_shortcut(hidden_states)

    def _depthwise(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # On a CPU the gradient of a depthwise kernel takes three times as long in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                return self.depthwise_conv(hidden_states.float())
        return self.depthwise_conv(hidden_states)


class _ConvNextStage(nn.Module):
    """Two ConvNeXt blocks and an attention residual, the content of every block of the U-Net."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable  # set by `enable_gradient_checkpointing`

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, attention: dict):
        super().__init__()
        eps = attention["norm_eps"]
        self.resnets = nn.ModuleList(
            [
                ConvNextBlock2D(in_channels, out_channels, temb_channels, eps),
                ConvNextBlock2D(out_channels, out_channels, temb_channels, eps),
            ]
        )
        self.attentions = nn.ModuleList([AttentionResidual(out_channels, **attention)])

    def _run(self, module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)


class ConvNextDownBlock2D(_ConvNextStage):
    """Returns `(hidden_states, skips)`; where the block does not down-sample, `hidden_states is skips[-1]`."""

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, attention: dict, add_downsample: bool):
        super().__init__(in_channels, out_channels, temb_channels, attention)
        downsampler = (
            nn.Conv2d(out_channels, out_channels, 4, stride=2, padding=1) if add_downsample else nn.Identity()
        )
        self.downsamplers = nn.ModuleList([downsampler])

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2) and one skip (B, out_channels, H, W)."""
        for resnet in self.resnets:
            hidden_states = self._run(resnet, hidden_states, temb)
        skip = self._run(self.attentions[0], hidden_states)
        return self.downsamplers[0](skip), (skip,)


class ConvNextMidBlock2D(_ConvNextStage):
    """The bottleneck: ConvNeXt block, attention residual, ConvNeXt block."""

    def __init__(self, channels: int, temb_channels: int, attention: dict):
        super().__init__(channels, channels, temb_channels, attention)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden_states = self._run(self.resnets[0], hidden_states, temb)
        hidden_states = self._run(self.attentions[0], hidden_states)
        return self._run(self.resnets[1], hidden_states, temb)


class ConvNextUpBlock2D(_ConvNextStage):
    """Takes the skip of its resolution beside the hidden states, and up-samples."""

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, attention: dict):
        super().__init__(2 * in_channels, out_channels, temb_channels, attention)
        self.upsamplers = nn.ModuleList([nn.ConvTranspose2d(out_channels, out_channels, 4, stride=2, padding=1)])

    def forward(
        self, hidden_states: torch.Tensor, res_hidden_states_tuple: tuple[torch.Tensor, ...], temb: torch.Tensor
    ) -> torch.Tensor:
        """(B, in_channels, H, W) and skips of that shape -> (B, out_channels, 2 · H, 2 · W)."""
        hidden_states = torch.cat([hidden_states, res_hidden_states_tuple[-1]], dim=1)
        for resnet in self.resnets:
            hidden_states = self._run(resnet, hidden_states, temb)
        return self.upsamplers[0](self._run(self.attentions[0], hidden_states))
