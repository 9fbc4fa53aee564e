"""Layout and colours of images, and which layer carries them, on a network in which that is known."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy import ndimage, stats

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.hierarchy import color_nearness, layout_nearness
from diffusers_xai.experiments.sampling import OTHER_NOISE
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from tests.planted import OneBlockHearsTheLabel
from tests.tiny import convnext_unet


NAME, STEPS = "hierarchy", 4


@pytest.fixture(scope="module")
def images():
    return torch.rand((2, 3, 3, 12, 12), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_measures_by_hand(images):
    one, other = images

    def edges(image):  # Sobel's filters over the inner pixels, as they are defined
        grey = np.tensordot([0.299, 0.587, 0.114], image.double().numpy(), 1)
        across, down = (ndimage.sobel(grey, axis=axis, mode="reflect") / 4 for axis in (0, 1))
        return np.sqrt((across**2 + down**2) / 2).ravel()

    for index in range(3):
        expected = np.corrcoef(edges(one[index]), edges(other[index]))[0, 1]
        assert float(layout_nearness(one, other)[index]) == pytest.approx(expected, abs=1e-6)
        distances = [stats.wasserstein_distance(one[index, c].flatten(), other[index, c].flatten()) for c in range(3)]
        assert float(color_nearness(one, other)[index]) == pytest.approx(-np.mean(distances), abs=1e-6)


def test_layout_is_blind_to_colours_and_colours_to_layout(images):
    one = images[0]
    brighter = 0.5 * one + 0.2
    moved = one.flip(-1)
    np.testing.assert_allclose(layout_nearness(brighter, one), 1, atol=1e-9)
    assert (color_nearness(brighter, one) < -0.05).all()
    np.testing.assert_allclose(color_nearness(moved, one), 0, atol=1e-12)
    assert (layout_nearness(moved, one) < 0.9).all()


def test_the_networks_whole_answer_carries_everything_and_a_block_what_it_makes():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    pipe = XAIPipeline(OneBlockHearsTheLabel(class_attributes=("Lit",)).double(), scheduler)

    def judge(images):
        return (images[:, 1].mean((1, 2)) > 0).float()[:, None]

    seeds, layers = [1, 2, 5], [f"blocks.{i}" for i in range(3)]
    result = EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], seeds, STEPS), layers=layers, bands=2, judge=judge)
    data = result.data
    assert data["of"].values.tolist() == ["layout", "colours", "Lit"]
    assert data["start"].values.tolist() == [0, 2, 0]
    # The network predicts the image, and each block a channel of it: patched always, that channel is the source's.
    others = [seed + OTHER_NOISE for seed in seeds]
    source, base, _ = patch_sweep(
        pipe,
        0,
        1,
        seeds,
        [PatchSite("blocks.0", range(1))],
        source_seeds=others,
        num_inference_steps=STEPS,
    )
    for channel, layer in enumerate(layers):
        expected = base.clone()
        expected[:, channel] = source[:, channel]
        for of, nearness in (("layout", layout_nearness), ("colours", color_nearness)):
            near, unpatched = nearness(expected, source), nearness(base, source)
            effect = (near - unpatched) / (nearness(source, source) - unpatched)
            np.testing.assert_allclose(data["effect"].sel(layer=layer, band=2, of=of), effect, atol=1e-6)
    lit = data["effect"].sel(of="Lit", band=2).dropna("seed")
    assert lit.sizes["seed"]
    assert (lit.sel(layer="blocks.1") == 1).all()
    assert (lit.sel(layer=["blocks.0", "blocks.2"]) == 0).all()
    assert abs(data["null_effect"].sel(of="layout", band=2)).max() > 0
    assert result.plot().data
    figure = result.plot_images()
    assert figure.layout.xaxis.ticktext == ("not patched", "from t = 750", "from t = 250", "always")
    left = [image.hovertemplate.split("<")[0] for image in figure.data if image.x0 < 1]
    assert left == ["base: 0", "source: 1"]  # under their own heading, below each other
    assert len(figure.data) == 2 + 3 * 3
    assert len(EXPERIMENTS[NAME].table(result)) == 9


def test_all_of_a_network_patched_is_all_of_the_source():
    pipe = XAIPipeline(convnext_unet(), DDIMScheduler(prediction_type="sample", clip_sample=False))
    result = EXPERIMENTS[NAME].run(pipe, Sampling([3, 12], [1, 2], STEPS), layers=["conv_out"], null="none")
    np.testing.assert_allclose(result.data["effect"].isel(band=[3, 4]), 1, atol=1e-6)
    assert result.plot_images().layout.yaxis.ticktext == ("final_conv", "")  # the source has a row of its own
