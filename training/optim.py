"""The optimizers of a run: Adam, or Muon for the convolution kernels and Adam for the rest."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

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
            kernels = [p for p in group["params"] if p.grad is not None]
            if not kernels:
                continue
            for p in kernels:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients, momenta = [p.grad for p in kernels], [self.state[p]["momentum"] for p in kernels]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
            steps = orthogonalise([_as_matrix(d) for d in directions])
            # Each output's change then has the same size whatever the shape of the kernel.
            torch._foreach_mul_(steps, [-group["lr"] * max(1.0, s.shape[0] / s.shape[1]) ** 0.5 for s in steps])
            torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(kernels, [_as_kernel(s, p) for s, p in zip(steps, kernels, strict=True)])
        return loss


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Makes the optimizers of all parameters.

    With `config.optimizer` `"muon"` the kernels of the convolutions inside the network go to Muon; biases, norms,
    depthwise kernels, the first and last convolution and the linear layers of the time go to AdamW.
    """
    kernels, others = [], []
    for name, parameter in model.named_parameters():
        outer = name.removeprefix("unet.").startswith(("conv_in", "conv_out"))
        inner = parameter.ndim == 4 and parameter.shape[1] > 1 and not outer
        (kernels if inner and config.optimizer == "muon" else others).append(parameter)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    optimizers = [
        adam(
            others,
            lr=config.learning_rate,
            betas=tuple(config.betas),
            weight_decay=config.weight_decay,
            fused=True,
        )
    ]
    if kernels:
        optimizers.append(Muon(kernels, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    return optimizers


def orthogonalise(matrices: Sequence[torch.Tensor], iterations: int = 5) -> list[torch.Tensor]:
    """The nearest (semi-)orthogonal matrices, roughly: singular values go to about 0.7 .. 1.2; float32.

    A quintic Newton-Schulz iteration. Every X it comes to is Q X_0 with a polynomial Q of the Gram matrix X_0 X_0^T,
    so only small square matrices are iterated, all of one size in one batch; each shape adds one batched product in
    front and one behind. It needs float32: the Gram matrix holds the squares of the singular values.

    Args:
        matrices (sequence of `torch.Tensor` of shape `(rows, columns)`): Of any shapes.
        iterations (`int`): How often.
    """
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        shapes[matrix.shape].append(index)
    sides: dict[int, list[torch.Size]] = defaultdict(list)
    for shape in shapes:
        sides[min(shape)].append(shape)

    results: list[torch.Tensor] = [torch.empty(0)] * len(matrices)
    for same_side in sides.values():
        stacks = [torch.stack([matrices[i] for i in shapes[shape]]).float() for shape in same_side]
        grams = torch.cat([x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x for x in stacks])
        factors = _newton_schulz_factors(grams, iterations).split([len(x) for x in stacks])
        for shape, x, q in zip(same_side, stacks, factors, strict=True):
            for index, result in zip(shapes[shape], (q @ x if x.shape[1] <= x.shape[2] else x @ q), strict=True):
                results[index] = result
    return results


def _newton_schulz_factors(grams: torch.Tensor, iterations: int) -> torch.Tensor:
    """What the iteration multiplies X_0 of the Gram matrices (matrix, side, side) with, X_0 first scaled to norm 1."""
    norms = grams.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
    grams, factors = grams / norms**2, None
    for iteration in range(iterations):
        polynomials = torch.baddbmm(grams, grams, grams, beta=-4.7750, alpha=2.0315)
        polynomials.diagonal(dim1=1, dim2=2).add_(3.4445)
        factors = polynomials / norms if factors is None else polynomials @ factors
        if iteration + 1 < iterations:
            grams = polynomials @ (polynomials @ grams)
    return factors


def _as_matrix(kernel: torch.Tensor) -> torch.Tensor:
    """(out, in, height, width) as (out, in * height * width); in memory's order, which saves a copy."""
    if kernel.ndim == 4 and kernel.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)


def _as_kernel(matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_as_matrix` for a kernel in the memory's order of `like`."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        out, columns, height, width = like.shape
        return matrix.reshape(out, height, width, columns).permute(0, 3, 1, 2)
    return matrix.reshape(like.shape)
