"""The example in the package: it is of the first model, and of the settings that a fresh page has."""

from dataclasses import replace

import numpy as np
import torch

from diffusers_xai.app import figures, models
from diffusers_xai.app.example import FILE, example
from diffusers_xai.app.reopened import settings_of
from diffusers_xai.app.server import build
from diffusers_xai.app.session import Session
from diffusers_xai.app.settings import Limits


def test_the_example_is_small_and_of_the_first_model():
    offered = models.load_models()
    model = offered[models.DEMO]
    result = example(model, Limits())
    profile = result.profile
    assert FILE.stat().st_size < 3 * 10**6
    assert result.nbytes == 0  # shared by all
    # No gradient takes a region.
    assert settings_of(profile, offered, Limits()) == replace(result.settings, mask=None)

    # The recorded x̂_0 is that of the weights in the package, to the rounding of half precision.
    step = int(profile["samples"]["step"][-1])
    state = torch.from_numpy(profile["samples"].sel(step=step).values)
    scheduler = model.pipe.scheduler
    scheduler.set_timesteps(result.settings.steps)
    time = scheduler.timesteps[step]
    with torch.no_grad():
        noise = model.pipe.unet(state, time, class_labels=torch.tensor([result.settings.label])).sample
    expected = scheduler.step(noise, time, state).pred_original_sample
    np.testing.assert_allclose(profile["x0"].sel(step=step).values, expected.numpy(), atol=0.02)

    shown = figures.overview(result, dark=False)
    empty = {name for name, update in shown.items() if not update["visible"]}
    assert empty == {
        "weights_plot",
        "volume",
        "energy",
        "sensitivity",
        "gradient_attention",
    }  # linear attention has no weights

    # Everyone who opens the page sees it, though Gradio takes the figures out of what it is given.
    demo = build(offered, Limits(), shown=result).demo
    begin = next(function.fn for function in demo.fns.values() if function.name == "begin" and function.outputs)
    for visitor in (Session(), Session()):
        figure = next(update for block, update in begin(visitor, False).items() if block.label == "The process")
        assert figure.pop("value").data
        assert visitor.result is result
