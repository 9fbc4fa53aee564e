"""Patches against a forward that a test replaces by hand."""

import numpy as np
import pytest
import torch

from diffusers_xai import Activations, Patch, record
from diffusers_xai.measures import mask_from_box
from tests.reference.bilinear import bilinear
from tests.tiny import make_pipeline


@pytest.mark.parametrize("masked", [False, True])
def test_a_patch_is_the_other_run_within_the_mask_and_this_one_outside(masked):
    layer, steps = "down_blocks.0.downsamplers.0", [1, 3]
    mask = mask_from_box((3, 2, 12, 9), (16, 16)) if masked else None
    within = bilinear(mask, 8, 8) if masked else np.ones((8, 8))
    pipe, sample = make_pipeline("xai")
    outputs = []
    with record(pipe, [Activations(layers=layer)]) as recording:
        pipe.unet.get_submodule(layer).register_forward_hook(lambda m, args, out: outputs.append(out.double().numpy()))
        sample(seed=1)

    pipe, sample = make_pipeline("xai")
    plain, calls = sample(seed=2).images, iter(range(4))

    def change(module, args, output):
        step = next(calls)
        if step not in steps:
            return None
        return torch.from_numpy(output.double().numpy() * (1 - within) + outputs[step] * within).float()

    handle = pipe.unet.get_submodule(layer).register_forward_hook(change)
    expected = sample(seed=2).images
    handle.remove()
    with record(pipe, edits=[Patch(layer, recording.profile, mask, steps=steps)]):
        np.testing.assert_allclose(sample(seed=2).images, expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-3
