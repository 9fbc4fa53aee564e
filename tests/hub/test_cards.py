"""What cards say, and what they refuse."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from huggingface_hub import ModelCard

from diffusers_xai import XAIPipeline, demo_checkpoint
from diffusers_xai.hub.cards import check_facts, read_facts
from diffusers_xai.pipelines import publishing
from tests.tiny import convnext_unet, unet_2d


FACTS = {
    "model_name": "Faces 16",
    "license": "other",
    "license_name": "research-only",
    "data": "Forty pictures.",
    "labelling": "By hand.",
    "label_counts": [["0000", "none", 7], ["0001", "Wearing_Lipstick", 5]],
    "training": {"steps": 1000},
    "metrics": [["L1", 0.125, "validation images"]],
    "limitations": ["Blurred."],
    "license_note": "For research.",
}


def card_of(unet, facts=FACTS, **options):
    return ModelCard(XAIPipeline(unet, DDPMScheduler()).model_card(facts, "user/faces-16", **options))


def test_a_card_holds_its_facts():
    unet = convnext_unet()
    card = card_of(unet, carries_code=True, sample_grid=True)
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert (card.data.license, card.data.license_name) == ("other", "research-only")
    for expected in (
        "# Faces 16\n",
        f"{sum(p.numel() for p in unet.parameters()):,} parameters (widths 8/16) that predicts `epsilon`",
        "| `0001` | Wearing_Lipstick | 5 |\n",
        "| steps | 1000 |\n",
        "| L1 | 0.125 | validation images |\n",
        "- Blurred.\n",
        "For research.",
        "![Samples of the model](samples.png)",
        'XAIPipeline.from_pretrained("user/faces-16")',
        'DiffusionPipeline.from_pretrained("user/faces-16", trust_remote_code=True)',
        "`pipeline.py` and `unet/diffusers_xai.py`",
    ):
        assert expected in card.text
    assert "{{" not in card.text
    assert "Not stated" not in card.text


def test_a_card_without_facts_invents_nothing():
    card = card_of(convnext_unet(), {})
    assert card.text.count("Not stated.") == 4  # data, labels, training, metrics
    assert card.data.license_name == "not-stated"
    assert "samples.png" not in card.text
    assert "trust_remote_code" not in card.text


def test_a_card_of_an_unconditional_network_of_diffusers():
    card = card_of(unet_2d(), {}, carries_code=True)
    assert "It takes no label." in card.text
    assert "class_labels" not in card.text
    assert "unet/diffusers_xai.py" not in card.text
    assert 'layers="mid_block"' in card.text


def test_facts_are_read_from_the_checkpoint(tmp_path):
    assert read_facts(tmp_path) == {}
    (tmp_path / "card.json").write_text(json.dumps(FACTS))
    assert read_facts(tmp_path) == FACTS
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match="card.json is not JSON"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "expected card to hold an object, got list"),
        ({"datum": "x"}, "unknown fact 'datum'; available: model_name, license"),
        ({"data": 3}, "expected data as str, got int"),
        ({"metrics": [["L1", 1]]}, "expected metrics as rows of 3 cells"),
    ],
)
def test_facts_that_are_not_ones(facts, message):
    with pytest.raises(ValueError, match=message):
        check_facts(facts)


def test_the_embedded_checkpoints_card_is_rendered_from_its_facts():
    folder = Path(demo_checkpoint())
    facts = read_facts(folder)
    card = XAIPipeline.from_pretrained(str(folder)).model_card(facts, None)
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    assert "Not stated" not in card
    assert sum(count for _, _, count in facts["label_counts"]) == 10_919


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_facts_of_a_folder_belong_to_its_weights(dtype, tmp_path, caplog):
    XAIPipeline(convnext_unet().half(), DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(FACTS))
    pipe = XAIPipeline.from_pretrained(str(tmp_path), dtype=dtype)
    assert pipe._facts_of_source() == FACTS
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 0.5
    with caplog.at_level(logging.WARNING):
        assert pipe._facts_of_source() == {}
    assert "card.json is left out" in caplog.text


@pytest.mark.parametrize(("seconds", "columns"), [(0.5, 3), (1e9, 1)])
def test_a_sample_grid_of_a_slow_network_is_smaller(seconds, columns, monkeypatch):
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler(num_train_timesteps=2))
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipe, "_seconds_per_forward", lambda: seconds)
    clock = iter(range(0, 1000, 50))  # a row takes 50 seconds: a second one would exceed the 90
    monkeypatch.setattr(publishing.time, "perf_counter", lambda: next(clock))
    assert pipe.sample_grid().size == (columns * 64, 18 + 64)


def test_a_sample_grid_shows_every_label_with_the_same_noise():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler(num_train_timesteps=4))
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    grid = np.asarray(pipe.sample_grid(seed=7)).astype(int)
    assert grid.shape == (18 + 4 * 64, 16 * 64, 3)  # a caption, then cells of 16 pixels, four times as large
    assert pipe.scheduler is scheduler
    alone = pipe.__class__(pipe.unet, publishing.DDIMScheduler.from_config(scheduler.config))
    alone.set_progress_bar_config(disable=True)
    image = alone([9], num_inference_steps=4, generator=[torch.Generator().manual_seed(8)]).images[0]
    cell = grid[18 + 64 : 18 + 128 : 4, 9 * 64 : 10 * 64 : 4]
    assert np.abs(cell - np.asarray(image)).max() <= 1  # summed in batches of another size
    assert np.array_equal(grid[18 + 64 : 18 + 128 : 4, 9 * 64 + 3 : 10 * 64 : 4], cell)
    assert np.abs(cell - grid[18 : 18 + 64 : 4, 9 * 64 : 10 * 64 : 4]).max() > 1  # another noise
    assert (grid[:18, 9 * 64 : 10 * 64] < 100).any()  # the label's name
