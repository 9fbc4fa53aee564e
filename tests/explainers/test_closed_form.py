"""Every method of the package on denoisers whose answer is known: guidance 1 and 2, five schedulers, float64."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffusers_xai import (
    Activations,
    EmpiricalDenoiser,
    GaussianDenoiser,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    MixtureDenoiser,
    Samples,
    XAIPipeline,
    record,
)


SHAPE = (3, 8, 8)
DIM = 192
MASK = np.zeros((8, 8), bool)
MASK[2:4, 3:6] = True
PIXELS = np.argwhere(MASK)
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCHEDULERS = {
    "ddpm": DDPMScheduler(clip_sample=False, **BETAS),
    "ddim": DDIMScheduler(clip_sample=False, **BETAS),
    "euler": EulerDiscreteScheduler(**BETAS),
    "heun": HeunDiscreteScheduler(**BETAS),
    "dpm": DPMSolverMultistepScheduler(**BETAS),
}
# DPM-Solver computes in single precision whatever it is given, the scheduler's coefficients are single throughout.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def images():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, DIM)) @ (rng.normal(size=(DIM, DIM)) * 0.95 ** np.arange(DIM)) / 8
    return torch.from_numpy(values).unflatten(1, SHAPE)


IMAGES, LABELS = images(), torch.arange(40) % 4
MIXTURE = MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULERS["ddpm"])


def run(scheduler, specs, guidance_scale=1.0, steps=4, model=MIXTURE):
    pipe = XAIPipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    labels = {} if model.class_embedding is None else {"class_labels": [1, 2]}
    return pipe(
        batch_size=2,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        record=specs,
        output_type="pt",
        **labels,
    ).profile


def state(profile, step, alpha, scheduler):
    """x_t in the variance-preserving form that the denoiser receives, from the recorded state."""
    x = torch.from_numpy(profile["samples"].sel(step=step).values)
    return x * alpha**0.5 if hasattr(scheduler, "sigmas") and "DPM" not in type(scheduler).__name__ else x


def moment(profile, name, step):
    """t and ᾱ of a recorded step."""
    t = float(profile[name]["timestep"].sel(step=step))
    return t, MIXTURE.alphas_cumprod(t).item()


def guided(function, scale):
    """A linear function of the label, as guidance combines it."""
    labels = torch.tensor([1, 2])
    if scale == 1:
        return function(labels)
    return function(None) + scale * (function(labels) - function(None))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_samples_and_predicted_images(name, guidance_scale):
    scheduler = SCHEDULERS[name]
    profile = run(scheduler, [Samples(measures=())], guidance_scale)
    for step in profile["samples"]["step"].values[:3]:
        t, alpha = moment(profile, "samples", step)
        x = state(profile, step, alpha, scheduler)
        expected = guided(lambda labels, x=x, t=t: MIXTURE.predict_x0(x, t, labels), guidance_scale)
        np.testing.assert_allclose(profile["x0"].sel(step=step), expected, **TOLERANCE)


def colours_summed(jacobian):
    """(2, dim, dim) -> (2, mask pixel, height, width): colours of the output and of the input summed."""
    full = jacobian.unflatten(2, SHAPE).unflatten(1, SHAPE).sum(4).sum(1)
    return full[:, PIXELS[:, 0], PIXELS[:, 1]].numpy()


IDENTITY = torch.eye(DIM, dtype=torch.float64)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler"])
def test_the_volume_of_the_noise(name, guidance_scale):
    scheduler = SCHEDULERS[name]
    specs = [Samples(measures=()), GradientVolume(mask=MASK, of="noise", steps=[1], dtype="float64")]
    profile = run(scheduler, specs, guidance_scale)
    t, alpha = moment(profile, "gradient_volume", 1)
    x = state(profile, 1, alpha, scheduler)
    branches = [torch.tensor([1, 2])] if guidance_scale == 1 else [None, torch.tensor([1, 2])]
    expected = [
        colours_summed((IDENTITY - alpha**0.5 * MIXTURE.jacobian(x, t, labels)) / (1 - alpha) ** 0.5)
        for labels in branches
    ]
    expected = np.stack(expected, 1) if guidance_scale > 1 else expected[0]
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler"])
def test_the_volume_of_the_step(name, guidance_scale):
    """The scheduler's mean is a·x̂_0 + b·x_t: coefficients from the papers, the derivative of x̂_0 in closed form."""
    scheduler = SCHEDULERS[name]
    specs = [Samples(measures=()), GradientVolume(mask=MASK, steps=[1], dtype="float64")]
    profile = run(scheduler, specs, guidance_scale)
    t, alpha = moment(profile, "gradient_volume", 1)
    _, after = moment(profile, "samples", 2)
    x = state(profile, 1, alpha, scheduler)
    jacobian = guided(lambda labels: MIXTURE.jacobian(x, t, labels), guidance_scale)
    if name == "ddpm":  # Ho et al. 2020, eq. 7
        ratio = alpha / after
        a = after**0.5 * (1 - ratio) / (1 - alpha)
        b = ratio**0.5 * (1 - after) / (1 - alpha)
    elif name == "ddim":  # Song et al. 2021, eq. 12
        b = ((1 - after) / (1 - alpha)) ** 0.5
        a = after**0.5 - b * alpha**0.5
    else:  # Karras et al. 2022, alg. 1: the state is x_t / √ᾱ, x̂_0 a function of x_t
        b = (((1 - after) / after) / ((1 - alpha) / alpha)) ** 0.5
        a = 1 - b
        jacobian = jacobian * alpha**0.5
    np.testing.assert_allclose(
        profile["gradient_volume"].values[0], colours_summed(a * jacobian + b * IDENTITY), **TOLERANCE
    )


def test_the_energy_is_as_expected_within_its_error():
    specs = [Samples(measures=()), GradientEnergy(mask=MASK, of="noise", probes=400, steps=[1], dtype="float64")]
    profile = run(SCHEDULERS["ddim"], specs)
    t, alpha = moment(profile, "gradient_energy", 1)
    x = state(profile, 1, alpha, SCHEDULERS["ddim"])
    rows = colours_summed((IDENTITY - alpha**0.5 * MIXTURE.jacobian(x, t, torch.tensor([1, 2]))) / (1 - alpha) ** 0.5)
    exact = np.sqrt((rows**2).sum(1))
    estimate, error = (profile[name].values[0] for name in ("gradient_energy", "gradient_energy_error"))
    z = (estimate - exact) / error
    assert abs(z.mean()) < 0.5
    assert 0.7 < z.std() < 1.4


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_gradient_maps_and_activations_of_the_predicted_image(guidance_scale):
    """∂Σε/∂x̂_0 is −√ᾱ/√(1−ᾱ) on the mask and nothing elsewhere."""
    specs = [
        Samples(measures=()),
        GradientMaps("x0", mask=MASK, of="noise", steps=[1]),
        Activations("x0", steps=[1]),
        Activations("posterior_weights", steps=[1]),
    ]
    profile = run(SCHEDULERS["ddim"], specs[:3], guidance_scale)
    weights = run(SCHEDULERS["ddim"], [specs[0], specs[3]], guidance_scale)["activations/posterior_weights"].values[0]
    t, alpha = moment(profile, "samples", 1)
    x = state(profile, 1, alpha, SCHEDULERS["ddim"])
    maps, clean = profile["gradient_maps/x0"].values[0], profile["activations/x0"].values[0]
    expected = np.broadcast_to(-((alpha / (1 - alpha)) ** 0.5) * MASK, maps.shape)
    np.testing.assert_allclose(maps, expected, rtol=1e-6)
    branches = [torch.tensor([1, 2])] if guidance_scale == 1 else [None, torch.tensor([1, 2])]
    for values, reference in (
        (clean, [MIXTURE.predict_x0(x, t, labels) for labels in branches]),
        (weights, [MIXTURE.posterior(x, t, labels) for labels in branches]),
    ):
        expected = np.stack([part.numpy() for part in reference], 1).reshape(values.shape)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_label_sensitivity_is_the_weight_of_the_other_labels(guidance_scale):
    specs = [Samples(measures=()), GradientVolume(mask=MASK, of="noise", steps=[1], dtype="float64")]
    profile = run(SCHEDULERS["ddim"], specs, guidance_scale)
    t, alpha = moment(profile, "samples", 1)
    x = state(profile, 1, alpha, SCHEDULERS["ddim"])
    ratio = MIXTURE.label_posterior(x, t) / MIXTURE.class_embedding.shares
    sensitivity = profile["label_sensitivity"].values[0]
    assert sensitivity.shape[-1] == 4
    for i, label in enumerate((1, 2)):
        recorded = sensitivity[i] if guidance_scale == 1 else sensitivity[i, 1]  # of the branch with the label
        own = MIXTURE.predict_x0(x, t, torch.tensor([1, 2]))[i]
        for other in range(4):
            away = MIXTURE.predict_x0(x, t, torch.full((2,), other))[i] - own
            change = -((alpha / (1 - alpha)) ** 0.5) * ratio[i, other] / ratio[i, label] * away.sum(0)
            np.testing.assert_allclose(recorded[:, other], change[MASK], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("kind", [GaussianDenoiser, EmpiricalDenoiser])
def test_in_the_pipelines_of_diffusers(pipeline, kind):
    scheduler = DDIMScheduler(clip_sample=False) if pipeline is DDIMPipeline else SCHEDULERS["ddpm"]
    model = kind.fit(IMAGES, scheduler)
    pipe = pipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def sample():
        return pipe(batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np")

    plain = sample().images
    specs = [Samples(measures=()), GradientVolume(mask=MASK, of="noise", steps=[1], dtype="float64")]
    with record(pipe, specs) as recording:
        recorded = sample().images
    assert np.array_equal(plain, recorded)
    profile = recording.profile
    t, alpha = moment(profile, "samples", 1)
    x = torch.from_numpy(profile["samples"].values[1])
    expected = colours_summed((IDENTITY - alpha**0.5 * model.jacobian(x, t)) / (1 - alpha) ** 0.5)
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)


def test_the_plan_of_a_closed_form():
    pipe = XAIPipeline(MIXTURE, SCHEDULERS["ddim"])
    plan = pipe.plan([Samples(measures=()), GradientVolume(mask=MASK, steps=[1])], num_inference_steps=4)
    assert "label_sensitivity" in str(plan)
