"""Which tokens of layers' outputs come from a network's sample: a call beside the run, with NaN as the sample."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


# Of a tensor, by axis: whether there is anything of the sample at each of its indices.
Origin = Mapping[int, tuple[bool, ...]]
_AXES = (1, 2)  # tokens stand on one of them


def trace(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    args: tuple,
    kwargs: Mapping[str, Any],
    read: Callable[[Any], Sequence[torch.Tensor]],
) -> dict[str, list[list[Origin]]]:
    """Follows NaN from a network's sample into its layers, with attention that looks nowhere.

    A token is then NaN only if it holds a place of the sample itself, and not what it has seen of others: text stays
    text behind the blocks in which it meets an image. The call is no part of the run: no hook of anybody is called.

    Args:
        network (`nn.Module`): The network.
        layers (mapping from path to module): Layers of it.
        args (`tuple`): Positional arguments, the sample's values being NaN.
        kwargs (mapping): Arguments by name.
        read (`Callable`): Takes the tensors out of a layer's output.

    Returns:
        `dict[str, list[list[Origin]]]`: By layer, of every run of it in the call and each tensor that it puts out.
    """
    found: dict[str, list[list[Origin]]] = {}

    def note(path: str, module: nn.Module, args: tuple, output: Any) -> None:
        found.setdefault(path, []).append([_origin(tensor) for tensor in read(output)])

    with ExitStack() as stack:
        stack.enter_context(_alone(network))
        for path, module in layers.items():
            module.register_forward_hook(partial(note, path))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_InPlace())
        network(*args, **kwargs)
    return found


class _InPlace(TorchFunctionMode):
    """Attention in which every query keeps to itself."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
        query, width = given["query"], given["value"].shape[-1]
        return query[..., :1].expand(*query.shape[:-1], width).contiguous()


def _origin(tensor: torch.Tensor) -> Origin:
    if tensor.ndim < 3 or not tensor.is_floating_point():
        return {}
    is_sample = tensor.isnan()
    return {axis: tuple(is_sample.movedim(axis, 0).flatten(1).any(dim=1).tolist()) for axis in _AXES}


@contextmanager
def _alone(network: nn.Module) -> Iterator[None]:
    """Takes hooks off a network's modules, puts them in evaluation and attention on PyTorch's own functions."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    own = ("_forward_hooks", "_forward_pre_hooks")
    modules = list(network.modules())
    before = [(module, {name: vars(module)[name] for name in own}, module.training) for module in modules]
    processors: list[Any] = [
        module.processor for module in modules if hasattr(getattr(module, "processor", None), "__dict__")
    ]
    backends = [(processor, vars(processor)["_attention_backend"]) for processor in processors
                if "_attention_backend" in vars(processor)]  # fmt: skip
    active = _AttentionBackendRegistry._active_backend
    try:
        for module in modules:
            vars(module).update({name: type(vars(module)[name])() for name in own}, training=False)
        for processor, _ in backends:
            processor._attention_backend = None
        if active is not AttentionBackendName.NATIVE:
            _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        yield
    finally:
        if active is not AttentionBackendName.NATIVE:
            _AttentionBackendRegistry.set_active_backend(active)
        for processor, backend in backends:
            processor._attention_backend = backend
        for module, hooks, is_training in before:
            vars(module).update(hooks, training=is_training)
