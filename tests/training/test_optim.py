import pytest
import torch
from torch import nn

from diffusers_xai import ConvNextUNet2DModel
from training.config import TrainingConfig
from training.optim import Muon, build_optimizers, orthogonalise


def newton_schulz(matrix, iterations=5):
    """The iteration as it is published, on the matrix itself and in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_orthogonalise_is_the_newton_schulz_iteration_whatever_shapes_come_together():
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 20), (20, 6), (8, 8), (6, 20), (6, 9), (9, 6), (5, 40)]
    matrices = [torch.randn(shape, generator=generator) * 10.0**i for i, shape in enumerate(shapes, start=-3)]
    matrices.append(torch.randn(12, 2, generator=generator) @ torch.randn(2, 30, generator=generator))  # of rank two
    for matrix, result in zip(matrices, orthogonalise(matrices), strict=True):
        expected = newton_schulz(matrix)
        assert result.shape == matrix.shape
        # float32 leaves errors of some 1e-5.
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-4)
        values = torch.linalg.svdvals(expected)
        assert values[0] < 1.3
        assert len(matrix) == 12 or values[-1] > 0.5


def test_orthogonalise_leaves_a_zero_matrix_zero():
    zero, one = orthogonalise([torch.zeros(3, 5), torch.eye(3, 5)])
    assert not zero.any()
    assert torch.isfinite(one).all()


def test_muon_does_not_depend_on_the_memory_format():
    generator = torch.Generator().manual_seed(0)
    steps = []
    weights, gradients = (torch.randn(6, 4, 3, 3, generator=generator) for _ in range(2))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(weights.clone(memory_format=memory_format))
        kernel.grad = gradients.clone(memory_format=memory_format)
        optimizer = Muon([kernel], lr=0.1)
        optimizer.step()
        assert kernel.is_contiguous(memory_format=memory_format)
        steps.append(kernel.detach())
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=1e-5)
    moved = (weights - steps[0]).flatten(1) / 0.1
    torch.testing.assert_close(moved.double(), newton_schulz(gradients.flatten(1)), rtol=0, atol=1e-4)


def test_muon_turns_the_momentum_into_an_orthogonal_step():
    weight = nn.Parameter(torch.randn(12, 2, 1, 1, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.5, momentum=0.9, weight_decay=0.1)
    gradients = [torch.randn(12, 2, 1, 1, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    momentum, expected = torch.zeros(12, 2), before.reshape(12, 2).clone()
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient.reshape(12, 2)
        nesterov = 0.1 * gradient.reshape(12, 2) + 0.9 * momentum
        u, _, vh = torch.linalg.svd(nesterov, full_matrices=False)
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * (12 / 2) ** 0.5 * (u @ vh)
    # The iteration brings the singular values near one only, within some 30 %.
    moved, ideal = weight.detach().reshape(12, 2) - before.reshape(12, 2), expected - before.reshape(12, 2)
    assert (moved - ideal).norm() / ideal.norm() < 0.4
    assert torch.nn.functional.cosine_similarity(moved.flatten(), ideal.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_every_parameter_belongs_to_one_optimizer(settings, optimizer):
    model = ConvNextUNet2DModel(**settings["model"])
    optimizers = build_optimizers(model, TrainingConfig(**{**settings, "optimizer": optimizer}))
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    assert [type(o).__name__ for o in optimizers] == {"adam": ["Adam"], "adamw": ["AdamW"], "muon": ["AdamW", "Muon"]}[
        optimizer
    ]
    if optimizer == "muon":
        kernels = {id(p) for p in optimizers[1].param_groups[0]["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in kernels}
        assert "mid_block.resnets.0.net.1.weight" in names
        assert not any(
            "depthwise" in n or "conv_in" in n or "conv_out" in n or "bias" in n or "linear" in n for n in names
        )
