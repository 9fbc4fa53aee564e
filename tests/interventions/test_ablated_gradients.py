"""Gradients of a run with an ablation are those of the ablated network."""

import numpy as np
import torch
from diffusers import DDIMScheduler

from diffusers_xai import ChannelAblation, GradientVolume, XAIPipeline
from diffusers_xai.measures import mask_from_box
from tests.tiny import convnext_unet


def test_gradients_are_those_of_the_ablated_network():
    mask = mask_from_box((6, 6, 8, 7), (16, 16))

    def volume(zeroed, edits):
        unet = convnext_unet()
        if zeroed:
            with torch.no_grad():
                unet.down_blocks[0].downsamplers[0].weight[5] = 0
                unet.down_blocks[0].downsamplers[0].bias[5] = 0
        pipe = XAIPipeline(unet, DDIMScheduler())
        out = pipe(
            class_labels=3,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            record=[GradientVolume(mask=mask, chunk_size=2)],
            edits=edits,
        )
        return out.profile["gradient_volume"].values

    plain = volume(False, [])
    expected = volume(True, [])
    ablation = ChannelAblation("downs.0.3", 5)
    assert np.abs(expected - plain).max() > 1e-4
    np.testing.assert_allclose(volume(False, [ablation]), expected, atol=1e-6)
    # Image by image, also where the batch is repeated for several pixels.
    both = volume(False, [[], [ablation]])
    np.testing.assert_allclose(both[:, 0], plain[:, 0], atol=1e-5)
    np.testing.assert_allclose(both[:, 1], expected[:, 0], atol=1e-5)


def test_gradients_of_a_run_in_inference_mode():
    mask = mask_from_box((6, 6, 8, 7), (16, 16))
    edits = [ChannelAblation("downs.0.3", 5, "mean", 0.5, mask)]
    arguments = {"class_labels": 3, "num_inference_steps": 2, "record": [GradientVolume(mask=mask)], "edits": edits}
    pipe = XAIPipeline(convnext_unet(), DDIMScheduler())
    expected = pipe(generator=torch.Generator().manual_seed(0), **arguments).profile["gradient_volume"]
    with torch.inference_mode():
        got = pipe(generator=torch.Generator().manual_seed(0), **arguments).profile["gradient_volume"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
