"""Shares of gradient attention against automatic differentiation by hand."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from tests.tiny import convnext_unet


EXPERIMENT = EXPERIMENTS["gradient-attention"]
LAYERS = ["down_blocks.0.resnets.1", "mid_block.attentions.0"]
MASK = np.zeros((16, 16), dtype=bool)
MASK[2:7, 8:14] = True
LABEL = 0b0110  # of four attributes: the second and the third
SEEDS = [4, 9]


def judge(images):
    """Differentiable, of four attributes."""
    weights = torch.linspace(-1, 1, 16)
    scores = (images[:, 0] * weights).mean((1, 2)), images[:, 1].mean((1, 2)), images[:, 2, 4].mean(1)
    return torch.stack([*scores, -scores[0]], dim=1).sigmoid()


@pytest.fixture(scope="module")
def pipe():
    attributes = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
    return XAIPipeline(convnext_unet(class_attributes=attributes), DDIMScheduler(clip_sample=False))


def by_hand(pipe, seed, score):
    """The share within the mask of each layer's map at the first of three steps."""
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    pipe.scheduler.set_timesteps(3)
    t = int(pipe.scheduler.timesteps[0])
    outputs, shares = {}, []
    handles = [
        pipe.unet.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: outputs.update({name: out}))
        for name in LAYERS
    ]
    noise = pipe.unet(x, t, class_labels=torch.tensor([LABEL])).sample
    for handle in handles:
        handle.remove()
    alpha = pipe.scheduler.alphas_cumprod[t]
    z = score((x - (1 - alpha).sqrt() * noise) / alpha.sqrt()).sum()
    for output, gradient in zip(outputs.values(), torch.autograd.grad(z, list(outputs.values())), strict=True):
        found = (gradient.mean((2, 3), keepdim=True) * output).sum(1, keepdim=True).clamp(min=0)
        own = found[0, 0].detach().double().numpy()
        side = 16 // len(own)  # of a place, in pixels
        large = own.repeat(side, 0).repeat(side, 1)  # each spread evenly over its pixels
        shares.append(large[MASK].sum() / large.sum() if large.any() else MASK.mean())
    return shares


def test_the_share_is_that_of_differentiation_by_hand(pipe):
    sampling = Sampling([LABEL], SEEDS, 3)
    summed = EXPERIMENT.run(pipe, sampling, mask=MASK, layers=LAYERS, null=pipe)
    judged = EXPERIMENT.run(pipe, sampling, mask=MASK, layers=LAYERS, judge=judge)
    assert judged.data["score"].values.tolist() == ["Male", "Smiling"]
    for result, name, score in (
        (summed, "sum over the region", lambda images: images[:, :, torch.from_numpy(MASK)].sum((1, 2))),
        (judged, "Male", lambda images: judge(images.clamp(-1, 1))[:, 1].logit()),
        (judged, "Smiling", lambda images: judge(images.clamp(-1, 1))[:, 2].logit()),
    ):
        for seed in SEEDS:
            found = result.data["inside"].sel(seed=seed, score=name).isel(step=0)
            np.testing.assert_allclose(found, by_hand(pipe, seed, score), atol=1e-4)
    np.testing.assert_allclose(summed.data["null_inside"], summed.data["inside"], atol=1e-5)  # its own control
    assert not np.allclose(judged.data["null_inside"], judged.data["inside"], atol=0.01)
    assert summed.settings["chance"] == MASK.mean()
    places = [MASK.reshape(n, 16 // n, n, 16 // n).mean((1, 3)) for n in (16, 8)]  # of the layers' maps
    np.testing.assert_allclose(summed.data["most"], [place.max() for place in places], atol=1e-6)
    for result in (summed, judged):
        assert result.plot().data
        assert result.plot_images().data
    row = EXPERIMENT.table(judged).iloc[0]
    assert row["score"] == "logit of Male"
    assert row["the model"].startswith(f"{float(judged.data['inside'][:, 0, 0, 0].mean()):.3f} (")


def test_a_judge_that_has_no_gradient_is_refused(pipe):
    def hard(images):
        return (judge(images) > 0.5).float()

    with pytest.raises(ValueError, match="a differentiable score of each image"):
        EXPERIMENT.run(pipe, Sampling([LABEL], [1], 2), layers=LAYERS, judge=hard, null="none")
