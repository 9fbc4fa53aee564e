"""Denoisers whose answer is known, against numpy and scipy, autograd and exact solutions of the sampling equations."""

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
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffusers_xai import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, Samples, XAIPipeline, record
from diffusers_xai.pipelines.label_tree import label_tree
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from tests.reference import closed_form


SHAPE, DIM = (3, 4, 3), 36
SCHEDULER = DDPMScheduler(clip_sample=False)
ALPHAS = SCHEDULER.alphas_cumprod.double().numpy()
TIMES = [950, 600, 100, 0]


def correlated_images(count, seed=0, shape=SHAPE):
    """Images whose pixels are correlated, around a mean that is not zero, float64."""
    rng = np.random.default_rng(seed)
    dim = int(np.prod(shape))
    mixing = rng.normal(size=(dim, dim)) * 0.9 ** np.arange(dim) / 2
    return torch.from_numpy((rng.normal(size=(count, dim)) @ mixing + rng.normal(size=dim) / 2).reshape(-1, *shape))


def noisy(seed=0, batch=2, shape=SHAPE):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(tensor):
    return tensor.flatten(1).numpy()


IMAGES = correlated_images(60)
LABELS = torch.arange(60) % 3
LABELS[:7] = 0  # shares that differ


def denoisers():
    """All kinds, by name."""
    return {
        "gaussian": GaussianDenoiser.fit(IMAGES, SCHEDULER),
        "gaussian of few components": GaussianDenoiser.fit(IMAGES, SCHEDULER, rank=5),
        "gaussian of few images": GaussianDenoiser.fit(IMAGES[:9], SCHEDULER),
        "gaussian by spectrum": GaussianDenoiser.fit(IMAGES, SCHEDULER, covariance_type="spectrum"),
        "mixture": MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER),
        "mixture of own covariances": MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER, shared_covariance=False, rank=6),
        "images": EmpiricalDenoiser.fit(IMAGES, SCHEDULER),
        "labelled images": EmpiricalDenoiser.fit(IMAGES, SCHEDULER, LABELS),
    }


DENOISERS = denoisers()
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
FLOWS = {
    "gaussian of a flow": GaussianDenoiser.fit(IMAGES, FLOW),
    "labelled images of a flow": EmpiricalDenoiser.fit(IMAGES, FLOW, LABELS),
}
every_denoiser = pytest.mark.parametrize("name", DENOISERS)


def moments(images):
    vectors = numbers(images)
    return vectors.mean(0), np.cov(vectors.T, bias=True)


@pytest.mark.parametrize("t", TIMES)
def test_the_gaussian_s_prediction_and_jacobian(t):
    mean, covariance = moments(IMAGES)
    model, x = DENOISERS["gaussian"], noisy()
    predicted, jacobian = model.predict_x0(x, t), model.jacobian(x, t)
    for i, vector in enumerate(numbers(x)):
        expected, uncertainty = closed_form.gaussian(mean, covariance, vector, ALPHAS[t])
        np.testing.assert_allclose(numbers(predicted)[i], expected, rtol=1e-9, atol=1e-10)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(jacobian[i].numpy(), expected, rtol=1e-8, atol=1e-8)


def test_few_components_are_those_of_probabilistic_pca():
    mean, covariance = moments(IMAGES)
    variances, components = np.linalg.eigh(covariance)
    rest = variances[:-5].mean()
    components = components[:, -5:]
    covariance = rest * np.eye(DIM) + components * (variances[-5:] - rest) @ components.T
    expected, _ = closed_form.gaussian(mean, covariance, numbers(noisy())[0], ALPHAS[600])
    predicted = DENOISERS["gaussian of few components"].predict_x0(noisy(), 600)
    np.testing.assert_allclose(numbers(predicted)[0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("images", [IMAGES[:9], IMAGES[[0, 1, 2, 0, 1, 2, 0, 1, 2]]], ids=["few", "repeated"])
def test_fewer_images_than_pixels(images):
    mean, covariance = moments(images)
    model, x = GaussianDenoiser.fit(images, SCHEDULER), noisy()
    expected, _ = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[300])
    np.testing.assert_allclose(numbers(model.predict_x0(x, 300))[0], expected, rtol=1e-8, atol=1e-8)


def test_many_large_images_are_fitted_by_their_leading_components(monkeypatch):
    monkeypatch.setattr("diffusers_xai.models.covariances.MAX_EXACT", 20)
    rng = np.random.default_rng(0)
    images = torch.from_numpy((rng.normal(size=(50, 4)) @ rng.normal(size=(4, DIM))).reshape(-1, *SHAPE))
    images = images + 0.01 * torch.from_numpy(rng.normal(size=images.shape))
    with pytest.raises(ValueError, match="more than 20: choose fewer with `rank`"):
        GaussianDenoiser.fit(images, SCHEDULER)
    model = GaussianDenoiser.fit(images, SCHEDULER, rank=4)
    expected, _ = closed_form.gaussian(*moments(images), numbers(noisy())[0], ALPHAS[300])
    np.testing.assert_allclose(numbers(model.predict_x0(noisy(), 300))[0], expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 4, 3), (1, 5, 4), (2, 3, 2, 4)], ids=["image", "grey", "video"])
def test_a_spectrum_is_the_covariance_of_all_shifts(shape):
    images, x = correlated_images(30, seed=2, shape=shape), noisy(shape=shape)
    mean, covariance = numbers(images).mean(0), closed_form.texture_covariance(images.numpy())
    model = GaussianDenoiser.fit(images, SCHEDULER, covariance_type="spectrum")
    for t in TIMES:
        expected, uncertainty = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[t])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[0], expected, rtol=1e-8, atol=1e-9)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[0].numpy(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("shared", [True, False])
def test_the_mixture_s_prediction_covariance_and_label_posterior(t, shared):
    groups = [numbers(IMAGES[label == LABELS]) for label in range(3)]
    means = [group.mean(0) for group in groups]
    shares = np.array([len(group) for group in groups]) / 60
    if shared:
        away = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
        covariances = [away.T @ away / 60] * 3
    else:  # a ridge, so that none is singular
        covariances = [np.cov(group.T, bias=True) + 0.02 * np.eye(DIM) for group in groups]
    model = MixtureDenoiser.from_moments(
        torch.from_numpy(np.stack(means)).unflatten(1, SHAPE),
        torch.from_numpy(np.stack(covariances[:1] if shared else covariances)),
        SCHEDULER,
        shares=shares.tolist(),
    )
    if shared:
        fitted = MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER)
        torch.testing.assert_close(fitted.predict_x0(noisy(), t), model.predict_x0(noisy(), t), rtol=1e-7, atol=1e-8)
    x = np.sqrt(ALPHAS[t]) * IMAGES[:2] + np.sqrt(1 - ALPHAS[t]) * noisy()
    for i, vector in enumerate(numbers(x)):
        mean, uncertainty, weights = closed_form.mixture(means, covariances, shares, vector, ALPHAS[t])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[i], mean, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model.label_posterior(x, t)[i].numpy(), weights, rtol=1e-7, atol=1e-12)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[i].numpy(), expected, rtol=1e-6, atol=1e-6)
        alone, _ = closed_form.gaussian(means[1], covariances[1], vector, ALPHAS[t])
        under_label = model.predict_x0(x, t, torch.tensor([1, 1]))
        np.testing.assert_allclose(numbers(under_label)[i], alone, rtol=1e-8, atol=1e-8)


def test_components_that_share_a_label():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, DIM))
    covariance, shares = 0.1 * np.eye(DIM), [0.2, 0.5, 0.3]
    model = MixtureDenoiser.from_moments(
        torch.from_numpy(means).unflatten(1, SHAPE),
        torch.from_numpy(covariance)[None],
        SCHEDULER,
        labels=[0, 1, 0],
        shares=shares,
    )
    x = noisy()
    for label, members in ((0, [0, 2]), (1, [1])):
        of_members = [shares[m] for m in members]
        expected = closed_form.mixture(
            means[members], [covariance] * len(members), of_members, numbers(x)[0], ALPHAS[700]
        )
        predicted = model.predict_x0(x, 700, torch.full((2,), label))
        np.testing.assert_allclose(numbers(predicted)[0], expected[0], rtol=1e-9)
    weights = closed_form.mixture(means, [covariance] * 3, shares, numbers(x)[0], ALPHAS[700])[2]
    np.testing.assert_allclose(model.label_posterior(x, 700)[0], [weights[0] + weights[2], weights[1]], rtol=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_the_images_shares_prediction_and_covariance(t):
    vectors = numbers(IMAGES)
    model = DENOISERS["labelled images"]
    x = np.sqrt(ALPHAS[t]) * IMAGES[10:12] + np.sqrt(1 - ALPHAS[t]) * noisy()
    for i, vector in enumerate(numbers(x)):
        mean, uncertainty, weights = closed_form.empirical(vectors, vector, ALPHAS[t])
        np.testing.assert_allclose(model.posterior(x, t)[i].numpy(), weights, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[i], mean, rtol=1e-7, atol=1e-8)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[i].numpy(), expected, rtol=1e-5, atol=1e-6)
        by_label = [weights[label == LABELS.numpy()].sum() for label in range(3)]
        np.testing.assert_allclose(model.label_posterior(x, t)[i].numpy(), by_label, rtol=1e-6, atol=1e-12)
        own, _, shares = closed_form.empirical(vectors[LABELS == 2], vector, ALPHAS[t])
        labels = torch.tensor([2, 2])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t, labels))[i], own, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(model.posterior(x, t, labels)[i, LABELS == 2], shares, rtol=1e-6, atol=1e-12)
        assert model.posterior(x, t, labels)[i, LABELS != 2].sum() == 0


@pytest.mark.parametrize(
    ("name", "label"),
    [(name, None) for name in DENOISERS | FLOWS]
    + [(name, 1) for name, model in (DENOISERS | FLOWS).items() if model.class_embedding],
)
def test_the_jacobian_is_autograd_s_and_symmetric(name, label):
    """The identity ∂x̂_0/∂x_t = √ᾱ/(1−ᾱ) Cov[x_0|x_t], one side by autograd and the other in closed form."""
    model, x = (DENOISERS | FLOWS)[name], noisy(batch=1)
    labels = None if label is None else torch.tensor([label])
    for t in (900, 300):
        derivative = torch.autograd.functional.jacobian(lambda z, t=t: model.predict_x0(z, t, labels), x)
        derivative = derivative.reshape(DIM, DIM)
        jacobian = model.jacobian(x, t, labels)[0]
        torch.testing.assert_close(jacobian, derivative, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-8, atol=1e-9)
        assert torch.linalg.eigvalsh(jacobian).min() > -1e-9
        directions = noisy(5, batch=2).unsqueeze(0)
        product = model.jacobian_product(x, t, directions, labels)
        torch.testing.assert_close(
            product.flatten(2)[0], directions.flatten(2)[0] @ derivative.T, rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("name", ["mixture", "labelled images"])
def test_the_derivative_by_a_label_s_weight(name):
    model, x, t = DENOISERS[name], noisy(batch=1), 900
    of_label = torch.stack([model.predict_x0(x, t, torch.tensor([label]))[0] for label in range(3)])
    posterior, shares = model.label_posterior(x, t)[0], model.class_embedding.shares

    def derivative(label):
        leaf = []

        def cut(module, args, output):
            leaf.append(output.detach().requires_grad_())
            return leaf[-1]

        handle = model.class_embedding.register_forward_hook(cut)
        predicted = model.predict_x0(x, t, torch.tensor([label]))
        handle.remove()
        rows = [torch.autograd.grad(value, leaf[0], retain_graph=True)[0][0] for value in predicted.flatten()]
        return torch.stack(rows, 1).unflatten(1, SHAPE)  # (label, channel, height, width)

    # Without a label: what P(y|x_t) / P(y) says, towards the label's own prediction.
    ratio = (posterior / shares)[:, None, None, None]
    torch.testing.assert_close(derivative(-1), ratio * (of_label - model.predict_x0(x, t)[0]), rtol=1e-8, atol=1e-10)
    ratio = ratio / ratio[1]
    torch.testing.assert_close(derivative(1), ratio * (of_label - of_label[1]), rtol=1e-8, atol=1e-10)


def test_a_label_that_is_far_from_true_is_no_nan():
    means = torch.zeros(2, *SHAPE)
    means[1] = 100.0
    model = MixtureDenoiser.from_moments(means, 0.01 * torch.eye(DIM)[None], SCHEDULER)
    x = means[:1].clone().requires_grad_()
    predicted = model.predict_x0(x, 10, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(predicted.sum(), x)
    assert predicted.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("t", [1000, 750.5, 40])
def test_the_velocity_of_a_flow(t):
    """x_σ = (1 − σ) x_0 + σ ε: by the joint normal equations of x_0 and x_σ."""
    mean, covariance = moments(IMAGES)
    x, sigma = noisy(), t / 1000
    marginal = (1 - sigma) ** 2 * covariance + sigma**2 * np.eye(DIM)
    gain = (1 - sigma) * np.linalg.solve(marginal, covariance).T
    expected = mean + (numbers(x) - (1 - sigma) * mean) @ gain.T
    model = FLOWS["gaussian of a flow"]
    np.testing.assert_allclose(numbers(model.predict_x0(x, t)), expected, rtol=1e-9, atol=1e-10)
    velocity = (numbers(x) - expected) / sigma  # ε − x_0
    np.testing.assert_allclose(numbers(model(x, t).sample), velocity, rtol=1e-8, atol=1e-9)


def test_videos_and_other_latents():
    images, x = correlated_images(20, seed=3, shape=(2, 3, 2, 4)), noisy(shape=(2, 3, 2, 4))
    mean, covariance = moments(images)
    for scheduler in (DDIMScheduler(clip_sample=False), FLOW):
        model = GaussianDenoiser.fit(images, scheduler)
        expected, _ = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[600])
        if scheduler is not FLOW:
            np.testing.assert_allclose(numbers(model.predict_x0(x, 600))[0], expected, rtol=1e-8, atol=1e-8)
        pipe = XAIPipeline(model, scheduler)
        pipe.set_progress_bar_config(disable=True)
        profile = pipe(num_inference_steps=2, output_type="pt", record=[Samples(measures=())]).profile
        assert profile["x0"].dims == ("step", "sample", "channel", "frame", "height", "width")
        last, t = (profile[name].isel(step=1) for name in ("samples", "x0"))
        clean = model.predict_x0(torch.from_numpy(last.values), float(t["timestep"]))
        np.testing.assert_allclose(t, clean, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="no images, got 'pil'"):
            pipe(num_inference_steps=2)


@every_denoiser
@pytest.mark.parametrize("t", [999, 250])
def test_every_kind_of_prediction_says_the_same_clean_image(name, t):
    model, x = DENOISERS[name], noisy()
    expected = model.predict_x0(x, t)
    for kind in ("epsilon", "sample", "v_prediction"):
        other = type(model).from_config({**model.config, "prediction_type": kind})
        other.load_state_dict(model.state_dict(), assign=True)
        scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
        scheduler.set_timesteps(1000)
        predicted = scheduler.step(other(x, t).sample, t, x).pred_original_sample
        torch.testing.assert_close(predicted, expected, rtol=1e-6, atol=2e-5)  # the scheduler computes √ᾱ in single


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


def test_a_timestep_for_each_sample():
    model, x = DENOISERS["mixture"], noisy()
    both = model(x, torch.tensor([900, 30]), torch.tensor([0, -1])).sample
    torch.testing.assert_close(both[:1], model(x[:1], 900, torch.tensor([0])).sample)
    torch.testing.assert_close(both[1:], model(x[1:], 30).sample)


SOLVERS = {
    "ddim": (DDIMScheduler(clip_sample=False), 1000),
    "euler": (EulerDiscreteScheduler(), 1000),
    "heun": (HeunDiscreteScheduler(), 300),
    "dpm": (DPMSolverMultistepScheduler(), 300),
    "flow": (FLOW, 1000),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_deterministic_solvers_follow_the_exact_flow_of_a_gaussian(solver):
    """Along each eigenvector of Σ, (x_t − √ᾱ m) / √(ᾱλ + 1 − ᾱ) stays as it is."""
    scheduler, steps = SOLVERS[solver]
    mean, covariance = moments(IMAGES)
    variances, vectors = np.linalg.eigh(covariance)
    model = GaussianDenoiser.fit(IMAGES, scheduler)  # defaults of β differ between schedulers
    pipe = XAIPipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    final = []
    start = noisy()
    pipe(
        sample=start, batch_size=2, num_inference_steps=steps, callback_on_step_end=lambda p, i, t, x: final.append(x)
    )
    begin = numbers(start * getattr(scheduler, "init_noise_sigma", 1))
    if getattr(scheduler, "init_noise_sigma", 1) == 1:
        alpha = model.alphas_cumprod(scheduler.timesteps[0]).item()
    else:  # the state is x_t / √ᾱ there
        alpha = 1 / (1 + float(scheduler.sigmas[0]) ** 2)
        begin = begin * np.sqrt(alpha)
    along = (begin - np.sqrt(alpha) * mean) @ vectors / np.sqrt(alpha * variances + 1 - alpha)
    expected = mean + along * np.sqrt(variances.clip(0)) @ vectors.T
    np.testing.assert_allclose(numbers(final[-1]["sample"]), expected, atol=0.02)


def test_the_stochastic_sampler_draws_from_the_gaussian():
    images = correlated_images(500, shape=(1, 2, 2))
    pipe = XAIPipeline(GaussianDenoiser.fit(images, SCHEDULER), SCHEDULER)
    pipe.set_progress_bar_config(disable=True)
    final, count = [], 4_000
    pipe(
        batch_size=count,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda p, i, t, x: final.append(x["sample"]) if i == 999 else None,
    )
    drawn = numbers(final[0])
    mean, covariance = moments(images)
    # The last step adds no noise: pixels scatter by its variance less.
    error = 4 * np.sqrt(np.diag(covariance) / count)
    assert (abs(drawn.mean(0) - mean) < error).all()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / count))


def test_at_the_end_the_images_themselves_come_out():
    pipe = XAIPipeline(DENOISERS["labelled images"], DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    final = []
    pipe(
        class_labels=[0, 1, 2],
        num_inference_steps=200,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda p, i, t, x: final.append(x["sample"]),
    )
    for label, drawn in enumerate(numbers(final[-1])):
        distances = np.abs(numbers(IMAGES) - drawn).max(1)
        assert distances.min() < 1e-3
        assert LABELS[distances.argmin()] == label


@every_denoiser
def test_saved_and_loaded(name, tmp_path):
    model, x = DENOISERS[name], noisy()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded(x, 321).sample, model(x, 321).sample)
    single = type(model).from_pretrained(tmp_path)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single(x.float(), 321).sample, model(x, 321).sample.float(), rtol=1e-3, atol=1e-4)
    assert all(path.suffix in (".json", ".safetensors") for path in tmp_path.iterdir())


def test_half_precision_computes_in_single():
    model, x = DENOISERS["gaussian"], noisy()
    half = GaussianDenoiser.from_config(model.config)
    half.load_state_dict(model.state_dict())
    output = half.half()(x.half(), 0).sample  # 1 − ᾱ would be zero
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), model(x, 0).sample, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "labelled images"])
def test_a_pipeline_of_it_is_saved_and_loaded(name, tmp_path):
    pipe = XAIPipeline(DENOISERS[name], SCHEDULER)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = XAIPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.float64)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is type(pipe.unet)
    labels = {} if pipe.unet.class_embedding is None else {"class_labels": [0, 2], "guidance_scale": 2.0}
    images = [
        p(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np", **labels).images
        for p in (pipe, loaded)
    ]
    np.testing.assert_array_equal(*images)


def test_guidance_extrapolates_from_the_null_label():
    pipe, x = XAIPipeline(DENOISERS["mixture"], DDIMScheduler(clip_sample=False)), noisy(batch=1)
    pipe.set_progress_bar_config(disable=True)
    states = []
    pipe(
        class_labels=[1],
        guidance_scale=2.0,
        sample=x,
        num_inference_steps=2,
        callback_on_step_end=lambda p, i, t, tensors: states.append(tensors["sample"]),
    )
    t, after = 500, 0
    labelled, plain = (pipe.unet.predict_x0(x, t, label) for label in (torch.tensor([1]), None))
    predicted = 2 * labelled - plain
    noise = (x - ALPHAS[t] ** 0.5 * predicted) / (1 - ALPHAS[t]) ** 0.5
    expected = ALPHAS[after] ** 0.5 * predicted + (1 - ALPHAS[after]) ** 0.5 * noise
    torch.testing.assert_close(states[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: GaussianDenoiser.fit(IMAGES[:1], SCHEDULER), "at least two images"),
        (lambda: GaussianDenoiser.fit(IMAGES[:4], SCHEDULER, rank=4), r"`rank` in 1..3"),
        (lambda: GaussianDenoiser.fit(IMAGES[0, 0], SCHEDULER), r"got \(4, 3\)"),
        (lambda: GaussianDenoiser.fit(IMAGES * torch.nan, SCHEDULER), "finite"),
        (lambda: GaussianDenoiser.fit(IMAGES, EDMEulerScheduler()), "EDMEuler"),
        (lambda: GaussianDenoiser.fit(IMAGES, FLOW, prediction_type="epsilon"), "predicts its velocity"),
        (lambda: GaussianDenoiser.fit(IMAGES, FlowMatchEulerDiscreteScheduler(invert_sigmas=True)), "invert_sigmas"),
        (lambda: GaussianDenoiser.fit(IMAGES, SCHEDULER, prediction_type="flow_prediction"), "flow matching for"),
        (lambda: FLOWS["gaussian of a flow"](noisy(), 0), r"above 0, up to 1000, got \[0.0\]"),
        (lambda: GaussianDenoiser.fit(IMAGES, SCHEDULER, covariance_type="full"), "'full'"),
        (lambda: GaussianDenoiser.fit(IMAGES, SCHEDULER, prediction_type="flow"), "'flow'"),
        (lambda: GaussianDenoiser.from_moments(IMAGES[0], torch.eye(3), SCHEDULER), r"\(36, 36\), got \(3, 3\)"),
        (lambda: MixtureDenoiser.fit(IMAGES, LABELS[:9], SCHEDULER), "60 labels"),
        (lambda: MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER, num_class_embeds=2), r"0..1, got 2"),
        (lambda: EmpiricalDenoiser.fit(IMAGES, SCHEDULER, LABELS, null_class_label=1), "outside 0..2"),
        (lambda: DENOISERS["mixture"](noisy(), 5, torch.tensor([0, 3])), "values 0..2 or the null label -1"),
        (lambda: DENOISERS["gaussian"](noisy(), 5, torch.tensor([0, 0])), "has no labels"),
        (lambda: DENOISERS["gaussian"](noisy(), 1000), r"0..999, got \[1000.0\]"),
        (lambda: DENOISERS["gaussian"](noisy(shape=(3, 4, 4)), 5), r"got \(2, 3, 4, 4\)"),
        (lambda: DENOISERS["images"].label_posterior(noisy(), 5), "has no labels"),
        (
            lambda: EmpiricalDenoiser.fit(IMAGES, SCHEDULER, LABELS, num_class_embeds=5)(
                noisy(), 5, torch.tensor([4, -1])
            ),
            r"No data of the labels \[4\]",
        ),
    ],
)
def test_bad_requests(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()
