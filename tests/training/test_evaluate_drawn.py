"""The measures of models of drawn faces: exact on drawings, at chance for requests dealt out at random."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.checkpoints.face_drawing import ATTRIBUTES, draw_face
from training.drawn_faces import main as make_faces
from training.evaluate_drawn import asked_traits, faces_asked_for, fidelity, main, quality, seen_traits


@pytest.fixture(scope="module")
def faces():
    return faces_asked_for(128)


@pytest.fixture(scope="module")
def drawings(faces):
    images = np.stack([draw_face(face, 32).image for face in faces])
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def test_each_label_is_asked_for_equally_often(faces):
    labels = [tuple(face.labels.values()) for face in faces]
    assert {labels.count(label) for label in labels} == {8}


def test_drawings_are_all_right(faces, drawings):
    table = fidelity(asked_traits(faces, colors=True), seen_traits(drawings))
    assert list(table) == [*ATTRIBUTES, "hair color", "background color", "all of them"]
    assert {row["share"] for row in table.values()} == {1.0}
    assert all(table[name]["chance"] == 0.5 for name in ATTRIBUTES)
    assert table["all of them"]["chance"] < 0.01
    for name in ("hair color", "background color"):
        values = asked_traits(faces, colors=True)[name]
        expected = sum((values.count(v) / len(values)) ** 2 for v in set(values))
        assert table[name]["chance"] == pytest.approx(expected)


def test_requests_dealt_out_at_random_are_at_chance(faces, drawings):
    """The mean over many deals is the chance that is stated."""
    asked, seen = asked_traits(faces, colors=True), seen_traits(drawings)
    rng = np.random.default_rng(0)
    shares = {name: [] for name in asked}
    for _ in range(200):
        order = rng.permutation(len(faces))
        dealt = {name: [values[i] for i in order] for name, values in asked.items()}
        for name in asked:
            shares[name].append(fidelity({name: dealt[name]}, seen)[name]["share"])
    table = fidelity(asked, seen)
    for name, values in shares.items():
        assert abs(np.mean(values) - table[name]["chance"]) < 4 * np.std(values) / len(values) ** 0.5


def test_what_is_blurred_or_copied_shows_in_the_quality(faces, drawings):
    table = quality(drawings[:64], faces[:64], drawings[64:])
    assert table["samples"] == table["drawings"]
    blurred = torch.nn.functional.avg_pool2d(drawings[:64], 3, 1, 1)
    assert quality(blurred, faces[:64], drawings)["samples"]["sharpness"] < 0.8 * table["drawings"]["sharpness"]
    copied = quality(drawings[64:].flip(-1), faces[:64], drawings)["samples"]
    assert copied["training"] == pytest.approx(0, abs=1e-6)
    same = quality(drawings[:1].expand(64, -1, -1, -1), faces[:64], drawings)["samples"]
    assert same["other"] == pytest.approx(0, abs=1e-6)


def test_the_command_measures_a_pipeline_and_updates_its_card(tmp_path, capsys):
    torch.manual_seed(0)
    unet = ConvNextUNet2DModel(sample_size=32, block_out_channels=[4, 8], attention_head_dim=4, class_encoding="bits")
    XAIPipeline(unet, DDPMScheduler(prediction_type="sample")).save_pretrained(str(tmp_path / "pipe"))
    assert make_faces(["--output", str(tmp_path / "faces"), "--train", "4", "--validation", "1"]) == 0
    options = ["--data", str(tmp_path / "faces"), "--output", str(tmp_path / "out")]
    arguments = [
        "--checkpoint",
        str(tmp_path / "pipe"),
        *options,
        "--samples",
        "64",
        "--steps",
        "1",
        "--guidance",
        "1",
    ]
    assert main([*arguments, "--update-card"]) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    table = result["fidelity"]["1"]
    assert list(table) == [*ATTRIBUTES, "all of them"]
    assert all(0.3 < table[name]["share"] < 0.7 for name in ATTRIBUTES)  # an untrained network knows no label
    rows = json.loads((tmp_path / "pipe" / "card.json").read_text())["metrics"]
    assert rows[0][0] == "Bangs as asked, guidance 1"
    assert rows[0][2].endswith("requests dealt out at random: 50.0%")
    assert (tmp_path / "out" / "samples.png").is_file()

    assert make_faces(["--output", str(tmp_path / "large"), "--train", "1", "--validation", "1", "--size", "40"]) == 0
    arguments[arguments.index("--data") + 1] = str(tmp_path / "large")
    assert main(arguments) == 2
    assert "expected drawn faces of 32 pixels" in capsys.readouterr().err
