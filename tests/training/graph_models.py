"""Tiny graph models in the format of TensorFlow.js."""

import base64
import json

import numpy as np


def constant(name):
    return {"name": name, "op": "Const", "attr": {}}


def node(name, op, *inputs, **attributes):
    """A node; `strides`, `ksize` and `fused_ops` as lists, `padding` as text, others as they are."""
    encoded = {}
    for key, value in attributes.items():
        if key in ("strides", "ksize"):
            encoded[key] = {"list": {"i": [str(i) for i in (1, *value, 1)]}}
        elif key == "fused_ops":
            encoded[key] = {"list": {"s": [base64.b64encode(v.encode()).decode() for v in value]}}
        elif key == "padding":
            encoded[key] = {"s": base64.b64encode(value.encode()).decode()}
        else:
            encoded[key] = value
    return {"name": name, "op": op, "input": list(inputs), "attr": encoded}


def write_graph(path, size, channels, nodes, weights, quantization=None):
    """Writes the model: `weights` by name as arrays, each stored as `quantization` says, or as it is."""
    entries, data = [], b""
    for name, values in weights.items():
        values = np.asarray(values)
        entry = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        how = (quantization or {}).get(name)
        if how is not None:
            entry["quantization"] = how
            if "scale" in how:
                values = np.round((values - how["min"]) / how["scale"])
            values = values.astype(how["dtype"])
        entries.append(entry)
        data += values.tobytes()
    dims = [{"size": str(i)} for i in (-1, size, size, channels)]
    source = {"name": "input_1", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dims}}}}
    graph = {
        "modelTopology": {"node": [source, *map(constant, weights), *nodes]},
        "weightsManifest": [{"paths": [f"{path.stem}.bin"], "weights": entries}],
    }
    path.write_text(json.dumps(graph))
    path.with_suffix(".bin").write_bytes(data)


def write_judge_models(folder):
    """Two networks with the inputs and outputs of `faceres` and `emotion`: one sees brightness, one contrast."""
    folder.mkdir()
    axes = np.array([1, 2], dtype=np.int32)
    write_graph(
        folder / "faceres.json",
        16,
        3,
        [
            node("mean", "Mean", "input_1", "axes"),
            node("dense", "_FusedMatMul", "mean", "w", "b", fused_ops=["BiasAdd"]),
            node("gender_pred/Sigmoid", "Sigmoid", "dense"),
        ],
        {"axes": axes, "w": np.full((3, 1), 1 / 300, np.float32), "b": np.full(1, -1.27, np.float32)},
    )
    write_graph(
        folder / "emotion.json",
        16,
        1,
        [
            node("max", "Max", "input_1", "axes"),
            node("dense", "_FusedMatMul", "max", "w", "b", fused_ops=["BiasAdd"]),
            node("soft", "Softmax", "dense"),
            node("Identity", "Identity", "soft"),
        ],
        {"axes": axes, "w": np.eye(1, 7, 3, dtype=np.float32), "b": np.zeros(7, np.float32)},
    )
