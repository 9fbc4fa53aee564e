"""A running mean of the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class EMA:
    """Exponential moving average of a network's parameters.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that the random first weights are soon
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after the 0-based `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in model.parameters()], 1 - decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block `model` has the averaged weights and is in evaluation mode."""
        parameters = dict(model.named_parameters())
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        training = model.training
        try:
            _assign(parameters, self.shadow)
            model.eval()
            yield
        finally:
            _assign(parameters, weights)
            model.train(training)


@torch.no_grad()
def _assign(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
