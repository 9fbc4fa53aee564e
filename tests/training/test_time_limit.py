"""Runs with `--time-limit`, on a clock that goes on by a second a step."""

import os
import signal

import pytest
import torch

from tests.training.small_runs import all_tensors, run
from training.checkpoint import list_checkpoints, load_checkpoint
from training.log import read_log
from training.schedule import TimeLimit
from training.trainer import Trainer


SETTINGS = ["--set", "max_steps=1000", "--set", "decay_steps=500", "--set", "warmup_steps=9"]
SETTINGS += ["--set", "checkpoint_every=1000", "--set", "validate_every=1000", "--set", "sample_every=1000"]


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed; `clock.at` maps a second to what is then called."""

    class Clock:
        now, at = 0.0, {}

    clock, real = Clock(), Trainer.train_step

    def train_step(trainer):
        real(trainer)
        clock.now += 1
        clock.at.pop(clock.now, lambda: None)()

    monkeypatch.setattr(Trainer, "train_step", train_step)
    limit = lambda seconds, started: TimeLimit(seconds, clock.now, lambda: clock.now)  # noqa: E731
    monkeypatch.setattr("training.train.TimeLimit", limit)
    return clock


def test_a_run_is_fitted_to_its_time(tmp_path, config_file, data_folder, clock):
    assert run(config_file, data_folder, tmp_path / "run", *SETTINGS, "--time-limit", "1") == 0
    records = [r for r in read_log(tmp_path / "run") if "loss" in r]
    steps = records[-1]["step"]
    assert 40 <= steps < 60  # a fifth of the minute at most is for what comes after the last step
    assert {r["planned_steps"] for r in records[9:]} == {steps}
    rates = [r["lr"] / 0.01 for r in records]
    fall = [(steps - step) / (steps / 2) for step in range(steps)]
    assert rates[10:] == pytest.approx([min(1, factor) for factor in fall[10:]], abs=0.03)
    assert rates[-1] < 0.06
    assert rates[1] < rates[2] <= 1  # a tenth of the steps warm up
    assert [p.name for p in (tmp_path / "run").glob("samples-*.png")] == [f"samples-{steps:08d}.png"]
    assert [r["step"] for r in read_log(tmp_path / "run") if "ssim" in r] == [steps]


def test_what_was_stopped_goes_on_to_the_planned_end(tmp_path, config_file, data_folder, clock):
    limited = [*SETTINGS, "--time-limit", "1"]
    assert run(config_file, data_folder, tmp_path / "whole", *limited) == 0
    clock.now, clock.at = 0.0, {35.0: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    assert run(config_file, data_folder, tmp_path / "parts", *limited) == 0
    assert [p.name for p in list_checkpoints(tmp_path / "parts")] == ["checkpoint-00000035"]
    assert run(config_file, data_folder, tmp_path / "parts", *SETTINGS, "--resume") == 0
    (name, whole), (resumed_name, parts) = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "parts")
    assert name == resumed_name
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())

    # It has ended; with more time the learning rate rises and falls once more.
    first = int(name[-8:])
    assert run(config_file, data_folder, tmp_path / "parts", *limited, "--resume") == 0
    rates = {r["step"]: r["lr"] / 0.01 for r in read_log(tmp_path / "parts") if "loss" in r}
    assert rates[first + 1] == 1
    assert rates[max(rates)] < 0.06
    assert max(rates) > first + 40


def test_validation_and_samples_end_with_the_time(tmp_path, config_file, data_folder, clock, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluation.images_that_fill", lambda device, size: 4)

    def slow(images, _others):
        clock.now += 30
        return images.mean((1, 2, 3))

    monkeypatch.setattr("training.evaluation.structural_similarity", slow)
    assert run(config_file, data_folder, tmp_path / "run", *SETTINGS, "--time-limit", "1") == 0
    assert "stopped amid the validation or the samples" in capsys.readouterr().err
    assert len(list_checkpoints(tmp_path / "run")) == 1
    assert not list((tmp_path / "run").glob("samples-*.png"))


def test_checkpoints_follow_the_minutes(tmp_path, config_file, data_folder, monkeypatch):
    saved = []
    real = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda trainer, **state: saved.append(trainer.step) or real(trainer, **state))
    settings = ["--set", "max_steps=5", "--set", "checkpoint_every=100"]
    assert run(config_file, data_folder, tmp_path / "often", *settings, "--checkpoint-minutes", "1e-9") == 0
    assert saved == [1, 2, 3, 4, 5]
    saved.clear()
    assert run(config_file, data_folder, tmp_path / "seldom", *settings) == 0
    assert saved == [5]
    assert load_checkpoint(tmp_path / "often")[1]["step"] == 5


@pytest.mark.parametrize("option", ["--time-limit", "--checkpoint-minutes"])
@pytest.mark.parametrize("minutes", ["0", "inf", "1e+308", "nan"])
def test_a_time_that_is_none_is_refused(tmp_path, config_file, data_folder, option, minutes, capsys):
    with pytest.raises(SystemExit):
        run(config_file, data_folder, tmp_path / "run", option, minutes)
    assert f"expected {option} above 0 and finite, got {minutes}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_time_that_is_over_before_the_first_step_says_so(config_file, data_folder, tmp_path, capsys):
    assert (
        run(config_file, data_folder, tmp_path / "run", "--time-limit", "0.0001", "--export", str(tmp_path / "out"))
        == 1
    )
    error = capsys.readouterr().err
    assert "the 0.0001 minutes of --time-limit were over before the first step" in error
    assert not (tmp_path / "out").exists()
