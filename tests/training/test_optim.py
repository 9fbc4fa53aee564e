import pytest
import torch
from torch import nn

from diffusers_xai import ConvNextUNet2DModel
from training.config import TrainingConfig
from training.optim import Muon, build_optimizers, orthogonalise


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix) @ vh.T  # diagonal if the singular vectors are the same
    values = inner.diagonal()
    assert ((values > 0.5) & (values < 1.4)).all()
    assert (inner - torch.diag(values)).abs().max() < 0.1


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
