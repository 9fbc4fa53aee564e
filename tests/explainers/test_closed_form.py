"""Every method of the package on denoisers whose answer is known: guidance 1 and 2, five schedulers, float64."""

import functools

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
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    DecodedImages,
    EmpiricalDenoiser,
    GaussianDenoiser,
    GradientAttention,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    LayerEdit,
    MixtureDenoiser,
    Patch,
    Samples,
    WordMaps,
    XAIPipeline,
    record,
)
from diffusers_xai.experiments import Sampling
from diffusers_xai.experiments.jacobians import Spectra


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
SCALES, STEP, PROBES = (1.0, 2.0), 1, 100
LABELS = torch.tensor([1, 2])  # of the two samples
every_run = pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name in SCHEDULERS for scale in SCALES], ids=lambda value: str(value)
)


def images():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, DIM)) @ (rng.normal(size=(DIM, DIM)) * 0.95 ** np.arange(DIM)) / 8
    return torch.from_numpy(values).unflatten(1, SHAPE)


IMAGES = images()
MIXTURE = MixtureDenoiser.fit(IMAGES, torch.arange(40) % 4, SCHEDULERS["ddpm"])


def run(name, scale, specs, edits=()):
    pipe = XAIPipeline(MIXTURE, SCHEDULERS[name])
    return pipe(
        class_labels=LABELS.tolist(),
        num_inference_steps=4,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(0),
        record=specs,
        edits=edits,
        output_type="pt",
    ).profile


@functools.cache
def recorded(name, scale):
    """All methods but those of the step, in one run."""
    at = {"mask": MASK, "of": "noise", "steps": [STEP]}
    specs = [
        Samples(measures=()),
        GradientVolume(**at, dtype="float64"),
        GradientEnergy(**at, probes=PROBES, dtype="float64"),
        GradientMaps("x0", **at),
        GradientAttention("x0", judge=lambda images: images.square().sum((1, 2, 3)) / 2, steps=[STEP]),
        Activations("x0"),
        Activations("posterior_weights"),
        DecodedImages(),
    ]
    return run(name, scale, specs)


def moment(profile, step, name):
    """x_t as the denoiser receives it, t and ᾱ of a recorded step."""
    samples = profile["samples"].sel(step=step)
    t = float(samples["timestep"])
    alpha = MIXTURE.alphas_cumprod(t).item()
    x = torch.from_numpy(samples.values)
    return x * alpha**0.5 if name in ("euler", "heun") else x, t, alpha


def guided(function, scale, labels=LABELS):
    """A function of the label that guidance combines."""
    return function(labels) if scale == 1 else function(None) + scale * (function(labels) - function(None))


def branches(function, scale):
    """The same of each guidance branch, (sample, [branch], …)."""
    found = [function(label) for label in ([LABELS] if scale == 1 else [None, LABELS])]
    return np.stack([np.asarray(part) for part in found], 1) if scale > 1 else np.asarray(found[0])


@every_run
def test_samples_and_predicted_images(name, scale):
    profile = recorded(name, scale)
    for step in profile["samples"]["step"].values:
        x, t, _ = moment(profile, step, name)
        expected = guided(lambda labels, x=x, t=t: MIXTURE.predict_x0(x, t, labels), scale)
        np.testing.assert_allclose(profile["x0"].sel(step=step), expected, **TOLERANCE)
        bytes_of = (255 * (expected / 2 + 0.5).clamp(0, 1)).numpy()
        assert abs(profile["images"].sel(step=step) - bytes_of).max() < 0.51  # rounded


def colours_summed(jacobian):
    """(2, dim, dim) -> (2, mask pixel, height, width): colours of the output and of the input summed."""
    full = jacobian.unflatten(2, SHAPE).unflatten(1, SHAPE).sum(4).sum(1)
    return full[:, PIXELS[:, 0], PIXELS[:, 1]].numpy()


IDENTITY = torch.eye(DIM, dtype=torch.float64)


def noise_rows(x, t, alpha):
    """∂ε/∂x_t by label: ε = (x_t − √ᾱ x̂_0) / √(1 − ᾱ)."""
    return lambda labels: colours_summed((IDENTITY - alpha**0.5 * MIXTURE.jacobian(x, t, labels)) / (1 - alpha) ** 0.5)


@every_run
def test_the_volume_and_the_energy_of_the_noise(name, scale):
    profile = recorded(name, scale)
    expected = branches(noise_rows(*moment(profile, STEP, name)), scale)
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)
    assert_estimates(profile, np.sqrt((expected**2).sum(-3)))


def assert_estimates(profile, exact):
    """The energy is as near to the exact one as its error says."""
    estimate, error = (profile[name].values[0] for name in ("gradient_energy", "gradient_energy_error"))
    z = (estimate - exact) / error
    assert abs(z.mean()) < 0.7
    assert 0.6 < z.std() < 1.5


def step_coefficients(name, profile):
    """The scheduler's mean is a · x̂_0 + b · (its state), from the papers."""
    alphas = [moment(profile, step, name)[2] for step in range(3)]
    signal, noise = np.sqrt(alphas), np.sqrt(1 - np.array(alphas))
    before, now, after = alphas
    if name == "ddpm":  # Ho et al. 2020, eq. 7
        ratio = now / after
        return after**0.5 * (1 - ratio) / (1 - now), ratio**0.5 * (1 - after) / (1 - now)
    if name == "ddim":  # Song et al. 2021, eq. 12
        return signal[2] - noise[2] / noise[1] * signal[1], noise[2] / noise[1]
    if name == "dpm":  # Lu et al. 2022, DPM-Solver++ (2M), alg. 2
        levels = np.log(signal / noise)
        h = levels[2] - levels[1]
        r = (levels[1] - levels[0]) / h
        return -signal[2] * np.expm1(-h) * (1 + 1 / (2 * r)), noise[2] / noise[1]
    sigma = noise / signal  # Karras et al. 2022: the state is x_t / √ᾱ
    if name == "euler":
        return 1 - sigma[2] / sigma[1], sigma[2] / sigma[1]
    half = (sigma[1] - sigma[0]) / (2 * sigma[1])  # alg. 1, line 8: the correction by the slope at the step's end
    return -half, half


@every_run
def test_gradients_of_the_step(name, scale):
    at = {"mask": MASK, "steps": [STEP]}
    energy = GradientEnergy(**at, probes=PROBES, dtype="float64")
    specs = [Samples(measures=()), GradientVolume(**at, dtype="float64"), energy, GradientMaps("x0", **at)]
    profile = run(name, scale, specs)
    x, t, alpha = moment(profile, STEP, name)
    a, b = step_coefficients(name, profile)
    jacobian = guided(lambda labels: MIXTURE.jacobian(x, t, labels), scale)
    if name in ("euler", "heun"):
        jacobian = jacobian * alpha**0.5
    expected = colours_summed(a * jacobian + b * IDENTITY)
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)
    assert_estimates(profile, np.sqrt((expected**2).sum(1)))
    maps = profile["gradient_maps/x0"].values[0]
    shares = [1.0] if scale == 1 else [1 - scale, scale]  # of the branches in the guided x̂_0
    for branch, share in enumerate(shares):
        own = maps if scale == 1 else maps[:, branch]
        np.testing.assert_allclose(own, np.broadcast_to(share * a * MASK, own.shape), **TOLERANCE)
    np.testing.assert_allclose(profile["label_sensitivity"].values[0], scale * a * by_label(x, t), **TOLERANCE)


@every_run
def test_gradients_of_the_clean_image(name, scale):
    at = {"mask": MASK, "of": "x0", "steps": [STEP]}
    energy = GradientEnergy(**at, probes=PROBES, dtype="float64")
    specs = [Samples(measures=()), GradientVolume(**at, dtype="float64"), energy, GradientMaps("x0", **at)]
    profile = run(name, scale, specs)
    x, t, _ = moment(profile, STEP, name)
    expected = branches(lambda labels: colours_summed(MIXTURE.jacobian(x, t, labels)), scale)
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)
    assert_estimates(profile, np.sqrt((expected**2).sum(-3)))
    maps = profile["gradient_maps/x0"].values[0]
    np.testing.assert_allclose(maps, np.broadcast_to(MASK, maps.shape), **TOLERANCE)
    sensitivity = profile["label_sensitivity"].values[0]
    own_branch = sensitivity if scale == 1 else sensitivity[:, 1]  # of the branch with the label
    np.testing.assert_allclose(own_branch, by_label(x, t), **TOLERANCE)


@every_run
def test_singular_directions_of_the_clean_image(name, scale):
    profile = recorded(name, scale)
    x, t, alpha = moment(profile, STEP, name)
    jacobian = guided(lambda labels: MIXTURE.jacobian(x, t, labels), scale, torch.tensor([1, 1]))
    if name in ("euler", "heun"):
        jacobian = jacobian * alpha**0.5
    expected = torch.linalg.svdvals(jacobian)
    states = torch.from_numpy(profile["samples"].sel(step=[STEP]).values)
    pipe = XAIPipeline(MIXTURE, SCHEDULERS[name])
    (found,) = Spectra(Sampling([1], [0, 1], 4, scale), [STEP], {"x0": None}, 3).of(pipe, states)["x0"]
    values, right, left = (getattr(found.triplets, part) for part in ("values", "right", "left"))
    np.testing.assert_allclose(values, expected[:, :3], rtol=1e-3)
    np.testing.assert_allclose(right @ jacobian.mT, values[..., None] * left, atol=1e-4 * float(values.max()))


@every_run
def test_maps_of_a_layer(name, scale):
    """∂Σε/∂x̂_0 is −√ᾱ/√(1−ᾱ) on the mask and nothing elsewhere; of a score Σx̂_0²/2 it is x̂_0."""
    profile = recorded(name, scale)
    x, t, alpha = moment(profile, STEP, name)
    maps = profile["gradient_maps/x0"].values[0]
    expected = np.broadcast_to(-((alpha / (1 - alpha)) ** 0.5) * MASK, maps.shape)
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-7)
    for layer, function in (("x0", MIXTURE.predict_x0), ("posterior_weights", MIXTURE.posterior)):
        expected = branches(lambda labels, function=function: function(x, t, labels), scale)
        values = profile[f"activations/{layer}"].sel(step=STEP).values
        np.testing.assert_allclose(values, expected.reshape(values.shape), **TOLERANCE)
    most_active = MIXTURE.predict_x0(x, t, LABELS).sum((-2, -1)).argmax(1)  # c*, of the branch with the label
    np.testing.assert_array_equal(profile.max_channels("activations/x0").sel(step=STEP), most_active)

    def attention(labels):
        clean = MIXTURE.predict_x0(x, t, labels)
        return (clean.mean((2, 3), keepdim=True) * clean).sum(1).clamp(min=0)

    np.testing.assert_allclose(profile["gradient_attention/x0"].values[0], branches(attention, scale), **TOLERANCE)


def by_label(x, t):
    """The derivative of x̂_0 by every label's weight: towards that label's own, as likely as it is; (2, pixel, 4)."""
    ratio = MIXTURE.label_posterior(x, t) / MIXTURE.class_embedding.shares
    own = MIXTURE.predict_x0(x, t, LABELS)
    of_label = torch.stack([MIXTURE.predict_x0(x, t, torch.full((2,), label)) for label in range(4)], 1)
    ratio = ratio / ratio.gather(1, LABELS[:, None])
    change = ratio[:, :, None, None] * (of_label - own[:, None]).sum(2)
    return change[:, :, torch.from_numpy(MASK)].mT.numpy()


@every_run
def test_label_sensitivity_is_the_weight_of_the_other_labels(name, scale):
    profile = recorded(name, scale)
    x, t, alpha = moment(profile, STEP, name)
    sensitivity = profile["label_sensitivity"].values[0]
    own_branch = sensitivity if scale == 1 else sensitivity[:, 1]  # of the branch with the label
    np.testing.assert_allclose(own_branch, -((alpha / (1 - alpha)) ** 0.5) * by_label(x, t), **TOLERANCE)


HALF = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)[:, None, None]
WITHIN = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)[:, None, None] * torch.from_numpy(MASK)


@every_run
def test_edits_change_what_they_say(name, scale):
    """Of the edited runs, x̂_0 in the states that they reach."""
    switched = torch.tensor([3, 3])
    edits = {
        "ablation": (ChannelAblation("x0", 1), lambda x0: x0 * torch.tensor([1.0, 0.0, 1.0])[:, None, None]),
        "ablation by the mean, within a mask": (
            ChannelAblation("x0", 1, replace="mean", mask=MASK, amount=0.5),
            lambda x0: x0 + (x0.mean((2, 3), keepdim=True) - x0) * WITHIN,
        ),
        "layer edit": (LayerEdit("x0", lambda values: values * HALF), lambda x0: x0 * HALF),
        "switch": (LabelSwitch(from_step=2, to=3), lambda x0: x0),
    }
    for title, (edit, changed) in edits.items():
        profile = run(name, scale, [Samples(measures=())], [edit])
        for step in profile["samples"]["step"].values:
            x, t, _ = moment(profile, step, name)
            labels = switched if title == "switch" and step >= 2 else LABELS
            expected = guided(lambda y, x=x, t=t, f=changed: f(MIXTURE.predict_x0(x, t, y)), scale, labels)
            np.testing.assert_allclose(profile["x0"].sel(step=step), expected, **TOLERANCE, err_msg=title)


@every_run
def test_a_patch_brings_the_other_run_s_images(name, scale):
    source = recorded(name, scale)
    patched = run(name, scale, [Samples(measures=()), Activations("x0")], [Patch("x0", source, steps=[2])])
    np.testing.assert_allclose(patched["x0"], source["x0"], **TOLERANCE)  # into itself: nothing changes
    other = run(name, scale, [Samples(measures=())], [LabelSwitch(from_step=0, to=3), Patch("x0", source, steps=[2])])
    np.testing.assert_allclose(other["x0"].sel(step=2), source["x0"].sel(step=2), **TOLERANCE)
    assert abs(other["x0"].sel(step=1) - source["x0"].sel(step=1)).max() > 1e-3


@pytest.mark.parametrize("spec", [AttentionOutputs(), AttentionWeights(), WordMaps(["fox"])])
def test_what_a_closed_form_has_not_is_refused_by_name(spec):
    with pytest.raises((ValueError, KeyError), match="MixtureDenoiser"):
        run("ddim", 1.0, [spec])


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("kind", [GaussianDenoiser, EmpiricalDenoiser])
def test_in_the_pipelines_of_diffusers(pipeline, kind):
    scheduler = DDIMScheduler(clip_sample=False) if pipeline is DDIMPipeline else SCHEDULERS["ddpm"]
    model = kind.fit(IMAGES, scheduler)
    pipe = pipeline(model, scheduler)

    def sample():
        return pipe(batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np")

    plain = sample().images
    specs = [Samples(measures=()), GradientVolume(mask=MASK, of="noise", steps=[1], dtype="float64")]
    with record(pipe, specs) as recording:
        recorded_images = sample().images
    assert np.array_equal(plain, recorded_images)
    profile = recording.profile
    x, t, alpha = moment(profile, 1, "ddim")
    expected = colours_summed((IDENTITY - alpha**0.5 * model.jacobian(x, t)) / (1 - alpha) ** 0.5)
    np.testing.assert_allclose(profile["gradient_volume"].values[0], expected, **TOLERANCE)


def test_the_plan_of_a_closed_form():
    pipe = XAIPipeline(MIXTURE, SCHEDULERS["ddim"])
    plan = pipe.plan([Samples(measures=()), GradientVolume(mask=MASK, steps=[1])], num_inference_steps=4)
    assert "label_sensitivity" in str(plan)
