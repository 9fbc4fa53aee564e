from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import nn

from diffusers_xai.taps import edit_output, first_tensor, tap_call, tap_output, with_tensor
from diffusers_xai.taps.modules import modules_in


@dataclass
class Output(BaseOutput):
    sample: torch.Tensor
    extra: int = 3


A, B, C = (torch.full((2,), float(i)) for i in range(3))


@pytest.mark.parametrize(
    "output", [A, (A, B), [A, B], {"x": A, "y": B}, OrderedDict(x=A), Output(sample=A), (None, A)]
)
def test_main_tensor_is_read_and_replaced_in_the_same_container(output):
    assert first_tensor(output) is A
    replaced = with_tensor(output, A, C)
    assert type(replaced) is type(output)
    assert first_tensor(replaced) is C
    assert first_tensor(output) is A  # out of place


def test_a_skip_that_is_the_hidden_state_carries_the_edit():
    hidden, (first, last) = with_tensor((A, (B, A)), A, C)
    assert hidden is C
    assert first is B
    assert last is C


def test_outputs_without_a_tensor_are_refused():
    with pytest.raises(TypeError, match="holds a tensor, got int"):
        first_tensor(3)


def test_taps_see_edits_made_before_them_and_are_removed():
    module, seen = nn.Identity(), []
    with edit_output(module, lambda t: t + 1), tap_output(module, seen.append):
        assert torch.equal(module(A), A + 1)
    assert torch.equal(seen[0], A + 1)
    assert torch.equal(module(A), A)
    assert len(seen) == 1
    assert not module._forward_hooks


def test_calls_can_be_changed():
    class Add(nn.Module):
        def forward(self, x, other=0):
            return x + other

    module = Add()
    with tap_call(module, lambda args, kwargs: (args, {**kwargs, "other": 5})):
        assert torch.equal(module(A, other=1), A + 5)
    with tap_call(module, lambda args, kwargs: None):
        assert torch.equal(module(A, other=1), A + 1)
    assert not module._forward_pre_hooks


def test_every_module_is_found_once():
    shared = nn.Linear(2, 2)
    network = nn.Sequential(shared, nn.ModuleList([shared, nn.Sequential(nn.ReLU())]))
    network.register_module("absent", None)

    found = modules_in(network)

    assert len(found) == 5
    assert set(found) == set(network.modules())
