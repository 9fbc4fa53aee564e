"""The trained models inside the package."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from diffusers_xai import XAIPipeline, demo_checkpoint
from diffusers_xai.checkpoints import name_of_embedded, part_of_face
from diffusers_xai.checkpoints.drawn_judge import DrawnFaceJudge
from diffusers_xai.cli.options import checkpoint
from training.card import write_captioned_card


SIZES = {"lfw-32": 32, "lfw-64": 64}


def test_a_checkpoint_is_found_by_its_name_and_another_name_is_answered_with_those_there_are():
    assert Path(demo_checkpoint()) == Path(demo_checkpoint("lfw-64"))
    assert (Path(demo_checkpoint()) / "model_index.json").is_file()
    for name in ("lfw-33", "", "..", "__pycache__"):
        with pytest.raises(
            ValueError, match=r"Expected the name of an embedded checkpoint, got .*; available: .*lfw-32"
        ):
            demo_checkpoint(name)


def test_parts_of_faces_lie_where_they_do_at_any_size():
    small, large = (part_of_face("face", demo_checkpoint(name), (size, size)) for name, size in SIZES.items())
    assert small == (6, 8, 26, 28)
    assert large == (12, 16, 52, 56)
    assert part_of_face("face", demo_checkpoint("drawn-32"), (32, 32)) is None
    assert part_of_face("image", demo_checkpoint(), (64, 64)) is None


def test_names_and_paths_of_embedded_checkpoints_lead_to_each_other(tmp_path, monkeypatch):
    assert name_of_embedded(demo_checkpoint("drawn-32")) == "drawn-32"
    assert name_of_embedded(str(tmp_path)) is None
    monkeypatch.chdir(tmp_path)
    assert checkpoint("drawn-32") == demo_checkpoint("drawn-32")
    assert checkpoint("user/drawn-32") == "user/drawn-32"
    (tmp_path / "drawn-32").mkdir()
    assert checkpoint("drawn-32") == "drawn-32"


def test_the_model_of_drawn_faces_draws_what_its_labels_say():
    pipe = XAIPipeline.from_pretrained(demo_checkpoint("drawn-32"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    labels = [0b0000, 0b1000, 0b0100, 0b0010] * 6
    out = pipe(
        class_labels=labels, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="pt",
        guidance_scale=2.0,
    )  # fmt: skip
    seen = DrawnFaceJudge().predict(out.images * 2 - 1)
    for column, label in ((0, 0b1000), (1, 0b0100), (2, 0b0010)):
        asked = torch.tensor([choice == label for choice in labels])
        assert (seen[:, column] == asked).sum() >= 19  # of 24; by chance this happens in 0.3 % of all cases


def test_the_model_of_captions_draws_what_they_say():
    pipe = DiffusionPipeline.from_pretrained(demo_checkpoint("drawn-text-32"))
    captions = [
        f"a {smile}{who} with {bangs}{hair} hair, green background"
        for smile in ("", "smiling ")
        for who in ("man", "woman")
        for bangs in ("", "bangs and ")
        for hair in ("black", "blue")
    ]
    generator = torch.Generator().manual_seed(0)
    images = pipe(captions, num_inference_steps=10, guidance_scale=2.0, generator=generator, output_type="pt").images
    judge = DrawnFaceJudge()
    seen = judge.predict(images * 2 - 1)
    for column, word in ((0, "bangs"), (1, " man"), (2, "smiling")):
        asked = torch.tensor([word in caption for caption in captions])
        assert (seen[:, column] == asked).sum() >= 15  # of 16
    hair = judge.hair_colors(images * 2 - 1)
    assert sum(color in caption for color, caption in zip(hair, captions, strict=True)) >= 15


def test_the_card_of_the_model_of_captions_is_rendered_from_its_facts(tmp_path):
    folder = Path(demo_checkpoint("drawn-text-32"))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").unlink()
    write_captioned_card(tmp_path / "copy")
    assert (folder / "README.md").read_text() == (tmp_path / "copy" / "README.md").read_text()
    assert "Not stated" not in (folder / "README.md").read_text()
