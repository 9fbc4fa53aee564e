import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.hub.cards import read_facts
from tests.training.small_runs import ATTRIBUTES, all_tensors, run, write_parquet
from training.checkpoint import list_checkpoints
from training.config import load_config
from training.train import main


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "gradient_accumulation_steps": 2}])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, settings, data_folder, changes):
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps({**settings, **changes, "warmup_steps": 3}))
    assert run(str(config_file), data_folder, tmp_path / "whole") == 0
    # The first half ends without a decay or a checkpoint of its own at the end: it is the same run, cut off.
    assert run(str(config_file), data_folder, tmp_path / "parts", "--set", "max_steps=2") == 0
    assert run(str(config_file), data_folder, tmp_path / "parts", "--resume") == 0

    (name, whole), (resumed_name, parts) = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "parts")
    assert name == resumed_name == "checkpoint-00000004"
    assert whole.keys() == parts.keys()
    assert any(key.startswith("optimizer/") for key in whole)
    for key, tensor in whole.items():
        assert torch.equal(tensor, parts[key]), key
    logs = [(tmp_path / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "parts")]
    losses = [{r["step"]: r["loss"] for r in map(json.loads, log) if "loss" in r} for log in logs]
    assert losses[0] == losses[1]


def test_training_changes_the_weights_and_the_mean_follows(tmp_path, config_file, data_folder):
    run(config_file, data_folder, tmp_path / "run")
    first, last = (load_file(c / "model.safetensors") for c in list_checkpoints(tmp_path / "run"))
    mean = load_file(list_checkpoints(tmp_path / "run")[-1] / "ema.safetensors")
    assert all(not torch.equal(first[k], last[k]) for k in last if "class_embedding" not in k)
    assert all(torch.isfinite(t).all() for t in (*last.values(), *mean.values()))


def test_the_run_leaves_its_log_samples_and_last_checkpoints(tmp_path, config_file, data_folder):
    run(config_file, data_folder, tmp_path / "run", "--set", "checkpoint_every=1", "--set", "keep_checkpoints=2")
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000003", "checkpoint-00000004"]
    assert Image.open(tmp_path / "run" / "samples-00000004.png").size == (2 * 16, 2 * 16)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = next(r for r in records if "ssim" in r)
    assert {"l1", "psnr", "noise_mse/100", "noise_mse/800"} <= measured.keys()
    assert measured["images"] == 4 * 3
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {p.suffix for p in files if "tfevents" not in p.name} == {".json", ".jsonl", ".safetensors", ".png"}


def test_tensorboard_has_the_curves_and_the_samples(tmp_path, config_file, data_folder):
    run(config_file, data_folder, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tracker")).Reload()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "l1", "ssim", "psnr"):
        expected = [(r["step"], r[name]) for r in records if name in r]
        assert [(e.step, pytest.approx(e.value, rel=1e-4)) for e in events.Scalars(name)] == expected
    assert set(events.Tags()["images"]) == {f"samples/label {label}" for label in ("0000", "0101")}


def test_the_export_is_a_pipeline_of_the_mean_weights(tmp_path, config_file, data_folder, settings):
    run(config_file, data_folder, tmp_path / "run")
    (tmp_path / "pipe").mkdir()
    by_hand = {"data": "Written by hand.", "training": {"steps": 1}}
    (tmp_path / "pipe" / "card.json").write_text(json.dumps(by_hand))
    assert main(["--config", config_file, "--output", str(tmp_path / "run"), "--export", str(tmp_path / "pipe")]) == 0
    mean = load_file(list_checkpoints(tmp_path / "run")[-1] / "ema.safetensors")
    stored = load_file(tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == mean.keys()
    assert all(torch.equal(stored[k], mean[k].half()) for k in mean)

    pipe = XAIPipeline.from_pretrained(str(tmp_path / "pipe"))
    assert pipe.unet.dtype == torch.float32
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.beta_schedule == "linear"
    loaded = pipe.unet.state_dict()
    assert all(torch.equal(loaded[k], mean[k].half().float()) for k in mean)
    facts = read_facts(tmp_path / "pipe")
    counted = datasets.load_dataset("parquet", data_files=f"{data_folder}/train.parquet")["train"]
    bits = ["".join(str(int(row[name])) for name in ATTRIBUTES) for row in counted]
    assert {row[0]: row[2] for row in facts["label_counts"]} == dict(Counter(bits))
    assert facts["training"]["steps"] == 4
    assert facts["data"] == "Written by hand."
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert facts["metrics"][1][:2] == ["SSIM of x̂_0", round(next(r["ssim"] for r in log if "ssim" in r), 4)]
    images = pipe([3], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=\"huber\"", "expected loss in ('l1', 'l2'), got 'huber'"),
        ("learning_rat=1", "expected a setting of the configuration, got 'learning_rat'; available: learning_rate"),
        ("batch_size=0", "expected batch_size at least 1, got 0"),
        ("label_dropout=1.5", "expected label_dropout in 0..1, got 1.5"),
        ('scheduler={"prediction_type": "flow"}', "expected scheduler.prediction_type in"),
        ('model={"class_encoding": "one-hot"}', "class_encoding"),
        ('model={"widths": [4]}', "widths"),
        ("max_values={\"sharpness\": 1}", "expected a column of the data, got 'sharpness'; available:"),
        ("batch_size=two", "expected --set NAME=VALUE with a JSON value"),
        ("validation_timesteps=[1000]", "validation_timesteps"),
    ],
)  # fmt: skip
def test_bad_settings_give_one_clear_line_before_training(
    tmp_path, config_file, data_folder, capsys, override, message
):
    assert run(config_file, data_folder, tmp_path / "run", "--set", override) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b'{"loss": "\xe9"}', '{"loss": "l1"}'.encode("utf-16"), b"{} //"])
def test_a_configuration_that_is_no_json_is_named(tmp_path, data):
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(ValueError, match="^expected JSON in .*c.json, got "):
        load_config(str(tmp_path / "c.json"))


def test_bad_runs_give_one_clear_line(tmp_path, config_file, data_folder, settings, capsys):
    def last_error(*arguments):
        assert main(["--config", config_file, *map(str, arguments)]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "a folder with a checkpoint" in last_error("--data", data_folder, "--output", tmp_path / "run", "--resume")
    assert "a folder with a checkpoint" in last_error("--output", tmp_path / "none", "--export", tmp_path / "pipe")
    assert last_error("--data", tmp_path / "none.parquet", "--output", tmp_path / "run").startswith(
        "error: expected a data file"
    )
    write_parquet(tmp_path / "few.parquet", 4)
    assert "expected more than" in last_error("--data", tmp_path / "few.parquet", "--output", tmp_path / "run")

    run(config_file, data_folder, tmp_path / "run")
    assert "add --resume" in last_error("--data", data_folder, "--output", tmp_path / "run")
    wider = ["--set", 'model={"sample_size": 16, "block_out_channels": [8, 8]}']
    assert "another network" in last_error("--output", tmp_path / "run", "--export", tmp_path / "pipe", *wider)
    again = ["--data", data_folder, "--output", tmp_path / "run", "--resume"]
    assert "3 images per step (batch_size * " in last_error(*again, "--set", "batch_size=4")
    assert "optimizer 'adam' became 'muon'" in last_error(*again, "--set", 'optimizer="muon"')
    damaged = list_checkpoints(tmp_path / "run")[-1] / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "damaged" in last_error(*again)
    assert not (tmp_path / "pipe").exists()


@pytest.mark.parametrize(
    ("name", "size", "batch_size", "max_steps"), [("celeba-64", 64, 32, 94_000), ("celeba-128", 128, 16, 120_000)]
)
def test_the_celeba_configurations_are_the_thesis_s(name, size, batch_size, max_steps):
    config = load_config(f"training/configs/{name}.json")
    assert (config.loss, config.optimizer, config.learning_rate, config.betas) == ("l1", "adam", 2e-4, (0.9, 0.999))
    assert (config.warmup_steps, config.decay_steps, config.weight_decay, config.max_grad_norm) == (0, 0, 0, None)
    assert (config.batch_size, config.max_steps, config.gradient_accumulation_steps) == (batch_size, max_steps, 1)
    assert (config.center_crop, config.max_images, config.class_balance, config.min_snr_gamma) == (
        178,
        60_000,
        0,
        None,
    )
    assert not config.stratified_timesteps
    assert config.validate_every * config.batch_size == config.max_images  # once per epoch
    scheduler = DDPMScheduler(**config.scheduler)
    np.testing.assert_allclose(scheduler.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-5)
    assert (scheduler.config.prediction_type, scheduler.config.variance_type) == ("epsilon", "fixed_small")
    with torch.device("meta"):
        model = ConvNextUNet2DModel(**config.model)
    assert model.config.sample_size == size
    assert tuple(model.config.block_out_channels) == (64, 128, 256, 512)
    assert model.time_embedding.linear_1.in_features == 64
    assert model.time_embedding.linear_2.out_features == 256
    assert model.conv_in.out_channels == 64
    assert model.conv_in.in_channels == 3 + 1
    assert (model.config.num_attention_heads, model.config.attention_head_dim) == (4, 32)
    assert model.config.class_encoding == "integer"
    assert model.config.class_attributes == ATTRIBUTES
    assert (config.compile, config.mixed_precision) == (False, "no")


def test_the_lfw_configurations_train(tmp_path, data_folder):
    for name, size in (("lfw-32", 32), ("lfw-64", 64)):
        config = load_config(f"training/configs/{name}.json")
        with torch.device("meta"):
            model = ConvNextUNet2DModel(**config.model)
        assert model.config.sample_size == size
        assert 2 * sum(p.numel() for p in model.parameters()) < 30e6  # bytes in half precision
        small = {**config.model, "sample_size": 16, "block_out_channels": [4, 8]}
        changes = [f"model={json.dumps(small)}", "max_steps=2", "batch_size=2", "compile=false", "max_values={}"]
        changes += [
            "validation_images=2",
            "sample_labels=[1]",
            "sample_steps=2",
            "samples_per_label=1",
            "decay_steps=1",
        ]
        overrides = [part for change in changes for part in ("--set", change)]
        assert run(f"training/configs/{name}.json", data_folder, tmp_path / name, *overrides) == 0
