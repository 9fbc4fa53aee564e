"""The tests of `make test-gpu`: `TEST_DEVICE=cpu make test-gpu` tries them where there is no GPU."""

import os

import pytest
import torch

from tests.training.conftest import (  # noqa: F401
    accelerate_forgotten,
    config_file,
    data_folder,
    datasets_cache,
    settings,
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device():
    device = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; TEST_DEVICE=cpu tries the same without one")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


@pytest.fixture
def exact_convolutions(monkeypatch):
    """Without TF32, whose errors of a thousandth hide others."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
