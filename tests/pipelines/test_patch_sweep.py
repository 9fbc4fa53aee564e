"""Patches in one pass, against runs of their own and against what must come out."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusers_xai import Activations, Patch, Samples, XAIPipeline
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from tests.planted import OneBlockHearsTheLabel
from tests.tiny import convnext_unet


SEEDS, STEPS = [4, 9, 2], 8
LAYERS = "mid_block.resnets.*"


def make(scheduler=None, unet=None):
    return XAIPipeline(convnext_unet() if unet is None else unet, scheduler or DDPMScheduler())


def separate(pipe, label, edits=(), record=(), seeds=SEEDS, **options):
    out = pipe(
        [label] * len(seeds), num_inference_steps=STEPS, record=[Samples(every=STEPS), *record], edits=edits,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], **options,
    )  # fmt: skip
    return out.profile


@pytest.mark.parametrize(
    ("scheduler", "options", "branch"),
    [
        (DDPMScheduler(), {}, None),
        (DDIMScheduler(), {"guidance_scale": 2.0}, "cond"),
        (DDIMScheduler(), {"guidance_scale": 2.0, "eta": 1.0}, "uncond"),
        (DPMSolverMultistepScheduler(), {}, None),
    ],
    ids=["ddpm", "ddim-guided", "ddim-uncond", "dpm-solver"],
)
def test_every_patch_equals_a_run_of_its_own(scheduler, options, branch):
    pipe = make(scheduler)
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:10] = True
    source = separate(pipe, 12, record=[Activations(layers=[LAYERS, "conv_in"])], **options)
    expected = [source, separate(pipe, 3, **options)]
    sites = [
        PatchSite(layers, range(start, stop), branch) for layers, start, stop in ((LAYERS, 2, 5), ("conv_in", 0, 3))
    ]
    for site in sites:
        steps = list(site.steps)
        edit = Patch(layers=site.layers, source=source, mask=mask, steps=steps, branch=branch)
        expected.append(separate(pipe, 3, edits=[edit], **options))
    for max_rows in (3, 64):
        swept = patch_sweep(
            pipe, 3, 12, SEEDS, sites, mask=mask, num_inference_steps=STEPS, max_rows=max_rows, **options
        )
        for run, profile in zip(swept, expected, strict=True):
            np.testing.assert_allclose(run, profile["final_sample"], atol=1e-3)
    assert (swept[2:] - swept[1]).abs().amax((1, 2, 3, 4)).min() > 1e-3
    assert pipe.scheduler is scheduler


def test_everything_patched_is_the_source_bit_for_bit():
    pipe = make()
    sites = [PatchSite(layers, range(STEPS)) for layers in ("conv_out", ["conv_in", "**.resnets.*", "conv_out"])]
    source, base, *patched = patch_sweep(pipe, 3, 12, SEEDS, sites, num_inference_steps=STEPS)
    assert not torch.equal(source, base)
    for run in patched:
        assert torch.equal(run, source)


def test_a_run_patched_into_itself_does_not_change():
    pipe = make(unet=convnext_unet().double())
    sites = [PatchSite("**.resnets.*", range(1, 5)), PatchSite("conv_in", range(STEPS))]
    runs = patch_sweep(pipe, 3, 3, SEEDS, sites, num_inference_steps=STEPS)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=1e-10)


def test_only_the_block_that_hears_the_label_carries_it():
    pipe = make(DDPMScheduler(clip_sample=False), OneBlockHearsTheLabel().double())
    sites = [PatchSite(f"blocks.{i}", range(STEPS)) for i in range(3)]
    source, base, deaf, hearing, other = patch_sweep(pipe, 0, 1, SEEDS, sites, num_inference_steps=STEPS)
    torch.testing.assert_close(hearing, source, rtol=0, atol=1e-10)
    for run in (deaf, other):
        torch.testing.assert_close(run, base, rtol=0, atol=1e-10)
    assert (source - base).abs().max() > 0.1


def test_between_seeds_the_source_has_noise_of_its_own():
    pipe = make()
    sites = [PatchSite("conv_in", range(3))]
    runs = patch_sweep(pipe, 3, 3, SEEDS, sites, source_seeds=[5, 6, 7], num_inference_steps=STEPS)
    np.testing.assert_allclose(runs[0], separate(pipe, 3, seeds=[5, 6, 7])["final_sample"], atol=1e-3)
    np.testing.assert_allclose(runs[1], separate(pipe, 3)["final_sample"], atol=1e-3)


@pytest.mark.parametrize(
    ("site", "options", "error", "message"),
    [
        (PatchSite("conv_in", range(3, 9)), {}, ValueError, r"range within 0\.\.8"),
        (PatchSite("conv_in", range(3, 3)), {}, ValueError, r"range within 0\.\.8"),
        (PatchSite("conv_in", range(3), "uncond"), {}, ValueError, r"Expected `branch` in \('cond',\) or None"),
        (PatchSite("nowhere", range(3)), {}, KeyError, "Expected layers of ConvNextUNet2DModel, got 'nowhere'"),
        (PatchSite("conv_in", range(3)), {"source_seeds": [1]}, ValueError, "Expected 3 `source_seeds`"),
        (PatchSite("time_embedding.linear_1", range(3)), {"mask": np.ones((16, 16), bool)}, ValueError, "a `mask`"),
    ],
)
def test_what_does_not_fit_is_refused(site, options, error, message):
    pipe = make()
    before = pipe.scheduler
    with pytest.raises(error, match=message):
        patch_sweep(pipe, 3, 12, SEEDS, [site], num_inference_steps=STEPS, **options)
    assert pipe.scheduler is before
    assert not any(module._forward_hooks for module in pipe.unet.modules())
