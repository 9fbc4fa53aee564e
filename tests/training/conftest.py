import json

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.training.small_runs import write_parquet


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny layers lose more time at the threads' barriers than they gain; runs that are compared have equally many."""
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
