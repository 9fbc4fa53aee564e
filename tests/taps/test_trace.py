"""Where the values of a network's sample end up, in networks whose answer can be written down."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn

from diffusers_xai.taps.trace import trace


class Joint(nn.Module):
    """Text and image look at each other; then the image looks once more, alone, in the order `[text, image]`."""

    def __init__(self):
        super().__init__()
        self.image, self.text, self.norm, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.bump = nn.BatchNorm1d(4)

    def forward(self, sample, text):
        image, text = self.image(sample), self.text(text)
        both = torch.cat([text, image], dim=1)
        both = self.norm(F.scaled_dot_product_attention(both, both, value=both) + both)
        text, image = both.split(3, dim=1)
        image = self.bump(image.transpose(1, 2)).transpose(1, 2)
        return self.last(image), self.last(text)


def test_tokens_are_the_samples_also_behind_attention_to_everything():
    torch.manual_seed(0)
    network, called = Joint(), []
    for hook in (network.norm.register_forward_hook, network.norm.register_forward_pre_hook):
        hook(lambda *args: called.append(args) and None)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    backend = _AttentionBackendRegistry._active_backend
    layers = dict(network.named_children())
    text = torch.rand(2, 3, 4)
    found = trace(network, layers, lambda values: ((values, text), {}), torch.rand(2, 3, 4), lambda output: [output])
    of = {path: [run[0][1] for run in runs] for path, runs in found.items()}
    assert of["image"] == [(True,) * 3]
    assert of["text"] == [(False,) * 3]
    assert of["norm"] == [(False,) * 3 + (True,) * 3]
    assert of["last"] == [(True,) * 3, (False,) * 3]
    assert found["bump"][0][0][2] == (True,) * 3  # (row, channel, token)
    assert not called  # nobody's hooks see it, and nothing of the network has changed
    assert len(network.norm._forward_hooks) == len(network.norm._forward_pre_hooks) == 1
    assert network.training
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    assert _AttentionBackendRegistry._active_backend is backend is AttentionBackendName.NATIVE
    assert not network.last._forward_hooks
