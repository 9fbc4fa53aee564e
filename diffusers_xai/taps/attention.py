"""A tap on softmax attention, whichever function computes it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


_SOFTMAX = frozenset([torch.softmax, F.softmax, torch.Tensor.softmax])
_SEEN = _SOFTMAX | {F.scaled_dot_product_attention}


@dataclass(frozen=True)
class AttentionCall:
    """One softmax attention: query and key, or the weights themselves where the layer computes them.

    Attributes:
        query (`torch.Tensor` of shape `(batch, head, query, width)`, *optional*): The queries.
        key (`torch.Tensor` of shape `(batch, head, key, width)`, *optional*): The keys.
        arguments (`dict`): `attn_mask`, `is_causal` and `scale` as given to `F.scaled_dot_product_attention`.
        probabilities (`torch.Tensor`, *optional*): The weights, (batch · head, query, key) or (batch, head, query,
            key).
    """

    query: torch.Tensor | None
    key: torch.Tensor | None
    arguments: Mapping[str, Any]
    probabilities: torch.Tensor | None = None

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows (batch, or batch times head), queries and keys."""
        if self.probabilities is not None:
            return self.probabilities.shape[0], self.probabilities.shape[-2], self.probabilities.shape[-1]
        if self.query is None or self.key is None:
            raise ValueError("Expected queries and keys, or weights.")
        return self.query.shape[0], self.query.shape[-2], self.key.shape[-2]

    @property
    def form(self) -> tuple[torch.Size, ...]:
        """The shapes that it was given."""
        return tuple(tensor.shape for tensor in (self.query, self.key, self.probabilities) if tensor is not None)

    def rows_and_heads(self, heads: int) -> tuple[int, int]:
        """Rows of the batch, and heads, of which there are `heads` where the batch holds them."""
        given = self.query if self.probabilities is None else self.probabilities
        if given is None or given.ndim == 3:
            return self.shape[0] // heads, heads
        return given.shape[0], given.shape[1]

    def weights(self, queries: torch.Tensor | slice, heads: int, device: str | None = None) -> torch.Tensor:
        """The weights (batch, head, query, key) of some queries, float32; rows sum to 1.

        Args:
            queries (`torch.Tensor` of shape `(query,)` or `slice`): Their indices.
            heads (`int`): Number of heads, where the batch holds them.
            device (`str`, *optional*): Where to compute; "meta" for the shape alone.
        """

        def at(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if device is None else tensor.to(device)

        rows = queries if isinstance(queries, slice) else at(queries)
        if self.probabilities is not None:
            given = at(self.probabilities)
            batched = given if given.ndim == 4 else given.unflatten(0, (-1, heads))
            return batched[..., rows, :].float()
        if self.query is None or self.key is None:
            raise ValueError("Expected queries and keys, or weights.")
        query, key = at(self.query), at(self.key)
        if key.shape[1] != query.shape[1]:  # heads share keys
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scale = self.arguments.get("scale") or query.shape[-1] ** -0.5
        query, key = query[..., rows, :].float(), key.float()
        if key.shape[-2] < query.shape[-2]:  # of a text: to scale them costs less
            key = key * scale
        else:
            query = query * scale
        scores = query @ key.transpose(-1, -2)
        mask = self.arguments.get("attn_mask")
        if mask is not None:
            added = at(mask)[..., rows, :] if mask.shape[-2] > 1 else at(mask)
            if added.dtype == torch.bool:
                added = torch.zeros_like(added, dtype=torch.float32).masked_fill(~added, -torch.inf)
            scores = scores + added.float()
        if self.arguments.get("is_causal"):
            present = torch.arange(self.shape[1], device=scores.device)[rows]
            future = torch.arange(key.shape[-2], device=scores.device) > present[:, None]
            scores = scores.masked_fill(future, -torch.inf)
        return scores.softmax(dim=-1) if scores.requires_grad else torch.softmax(scores, dim=-1, out=scores)


# (layer, rows of its input, the attentions that it computed in one run).
AttentionCallback = Callable[[str, int, list[AttentionCall]], None]


class _AttentionMode(TorchFunctionMode):
    """Sees every function of torch while a layer runs; remembers those that compute attention.

    Of the modes in `active`, the last one alone looks: that of the innermost layer.
    """

    def __init__(self, active: list["_AttentionMode"]):
        super().__init__()
        self._active = active
        self.rows = 0
        self.calls: list[AttentionCall] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in _SEEN or self._active[-1] is not self:
            return func(*args, **kwargs) if kwargs else func(*args)  # every function in a layer comes here
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            query, key = arguments.pop("query"), arguments.pop("key")
            arguments.pop("value", None)
            self.calls.append(AttentionCall(query, key, arguments))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if result.ndim in (3, 4):
            self.calls.append(AttentionCall(None, None, {}, result))
        return result


@contextmanager
def tap_attention(
    layers: Mapping[str, nn.Module], callback: AttentionCallback, looks: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Calls `callback` for every run of one of `layers` with the softmax attentions in it. They run as they are.

    Attention is seen where it goes through `F.scaled_dot_product_attention` or a softmax of torch; of a layer inside
    another one, by the inner one.

    Args:
        layers (mapping from path to module): Attention modules.
        callback (`Callable`): Receives the layer's path, the rows of its input and its attentions, in order.
        looks (`Callable`): Whether to look at the run of a layer that begins.
    """
    active: list[_AttentionMode] = []  # only while a layer runs: each function of torch takes longer under a mode
    modes = {path: _AttentionMode(active) for path in layers}

    def enter(path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if looks():
            mode = modes[path]
            mode.calls = []
            mode.rows = next(
                (value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), 0
            )
            active.append(mode)
            mode.__enter__()

    def leave(path: str, module: nn.Module, args: tuple, output: Any) -> None:
        mode = modes[path]
        if not active or active[-1] is not mode:
            return  # not looked at, or failed before it was entered
        active.pop().__exit__(None, None, None)
        calls, mode.calls = mode.calls, []
        if output is not None:  # else the layer has failed
            with torch._C.DisableTorchFunction():  # what the callback computes is no attention of a layer around it
                callback(path, mode.rows, calls)

    def clear() -> None:
        while active:  # an interruption, of which no hook is told
            active.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        stack.callback(clear)
        for path, module in layers.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(partial(leave, path), always_call=True).remove)
        yield


def check_backends(layers: Mapping[str, nn.Module]) -> None:
    """Refuses attention layers whose weights cannot be seen: those of other backends than PyTorch's own.

    Raises:
        ValueError: with the layers and what they use.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    native = {AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH, AttentionBackendName._NATIVE_CUDNN}
    native |= {AttentionBackendName._NATIVE_EFFICIENT, AttentionBackendName._NATIVE_FLASH}
    active = _AttentionBackendRegistry.get_active_backend()[0]
    for path, module in layers.items():
        processor = getattr(module, "processor", None)
        dispatched = hasattr(type(processor), "_attention_backend")
        backend = getattr(processor, "_attention_backend", None) or (active if dispatched else None)
        name = type(processor).__name__
        foreign = name if any(word in name for word in ("XFormers", "NPU", "XLA")) else None
        if backend is not None and AttentionBackendName(backend) not in native:
            foreign = str(AttentionBackendName(backend).value)
        if foreign is not None:
            raise ValueError(
                f"AttentionWeights: expected attention that PyTorch computes, got {foreign} in {path}. Call"
                " `set_attention_backend('native')` or `set_default_attn_processor()` on the denoiser before."
            )
