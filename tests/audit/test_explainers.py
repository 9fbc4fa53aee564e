"""The explanations that are graded, against the package's own arrays and closed forms."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import AttentionWeights, GradientVolume, XAIPipeline
from diffusers_xai.audit import explainers
from diffusers_xai.audit.explainers import package_explainers
from tests.audit.models import MASK, case, gaussian, mixture, network
from tests.tiny import unet_2d


def test_the_gradient_is_that_of_the_masked_sum():
    given = case(network(), label=3, other_label=4)
    leaf = given.sample.clone().requires_grad_()
    given.predict_x0(leaf)[:, :, MASK].sum().backward()
    torch.testing.assert_close(explainers.gradient(given), leaf.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_gaussian_is_the_exact_one():
    given = case(gaussian())
    torch.testing.assert_close(explainers.gradient(given), explainers.exact_gradient(given), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("estimate", "exact"),
    [
        (explainers.clean_energy, explainers.exact_clean_energy),
        (explainers.gradient_energy, explainers.exact_noise_energy),
    ],
)
def test_energies_estimate_the_exact_ones(estimate, exact, monkeypatch):
    monkeypatch.setattr(explainers, "PROBES", 400)
    given = case(mixture(), batch=1, label=0, other_label=1)
    estimated, expected = estimate(given).double().numpy(), exact(given).double().numpy()
    relevant = expected > 0.02 * expected.max()
    errors = (estimated - expected)[relevant] / expected[relevant]
    assert np.sqrt((errors**2).mean()) < 0.06  # √(1/800) = 3.5 %


def test_label_sensitivity_is_the_package_s_along_one_direction():
    given = case(network(), batch=1, label=0b0010, other_label=0b0110)
    profile = given.record(GradientVolume(mask=MASK, of="noise", steps=[0]))
    # One bit goes from -1 to +1, in every place of its channel; ε falls by √ᾱ/√(1−ᾱ) where x̂_0 rises by 1.
    by_bit = profile["label_sensitivity"].values[0, 0, :, 1].sum((1, 2))
    scale = -((1 - given.alpha) ** 0.5) / given.alpha**0.5
    derivative = explainers.label_sensitivity(given)[0].detach().numpy()[MASK]
    np.testing.assert_allclose(derivative, 2 * scale * by_bit, rtol=1e-3, atol=1e-5)


def test_label_sensitivity_of_a_mixture_is_the_exact_one():
    given = case(mixture(), label=0, other_label=1)
    torch.testing.assert_close(
        explainers.label_sensitivity(given), explainers.exact_label_sensitivity(given), rtol=1e-3, atol=1e-4
    )


def test_what_a_network_has_is_found():
    names = [explainer.name for explainer in package_explainers(network())]
    assert names == [
        "gradient",
        "gradient energy of x̂_0",
        "gradient energy of ε",
        "gradient map downs.0.2.fn",
        "gradient map mid_attn.fn",
        "gradient map ups.0.2.fn",
        "gradient attention downs.0.2.fn",
        "gradient attention mid_attn.fn",
        "gradient attention ups.0.2.fn",
        "c* map downs.0.2.fn",
        "c* map mid_attn.fn",
        "c* map ups.0.2.fn",
        "attention outputs A_t",
        "label sensitivity",
    ]
    assert [explainer.name for explainer in package_explainers(gaussian())] == names[:3]


@pytest.mark.parametrize("explainer", package_explainers(network()), ids=lambda explainer: explainer.name)
def test_every_explanation_is_a_map_of_the_samples(explainer):
    given = case(network(), label=3, other_label=4)
    result = explainer.explain(given)
    assert tuple(result.shape) in ((3, 16, 16), (3, 3, 16, 16), (3, 8, 8), (3, 4, 4))
    assert result.isfinite().all()
    assert (result[0] != result[1]).any()
    if result.ndim == 3 and not explainer.of_label:
        assert (result >= 0).all()


def test_edges_look_at_the_image_alone():
    given = case(network(), label=3, other_label=4)
    assert torch.equal(explainers.edges(given), explainers.edges(given.of(mixture())))
    near = explainers.nearness(given)
    assert (near[0][torch.from_numpy(MASK)] == 1).all()
    assert near[0, 0, 0] < near[0, 4, 0] < 1


def test_softmax_attention_is_that_of_the_region_s_pixels():
    given = case(XAIPipeline(unet_2d(), DDIMScheduler(clip_sample=False)))
    (found,) = [e for e in package_explainers(given.pipe) if e.name.startswith("attention weights")]
    layer = found.name.removeprefix("attention weights ")
    profile = given.record(AttentionWeights(layers=layer, queries="all", steps=[0]))
    weights = profile[f"attention_weights/{layer}"][0]  # (sample, head, query, height, width)
    shown = found.explain(given)
    height, width = shown.shape[1:]
    cells = [(row * height // 16) * width + column * width // 16 for row, column in np.argwhere(MASK)]
    expected = weights.values.reshape(3, -1, height * width, height, width)[:, :, cells].mean((1, 2))
    np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-7)
