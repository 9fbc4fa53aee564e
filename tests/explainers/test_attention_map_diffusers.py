"""Image→text attention equals that of attention-map-diffusers 1.0, query by query, head by head, step by step.

An optional reference: `pip install attention-map-diffusers==1.0.0`. It computes the weights from the layers' queries
and keys, over all keys, in float32, as `AttentionWeights` does. It keeps the mean over heads and the last step by
default; here it is asked for all.
"""

import numpy as np
import pytest
import torch

from diffusers_xai import AttentionWeights, record
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


attention_map_diffusers = pytest.importorskip("attention_map_diffusers")


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "flux", "pixart-alpha"])
def test_weights_are_the_same(name):
    entry = ZOO[name]
    pipe = entry.make()
    with attention_map_diffusers.AttentionCapture(
        pipe, relations="image->text", timesteps="all", heads="all"
    ) as capture:
        run(pipe, entry)
    theirs: dict[str, list[torch.Tensor]] = {}
    for found in capture.compute():
        theirs.setdefault(found.layer_id.partition(".")[2], []).append(found.data)
    with record(pipe, [AttentionWeights(relation="image_to_text", queries="all")]) as recording:
        run(pipe, entry)
    prefix = "attention_weights_image_to_text/"
    profile = recording.profile
    # Blocks of one stream, which it does not look into, are here in addition.
    ours = {name.removeprefix(prefix) for name in profile if name.startswith(prefix)}
    assert {layer for layer in ours if not layer.startswith("single_")} == set(theirs)
    for layer, steps in theirs.items():
        array = profile[f"{prefix}{layer}"]
        rows = ("branch", "sample") if "branch" in array.dims else ("sample",)
        values = array.transpose("step", *rows, "head", "height", "width", "token").values
        expected = torch.stack(steps).numpy()  # (step, branch and sample, head, query, token)
        assert len(expected) == entry.steps
        np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=0, atol=1e-6)
