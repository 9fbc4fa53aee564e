"""Singular triplets against the SVD of the full Jacobian, the local dimension against manifolds of known dimension."""

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import GaussianDenoiser
from diffusers_xai.analysis.singular import Jacobian, leading_triplets, local_dimension
from tests.tiny import convnext_unet, unet_2d


def full_jacobian(function, points):
    rows = [torch.autograd.functional.jacobian(lambda x: function(x[None])[0], point) for point in points]
    return torch.stack([row.reshape(row[..., 0, 0, 0].numel(), -1) for row in rows])


@pytest.mark.parametrize("network", [convnext_unet, unet_2d])
def test_the_leading_triplets_are_those_of_the_full_jacobian(network):
    unet = network().double().requires_grad_(False)  # convolutional: it takes smaller images than it was made for
    conditional = unet.config.get("num_class_embeds") is not None

    def function(x):
        return unet(x, 500, class_labels=torch.full((len(x),), 3) if conditional else None).sample

    points = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen, moved = torch.zeros(2, 8, 8, dtype=torch.bool)
    seen[2:5, 1:6], moved[1:5, 2:8] = True, True
    full = full_jacobian(function, points)
    for inputs, outputs in ((None, None), (moved, seen)):
        within = full
        if inputs is not None:
            within = full * inputs.flatten().repeat(3) * outputs.flatten().repeat(3)[:, None]
        left, values, right = torch.linalg.svd(within)
        jacobian = Jacobian(function, points, inputs=inputs, outputs=outputs, max_rows=8)
        found = leading_triplets(jacobian, 4, iterations=30, tolerance=1e-6)
        torch.testing.assert_close(found.values, values[:, :4], rtol=1e-8, atol=0)
        # A direction has no sign of its own, but both of a triplet have the same.
        same_right = (found.right * right[:, :4]).sum(2)
        same_left = (found.left * left.mT[:, :4]).sum(2)
        torch.testing.assert_close(same_right.abs(), torch.ones(2, 4).double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(same_left, same_right, rtol=0, atol=1e-4)
        errors = (within.mT @ found.left.mT - (found.values[:, None] * found.right.mT)).norm(dim=1) / values[:, :1]
        torch.testing.assert_close(found.residuals, errors, rtol=1e-3, atol=1e-12)
        dimension = values.square().sum(1).square() / values.pow(4).sum(1)
        estimates = torch.stack([local_dimension(jacobian, found, probes=64, seed=seed) for seed in range(2)])
        torch.testing.assert_close(estimates.mean(0), dimension, rtol=0.06, atol=0)


def manifold(variances, size=6):
    """The best denoiser of a Gaussian that is flat but for as many random directions as there are variances."""
    dim = 3 * size * size
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(dim, len(variances), generator=generator, dtype=torch.float64)).Q
    covariance = basis * torch.tensor(variances, dtype=torch.float64) @ basis.T
    mean = torch.zeros(3, size, size, dtype=torch.float64)
    return GaussianDenoiser.from_moments(mean, covariance, DDPMScheduler()), basis


@pytest.mark.parametrize("timestep", [900, 500, 50])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_dimension_of_a_linear_manifold(rank, timestep):
    denoiser, basis = manifold([0.7] * rank)
    points = torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    jacobian = Jacobian(lambda x: denoiser.predict_x0(x, timestep), points)
    for count in (3, 16):  # fewer triplets than dimensions, and more
        triplets = leading_triplets(jacobian, count, iterations=20, tolerance=1e-9)
        assert float(local_dimension(jacobian, triplets, probes=64)) == pytest.approx(rank, abs=0.5)
        along = triplets.right[0, : min(count, rank)] @ basis
        torch.testing.assert_close(along.norm(dim=1), torch.ones(min(count, rank)).double())


def test_directions_within_the_noise_do_not_count():
    """Unequal variances: all count where the noise is far below them, the largest alone where it is far above."""
    variances = [4.0, 1.0, 0.25, 0.05]
    denoiser, _ = manifold(variances)
    points = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    for timestep in (5, 990):
        alpha = denoiser.alphas_cumprod(timestep)
        values = torch.tensor(variances, dtype=torch.float64)
        exact = alpha.sqrt() * values / (alpha * values + 1 - alpha)
        jacobian = Jacobian(lambda x, t=timestep: denoiser.predict_x0(x, t), points)
        triplets = leading_triplets(jacobian, 4, iterations=20, tolerance=1e-9)
        torch.testing.assert_close(triplets.values[0], exact, rtol=1e-9, atol=0)
        expected = {5: 4.0, 990: 1.1}[timestep]
        assert float(local_dimension(jacobian, triplets)) == pytest.approx(expected, abs=0.1)


def test_no_more_triplets_than_values():
    jacobian = Jacobian(lambda x: 2 * x, torch.zeros(1, 2, 2))
    triplets = leading_triplets(jacobian, 4)
    torch.testing.assert_close(triplets.values, torch.full((1, 4), 2.0, dtype=torch.float64))
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count in 1..4.*got {count}"):
            leading_triplets(jacobian, count)
