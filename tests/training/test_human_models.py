"""Graph models of TensorFlow.js against sums written out by hand."""

import json

import numpy as np
import pytest
import torch

from tests.training.graph_models import node, write_graph, write_judge_models
from training.human_models import GraphModel
from training.judges import OutsideJudge


RNG = np.random.default_rng(0)


def by_hand(x, kernel, strides, padding, depthwise=False, pool=False):
    """A convolution (or a maximum) of x (height, width, channel), window by window."""
    height, width = kernel if pool else kernel.shape[:2]
    before = [0, 0]
    sizes = []
    for axis, (length, stride) in enumerate(zip((height, width), strides, strict=True)):
        size = x.shape[axis]
        if padding == "SAME":
            sizes.append(-(-size // stride))
            before[axis] = max((sizes[-1] - 1) * stride + length - size, 0) // 2
        else:
            sizes.append((size - length) // stride + 1)
    rows = []
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            total = None
            for a in range(height):
                for b in range(width):
                    y, z = i * strides[0] + a - before[0], j * strides[1] + b - before[1]
                    if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
                        if pool:
                            value = x[y, z]
                        elif depthwise:
                            value = (x[y, z][:, None] * kernel[a, b]).reshape(-1)
                        else:
                            value = x[y, z] @ kernel[a, b]
                        total = value if total is None else np.maximum(total, value) if pool else total + value
            rows.append(total)
    return np.array(rows).reshape(*sizes, -1)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("size", [6, 7])
def test_windows_are_laid_as_by_hand(tmp_path, padding, strides, size):
    kernel = RNG.normal(size=(3, 2, 2, 4)).astype(np.float32)
    depthwise = RNG.normal(size=(3, 3, 2, 2)).astype(np.float32)
    bias = RNG.normal(size=4).astype(np.float32)
    nodes = [
        node(
            "conv",
            "_FusedConv2D",
            "input_1",
            "k",
            "b",
            strides=strides,
            padding=padding,
            fused_ops=["BiasAdd", "Relu"],
        ),
        node("deep", "DepthwiseConv2dNative", "input_1", "d", strides=strides, padding=padding),
        node("pool", "MaxPool", "input_1", strides=strides, ksize=(3, 2), padding=padding),
    ]
    write_graph(tmp_path / "m.json", size, 2, nodes, {"k": kernel, "b": bias, "d": depthwise})
    model = GraphModel(tmp_path / "m.json")
    assert (model.size, model.channels) == (size, 2)
    images = RNG.normal(size=(2, size, size, 2)).astype(np.float32)
    for i, image in enumerate(images.astype(np.float64)):
        expected = {
            "conv": np.maximum(by_hand(image, kernel, strides, padding) + bias, 0),
            "deep": by_hand(image, depthwise, strides, padding, depthwise=True),
            "pool": by_hand(image, (3, 2), strides, padding, pool=True),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(model(torch.from_numpy(images), name)[i], values, atol=1e-5)


def test_arithmetic_and_stored_weights(tmp_path):
    w = RNG.normal(size=(3, 5)).astype(np.float32)
    c = np.array([0.5, -0.25, 2.0], dtype=np.float32)
    nodes = [
        node("mean", "Mean", "input_1", "axes"),
        node("mul", "Mul", "mean", "c:0"),
        node("add", "AddV2", "mul", "c"),
        node("low", "Minimum", "add", "top"),
        node("high", "Maximum", "low", "bottom", "^mul"),
        node("relu", "Relu", "high"),
        node("dense", "_FusedMatMul", "relu", "w", fused_ops=[], transpose_b={"b": False}),
        node("soft", "Softmax", "dense"),
    ]
    weights = {
        "axes": np.array([1, 2], dtype=np.int32), "c": c, "w": w,
        "top": np.float32(0.75), "bottom": np.float32(-0.125),
    }  # fmt: skip
    how = {"w": {"dtype": "float16"}, "c": {"dtype": "uint8", "scale": 0.25, "min": -0.25}}
    write_graph(tmp_path / "m.json", 4, 3, nodes, weights, how)
    images = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    hidden = np.clip(images.mean((1, 2)) * c + c, -0.125, 0.75).clip(0) @ w.astype(np.float16).astype(np.float64)
    expected = np.exp(hidden) / np.exp(hidden).sum(1, keepdims=True)
    np.testing.assert_allclose(GraphModel(tmp_path / "m.json")(torch.from_numpy(images), "soft"), expected, atol=1e-6)


def test_what_is_no_such_model_is_refused(tmp_path):
    write_graph(tmp_path / "m.json", 4, 3, [node("x", "LSTM", "input_1")], {})
    with pytest.raises(ValueError, match=r"expected operations .* got also \['LSTM'\]"):
        GraphModel(tmp_path / "m.json")
    (tmp_path / "n.json").write_text(json.dumps({"format": "layers-model"}))
    with pytest.raises(ValueError, match="expected a graph model of TensorFlow.js in .*n.json"):
        GraphModel(tmp_path / "n.json")
    write_graph(tmp_path / "s.json", 4, 3, [], {"c": np.ones(3, np.float32)})
    (tmp_path / "s.bin").write_bytes(bytes(8))
    with pytest.raises(ValueError, match="s.json"):
        GraphModel(tmp_path / "s.json")
    with pytest.raises(FileNotFoundError):
        GraphModel(tmp_path / "none.json")


def test_the_outside_judge_scores_log_odds(tmp_path):
    write_judge_models(tmp_path / "models")
    judge = OutsideJudge(tmp_path / "models")
    grey = torch.tensor([-0.5, 0.0, 0.9])
    images = grey[:, None, None, None].expand(3, 3, 32, 32)
    scores = judge.scores(images, torch.zeros(3, dtype=torch.long))
    brightness = 255 * (grey.double() + 1) / 2
    happy = torch.exp(grey.double()) / (torch.exp(grey.double()) + 6)  # of seven emotions, six at exp(0)
    expected = torch.stack([brightness / 100 - 1.27, torch.log(happy / (1 - happy))], dim=1)
    torch.testing.assert_close(scores.double(), expected, atol=1e-4, rtol=1e-4)
