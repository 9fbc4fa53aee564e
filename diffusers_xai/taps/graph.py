"""Gradients through networks that switch them off."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def keep_graph(network: nn.Module) -> Iterator[None]:
    """Lets methods that `torch.no_grad` decorates take part in a graph; some transformers' experts are such.

    Through instance attributes that are removed at the end.
    """
    with ExitStack() as stack:
        found = False
        for module in network.modules():
            cls: Any = type(module)
            for name, method in _without_graph(cls).items():
                if name not in vars(module):
                    vars(module)[name] = MethodType(method, module)
                    stack.callback(vars(module).pop, name)
                    found = True
        if found:
            stack.enter_context(_Differentiable())
        yield


def check_weights_stay(network: nn.Module) -> None:
    """Refuses a network whose weights are swapped after the forward pass, which a backward pass needs.

    Raises:
        RuntimeError: with what swaps them.
    """
    for module in network.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        group = getattr(hooks.get("group_offloading"), "group", None)
        is_moved = group is not None and torch.device(group.onload_device) != torch.device(group.offload_device)
        if "layerwise_casting" in hooks or is_moved:
            raise RuntimeError(
                "Gradients need the weights of the forward pass: expected a network that keeps them, got one with"
                f" {'group offloading' if is_moved else 'layerwise casting'} ({type(network).__name__})."
            )


class _Differentiable(TorchFunctionMode):
    """Sums in place in the way that autograd can follow through several of them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.scatter_reduce_ and kwargs.get("reduce") == "sum" and len(args) == 4:
            return args[0].scatter_add_(*args[1:])
        return func(*args, **kwargs)


@functools.cache
def _without_graph(cls: type) -> dict[str, Callable[..., Any]]:
    """The methods of a class that are decorated with `torch.no_grad`, without the decorator."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(cls):
        method = getattr(cls, name, None)
        if isinstance(method, FunctionType) and hasattr(method, "__wrapped__"):
            cells = (cell.cell_contents for cell in method.__closure__ or ())
            if any(isinstance(getattr(value, "__self__", None), torch.no_grad) for value in cells):
                found[name] = method.__wrapped__
    return found
