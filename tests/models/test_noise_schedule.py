"""Which noise a closed form takes a timestep for, and the schedulers that mean the same."""

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffusers_xai import GaussianDenoiser, Samples, XAIPipeline, record
from diffusers_xai.pipelines.label_tree import label_tree
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from tests.models.closed_forms import DENOISERS, FLOW, FLOWS, IMAGES, SCHEDULER, noisy


def test_alphas_of_any_schedule_and_between_timesteps():
    images = IMAGES[:5]
    for fields in ({}, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "scaled_linear", "beta_end": 0.012}):
        scheduler = DDIMScheduler(**fields)
        model = GaussianDenoiser.fit(images, scheduler)
        torch.testing.assert_close(model.alphas_cumprod(torch.arange(1000)).float(), scheduler.alphas_cumprod)
    betas = np.linspace(1e-3, 0.3, 10)
    trained = GaussianDenoiser.fit(images, DDPMScheduler(num_train_timesteps=10, trained_betas=betas))
    np.testing.assert_allclose(trained.alphas_cumprod(torch.arange(10)), np.cumprod(1 - betas), rtol=1e-6)
    euler = EulerDiscreteScheduler(use_karras_sigmas=True)
    euler.set_timesteps(17)
    model = GaussianDenoiser.fit(images, euler)
    between = model.alphas_cumprod(euler.timesteps)
    np.testing.assert_allclose(between, 1 / (1 + euler.sigmas[:-1].double() ** 2), rtol=1e-4)
    assert (euler.timesteps != euler.timesteps.round()).any()
    shifted = CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True)  # in a way of its own
    model = GaussianDenoiser.fit(images, shifted)
    np.testing.assert_allclose(model.alphas_cumprod(torch.arange(1000)), shifted.alphas_cumprod, atol=1e-6)
    zero = GaussianDenoiser.fit(images, DDIMScheduler(rescale_betas_zero_snr=True))
    assert zero.alphas_cumprod(999) == 0
    mean = images.mean(0)
    torch.testing.assert_close(zero.predict_x0(noisy(), 999), mean.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (HeunDiscreteScheduler(), "HeunDiscreteScheduler with another"),  # its β are others by default
        (DDIMScheduler(num_train_timesteps=500), "DDIMScheduler with another"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "DDIMScheduler with another"),
        (CogVideoXDDIMScheduler(), "CogVideoXDDIMScheduler with another"),
        (DDIMScheduler(prediction_type="v_prediction"), "got DDIMScheduler of 'v_prediction'"),
        (FLOW, "got FlowMatchEulerDiscreteScheduler of 'flow_prediction'"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "'flow_prediction'"),
        (EDMEulerScheduler(), "got EDMEulerScheduler"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else "",
)
def test_a_scheduler_that_means_other_noise_is_refused(scheduler, message):
    pipe = XAIPipeline(DENOISERS["mixture"], scheduler)
    calls = [
        lambda: pipe([1], num_inference_steps=2),
        lambda: switch_sweep(pipe, 0, 1, [0], [1], num_inference_steps=2),
        lambda: label_tree(pipe, [0, 1], [0], num_inference_steps=2),
        lambda: patch_sweep(pipe, 0, 1, [0], [PatchSite("x0", range(1))], num_inference_steps=2),
        lambda: record(DDPMPipeline(DENOISERS["gaussian"], scheduler), [Samples()]).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_schedulers_that_mean_the_same_noise_are_not():
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="trailing")):
        DENOISERS["gaussian"].check_scheduler(scheduler)
    FLOWS["gaussian of a flow"].check_scheduler(FlowMatchHeunDiscreteScheduler())
    with pytest.raises(ValueError, match="prediction_type='flow_prediction'`, which the denoiser was made for"):
        FLOWS["gaussian of a flow"].check_scheduler(SCHEDULER)
