"""What all denoisers of known answer have in common, against autograd and diffusers' own arithmetic."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_xai import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, Samples, XAIPipeline
from tests.models.closed_forms import (
    ALPHAS,
    DENOISERS,
    DIM,
    FLOW,
    FLOWS,
    IMAGES,
    LABELS,
    SCHEDULER,
    SHAPE,
    correlated_images,
    moments,
    noisy,
    numbers,
)
from tests.reference import closed_form


every_denoiser = pytest.mark.parametrize("name", DENOISERS)


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


def test_videos_and_other_latents():
    images, x = correlated_images(20, seed=3, shape=(2, 3, 2, 4)), noisy(shape=(2, 3, 2, 4))
    mean, covariance = moments(images)
    for scheduler in (DDIMScheduler(clip_sample=False), FLOW):
        model = GaussianDenoiser.fit(images, scheduler)
        expected, _ = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[600])
        if scheduler is not FLOW:
            np.testing.assert_allclose(numbers(model.predict_x0(x, 600))[0], expected, rtol=1e-8, atol=1e-8)
        pipe = XAIPipeline(model, scheduler)
        profile = pipe(num_inference_steps=2, output_type="pt", record=[Samples(measures=())]).profile
        assert profile["x0"].dims == ("step", "sample", "channel", "frame", "height", "width")
        last, t = (profile[name].isel(step=1) for name in ("samples", "x0"))
        clean = model.predict_x0(torch.from_numpy(last.values), float(t["timestep"]))
        np.testing.assert_allclose(t, clean, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="no images, got 'pil'"):
            pipe(num_inference_steps=2)


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


@pytest.mark.parametrize("name", ["gaussian", "mixture", "labelled images"])
def test_a_pipeline_of_it_is_saved_and_loaded(name, tmp_path):
    pipe = XAIPipeline(DENOISERS[name], SCHEDULER)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = XAIPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.float64)
    assert type(loaded.unet) is type(pipe.unet)
    labels = {} if pipe.unet.class_embedding is None else {"class_labels": [0, 2], "guidance_scale": 2.0}
    images = [
        p(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np", **labels).images
        for p in (pipe, loaded)
    ]
    np.testing.assert_array_equal(*images)


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
        (lambda: DENOISERS["gaussian"](noisy(), 5, torch.tensor([0, 0])), "Expected `class_labels` None"),
        (lambda: DENOISERS["gaussian"](noisy(), 1000), r"0..999, got \[1000.0\]"),
        (lambda: DENOISERS["gaussian"](noisy(shape=(3, 4, 4)), 5), r"got \(2, 3, 4, 4\)"),
        (lambda: DENOISERS["images"].label_posterior(noisy(), 5), "a denoiser with labels"),
        (
            lambda: EmpiricalDenoiser.fit(IMAGES, SCHEDULER, LABELS, num_class_embeds=5)(
                noisy(), 5, torch.tensor([4, -1])
            ),
            r"has data, got \[4\]",
        ),
    ],
)
def test_bad_requests(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()
