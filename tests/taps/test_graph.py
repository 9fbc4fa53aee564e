"""Gradients through methods that switch them off."""

import torch

from diffusers_xai.taps import keep_graph


class Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    @torch.no_grad()
    def routed(self, x):
        return self.linear(x).tanh()

    def forward(self, x):
        return x + self.routed(x)


def test_the_graph_goes_through_a_method_without_gradients_and_nothing_is_left():
    torch.manual_seed(0)
    network = torch.nn.Sequential(Experts())
    x = torch.randn(2, 3, requires_grad=True)
    (cut,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(cut, torch.ones(2, 3))
    with keep_graph(network):
        (whole,) = torch.autograd.grad(network(x).sum(), x)
    slope = 1 - network[0].linear(x).tanh() ** 2
    torch.testing.assert_close(whole, 1 + slope @ network[0].linear.weight)
    assert "routed" not in vars(network[0])
    assert not network[0].routed(x).requires_grad
