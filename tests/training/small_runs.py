"""What the tests of the training share: random pictures with attributes, and small runs on them."""

import io

import datasets
import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from training.checkpoint import list_checkpoints
from training.config import TrainingConfig
from training.train import main


_KINDS = {bool: "bool", np.bool_: "bool", str: "string"}
ATTRIBUTES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")


def write_parquet(path, rows, seed=0, size=20, **columns):
    """Random pictures, `size` x `size`, with attribute columns (random unless given)."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    table = {"image": images} | {name: list(rng.random(rows) < 0.5) for name in ATTRIBUTES} | columns
    features = {"image": datasets.Image()} | {
        name: datasets.Value(_KINDS.get(type(values[0]), "float32"))
        for name, values in table.items()
        if name != "image"
    }
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(path)
    return str(path)


def make_config(settings, **changes):
    return TrainingConfig(**{**settings, **changes})


def run(config_file, data, output, *more):
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    return main(["--config", config_file, "--data", data, "--output", str(output), *more])


def all_tensors(run_folder):
    last = list_checkpoints(run_folder)[-1]
    return last.name, {f"{f.stem}/{k}": t for f in sorted(last.glob("*.safetensors")) for k, t in load_file(f).items()}
