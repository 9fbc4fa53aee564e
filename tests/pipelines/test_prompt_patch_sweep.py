"""Patches between prompts in one call of a pipeline, against runs of their own."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler

from diffusers_xai import Activations, Patch, record
from diffusers_xai.pipelines.patch_sweep import PatchSite
from diffusers_xai.pipelines.prompt_patch_sweep import count_steps, prompt_patch_sweep
from tests.tiny import stable_diffusion
from tests.zoo.pipelines import ZOO


BASE, SOURCE, SEED, STEPS = "a red fox", "a cat, on ice", 4, 4
LAYERS = "up_blocks.*.resnets.0"


@pytest.fixture(scope="module")
def pipe():
    return stable_diffusion()


def picture(pipe, prompt, seed=SEED, edits=(), specs=(), **arguments):
    with record(pipe, specs, edits) as recording:
        output = pipe(
            prompt=prompt, num_inference_steps=STEPS, output_type="pt",
            generator=torch.Generator().manual_seed(seed), **arguments,
        )  # fmt: skip
    return output[0][0] * 2 - 1, recording.profile


@pytest.mark.parametrize(
    ("scheduler", "branch", "arguments"),
    [
        (DDIMScheduler, None, {"guidance_scale": 3.0}),
        (DDIMScheduler, "cond", {"guidance_scale": 3.0, "eta": 1.0}),
        (EulerAncestralDiscreteScheduler, None, {"guidance_scale": 1.0}),
        (DPMSolverMultistepScheduler, "uncond", {"guidance_scale": 3.0}),
        (PNDMScheduler, None, {"guidance_scale": 3.0}),
    ],
)
def test_every_patch_equals_a_run_of_its_own(pipe, monkeypatch, scheduler, branch, arguments):
    scheduler = scheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    steps = count_steps(pipe, STEPS)
    assert steps == (5 if isinstance(scheduler, PNDMScheduler) else 4)
    sites = [PatchSite(LAYERS, range(2, steps), branch), PatchSite("conv_in", range(0, 3), branch)]
    source, profile = picture(pipe, SOURCE, 9, specs=[Activations(layers=[LAYERS, "conv_in"])], **arguments)
    expected = [source, picture(pipe, BASE, **arguments)[0]]
    for site in sites:
        edit = Patch(layers=site.layers, source=profile, steps=list(site.steps), branch=branch)
        expected.append(picture(pipe, BASE, edits=[edit], **arguments)[0])
    for max_rows in (3, 64):
        swept, timesteps = prompt_patch_sweep(
            pipe, BASE, SOURCE, SEED, sites, source_seed=9, max_rows=max_rows,
            arguments={"num_inference_steps": STEPS, **arguments},
        )  # fmt: skip
        np.testing.assert_allclose(swept, torch.stack(expected), atol=1e-4)
        assert timesteps == profile["activations/conv_in"]["timestep"].values.tolist()
    for image in expected[2:]:
        assert (image - expected[1]).abs().max() > 1e-3  # a patch does something


def test_up_to_its_first_step_a_patch_costs_nothing(pipe):
    rows = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    sites = [PatchSite("conv_out", range(start, STEPS)) for start in (0, 2, 3, 3)]
    try:
        prompt_patch_sweep(
            pipe, BASE, SOURCE, SEED, sites, arguments={"num_inference_steps": STEPS, "guidance_scale": 2.0}
        )
    finally:
        handle.remove()
    assert rows == [2 * (2 + started) for started in (1, 1, 2, 4)]
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "flux", "pixart-alpha", "chroma"])
def test_other_families_with_everything_patched_are_the_source(name):
    entry = ZOO[name]
    pipe = entry.make()
    given = {key: value for key, value in entry.call.items() if key not in ("prompt", "output_type", "generator")}
    arguments = {"num_inference_steps": entry.steps, **given}
    steps = count_steps(pipe, entry.steps)
    answer = "conv_out" if name == "stable-diffusion" else "proj_out"
    sites = [PatchSite(answer, range(steps)), PatchSite(answer, range(steps - 1, steps))]
    source, base, whole, last = prompt_patch_sweep(pipe, BASE, SOURCE, SEED, sites, arguments=arguments)[0]
    assert torch.equal(whole, source)
    assert (base - source).abs().max() > 1e-4
    assert (last - source).abs().max() > 1e-5
    assert (last - base).abs().max() > 1e-5


def test_what_does_not_fit_is_refused(pipe):
    arguments = {"num_inference_steps": 1, "guidance_scale": 1.0}
    for site, mask, message in (
        (PatchSite("conv_in", range(1), "uncond"), None, "`branch` in"),
        (PatchSite("time_embedding", range(1)), np.ones((16, 16), bool), "covers the image"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_patch_sweep(pipe, BASE, SOURCE, SEED, [site], mask=mask, arguments=arguments)
    with pytest.raises(KeyError):
        prompt_patch_sweep(pipe, BASE, SOURCE, SEED, [PatchSite("nowhere", range(1))], arguments=arguments)
