"""What a network is given for a call beside the run, and what stays its own."""

from collections import OrderedDict, deque, namedtuple

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_xai.taps.alone import alone, copied


@pytest.mark.parametrize("make", [FluxAttnProcessor, lambda: FluxIPAdapterAttnProcessor(8, 8)])
def test_attention_is_on_pytorchs_own_functions_whatever_its_processor_is(make):
    attention = FluxAttention(query_dim=8, heads=2, dim_head=4)
    attention.set_processor(make())
    attention.processor._attention_backend = AttentionBackendName.FLASH
    with alone(attention):
        assert attention.processor._attention_backend is None
    assert attention.processor._attention_backend is AttentionBackendName.FLASH


class Rows(list):
    """A list of a class of its own."""


Pair = namedtuple("Pair", "one other")


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: [tensor],
        lambda tensor: Rows([tensor]),
        lambda tensor: (tensor, 1),
        lambda tensor: Pair(tensor, 1),
        lambda tensor: deque([tensor, tensor], maxlen=2),
        lambda tensor: OrderedDict({0: tensor}),
        lambda tensor: UNet2DOutput(sample=tensor),
    ],
)
def test_containers_of_any_class_are_copied_with_what_they_hold(make):
    tensor = torch.zeros(2)
    value = make(tensor)
    copy = copied(value)
    assert type(copy) is type(value)
    assert len(copy) == len(value)
    assert getattr(copy, "maxlen", None) == getattr(value, "maxlen", None)
    copy[0].add_(1)
    assert copy[0].tolist() == [1, 1]
    assert value[0] is tensor
    assert tensor.tolist() == [0, 0]


def test_what_is_held_twice_is_copied_once():
    tensor = torch.zeros(1)
    copy = copied({"list": [tensor], "pair": Pair(tensor, [tensor])})
    assert copy["list"][0] is copy["pair"].one is copy["pair"].other[0]
    assert copy["list"][0] is not tensor
