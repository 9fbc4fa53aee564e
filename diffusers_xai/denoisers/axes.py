"""Which axis of a layer's output is which, as far as the kind of the layer says."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffusers_xai.denoisers.base import Denoiser
from diffusers_xai.denoisers.call import DenoiserCall


_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_PLAIN_NORMS = (nn.LayerNorm.forward, nn.RMSNorm.forward)


def channel_axis(denoiser: Denoiser, path: str, shape: Sequence[int]) -> int | None:
    """Where channels stand in the output of a layer, of that shape: 1 or -1; `None` where its kind does not say.

    In a sequence, a layer without weights has them where the ones before it do.
    """
    module = denoiser.layers[path]
    axis = _of_kind(module, shape)
    parent, _, index = path.rpartition(".")
    sequence: Any = denoiser.layers.get(parent)
    if axis is None and isinstance(sequence, nn.Sequential) and not any(True for _ in module.children()):
        return _last(list(sequence)[: int(index)], shape)
    return axis


def _of_kind(module: Any, shape: Sequence[int]) -> int | None:
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.Sequential):
        return _last(list(module), shape)
    if any(isinstance(child, _CHANNELS_FIRST) for child in module.modules()):
        return 1
    kind = type(module).__name__
    if "LayerNorm" not in kind and "RMSNorm" not in kind:
        return None
    stated = getattr(module, "normalized_shape", None) or getattr(getattr(module, "weight", None), "shape", None)
    axes = [axis for axis in (-1, 1) if not stated or shape[axis] == stated[-1]]
    is_plain = type(module).forward in _PLAIN_NORMS or "RMSNorm" in kind  # others may turn the axes around
    return axes[0] if len(axes) == 1 or (axes and is_plain) else None


def _last(layers: Sequence[Any], shape: Sequence[int]) -> int | None:
    axes = (_of_kind(child, shape) for child in reversed(layers))
    return next((axis for axis in axes if axis is not None), None)


def channels_come_first(module: nn.Module, tensor: torch.Tensor, call: DenoiserCall) -> bool:
    """Whether a tensor of three dims is (row, channel, token): one-dimensional convolutions, norms over channels."""
    if tensor.ndim != 3:
        return False
    if isinstance(module, (nn.GroupNorm, nn.Conv1d, nn.ConvTranspose1d)):
        return True
    name = type(module).__name__.lower()
    return call.sample.ndim == 3 and ("1d" in name or name in ("resconvblock",))


def token_axis(denoiser: Denoiser, path: str, shape: Sequence[int]) -> int | None:
    """Which of the axes 1 and 2 of an output of attention, or inside it, is tokens, the other one being its heads.

    Args:
        denoiser ([`Denoiser`]): The network.
        path (`str`): The layer.
        shape (sequence of `int`): Of (row, …, …, channel).

    Returns:
        `int` or `None`: `None` if the layer is not inside attention, or there are as many tokens as heads.
    """
    above = [module for name, module in denoiser.attention_layers.items() if f"{path}.".startswith(f"{name}.")]
    widths = {getattr(layer, "out_features", 0) for attention in above for layer in attention.modules()}
    heads = {width // shape[3] for width in widths if width and width % shape[3] == 0}
    axes = [axis for axis in (1, 2) if shape[3 - axis] in heads]
    return axes[0] if len(axes) == 1 else None
