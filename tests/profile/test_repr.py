import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from diffusers_xai.profile import DiffusionProfile
from tests.profile.profiles import LAYER, array, make_profile


def thumbnails(html):
    for data in re.findall(r"src='data:image/png;base64,([^']+)'", html):
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_text():
    lines = repr(make_profile()).splitlines()
    assert lines[0].startswith("DiffusionProfile: 10 steps, labels 1, 12, seeds 3, 4, 3 arrays, ")
    assert [line.split()[0] for line in lines[1:]] == ["samples", "final_sample", f"activations/{LAYER}"]
    assert "step 3 × sample 2 × channel 3 × height 12 × width 10" in lines[1]
    assert "float32" in lines[1]
    assert f"{3 * 2 * 3 * 12 * 10 * 4 / 1000:.3g} kB" in lines[1]
    assert lines[1].endswith("steps 0, 5, 9")
    assert all(len(line) < 140 for line in lines)


def test_text_of_an_empty_and_of_an_unfinished_profile():
    assert repr(DiffusionProfile({})) == "DiffusionProfile: 0 arrays, 0 B"
    provenance = {
        "complete": False, "scheduler": {"class": "DDPMScheduler"}, "model": {"class": "UNet2DModel"},
        "seeds": [None], "class_labels": None, "num_inference_steps": None,
    }  # fmt: skip
    assert repr(DiffusionProfile({}, provenance)) == (
        "DiffusionProfile: DDPMScheduler, UNet2DModel, 0 arrays, 0 B, incomplete"
    )


def test_regular_steps_are_told_as_a_stride():
    steps = list(range(0, 1000, 100))
    profile = DiffusionProfile({"measures/ssim": array(dims=(), steps=steps, timesteps=np.zeros(10))})
    assert repr(profile).endswith("steps 0–900 every 100")


def test_html_shows_at_most_eleven_steps_of_the_first_sample():
    steps = list(range(40))
    samples = array(3, 12, 10, steps=steps, timesteps=np.arange(40.0)[::-1])
    html = make_profile(samples=samples)._repr_html_()
    shown = [int(step) for step in re.findall(r"title='step (\d+), t=", html)]
    assert len(shown) == 11
    assert (shown[0], shown[-1]) == (0, 39)
    for step, pixels in zip(shown, thumbnails(html), strict=True):
        expected = (samples.values[step, 0].clip(-1, 1).transpose(1, 2, 0) + 1) * 127.5
        assert np.abs(pixels - expected).max() <= 0.51
    for name in ("samples", f"activations/{LAYER}"):
        assert f"<td style='text-align:left'>{name}</td>" in html
    assert "http" not in html


def test_html_of_grey_images_with_nan():
    samples = array(1, 12, 10)
    samples[:, :, :, 0, 0] = np.nan
    pixels = list(thumbnails(make_profile(samples=samples)._repr_html_()))
    assert len(pixels) == 3
    assert pixels[0].shape == (12, 10, 3)
    assert (pixels[0] == pixels[0][:, :, :1]).all()
    assert pixels[0][0, 0, 0] in (127, 128)


@pytest.mark.parametrize("samples", [None, array(4, 8, 8)])
def test_html_without_images(samples):
    html = make_profile(samples=samples)._repr_html_()
    assert "<img" not in html
    assert LAYER in html


def test_html_is_escaped():
    values = array(dims=())
    profile = DiffusionProfile(
        {"measures/<script>": values}, {"model": {"class": "<script>"}, "class_labels": ["<script>"]}
    )
    assert "<script>" not in profile._repr_html_()


def test_html_of_a_profile_whose_samples_are_lost(tmp_path):
    make_profile().save_pretrained(tmp_path / "fox")
    (tmp_path / "fox" / "samples.safetensors").unlink()
    html = DiffusionProfile.from_pretrained(tmp_path / "fox")._repr_html_()
    assert "is missing" in html
    assert LAYER in html
