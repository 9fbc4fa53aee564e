"""What cards say, and what they refuse."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from huggingface_hub import ModelCard, parse_eval_result_entries

from diffusers_xai import XAIPipeline, demo_checkpoint
from diffusers_xai.hub import sample_grid as sampling
from diffusers_xai.hub.cards import check_facts, eval_results, read_facts
from diffusers_xai.hub.pipelines import card_of as pipeline_card
from diffusers_xai.hub.pipelines import facts_of_source
from diffusers_xai.hub.sample_grid import sample_grid
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
    return ModelCard(pipeline_card(XAIPipeline(unet, DDPMScheduler()), facts, "user/faces-16", **options))


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
    assert "This runs the Python files" not in card.text
    assert 'save_pretrained("folder", with_code=True)' in card.text


@pytest.mark.parametrize(("rarest", "uneven"), [(1900, False), (1000, False), (999, True), (0, True)])
def test_a_card_calls_labels_unevenly_spread_only_where_they_are(rarest, uneven):
    counts = [["0000", "none", 2000], ["0001", "Wearing_Lipstick", rarest]]
    text = card_of(convnext_unet(), FACTS | {"label_counts": counts}).text
    assert ("unevenly spread" in text) == uneven
    assert f"| Wearing_Lipstick | {rarest} |\n\n" in text


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
    with pytest.raises(ValueError, match="card.json: expected JSON"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "Expected card to hold an object, got list"),
        ({"datum": "x"}, "expected facts of a card, got 'datum'; available: model_name, license"),
        ({"data": 3}, "expected data as str, got int"),
        ({"metrics": [["L1", 1]]}, "expected metrics as rows of 3 cells"),
    ],
)
def test_facts_that_are_not_ones(facts, message):
    with pytest.raises(ValueError, match=message):
        check_facts(facts)


@pytest.mark.parametrize(("name", "images"), [("lfw-32", 10_919), ("lfw-64", 10_919), ("drawn-32", 30_000)])
def test_the_card_of_an_embedded_checkpoint_is_rendered_from_its_facts(name, images):
    folder = Path(demo_checkpoint(name))
    facts = read_facts(folder)
    picture = (folder / "samples.png").is_file()
    card = pipeline_card(XAIPipeline.from_pretrained(str(folder)), facts, None, sample_grid=picture)
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    assert "Not stated" not in card
    assert sum(count for _, _, count in facts["label_counts"]) == images


def test_metrics_are_results_where_the_data_set_is_on_the_hub():
    facts = {
        **FACTS,
        "metrics": [*FACTS["metrics"], ["Male as asked", "89.1 % (86–92)", "32 samples"], ["A", "-", ""]],
    }
    assert eval_results(facts) == ""
    assert eval_results({**facts, "datasets": ["a/b", "c/d"]}) == ""
    entries = parse_eval_result_entries(yaml.safe_load(eval_results({**facts, "datasets": ["a/b"]})))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("a/b", "l1", 0.125),
        ("a/b", "male_as_asked", 89.1),
    ]
    assert entries[1].notes == "Male as asked: 89.1 % (86–92), 32 samples"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_facts_of_a_folder_belong_to_its_weights(dtype, tmp_path, caplog):
    XAIPipeline(convnext_unet().half(), DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(FACTS))
    pipe = XAIPipeline.from_pretrained(str(tmp_path), dtype=dtype)
    assert facts_of_source(pipe) == FACTS
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 0.5
    with caplog.at_level(logging.WARNING):
        assert facts_of_source(pipe) == {}
    assert "card.json is left out" in caplog.text


@pytest.mark.parametrize(("seconds", "columns"), [(15.0, 3), (1e9, 1)])
def test_a_sample_grid_of_a_slow_network_is_smaller(seconds, columns, monkeypatch):
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler(num_train_timesteps=2))
    monkeypatch.setattr(sampling, "_seconds", lambda call: seconds)  # of one step of one image
    clock = iter(range(0, 1000, 50))  # a row takes 50 seconds: a second one would exceed the 90
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    assert sample_grid(pipe).size == (columns * 64, 18 + 64)


def test_a_sample_grid_shows_every_label_with_the_same_noise():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler(num_train_timesteps=4))
    scheduler = pipe.scheduler
    grid = np.asarray(sample_grid(pipe, seed=7)).astype(int)
    assert grid.shape == (18 + 4 * 64, 16 * 64, 3)  # a caption, then cells of 16 pixels, four times as large
    assert pipe.scheduler is scheduler
    alone = pipe.__class__(pipe.unet, sampling.DDIMScheduler.from_config(scheduler.config))
    image = alone([9], num_inference_steps=4, generator=[torch.Generator().manual_seed(8)]).images[0]
    cell = grid[18 + 64 : 18 + 128 : 4, 9 * 64 : 10 * 64 : 4]
    assert np.abs(cell - np.asarray(image)).max() <= 1  # summed in batches of another size
    assert np.array_equal(grid[18 + 64 : 18 + 128 : 4, 9 * 64 + 3 : 10 * 64 : 4], cell)
    assert np.abs(cell - grid[18 : 18 + 64 : 4, 9 * 64 : 10 * 64 : 4]).max() > 1  # another noise
    assert (grid[:18, 9 * 64 : 10 * 64] < 100).any()  # the label's name
