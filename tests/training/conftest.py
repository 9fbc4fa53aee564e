import io
import json

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image


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


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny layers lose more time at the threads' barriers than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def accelerate_forgotten():
    """accelerate keeps the precision of a process's first run; every test begins as a new process does."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def data_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train.parquet", 40, seed=1)
    write_parquet(folder / "validation.parquet", 9, seed=2)
    return str(folder)


@pytest.fixture
def settings():
    """A tiny run: 16 px, two widths, three steps."""
    return {
        "model": {"sample_size": 16, "block_out_channels": [4, 8], "attention_head_dim": 4, "class_encoding": "bits"},
        "scheduler": {"beta_schedule": "linear", "prediction_type": "v_prediction"},
        "batch_size": 3,
        "max_steps": 4,
        "learning_rate": 0.01,
        "min_snr_gamma": 5.0,
        "loss": "l2",
        "class_balance": 0.5,
        "log_every": 1,
        "validate_every": 4,
        "sample_every": 4,
        "checkpoint_every": 2,
        "validation_images": 5,
        "validation_timesteps": [100, 800],
        "sample_labels": [0, 5],
        "samples_per_label": 2,
        "sample_steps": 2,
    }


@pytest.fixture
def config_file(tmp_path, settings):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    return str(path)
