"""The tap on softmax attention: what it sees, and that it is gone afterwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from diffusers_xai.taps.attention import tap_attention


class Inner(nn.Module):
    def forward(self, x, error=None):
        if error is not None:
            raise error
        return F.scaled_dot_product_attention(x, x, x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x, error=None):
        before = (x @ x.mT).softmax(dim=-1) @ x
        return self.inner(before, error) + (x @ x.mT).softmax(dim=-1) @ x


@pytest.fixture
def x():
    return torch.randn(1, 2, 5, 3, generator=torch.Generator().manual_seed(0))


def test_each_attention_is_seen_once_by_the_innermost_layer(x):
    outer, seen = Outer(), []
    expected = outer(x)
    with tap_attention({"outer": outer, "outer.inner": outer.inner}, lambda *found: seen.append(found)):
        assert not _get_current_function_mode_stack()  # nothing is slower outside of the layers
        torch.testing.assert_close(outer(x), expected, rtol=0, atol=0)
        F.scaled_dot_product_attention(x, x, x)
    (inner, *rows, of_inner), (name, *others, of_outer) = seen
    assert (inner, name, len(of_inner), len(of_outer)) == ("outer.inner", "outer", 1, 2)
    assert rows == others == [1]
    by_hand = (x @ x.mT).softmax(dim=-1)
    assert all(torch.equal(call.probabilities, by_hand) for call in of_outer)
    assert torch.equal(of_inner[0].query, by_hand @ x)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interruption"])
def test_nothing_stays_after_a_layer_has_failed(x, error):
    outer, seen = Outer(), []
    with (
        pytest.raises(type(error)),
        tap_attention({"outer": outer, "outer.inner": outer.inner}, lambda *found: seen.append(found)),
    ):
        outer(x, error)
    assert not seen
    assert not _get_current_function_mode_stack()
    assert not outer._forward_hooks
    assert not outer._forward_pre_hooks
    assert outer.inner(x).shape == x.shape
