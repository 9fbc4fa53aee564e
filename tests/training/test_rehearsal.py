"""Settings that cannot work, and runs that would change their meaning, are refused before a picture is read."""

import dataclasses
import json

import pytest

from tests.training.small_runs import run, write_parquet
from training import train
from training.checkpoint import load_checkpoint
from training.config import FIXED_SETTINGS, load_config
from training.rehearsal import check_same_run


TINY = {"sample_size": 16, "block_out_channels": [4, 8], "attention_head_dim": 4}


def settings_of(model=None, scheduler=None, **changes):
    parts = {"model": {**TINY, **model} if model is not None else None, "scheduler": scheduler, **changes}
    return [
        part for name, value in parts.items() if value is not None for part in ("--set", f"{name}={json.dumps(value)}")
    ]


@pytest.fixture
def no_pictures(monkeypatch):
    def read(*_):
        raise AssertionError("pictures were read")

    monkeypatch.setattr(train, "load_splits", read)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"in_channels": 1, "out_channels": 1}}, "model.in_channels 3 (images are RGB), got 1"),
        ({"model": {"out_channels": 6}}, "expected model.out_channels 3"),
        ({"model": {"sample_size": 18, "block_out_channels": [4] * 3}}, "model.sample_size divisible by 4 for the 3"),
        ({"model": {"sample_size": [16, 24]}}, "expected model.sample_size as a whole number of at least 7"),
        ({"model": {"sample_size": 4}}, "sample_size as a whole number of at least 7 (images are square), got 4"),
        ({"model": {"sample_size": "16"}}, "model.sample_size as a whole number"),
        ({"model": {"sample_size": True}}, "model.sample_size as a whole number"),
        ({"model": {"block_out_channels": []}}, "model.block_out_channels as a list of whole numbers above 0, got []"),
        ({"model": {"block_out_channels": [8, 0]}}, "model.block_out_channels as a list"),
        ({"model": {"block_out_channels": 8}}, "model.block_out_channels as a list"),
        ({"model": {"block_out_channels": [2, 8]}}, "model.block_out_channels to begin with 4 or more"),
        ({"model": {"time_proj_dim": 2}}, "model.time_proj_dim as a whole number of at least 4, got 2"),
        ({"model": {"num_attention_heads": 0}}, "model.num_attention_heads as a whole number of at least 1, got 0"),
        ({"model": {"attention_head_dim": 4.5}}, "model.attention_head_dim as a whole number"),
        ({"model": {"num_class_embeds": "16"}}, "model.num_class_embeds as a whole number"),
        ({"model": {"num_class_embeds": 8}}, "class_attributes"),
        ({"model": {"class_attributes": "Male"}}, "model.class_attributes as a list of names"),
        ({"model": {"class_attributes": ["Male", "Male"]}}, "none twice"),
        ({"model": {"class_attributes": None}}, "expected model.class_attributes"),
        ({"model": {"null_class_label": 3}}, "null_class_label"),
        ({"model": {"null_class_label": None}}, "model.null_class_label as a whole number, got None"),
        ({"model": {"norm_eps": 0}}, "model.norm_eps as a number above 0"),
        ({"model": {"mid_attention_type": "flash"}}, "mid_attention_type"),
        ({"model": {"_class_name": "UNet2DModel"}}, "_class_name 'ConvNextUNet2DModel' or none, got 'UNet2DModel'"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "_class_name 'DDPMScheduler' or none"),
        ({"scheduler": {"beta_schedule": "cosine"}}, "scheduler settings: cosine"),
        ({"scheduler": {"beta_start": -1}}, "betas above 0 and at most 1"),
        ({"scheduler": {"beta_end": 2}}, "betas above 0 and at most 1"),
        ({"scheduler": {"beta_start": "low"}}, "scheduler settings: "),
        ({"scheduler": {"num_train_timesteps": 0}}, "scheduler settings: "),
        ({"scheduler": {"trained_betas": [0.1, 0.2]}}, "expected num_train_timesteps betas (1000), got 2"),
        ({"scheduler": {"variance_type": "learned_range"}}, "no variance is learned"),
        ({"scheduler": {"variance_type": "tiny"}}, "expected variance_type in"),
        ({"scheduler": {"num_train_timesteps": 100.0}}, "expected num_train_timesteps as a whole number, got 100.0"),
        ({"scheduler": {"clip_sample": "no"}}, "expected clip_sample as true or false, got 'no'"),
        ({"scheduler": {"timestep_spacing": "even"}}, "scheduler settings: even"),
        ({"scheduler": {"steps_offset": 999}}, "scheduler settings: "),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "expected prediction_type 'v_prediction' or 'sample'"),
        ({"scheduler": {"betas": [0.1]}}, "betas"),
        ({"sample_steps": 1001}, "expected sample_steps in 1..1000, got 1001"),
        ({"betas": [0.9, 0.99, 0.9]}, "expected betas as a list of 2 numbers, got [0.9, 0.99, 0.9]"),
        ({"betas": [0.9, 1.0]}, "expected two betas of at least 0 and below 1"),
        ({"batch_size": 2.5}, "expected batch_size as a whole number, got 2.5"),
        ({"max_steps": "100"}, "expected max_steps as a whole number, got '100'"),
        ({"horizontal_flip": 1}, "expected horizontal_flip as true or false, got 1"),
        ({"channels_last": "yes"}, "expected channels_last as true or false"),
        ({"learning_rate": float("nan")}, "expected learning_rate as a number, got nan"),
        ({"learning_rate": 10**400}, "expected learning_rate as a number, got 1000"),
        ({"label_dropout": 0, "guidance_scale": 2}, "expected label_dropout above 0, which trains the prediction"),
        ({"learning_rate": 0}, "expected learning_rate above 0"),
        ({"max_grad_norm": "1"}, "expected max_grad_norm as a number or null, got '1'"),
        ({"max_values": {"black_border": "small"}}, "expected max_values as an object of numbers by name"),
        ({"max_values": [1]}, "expected max_values as an object"),
        ({"center_crop": 0}, "expected center_crop at least 1, got 0"),
        ({"max_images": 0}, "expected max_images at least 1, got 0"),
        ({"seed": -1}, "expected seed in 0..4294967295, got -1"),
        ({"validation_timesteps": []}, "expected validation_timesteps, each of them once, got []"),
        ({"validation_timesteps": [5, 5]}, "each of them once"),
        ({"validation_timesteps": [-1]}, "expected validation_timesteps in 0..999, got [-1]"),
        ({"validation_timesteps": [1.5]}, "expected validation_timesteps as a list, each a whole number"),
        ({"sample_labels": []}, "expected at least one of sample_labels"),
        ({"sample_labels": ["0011"]}, "expected sample_labels as a list, each a whole number or null"),
        ({"tracker": "notebook"}, "expected tracker null or one that is installed"),
        ({"mixed_precision": "fp16"}, "a mixed_precision that works on cpu, got 'fp16'"),
        ({"optimizer": "muon", "mixed_precision": "fp16"}, "for optimizer 'muon', got 'fp16'"),
        ({"model": {"num_class_embeds": None}, "sample_labels": []}, "expected label_dropout 0"),
        ({"model": {"num_class_embeds": None}, "label_dropout": 0}, "an unconditional network has no labels"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(
    tmp_path, config_file, data_folder, capsys, no_pictures, monkeypatch, changes, message
):
    if changes.get("mixed_precision") == "fp16":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # where it cannot work
    assert run(config_file, data_folder, tmp_path / "run", *settings_of(**changes)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written_to(tmp_path, config_file, data_folder, capsys, no_pictures):
    (tmp_path / "file").write_text("")
    for output, more in (
        (tmp_path / "file", []),
        (tmp_path / "file" / "run", []),
        (tmp_path, ["--export", tmp_path / "file"]),
    ):
        assert run(config_file, data_folder, output, *map(str, more)) == 2
        assert "in its place" in capsys.readouterr().err
    assert run(config_file, data_folder, tmp_path / "run", "--start-from", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err.startswith("error: ")


def changed(settings, name):
    """Another value of a setting that is in order by itself."""
    value = settings[name]
    if name == "model":
        return {**value, "class_encoding": "scaled"}
    if name == "scheduler":
        return {**value, "beta_end": 0.03}
    choices = {"loss": "l1", "optimizer": "adamw", "max_values": {"Male": 1}, "betas": [0.8, 0.9]}
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 3]
    if isinstance(value, float):
        return value / 2 + 0.1
    return 4 if value is None else value + 1


def test_a_resumed_run_keeps_what_it_means(tmp_path, config_file, data_folder, capsys, monkeypatch):
    assert run(config_file, data_folder, tmp_path / "run", "--set", "max_steps=2") == 0
    config = load_config(config_file)
    before, state = config.to_dict(), load_checkpoint(tmp_path / "run")[1]
    for name in FIXED_SETTINGS:
        with pytest.raises(ValueError, match=f"--resume: expected the same run, got {name} .* became "):
            check_same_run(state, dataclasses.replace(config, **{name: changed(before, name)}), 1)
    with pytest.raises(ValueError, match="got 3 images per step .* became 6"):
        check_same_run(state, config, 2)
    with pytest.raises(ValueError, match="expected max_steps of at least the checkpoint's 2, got 1"):
        check_same_run(state, dataclasses.replace(config, max_steps=1), 1)
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_splits", None)  # not reached
        assert run(config_file, data_folder, tmp_path / "run", "--resume", "--set", "seed=5") == 2
    assert "error: --resume: expected the same run, got seed 0 became 5" in capsys.readouterr().err

    free = ["max_steps=3", "learning_rate=0.001", "decay_steps=1", "tracker=null", "log_every=2", "keep_checkpoints=1"]
    said = {**before["model"], "attention_head_dim": 4, "norm_eps": 1e-5, "num_attention_heads": 4}  # defaults, said
    free.append(f"model={json.dumps(said)}")
    overrides = [part for change in free for part in ("--set", change)]
    assert run(config_file, data_folder, tmp_path / "run", "--resume", *overrides) == 0


def test_a_resumed_run_keeps_its_images(tmp_path, config_file, data_folder, capsys):
    assert run(config_file, data_folder, tmp_path / "run", "--set", "max_steps=2") == 0
    other = tmp_path / "other"
    other.mkdir()
    write_parquet(other / "train.parquet", 40, seed=5)  # as many rows, other pictures
    write_parquet(other / "validation.parquet", 9, seed=2)
    capsys.readouterr()
    assert run(config_file, str(other), tmp_path / "run", "--resume") == 2
    assert "expected the training images and labels that the run saw" in capsys.readouterr().err
    write_parquet(other / "train.parquet", 40, seed=1)
    write_parquet(other / "validation.parquet", 9, seed=5)
    assert run(config_file, str(other), tmp_path / "run", "--resume") == 2
    assert "expected the validation images and labels that the run saw" in capsys.readouterr().err
    assert run(config_file, data_folder, tmp_path / "run", "--resume") == 0
