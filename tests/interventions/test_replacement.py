"""Channels replaced by what another run recorded."""

import numpy as np
import pytest

from diffusers_xai import Activations, ChannelAblation, record
from tests.tiny import PIPELINES, make_pipeline


@pytest.mark.parametrize("name", PIPELINES)
def test_another_runs_activations(name):
    pipe, sample = make_pipeline(name)
    with record(pipe, [Activations(layers="mid_block")]) as run:
        original = sample(seed=1).images
    other = run.profile
    channels = range(16)
    with record(pipe, edits=[ChannelAblation("mid_block", channels, other)]):
        assert np.array_equal(sample(seed=1).images, original)  # what it was anyway
    with record(pipe, [Activations(layers="mid_block")], [ChannelAblation("mid_block", [4, 2], other)]) as run:
        sample(seed=2)
    expected, got = other["activations/mid_block"].values, run.profile["activations/mid_block"].values
    channel_axis = -3
    assert np.array_equal(got.take([2, 4], channel_axis), expected.take([2, 4], channel_axis))
    assert not np.array_equal(got.take([3], channel_axis), expected.take([3], channel_axis))


def test_another_runs_single_image_and_its_conditional_branch():
    pipe, sample = make_pipeline("xai")
    layer = "activations/mid_block"
    with record(pipe, [Activations(layers="mid_attn.fn"), Activations(layers="mid_block")]) as run:
        sample(class_labels=[7], guidance_scale=2.0)
    guided = run.profile
    spec = [Activations(layers="mid_block")]
    with record(pipe, spec, [ChannelAblation("mid_block", range(16), guided)]) as run:
        sample()  # two images, no guidance
    for image in range(2):
        assert np.array_equal(run.profile[layer].values[:, image], guided[layer].sel(branch="cond").values[:, 0])
    with record(pipe, spec, [ChannelAblation("mid_block", range(16), guided)]) as run:
        sample(guidance_scale=3.0)
    for branch in ("uncond", "cond"):
        expected = guided[layer].sel(branch=branch).values[:, 0]
        assert np.array_equal(run.profile[layer].sel(branch=branch).values[:, 1], expected)
