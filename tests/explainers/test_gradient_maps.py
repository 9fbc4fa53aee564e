"""Gradients by layers against directional derivatives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import GradientMaps, Samples, record
from tests.explainers.gradients import make, run
from tests.tiny import convnext_unet


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_gradient_maps_equal_the_sum_over_pixels(guidance_scale):
    """g_l of the masked sum, by a directional derivative: the mean for a nudged activation."""
    pipe = make(convnext_unet().double())
    mask = np.zeros((16, 16), bool)
    mask[2:5, 8:12] = True
    layers = ["downs.0.2.fn", "down_blocks.1", "mid_attn", "time_mlp"]
    aliases = pipe.unet.layer_aliases
    specs = [Samples(measures=()), GradientMaps(layers=layers, mask=mask, steps=0)]
    arguments = {"steps": 3, "guidance_scale": guidance_scale}
    profile = run(pipe, specs, **arguments).profile
    for layer in layers:
        path = aliases.get(layer, layer)
        gradient = profile[f"gradient_maps/{path}"].sel(step=0)
        module = dict(pipe.unet.named_modules())[path]
        shape = gradient.shape[1:] if guidance_scale == 1 else gradient.shape[2:]
        rows = 1 if guidance_scale == 1 else 2
        direction = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sums = []
        for sign in (1, -1):
            done = []

            def nudge(m, args, out, sign=sign, done=done, direction=direction):
                if done:  # the first step only
                    return None
                done.append(1)
                hidden = out[0] if isinstance(out, tuple) else out
                nudged = hidden + sign * 1e-5 * direction
                if isinstance(out, tuple):
                    return nudged, tuple(nudged if skip is hidden else skip for skip in out[1])
                return nudged

            handle = module.register_forward_hook(nudge)
            second_state = run(pipe, [Samples(measures=())], **arguments).profile["samples"].sel(step=1)
            handle.remove()
            sums.append(second_state.values[0].sum(0)[mask].sum())
        expected = (sums[0] - sums[1]) / 2e-5
        values = gradient.values[0] if guidance_scale > 1 else gradient.values
        assert (values * direction.numpy()).sum() == pytest.approx(expected, rel=1e-4)


def test_max_channel_works_on_gradient_maps():
    profile = run(make(), [GradientMaps(layers="mid_attn.fn", steps=0)]).profile
    path = "gradient_maps/mid_block.attentions.0.attn"
    expected = profile[path].values[0, 0].sum((1, 2)).argmax()
    assert profile.max_channel("gradient_maps/mid_attn.fn", step=0) == expected


class ChangesInPlace(torch.nn.Module):
    """A layer whose output the next one overwrites."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x, t):
        return self.b(self.act(self.a(x)))


def test_gradients_by_a_layer_whose_output_is_overwritten():
    torch.manual_seed(0)
    network, scheduler = ChangesInPlace(), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1)
    x, t = torch.randn(1, 3, 8, 8), scheduler.timesteps[0]
    own = SimpleNamespace(network=network, scheduler=scheduler)
    with record(own, [GradientMaps("a", of="noise")]) as recording, torch.no_grad():
        scheduler.step(network(x, t), t, x)
    inner = network.a(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(network.b(inner.relu()).sum(), inner)
    np.testing.assert_allclose(recording.profile["gradient_maps/a"][0], expected, atol=1e-6)
