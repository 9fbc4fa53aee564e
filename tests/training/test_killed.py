"""Runs that are killed, that diverge, or that meet a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import environment
from tests.training.small_runs import all_tensors, run
from training.checkpoint import list_checkpoints, save_checkpoint
from training.log import read_log
from training.trainer import Trainer


ROOT = Path(__file__).parents[2]


def in_new_process(*arguments):
    command, variables = [sys.executable, *map(str, arguments)], environment(OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_same_weights(tmp_path, config_file, data_folder):
    settings = ["--set", "max_steps=400", "--set", "checkpoint_every=2", "--set", "validate_every=1000"]
    settings += ["--set", "sample_every=1000", "--set", "tracker=null"]
    arguments = ["--config", config_file, "--data", data_folder, *settings]
    whole = in_new_process("-m", "training.train", *arguments, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    killing = ["-m", "tests.training.killed_run", 20, 7, 1.5, 18]
    done = in_new_process(*killing, *arguments, "--output", tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["20"]

    (name, expected), (killed_name, tensors) = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "killed")
    assert name == killed_name == "checkpoint-00000400"
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in expected.items())
    logs = [(tmp_path / f / "log.jsonl").read_text().splitlines() for f in ("whole", "killed")]
    losses = [[(r["step"], r["loss"]) for r in map(json.loads, log) if "loss" in r] for log in logs]
    assert losses[0] == losses[1]
    assert not list((tmp_path / "killed").glob(".partial-*"))


def test_a_save_cut_off_anywhere_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    tensors = {name: {"w": torch.arange(4.0)} for name in ("model", "ema", "optimizer")}
    save_checkpoint(tmp_path, 1, tensors, {"seed": 0}, keep=1)
    calls = []

    def cut_off(function):
        def wrapped(*arguments, **kwargs):
            calls.append(function.__name__)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return function(*arguments, **kwargs)

        return wrapped

    monkeypatch.setattr("training.checkpoint.save_file", cut_off(sys.modules["training.checkpoint"].save_file))
    monkeypatch.setattr(os, "fsync", cut_off(os.fsync))
    for stop_at in range(1, 20):
        calls.clear()
        try:
            save_checkpoint(tmp_path, 1 + stop_at, tensors, {"seed": 0}, keep=1)
        except KeyboardInterrupt:
            (kept,) = list_checkpoints(tmp_path)[:1]
            assert (kept / "state.json").is_file()
            assert len(list(kept.glob("*.safetensors"))) == 3
        else:
            break
    assert calls == ["save_file"] * 3 + ["fsync"] * 6  # three files, the state, and two folders


def test_a_full_disk_stops_with_the_last_checkpoint_kept(tmp_path, config_file, data_folder, monkeypatch, capsys):
    real = sys.modules["training.checkpoint"].save_file

    def full_after_two(tensors, path):
        if Path(path).parent.name.endswith("00000004"):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr("training.checkpoint.save_file", full_after_two)
    assert run(config_file, data_folder, tmp_path / "run") == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: training stopped: [Errno 28] No space")
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000002"]
    assert not list((tmp_path / "run").glob(".partial-*"))
    monkeypatch.undo()
    assert run(config_file, data_folder, tmp_path / "run", "--resume") == 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_stops_with_the_last_checkpoint_kept(
    tmp_path, config_file, data_folder, monkeypatch, capsys, what
):
    real = Trainer._loss

    def poisoned(trainer, batch):
        loss = real(trainer, batch)
        if trainer.step != 3:
            return loss
        # The gradient of sqrt at 0 is infinite.
        return loss * float("nan") if what == "loss" else loss + (0 * trainer.network.conv_out.bias.sum()).abs().sqrt()

    monkeypatch.setattr(Trainer, "_loss", poisoned)
    assert run(config_file, data_folder, tmp_path / "run") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: training stopped: step 4 has the loss ")
    assert "checkpoint-00000002" in error
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000002"]


def test_a_branch_does_not_overwrite_later_checkpoints(tmp_path, config_file, data_folder, capsys):
    run(config_file, data_folder, tmp_path / "run")
    older = tmp_path / "run" / "checkpoint-00000002"
    assert run(config_file, data_folder, tmp_path / "run", "--resume", str(older)) == 2
    assert "no checkpoint later than step 2 of --resume" in capsys.readouterr().err
    assert run(config_file, data_folder, tmp_path / "branch", "--resume", str(older)) == 0
    assert all_tensors(tmp_path / "branch")[1].keys() == all_tensors(tmp_path / "run")[1].keys()


def call_during(monkeypatch, what, call):
    """Calls `call` in the first batch of the validation, or before the first of the samples."""
    module, name = {
        "validation": ("training.evaluation", "prediction_errors"),
        "samples": ("training.sampling", "images_that_fill"),
    }[what]
    real = getattr(sys.modules[module], name)

    def watched(*arguments):
        call()
        return real(*arguments)

    monkeypatch.setattr(f"{module}.{name}", watched)


@pytest.mark.parametrize("what", ["validation", "samples"])
@pytest.mark.parametrize("last", [True, False])
def test_a_signal_amid_validation_or_samples_saves_and_stops(
    tmp_path, config_file, data_folder, monkeypatch, capsys, what, last
):
    # All of a run's measures at step 3, which no checkpoint is due at, or at its last step.
    changes = [] if last else ["--set", "validate_every=3", "--set", "sample_every=3"]
    monkeypatch.setattr("training.evaluation.images_that_fill", lambda device, size: 4)
    assert run(config_file, data_folder, tmp_path / "whole", *changes) == 0
    with monkeypatch.context() as patch:
        call_during(patch, what, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(config_file, data_folder, tmp_path / "stopped", *changes) == 0
    step = 4 if last else 3
    error = capsys.readouterr().err
    assert f"stopped amid the validation or the samples of step {step}" in error
    assert f"stopped after step {step}; --resume continues from there" in error
    assert list_checkpoints(tmp_path / "stopped")[-1].name == f"checkpoint-{step:08d}"
    assert any("ssim" in record for record in read_log(tmp_path / "stopped")) == (what == "samples")
    assert not (tmp_path / "stopped" / f"samples-{step:08d}.png").exists()

    # Resumed, it makes up for what it was stopped in, and ends as if nothing had been.
    assert run(config_file, data_folder, tmp_path / "stopped", *changes, "--resume") == 0
    (name, expected), (stopped_name, got) = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "stopped")
    assert name == stopped_name
    assert all(torch.equal(tensor, got[key]) for key, tensor in expected.items())
    logs = [read_log(tmp_path / folder) for folder in ("whole", "stopped")]
    for key in ("loss", "ssim", "l1", "noise_mse/800"):
        assert [(r["step"], r[key]) for r in logs[0] if key in r] == [(r["step"], r[key]) for r in logs[1] if key in r]
    pictures = [sorted((tmp_path / folder).glob("samples-*.png")) for folder in ("whole", "stopped")]
    assert [p.name for p in pictures[0]] == [p.name for p in pictures[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures, strict=True))


def test_a_run_that_diverges_between_two_lines_of_the_log_writes_no_checkpoint(
    tmp_path, config_file, data_folder, monkeypatch, capsys
):
    real = Trainer._loss
    monkeypatch.setattr(
        Trainer, "_loss", lambda trainer, batch: real(trainer, batch) * (float("nan") if trainer.step == 2 else 1)
    )
    settings = ["--set", "log_every=100", "--set", "max_steps=20"]
    assert run(config_file, data_folder, tmp_path / "run", *settings) == 1
    assert "step 3 has the loss nan" in capsys.readouterr().err
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000002"]
    tensors = all_tensors(tmp_path / "run")[1]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_line_of_the_log_that_spans_a_checkpoint_is_that_of_an_uninterrupted_run(tmp_path, config_file, data_folder):
    settings = ["--set", "log_every=4"]
    assert run(config_file, data_folder, tmp_path / "whole", *settings) == 0
    assert run(config_file, data_folder, tmp_path / "parts", *settings, "--set", "max_steps=3") == 0
    assert run(config_file, data_folder, tmp_path / "parts", *settings, "--resume") == 0
    logs = [[(r["step"], r["loss"]) for r in read_log(tmp_path / f) if "loss" in r] for f in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 1
