"""Which tokens of layers' outputs come from a network's sample: a call beside the run, with NaN as the sample."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from diffusers_xai.taps.alone import alone, copied, random_state_kept


# Of a tensor, by axis: whether there is anything of the sample at each of its indices.
Origin = Mapping[int, tuple[bool, ...]]
_AXES = (1, 2)  # tokens stand on one of them


def trace(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    call: Callable[[torch.Tensor], tuple[tuple, Mapping[str, Any]]],
    values: torch.Tensor,
    read: Callable[[Any], Sequence[torch.Tensor]],
) -> dict[str, list[list[Origin]]]:
    """Follows NaN from a network's sample into its layers, with attention that looks nowhere.

    A token is then NaN only if it holds a place of the sample itself, and not what it has seen of others: text stays
    text behind the blocks in which it meets an image. The call is no part of the run: no hook of anybody is called,
    and the network keeps nothing of it. One that refuses NaN is called with two samples: what differs is the sample's.

    Args:
        network (`nn.Module`): The network.
        layers (mapping from path to module): Layers of it.
        call (`Callable`): Gives the arguments, positional and by name, of a call with a sample of other values.
        values (`torch.Tensor`): Those of the sample.
        read (`Callable`): Takes the tensors out of a layer's output.

    Returns:
        `dict[str, list[list[Origin]]]`: By layer, of every run of it in the call and each tensor that it puts out.

    Raises:
        Exception: what the network raises, if it cannot be called once more.
    """

    def seen(values: torch.Tensor, note: Callable[[torch.Tensor], Any]) -> dict[str, list[list[Any]]]:
        found: dict[str, list[list[Any]]] = {}

        def keep(path: str, module: nn.Module, args: tuple, output: Any) -> None:
            found.setdefault(path, []).append([note(tensor) for tensor in read(output)])

        with ExitStack() as stack:
            stack.enter_context(random_state_kept(values.device))
            stack.enter_context(alone(network))
            for path, module in layers.items():
                module.register_forward_hook(partial(keep, path))
            stack.enter_context(torch.no_grad())
            stack.enter_context(_InPlace())
            args, kwargs = copied(call(values))
            network(*args, **kwargs)
        return found

    try:
        return seen(torch.full_like(values, torch.nan), _origin)
    except torch.OutOfMemoryError:  # no answer to NaN
        raise
    except Exception:  # whatever a network says to NaN
        one, other = (seen(sample, _signature) for sample in (values, values.flip(-1) * 0.75 + 0.1))
    return {
        path: [
            [_changed(*pair) for pair in zip(*runs, strict=True)] for runs in zip(one[path], other[path], strict=True)
        ]
        for path in one
    }


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


def _signature(tensor: torch.Tensor) -> dict[int, list[float]]:
    """A number for what stands at each index of an axis."""
    if tensor.ndim < 3 or not tensor.is_floating_point():
        return {}
    flat = {axis: tensor.movedim(axis, 0).flatten(1).float() for axis in _AXES}
    return {axis: (of @ torch.linspace(1, 2, of.shape[1]).to(of)).tolist() for axis, of in flat.items()}


def _changed(one: Mapping[int, Sequence[float]], other: Mapping[int, Sequence[float]]) -> Origin:
    return {axis: tuple(a != b for a, b in zip(one[axis], other[axis], strict=True)) for axis in one}
