"""The optimizers of a run: Adam, or Muon for the convolution kernels and Adam for the rest."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from training.config import TrainingConfig


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, each kernel read as a matrix (out, in * height * width).

    torch's own Muon takes matrices alone.

    Source: Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*.

    Args:
        params (iterable of `torch.nn.Parameter`): Kernels of two or more dimensions.
        lr (`float`): Learning rate.
        momentum (`float`): Decay of the (Nesterov) momentum.
        weight_decay (`float`): Decoupled, times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Changes the parameters by one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                # Each output's change then has the same size whatever the shape of the kernel.
                scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(direction).reshape(p.shape), alpha=-group["lr"] * scale)
        return loss


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Makes the optimizers of all parameters.

    With `config.optimizer` `"muon"` the kernels of the convolutions inside the network go to Muon; biases, norms,
    depthwise kernels, the first and last convolution and the linear layers of the time go to AdamW.
    """
    kernels, others = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 4 and parameter.shape[1] > 1 and not name.startswith(("conv_in", "conv_out"))
        (kernels if inner and config.optimizer == "muon" else others).append(parameter)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    optimizers = [adam(others, lr=config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay)]
    if kernels:
        optimizers.append(Muon(kernels, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    return optimizers


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values go to about 0.7 .. 1.2; (rows, columns), float32.

    A quintic Newton-Schulz iteration in bfloat16.
    """
    x = matrix.bfloat16()
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if transposed else x).float()
