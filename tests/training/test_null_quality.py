"""How good a control is, on a Gaussian whose gradients are a matrix of numpy."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.ndimage import distance_transform_edt

from diffusers_xai import GaussianDenoiser
from training.null_quality import draws, main, quality


SIDE = 7
MASK = np.zeros((SIDE, SIDE), dtype=bool)
MASK[3, 2:4] = True


def photographs():
    """Smooth images, more than an image has values."""
    noise = torch.randn(200, 3, SIDE + 2, SIDE + 2, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    return (smooth + 0.3 * smooth.mean(1, keepdim=True)).float()


def covariance_of(images):
    return np.cov(images.flatten(1).double().numpy().T, bias=True)


def by_hand(covariance):
    """The six numbers of the Gaussian with a covariance, by the definitions and dense matrices."""
    identity, alphas = np.eye(len(covariance)), DDPMScheduler().alphas_cumprod.double().numpy()
    rows = [3, SIDE, SIDE, 3, SIDE, SIDE]

    def volume(matrix):  # outputs of the region, their colours summed, by input colour and place
        return matrix.reshape(rows)[:, MASK].sum(0)

    def share(matrix):
        summed = volume(matrix).sum(1)
        return (summed > summed.mean()).mean()

    def clean(t):
        alpha = alphas[t]
        return np.sqrt(alpha) * covariance @ np.linalg.inv(alpha * covariance + (1 - alpha) * identity)

    def noise(t):
        return (identity - np.sqrt(alphas[t]) * clean(t)) / np.sqrt(1 - alphas[t])

    def mean(t, before):
        alpha, previous = alphas[t], alphas[before]
        beta = 1 - alpha / previous
        of_clean = np.sqrt(previous) * beta / (1 - alpha)
        return of_clean * clean(t) + np.sqrt(1 - beta) * (1 - previous) / (1 - alpha) * identity

    def radius(t):
        energy = (volume(clean(t)) ** 2).sum((0, 1))
        return np.sqrt((energy * distance_transform_edt(~MASK) ** 2).sum() / energy.sum())

    return [share(mean(100, 90)), share(noise(600)), share(noise(100)), radius(950), radius(600), radius(100)]


def probabilistic_components(covariance, rank):
    """Of Tipping and Bishop: the leading components, and what is left spread evenly over the other directions."""
    values, vectors = np.linalg.eigh(covariance)
    values[:-rank] = values[:-rank].mean()
    return (vectors * values) @ vectors.T


def test_the_truth_and_estimates_of_it():
    images = photographs()
    table = quality(images, MASK, few=40, many=160, rank=20, sets=2)
    assert table["t"].tolist() == [100, 600, 100, 950, 600, 100]
    percent = np.array([100, 100, 100, 1, 1, 1])
    shown = [float(text.removesuffix(" %")) for text in table["the truth"]]
    np.testing.assert_allclose(shown, percent * by_hand(covariance_of(images)), atol=0.051)  # one decimal is shown
    truth = GaussianDenoiser.fit(images, DDPMScheduler())
    found = by_hand(probabilistic_components(covariance_of(draws(truth, 160, 0)), 20))
    shown = [float(text.removesuffix(" %")) for text in table["20 components of 160 draws"]]
    np.testing.assert_allclose(shown, percent * found, atol=0.051)
    ranges = [text.removesuffix(" %").split("–") for text in table["40 draws, shrunk"]]  # of two sets
    assert all(float(low) < float(high) for low, high in filter(lambda ends: len(ends) == 2, ranges))
    assert any(len(ends) == 2 for ends in ranges)


def test_draws_have_the_mean_and_covariance():
    truth = GaussianDenoiser.fit(photographs(), DDPMScheduler())
    many = draws(truth, 20_000, 1).flatten(1).double().numpy()
    vectors = photographs().flatten(1).double().numpy()
    expected = covariance_of(photographs())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.cov(many.T), expected, atol=6 * scale * np.sqrt(2 / 20_000))
    np.testing.assert_allclose(many.mean(0), vectors.mean(0), atol=6 * np.sqrt(scale / 20_000))


def test_too_few_images_are_refused(capsys):
    with pytest.raises(ValueError, match="more than an image has values, 147, got 147"):
        quality(photographs()[:147], MASK)
    assert main(["--images", "100", "--size", "16"]) == 2
    assert "values, 768, got 100" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--images", "--size"])
def test_counts_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"argument {option}: expected an integer in 1.." in capsys.readouterr().err


def test_what_is_no_data_is_refused(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
