"""What the page says of a run, against the arrays that were recorded."""

import json
from dataclasses import replace

import numpy as np
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import figures, models, runs, session, settings
from diffusers_xai.measures import mask_to_runs
from tests.tiny import convnext_unet


def test_the_max_channel_is_that_of_the_region():
    model, limits = models.Model("faces", XAIPipeline(convnext_unet(), DDPMScheduler())), settings.Limits()
    (layer,) = model.blocks["downs.0"][:1]  # whose maps are as large as the image
    asked = model.default(limits, steps=4, every=1, gradients=False, layers=(layer,))
    profile = runs.sample(model, asked, limits, lambda *_: None)
    maps = profile[f"activations/{layer}"].isel(sample=0).transpose("step", "channel", "height", "width").values
    maps = maps.astype(np.float64)
    everywhere = maps.sum((2, 3)).argmax(1)
    # Where another channel than that of the whole image leads at the first step: the one that leads in most places.
    leading = maps[0].argmax(0)
    region = leading == np.bincount(leading[leading != everywhere[0]]).argmax()
    assert region.shape == model.size
    within = (maps * region).sum((2, 3)).argmax(1)
    assert within[0] != everywhere[0]

    result = session.Result(profile, replace(asked, mask=json.dumps(mask_to_runs(region))), model.blocks, "")
    for step in range(4):
        assert figures.max_channel(result, layer, step) == within[step]
        _, told = figures.channel_figure(result, False, "activations", layer, step, 0)
        assert f"c* = {within[step]}, the channel with the largest sum over the region of {region.sum()} p" in told
