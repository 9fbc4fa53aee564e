"""Self-attention over the pixels of a ConvNeXt U-Net, linear or softmax."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class LinearAttnProcessor:
    """Linear attention: softmax of q over the head dimension and of k over the positions, then (k v^T) q."""

    def __call__(self, attn: "ConvNextAttention", hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = attn.project_qkv(hidden_states)
        query = query.softmax(dim=-2) * attn.scale
        context = key.softmax(dim=-1) @ value.transpose(-1, -2)
        return attn.project_out(context.transpose(-1, -2) @ query, hidden_states)


class SoftmaxAttnProcessor:
    """Scaled dot-product attention over all pairs of positions."""

    def __call__(self, attn: "ConvNextAttention", hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = (t.transpose(-1, -2) for t in attn.project_qkv(hidden_states))
        out = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.project_out(out.transpose(-1, -2), hidden_states)


class ConvNextAttention(nn.Module):
    """Multi-head self-attention over pixels, with its norm in front and without the residual sum."""

    def __init__(self, channels: int, heads: int, head_dim: int, linear: bool, norm_eps: float):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        inner = heads * head_dim
        self.group_norm = nn.GroupNorm(1, channels, eps=norm_eps)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        conv = nn.Conv2d(inner, channels, 1)
        self.to_out = nn.Sequential(conv, nn.GroupNorm(1, channels, eps=norm_eps)) if linear else conv
        self.processor: Callable = LinearAttnProcessor() if linear else SoftmaxAttnProcessor()

    def get_processor(self) -> Callable:
        """The attention processor in use."""
        return self.processor

    def set_processor(self, processor: Callable) -> None:
        """Uses `processor(attn, hidden_states)` from now on."""
        self.processor = processor

    def project_qkv(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, C, H, W) -> query, key, value, each (B, heads, head_dim, H * W)."""
        qkv = self.to_qkv(self.group_norm(hidden_states))
        return qkv.reshape(qkv.shape[0], 3, self.heads, self.head_dim, -1).unbind(1)

    def project_out(self, heads_out: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, heads, head_dim, H * W) -> (B, C, H, W), the shape of `hidden_states`."""
        batch, _, height, width = hidden_states.shape
        return self.to_out(heads_out.reshape(batch, -1, height, width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.processor(self, hidden_states)
