"""Noise levels and predictions against what the schedulers themselves compute."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from diffusers_xai.taps import NoiseLevel, noise_level, tap_step, x0_and_noise
from diffusers_xai.taps.noise import check_x0


ALPHA_BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def steps_of(scheduler, count=6, shape=(1, 3, 8, 8)):
    """All steps of a run with random predictions."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(count)
    steps, state = [], torch.randn(shape, generator=generator)
    with tap_step(scheduler, steps.append):
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(state, t)
            state = scheduler.step(torch.randn(shape, generator=generator), t, state).prev_sample
    return steps


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_noise_level_of_a_variance_preserving_scheduler(timestep):
    alpha_bar = ALPHA_BARS[timestep]
    level = noise_level(DDPMScheduler(), timestep)
    expected = (math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), math.sqrt((1 - alpha_bar) / alpha_bar))
    np.testing.assert_allclose([level.signal, level.noise, level.sigma], expected, rtol=1e-4)


def test_zero_terminal_snr_is_infinite_and_then_finite():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert noise_level(scheduler, 999) == NoiseLevel(0.0, 1.0, math.inf)
    assert 1 < noise_level(scheduler, 998).sigma < math.inf
    state, v = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    x0, noise = x0_and_noise(scheduler, noise_level(scheduler, 999), v, state)
    assert torch.equal(x0, -v)
    assert torch.equal(noise, state)


SIGMAS = {
    "heun": HeunDiscreteScheduler(),
    "euler": EulerDiscreteScheduler(use_karras_sigmas=True),
    "euler continuous": EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    "ancestral": EulerAncestralDiscreteScheduler(),
    "dpm karras": DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "dpm exponential": DPMSolverMultistepScheduler(use_exponential_sigmas=True),
    "unipc flow": UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": EDMEulerScheduler(),
    "consistency": CMStochasticIterativeScheduler(),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_sigma_is_what_the_scheduler_holds_for_the_step(name):
    scheduler = SIGMAS[name]
    steps = steps_of(scheduler)
    np.testing.assert_allclose([step.level.sigma for step in steps], scheduler.sigmas[: len(steps)], rtol=1e-6)
    if name == "unipc flow":
        assert steps[0].level.sigma == pytest.approx(1.0, abs=1e-3)
    if name == "edm":
        assert steps[0].level.sigma == pytest.approx(80.0)


@pytest.mark.parametrize("scheduler", [KDPM2DiscreteScheduler(), KDPM2AncestralDiscreteScheduler()])
def test_sigma_between_two_steps_of_a_second_order_solver(scheduler):
    steps = steps_of(scheduler)
    for step in steps:  # x̂_0 = x − σ ε of the scheduler's own prediction tells which σ it used
        used = (step.sample - step.pred_original_sample).flatten() @ step.model_output.flatten()
        used = float(used / step.model_output.flatten().square().sum())
        assert step.level.sigma == pytest.approx(used, rel=1e-3)


X0 = {
    "ddpm": DDPMScheduler(clip_sample=False),
    "ddim v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "euler": EulerDiscreteScheduler(),
    "euler v": EulerDiscreteScheduler(prediction_type="v_prediction"),
    "heun": HeunDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
}


@pytest.mark.parametrize("name", X0)
def test_predictions_imply_the_image_that_the_scheduler_itself_reports(name):
    scheduler = X0[name]
    for step in steps_of(scheduler):
        scale = math.sqrt(1 + step.level.sigma**2)
        if name == "edm":
            scale = math.sqrt(step.level.sigma**2 + scheduler.config.sigma_data**2)
        model_input = step.sample / scale if name[:3] in ("eul", "heu", "edm") else step.sample
        x0, noise = x0_and_noise(scheduler, step.level, step.model_output, model_input)
        torch.testing.assert_close(x0, step.pred_original_sample, rtol=1e-3, atol=1e-3)
        if name in ("ddpm", "ddim v"):
            again = step.level.signal * x0 + step.level.noise * noise
            torch.testing.assert_close(again, step.sample, rtol=1e-3, atol=1e-3)


SOLVERS = {
    "dpm++ thresholding": DPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.0),
    "dpm++ single": DPMSolverSinglestepScheduler(thresholding=True, sample_max_value=1.0),
    "unipc thresholding": UniPCMultistepScheduler(thresholding=True, sample_max_value=1.0),
    "sa": SASolverScheduler(thresholding=True, sample_max_value=1.0),
    "edm dpm": EDMDPMSolverMultistepScheduler(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_image_is_the_one_that_the_solver_goes_on_with(name, monkeypatch):
    scheduler, converted = SOLVERS[name], []
    original = scheduler.convert_model_output

    def spy(*args, **kwargs):
        converted.append(original(*args, **kwargs))
        return converted[-1]

    monkeypatch.setattr(scheduler, "convert_model_output", spy)
    for step, expected in zip(steps_of(scheduler), converted, strict=True):
        assert torch.equal(step.pred_original_sample, expected)
        if "thresholding" in name:
            assert step.pred_original_sample.abs().max() <= 1.0


def test_what_stands_second_in_a_step_s_tuple_is_not_always_the_image():
    for scheduler, has_x0 in ((TCDScheduler(), False), (LCMScheduler(), True), (PNDMScheduler(), False)):
        scheduler.set_timesteps(4)
        steps, state = [], torch.rand(1, 3, 8, 8)
        with tap_step(scheduler, steps.append):
            output = scheduler.step(torch.rand(1, 3, 8, 8), scheduler.timesteps[0], state, return_dict=False)
        assert (steps[0].pred_original_sample is not None) is has_x0
        if has_x0:
            assert steps[0].pred_original_sample is output[1]


def test_deis_that_predicts_noise_has_an_image_too():
    scheduler = DEISMultistepScheduler()
    step = steps_of(scheduler)[0]
    assert step.pred_original_sample is None
    x0, _ = x0_and_noise(scheduler, step.level, step.model_output, step.sample)
    expected = (step.sample - step.level.noise * step.model_output) / step.level.signal
    torch.testing.assert_close(x0, expected)


def test_flow_predictions_give_back_the_image_and_the_noise():
    x0, noise = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 3.0)
    level = NoiseLevel(0.75, 0.25, 0.25)
    image, implied = x0_and_noise(FlowMatchEulerDiscreteScheduler(), level, noise - x0, 0.75 * x0 + 0.25 * noise)
    torch.testing.assert_close(image, x0)
    torch.testing.assert_close(implied, noise)


def test_what_cannot_be_known_is_refused():
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="got 'score' of DDPMScheduler"):
        x0_and_noise(scheduler, noise_level(scheduler, 3), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="tells its noise level, got IPNDMScheduler"):
        check_x0(IPNDMScheduler(), 3.0)


def test_a_scheduler_that_counts_up_to_the_image_tells_the_share_of_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(4)
    clean, noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    state, shares = noise, []
    with tap_step(scheduler, lambda step: shares.append(step.level)):
        for t in scheduler.timesteps:
            index = scheduler.step_index or 0
            level = noise_level(scheduler, float(t), index, scheduler.sigmas)
            x0, epsilon = x0_and_noise(scheduler, level, clean - noise, state)
            torch.testing.assert_close(x0, clean, atol=1e-6, rtol=0)
            torch.testing.assert_close(epsilon, noise, atol=1e-6, rtol=0)
            state = scheduler.step(clean - noise, t, state).prev_sample
    torch.testing.assert_close(state, clean, atol=1e-6, rtol=0)
    assert [level.sigma for level in shares] == sorted((level.sigma for level in shares), reverse=True)
    assert (shares[0].sigma, shares[0].signal) == (1, 0)
