"""Looks at a network before a run: the shapes of its layers' outputs, and how long it takes."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from diffusers_xai.taps.modules import first_tensor


def probe_outputs(layers: Mapping[str, nn.Module], forward: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """Runs `forward` once and tells what every layer puts out.

    Args:
        layers (mapping from `str` to `nn.Module`): The layers by path.
        forward (`Callable`): Runs the network.

    Returns:
        `dict[str, torch.Tensor]`: Path -> the main output of one row (1, …), a tensor without data (device "meta"), of
        the layers that ran and put out a batched tensor.
    """
    outputs: dict[str, torch.Tensor] = {}

    def look(path: str, output: Any) -> None:
        try:
            tensor = first_tensor(output)
        except TypeError:
            return
        if tensor.ndim > 0:
            outputs[path] = torch.empty((1, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")

    with ExitStack() as stack:
        for path, module in layers.items():
            handle = module.register_forward_hook(lambda module, args, output, path=path: look(path, output))
            stack.callback(handle.remove)
        forward()
    return outputs


def shortest_time(call: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Seconds of the quickest of several calls: the first ones make caches, others are held up."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))
