"""Runs that are killed, that diverge, or that meet a full disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.test_train import all_tensors, run
from training.checkpoint import list_checkpoints, save_checkpoint
from training.trainer import Trainer


ROOT = Path(__file__).parents[2]


def in_new_process(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_same_weights(tmp_path, config_file, data_folder):
    settings = ["--set", "max_steps=400", "--set", "checkpoint_every=2", "--set", "validate_every=1000"]
    settings += ["--set", "sample_every=1000", "--set", "tracker=null"]
    arguments = ["--config", config_file, "--data", data_folder, *settings]
    whole = in_new_process("training/train.py", *arguments, "--output", tmp_path / "whole")
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
    assert "is later than step 2 of --resume" in capsys.readouterr().err
    assert run(config_file, data_folder, tmp_path / "branch", "--resume", str(older)) == 0
    assert all_tensors(tmp_path / "branch")[1].keys() == all_tensors(tmp_path / "run")[1].keys()
