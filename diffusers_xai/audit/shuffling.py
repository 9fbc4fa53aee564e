"""Another model of the same make: parameters that have lost what they were trained to."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def shuffled(module: nn.Module, of: set[str] | None = None, seed: int = 0) -> nn.Module:
    """A copy of a network in which the numbers of each parameter have changed places among themselves.

    Every parameter keeps its distribution, so that activations keep their size, whatever kind of layer it is.

    Args:
        module (`nn.Module`): The network.
        of (`set[str]`, *optional*): Paths of the modules whose own parameters are shuffled; all of them if `None`.
        seed (`int`, defaults to 0): Of the places.
    """
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for path, part in other.named_modules():
            if of is None or path in of:
                for parameter in part.parameters(recurse=False):
                    order = torch.randperm(parameter.numel(), generator=generator)
                    parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other


def from_the_output(module: nn.Module, call: Callable[[], Any]) -> list[str]:
    """Paths of the modules that have parameters of their own, the last one that runs first.

    Args:
        module (`nn.Module`): The network.
        call (`Callable`): Runs it once.
    """
    order: dict[str, int] = {}
    handles = [
        part.register_forward_hook(
            lambda *_, path=path: order.__setitem__(path, len(order)) if path not in order else None
        )
        for path, part in module.named_modules()
        if any(True for _ in part.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return sorted(order, key=lambda path: -order[path])
