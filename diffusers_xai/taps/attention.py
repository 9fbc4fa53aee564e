"""A tap on softmax attention."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


# (layer, query, key, keyword arguments of the call): query (batch, head, tokens, width), key (batch, head, …, width).
AttentionCallback = Callable[[str, torch.Tensor, torch.Tensor, dict[str, Any]], None]


class _AttentionMode(TorchFunctionMode):
    def __init__(self, active: list[str], callback: AttentionCallback):
        super().__init__()
        self._active = active
        self._callback = callback

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._active:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            self._callback(self._active[-1], arguments.pop("query"), arguments.pop("key"), arguments)
        return func(*args, **kwargs)


@contextmanager
def tap_attention(layers: Mapping[str, nn.Module], callback: AttentionCallback) -> Iterator[None]:
    """Calls `callback` for every `F.scaled_dot_product_attention` inside one of `layers`. The attention runs as it is.

    Args:
        layers (mapping from path to module): Attention modules.
        callback (`Callable`): Receives the layer's path, query, key, and the call's other arguments by name.
    """
    active: list[str] = []
    with ExitStack() as stack:
        for path, module in layers.items():
            enter = module.register_forward_pre_hook(lambda module, args, path=path: active.append(path))
            leave = module.register_forward_hook(lambda *_: active.pop() and None)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(_AttentionMode(active, callback))
        yield
