"""The training on a GPU: no step waits for the device, and what it sees and learns is what the CPU does."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet
from training.batches import BatchStream
from training.config import TrainingConfig, load_config
from training.data import FaceImages, load_splits
from training.evaluate import main as evaluate
from training.judges import HeldOutJudge
from training.log import read_log
from training.optim import orthogonalise
from training.train import main
from training.trainer import Trainer


@pytest.fixture(autouse=True)
def on_device(device, monkeypatch):
    """accelerate takes a GPU where there is one, unless told otherwise."""
    if device.type == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def faces(count=24, size=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return FaceImages(images, torch.randint(0, 16, (count,), generator=generator))


def make_trainer(settings, folder, **changes):
    trainer = Trainer(TrainingConfig(**{**settings, "tracker": None, "max_steps": 100, **changes}), faces(), folder)
    trainer.model.train()
    return trainer


def test_batches_come_through_pinned_memory_as_they_were_drawn(device, settings, monkeypatch):
    config = TrainingConfig(**settings)
    (expected,) = BatchStream(faces(), config, -1, 1000).batches(5)
    pinned, pin = [], torch.Tensor.pin_memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or pin(tensor))
    (got,) = BatchStream(faces(), config, -1, 1000, device=device).batches(5)
    for name in ("labels", "timesteps", "noise"):
        assert getattr(got, name).device.type == device.type
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name))
    torch.testing.assert_close(got.images.cpu(), expected.images, rtol=0, atol=1e-6)
    assert len(pinned) == (5 if device.type == "cuda" else 0)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "mixed_precision": "bf16", "channels_last": True}])
def test_a_step_waits_for_nothing(device, settings, tmp_path, changes):
    trainer = make_trainer(settings, tmp_path, **changes)
    assert trainer.accelerator.device.type == device.type
    for _ in range(3):
        trainer.train_step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert not trainer.losses
    trainer.read_losses()
    assert len(trainer.losses) == 6


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_losses_are_those_of_the_cpu(device, settings, tmp_path, monkeypatch, precision):
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("half precision of convolutions is the GPU's")
    trainer = make_trainer(settings, tmp_path, mixed_precision=precision, learning_rate=1e-4)
    for _ in range(4):
        trainer.train_step()
    trainer.read_losses()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    alone = make_trainer(settings, tmp_path, learning_rate=1e-4)
    for _ in range(4):
        alone.train_step()
    alone.read_losses()
    assert trainer.losses == pytest.approx(alone.losses, rel=1e-3 if precision == "no" else 5e-2)


def test_orthogonalised_kernels_are_those_of_the_cpu(device):
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(shape, generator=generator) for shape in [(64, 576), (64, 576), (128, 64), (96, 96)]]
    for expected, got in zip(orthogonalise(kernels), orthogonalise([k.to(device) for k in kernels]), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-3)


def test_a_resumed_run_ends_as_an_uninterrupted_one(device, tmp_path, config_file, data_folder):
    def run(output, *more):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main(["--config", config_file, "--data", data_folder, "--output", str(output), *more]) == 0
        return {r["step"]: r["loss"] for r in read_log(output) if "loss" in r}

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", "--set", "max_steps=2")
    parts = run(tmp_path / "parts", "--resume")
    assert list(parts) == list(whole) == [1, 2, 3, 4]
    # Kernels of a GPU add up gradients in any order.
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=0 if device.type == "cpu" else 1e-3)


def test_evaluate_takes_a_device(device, tmp_path, config_file, data_folder):
    XAIPipeline(convnext_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    arguments = ["--checkpoint", str(tmp_path / "pipe"), "--config", config_file, "--data", data_folder]
    arguments += ["--guidance", "1", "--per-label", "2", "--steps", "2", "--least-images", "2"]
    arguments += ["--judge", str(tmp_path / "judge")]
    attributes = convnext_unet().config.class_attributes
    _, validation = load_splits(data_folder, None, load_config(config_file), attributes)
    HeldOutJudge.train(validation, attributes, steps=2).save(tmp_path / "judge")
    results = []
    for name in ("cpu", str(device)):
        assert evaluate([*arguments, "--output", str(tmp_path / name), "--device", name]) == 0
        results.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    for expected, got in zip(results[0]["buckets"], results[1]["buckets"], strict=True):
        assert got == pytest.approx(expected, rel=1e-2)
    assert (tmp_path / str(device) / "samples.png").is_file()
