import base64
import io

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from diffusers_xai import plots
from diffusers_xai.plots.style import record_at
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report import write_report


RNG = np.random.default_rng(0)


def over_steps(values, dims, steps=(0, 2, 4), **coords):
    clock = {"step": list(steps), "timestep": ("step", [900.0 - 100 * step for step in steps])}
    return xr.DataArray(values, dims=("step", "sample", *dims), coords={**clock, **coords})


def latent_profile(frames=None):
    """Latents of four channels at 4x6, pictures at 8x12; of `frames` frames, each as bright as its index."""
    middle, dims = ((), ("channel", "height", "width")) if frames is None else ((frames,), None)
    dims = dims or ("channel", "frame", "height", "width")
    pictures = RNG.integers(0, 256, (3, 1, 3, *middle, 8, 12)).astype(np.uint8)
    if frames is not None:
        pictures[:] = np.arange(frames)[:, None, None] * 10
    maps = RNG.uniform(0, 1, (3, 1, *middle, 4, 6, 2)).astype(np.float32)
    arrays = {
        "samples": over_steps(RNG.normal(size=(3, 1, 4, *middle, 4, 6)), dims),
        "images": over_steps(pictures, dims),
        "word_maps": over_steps(maps, (*dims[1:], "token"), token=["red", "fox"]),
        "final_sample": xr.DataArray(RNG.normal(size=(1, 4, *middle, 4, 6)), dims=("sample", *dims)),
        "final_image": xr.DataArray(pictures[-1], dims=("sample", *dims)),
    }
    return DiffusionProfile(arrays, {"prompt": "a <red> fox", "num_inference_steps": 6})


def image_of(trace):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(trace.source.partition(",")[2]))))


def test_maps_lie_over_grey_pictures_and_the_last_is_their_mean():
    profile = latent_profile()
    figure = plots.word_maps(profile)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    pictures = [trace for trace in figure.data if trace.type == "image"]
    array = profile["word_maps"].values[:, 0]
    expected = [*array[..., 0], array[..., 0].mean(0), *array[..., 1], array[..., 1].mean(0)]
    assert len(maps) == len(pictures) == len(expected)
    for trace, values in zip(maps, expected, strict=True):
        np.testing.assert_allclose(trace.z, values, rtol=1e-6)
        assert trace.opacity < 1
    grey = profile["images"].values[0, 0].astype(float).mean(axis=0)
    np.testing.assert_allclose(image_of(pictures[0])[..., 0], grey, atol=1)
    # Both cover the same place, whatever their sizes.
    for one, other in zip(maps, pictures, strict=True):
        assert one.dx * 6 == pytest.approx(other.dx * 12)
        assert one.x0 - one.dx / 2 == pytest.approx(other.x0 - other.dx / 2)
    with pytest.raises(KeyError, match="cat"):
        plots.word_maps(profile, words=["cat"])


def test_of_a_video_the_middle_frame_is_drawn():
    profile = latent_profile(frames=5)
    np.testing.assert_allclose(record_at(profile["images"], 0, 0), 20 / 127.5 - 1)
    last = [trace for trace in plots.process_strip(profile, "images").data if trace.type == "image"][-1]
    assert (image_of(last) == 20).all()


@pytest.mark.parametrize(("frames", "noun"), [(None, "image"), (5, "video")])
def test_the_page_of_a_prompt(tmp_path, frames, noun):
    write_report(latent_profile(frames), tmp_path / "report.html", mask=np.eye(4, 6, dtype=bool))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"How the model formed this {noun}" in text
    assert "a &lt;red&gt; fox" in text
    assert "<red>" not in text
    assert "Where the image looks at each word" in text
    assert text.count("three channels of the latent") == 1
    assert "Region of interest" in text


def sound_profile():
    """Of two samples with four channels over 20 frames."""
    arrays = {
        "samples": over_steps(RNG.normal(size=(3, 2, 4, 20)), ("channel", "frame")),
        "word_maps": over_steps(RNG.uniform(0, 1, (3, 2, 20, 2)), ("frame", "token"), token=["red", "fox"]),
        "attention_outputs": over_steps(
            RNG.normal(size=(3, 2, 2, 20)), ("branch", "frame"), branch=["uncond", "cond"]
        ),
        "gradient_energy": over_steps(RNG.uniform(0, 1, (3, 2, 20)), ("frame",)),
    }
    return DiffusionProfile(arrays, {"prompt": ["a red fox", "a cat"], "num_inference_steps": 6})


def test_maps_of_sound_lie_over_its_frames_and_the_process(tmp_path):
    profile = sound_profile()
    maps = plots.word_maps(profile, words=["fox", "red"], sample=1).data
    for trace, word in zip(maps, ("fox", "red"), strict=True):
        np.testing.assert_allclose(trace.z, profile["word_maps"].sel(token=word).isel(sample=1), rtol=1e-6)
        assert trace.customdata[:, 0].tolist() == ["900", "700", "500"]
    for sample, trace in enumerate(plots.attention_strip(profile).data):
        expected = profile["attention_outputs"].sel(branch="cond").isel(sample=sample)
        np.testing.assert_allclose(trace.z, expected, rtol=1e-6)
    values = profile["attention_outputs"].sel(branch="cond")
    for trace in plots.attention_strip(profile, shared_scale=True).data:
        assert (trace.zmin, trace.zmax) == (values.min(), values.max())
    with pytest.raises(ValueError, match="lies on an image, got samples of dims"):
        plots.process_strip(profile)
    write_report(profile, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How the model formed this sound" in text
    assert "When the sound listens to each word" in text
    assert "When attention works" in text
    assert "Which pixels" not in text
