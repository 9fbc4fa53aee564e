"""Where the gradients of a region lie."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments.nulls import gaussian_null
from tests.experiments.runs import SEEDS, clean_image_energy, run, states
from tests.tiny import convnext_unet, unet_2d


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_localisation_is_that_of_the_clean_image(prediction_type):
    pipe = XAIPipeline(convnext_unet(), DDIMScheduler(prediction_type=prediction_type, clip_sample=False))
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    result = run("localisation", pipe, labels=[3], seeds=[4], steps=10, mask=mask)
    t = int(result.data["timestep"][2])
    x = states(pipe, 3, 4, 10)[int(result.data["step"][2])]
    energy = clean_image_energy(pipe, x, t, 3, mask)
    mine = result.data["energy"].sel(shown=4)[2].values
    np.testing.assert_allclose(mine / mine.max(), energy / energy.max(), atol=2e-3)
    inside = (energy[mask] ** 2).sum() / (energy**2).sum()
    assert float(result.data["inside"].sel(seed=4)[2]) == pytest.approx(inside, abs=1e-3)
    rows, columns = np.argwhere(mask).T
    distance = np.array(
        [[np.sqrt(((rows - i) ** 2 + (columns - j) ** 2).min()) for j in range(16)] for i in range(16)]
    )
    radius = np.sqrt((energy**2 * distance**2).sum() / (energy**2).sum())
    assert float(result.data["radius"].sel(seed=4)[2]) == pytest.approx(radius, rel=2e-3)


def test_the_volumes_of_the_thesis(pipe):
    """Those of ε and of the scheduler's mean, of a model and of Gaussians, by automatic differentiation."""
    pipe = XAIPipeline(pipe.unet, DDPMScheduler(clip_sample=False))
    null = gaussian_null(pipe, [3], num_samples=24)
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    data = run("localisation", pipe, labels=[3], seeds=[4], steps=10, mask=mask, null=null).data
    run_states = states(pipe, 3, 4, 10)
    pipe.scheduler.set_timesteps(10)
    for i, step in enumerate(data["step"].values):
        for which, prefix in ((pipe, ""), (null, "null_")):
            x = run_states[step][None].clone().requires_grad_()
            t = int(data["timestep"][i])
            noise = which.unet(x, t, class_labels=torch.tensor([3])).sample
            mean = pipe.scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
            for name, output in (("reached_noise", noise), ("reached_step", mean)):
                rows = [
                    torch.autograd.grad(output[0, :, row, column].sum(), x, retain_graph=True)[0][0].sum(0)
                    for row, column in np.argwhere(mask)
                ]
                volume = torch.stack(rows)
                share = float((volume > volume.mean()).float().mean())
                assert float(data[f"{prefix}{name}"][0, i]) == pytest.approx(share, abs=0.01)


def test_the_gradient_maps_of_localisation(pipe):
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    layer = "downs.0.2.fn"
    result = run("localisation", pipe, labels=[3], seeds=SEEDS, steps=10, mask=mask, layers=[layer])
    assert result.data["layer"].values.tolist() == [layer]
    kept = []
    module = pipe.unet.get_submodule(pipe.unet.layer_aliases[layer])
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    t, step = (int(result.data[name][2]) for name in ("timestep", "step"))
    x = states(pipe, 3, SEEDS[0], 10)[step]
    kept.clear()
    output = pipe.unet(x[None].requires_grad_(), t, class_labels=torch.tensor([3])).sample
    hook.remove()
    (gradient,) = torch.autograd.grad(output[0][:, torch.from_numpy(mask)].sum(), kept[0])
    channel = int(gradient[0].abs().sum((1, 2)).argmax())
    part = result.data.sel(layer=layer).isel(step=2)
    assert int(part["gradient_channel"]) == channel
    np.testing.assert_allclose(part["gradient_map"], gradient[0, channel], rtol=1e-3, atol=1e-4)


def test_localisation_without_attention():
    pipe = XAIPipeline(unet_2d(attention=False), DDPMScheduler())
    result = run("localisation", pipe, seeds=[1], steps=5)
    layers = sorted(result.data["layer"].values.tolist())
    assert layers == ["down_blocks.0.downsamplers.0", "mid_block.resnets.1", "up_blocks.1.resnets.1"]
    assert (abs(result.data["gradient_map"]).max(["height", "width"]) > 0).all()
