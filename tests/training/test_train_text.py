"""Training by captions: the same run as of labels, with words."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tests.training.small_runs import write_parquet
from training.caption_model import build_tokenizer, tokenize
from training.card import write_captioned_card
from training.checkpoint import list_checkpoints
from training.config import TrainingConfig
from training.train_text import CaptionedUNet, build_network, main


MODEL = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "text_layers": 1,
}
SCHEDULER = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}


@pytest.fixture
def text_config(tmp_path, settings):
    changes = {"model": MODEL, "scheduler": SCHEDULER, "optimizer": "muon", "zero_init_output": True}
    path = tmp_path / "text.json"
    path.write_text(json.dumps({**settings, "class_balance": 0.0, **changes}))
    return str(path)


@pytest.fixture
def captioned(tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    words = ["a man", "a woman", "a smiling man", "a smiling woman, blue background"]
    write_parquet(folder / "train.parquet", 12, seed=1, caption=words * 3)
    write_parquet(folder / "validation.parquet", 6, seed=2, caption=words + words[:2])
    return str(folder)


def run(config, data, output, *options):
    return main(["--config", config, "--data", str(data), "--output", str(output), *options])


def weights(run_folder, name="ema"):
    return load_file(list_checkpoints(run_folder)[-1] / f"{name}.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_and_is_exported(tmp_path, text_config, captioned):
    assert run(text_config, captioned, tmp_path / "whole") == 0
    assert run(text_config, captioned, tmp_path / "parts", "--set", "max_steps=2") == 0
    assert run(text_config, captioned, tmp_path / "parts", "--resume", "--export", str(tmp_path / "pipe")) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "whole" / "samples-00000004.png").is_file()

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, parts["unet." + name].half().float()), name
    for name, value in pipeline.text_encoder.state_dict().items():
        assert torch.equal(value, parts["text_encoder." + name]), name
    assert pipeline("a man", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    assert pipeline.tokenizer.tokenize("a smiling man") == ["a</w>", "smiling</w>", "man</w>"]
    assert pipeline.scheduler.config.prediction_type == "sample"
    assert json.loads((tmp_path / "pipe" / "card.json").read_text())["training"]["steps"] == 4
    write_captioned_card(tmp_path / "pipe")
    card = (tmp_path / "pipe" / "README.md").read_text()
    count = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert f"U-Net ({count:,} parameters)" in card
    assert "16 × 16 pixels" in card
    assert "| steps | 4 |" in card


def test_a_run_starts_from_a_finished_pipeline_with_its_words(tmp_path, text_config, captioned):
    assert run(text_config, captioned, tmp_path / "first", "--export", str(tmp_path / "pipe")) == 0
    options = ("--start-from", str(tmp_path / "pipe"), "--set", "learning_rate=1e-12", "--set", "max_steps=1")
    assert run(text_config, captioned, tmp_path / "second", *options, "--set", 'optimizer="adam"') == 0
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second", "model")
    for name, value in before.items():
        kept = value.half().float() if name.startswith("unet.") else value
        torch.testing.assert_close(after[name], kept, atol=1e-6, rtol=0)
    known, taken = ((tmp_path / f / "tokenizer" / "tokenizer.json").read_text() for f in ("pipe", "second"))
    assert known == taken


def test_a_label_is_the_row_of_a_caption_and_the_last_row_is_no_caption():
    config = TrainingConfig(model=MODEL, scheduler=SCHEDULER)
    captions = ["a man", "a woman", ""]
    tokenizer = build_tokenizer(captions)
    network = build_network(config, tokenizer, tokenize(tokenizer, captions)).eval()
    assert isinstance(network, CaptionedUNet)
    assert network.config.null_class_label == 2
    noisy, t = torch.randn(3, 3, 16, 16), torch.tensor([5, 400, 900])
    with torch.no_grad():
        got = network(noisy, t, torch.tensor([1, 0, 2])).sample
        ids = tokenizer(["a woman", "a man", ""], padding="max_length", return_tensors="pt").input_ids
        expected = network.unet(noisy, t, network.text_encoder(ids)[0]).sample
    assert torch.equal(got, expected)


def test_data_and_settings_that_cannot_work_are_refused_before_training(tmp_path, text_config, captioned, capsys):
    def error(*arguments):
        assert run(*arguments) == 2
        return capsys.readouterr().err

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("train", "validation"):
        write_parquet(bare / f"{name}.parquet", 6)
    assert "with a column 'caption'" in error(text_config, bare, tmp_path / "run")
    without = {name: value for name, value in MODEL.items() if name != "text_layers"}
    model = ("--set", f"model={json.dumps(without)}")
    assert "expected 'text_layers' among the model settings" in error(text_config, captioned, tmp_path / "run", *model)
    model = ("--set", f"model={json.dumps({**MODEL, 'norm_num_groups': 3})}")
    assert "model settings: " in error(text_config, captioned, tmp_path / "run", *model)
    assert not (tmp_path / "run").exists()
