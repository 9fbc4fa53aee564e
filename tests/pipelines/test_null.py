"""The covariance null: closed forms fitted to a pipeline's own samples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_xai import GaussianDenoiser, MixtureDenoiser, XAIPipeline, covariance_null
from tests.reference import closed_form
from tests.tiny import convnext_unet, stable_diffusion, unet_2d


ALPHA = DDIMScheduler().alphas_cumprod[500].item()


def finals(pipe, count, **call):
    """The last states of calls of `count` images, one seed each, by the step callback."""
    states = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        last = []
        pipe(
            batch_size=count,
            generator=generator,
            callback_on_step_end=lambda p, i, t, tensors, last=last: last.append(tensors["sample"]) or {},
            **call,
        )
        states.append(last[-1])
    return torch.cat(states).flatten(1).double().numpy()


def test_the_null_of_a_labelled_model_has_its_samples_means_and_covariance():
    pipe = XAIPipeline(convnext_unet(sample_size=8), DDIMScheduler(clip_sample=False))
    null = covariance_null(pipe, labels=[3, 12], num_samples=12, batch_size=6, rank=10, num_inference_steps=2)
    assert isinstance(null.unet, MixtureDenoiser)
    samples = finals(pipe, 6, class_labels=[3, 12] * 3, num_inference_steps=2)
    means = [samples[i::2].mean(0) for i in (0, 1)]
    away = samples - np.tile(means, (6, 1))
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    for label, mean in zip((3, 12), means, strict=True):
        expected, _ = closed_form.gaussian(mean, away.T @ away / 12, x.flatten().double().numpy(), ALPHA)
        predicted = null.unet.predict_x0(x, 500, torch.tensor([label])).flatten()
        np.testing.assert_allclose(predicted, expected, atol=1e-4 * abs(expected).max())
    images = null([{"Male": False, "Smiling": True, "Wearing_Lipstick": True}], num_inference_steps=2).images
    assert images[0].size == (8, 8)


def test_the_null_of_a_model_without_labels_is_a_gaussian():
    pipe = DDIMPipeline(unet_2d(), DDIMScheduler())
    null = covariance_null(pipe, num_samples=9, batch_size=4, num_inference_steps=2)
    assert isinstance(null.unet, GaussianDenoiser)
    assert null.unet.config.covariance_type == "shrunk"
    assert null.unet.dtype == torch.float32


def test_the_null_of_a_latent_model_lives_in_its_latents():
    pipe = stable_diffusion()
    null = covariance_null(pipe, num_samples=4, prompt=["a red fox"] * 2, num_inference_steps=2, guidance_scale=1.0)
    assert null.sample_shape == (4, 8, 8)


def test_the_null_of_a_flow_is_of_a_flow():
    pipe = XAIPipeline(unet_2d(), FlowMatchEulerDiscreteScheduler())
    null = covariance_null(pipe, num_samples=6, batch_size=3, rank=5, num_inference_steps=2)
    samples = finals(pipe, 3, num_inference_steps=2)
    x = torch.randn(1, *null.sample_shape, generator=torch.Generator().manual_seed(9))
    # (1 − σ) x_0 + σ ε at σ = 1/2 is (x_0 + ε) / 2
    expected, _ = closed_form.gaussian(
        samples.mean(0), np.cov(samples.T, bias=True), x.flatten().double().numpy() * 2**0.5, 0.5
    )
    predicted = null.unet.predict_x0(x, 500).flatten()
    np.testing.assert_allclose(predicted, expected, atol=1e-4 * abs(expected).max())


def test_a_spectrum_of_few_samples():
    pipe = DDIMPipeline(unet_2d(), DDIMScheduler())
    null = covariance_null(pipe, num_samples=4, num_inference_steps=1, covariance_type="spectrum")
    assert null.unet.config.covariance_type == "spectrum"


def test_of_large_samples_there_are_components(monkeypatch):
    for module in ("models.covariances", "pipelines.null"):
        monkeypatch.setattr(f"diffusers_xai.{module}.MAX_EXACT", 100)
    pipe = XAIPipeline(unet_2d(), DDIMScheduler())
    null = covariance_null(pipe, num_samples=9, batch_size=9, num_inference_steps=1)
    assert (null.unet.config.covariance_type, null.unet.config.rank) == ("low_rank", 2)
    calls = []
    with pytest.raises(ValueError, match="at most 100 values for `covariance_type='shrunk'`, got 768"):
        covariance_null(
            pipe,
            num_samples=9,
            batch_size=1,
            num_inference_steps=1,
            covariance_type="shrunk",
            callback_on_step_end=lambda p, i, t, tensors: calls.append(i) or {},
        )
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [(EDMEulerScheduler(), {}, "got EDMEulerScheduler"), (DDIMScheduler(), {"covariance_type": "full"}, "'full'")],
)
def test_what_cannot_be_fitted_is_refused_before_sampling(scheduler, options, message):
    with pytest.raises(ValueError, match=message):
        covariance_null(SimpleNamespace(scheduler=scheduler), **options)


def test_too_few_samples_are_refused_before_sampling():
    with pytest.raises(ValueError, match="at least 4 samples"):
        covariance_null(None, labels=[0, 1], num_samples=2)
