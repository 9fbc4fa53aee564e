"""Labels go where elements go: the elements of these tensors are their own labels."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_xai.taps.token_flow import MIXED, NOTHING, TokenFlow


CHANNELS = 4


def marked(flow):
    """(row, token, channel) of two rows of three tokens; every element is its token's label."""
    labels = torch.arange(6, dtype=torch.int32).reshape(2, 3, 1)
    tensor = labels.expand(2, 3, CHANNELS).double().contiguous()
    flow.mark(tensor, labels)
    return tensor


def written(x):
    out = x.new_full((2, 5, CHANNELS), NOTHING)
    for i, row in enumerate(x):
        out[i, 5 - len(row) :] = row
    return out


def emptied(x):
    x = x.clone()
    x[:, 1:].fill_(NOTHING)
    return x


def copied(x):
    y = x.clone()
    x.fill_(NOTHING)
    return y


MASK = torch.tensor([[True, False, True], [True, True, False]])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.repeat(1, 2, 1).view(4, 3, -1),
        lambda x: torch.cat([torch.full_like(x, NOTHING), x]),
        lambda x: torch.cat([F.pad(x, (0, 2), value=NOTHING), x.new_full((2, 1, CHANNELS + 2), NOTHING)], dim=-2),
        lambda x: x.repeat_interleave(2, dim=0)[:, 1:],
        lambda x: x.transpose(0, 1).contiguous().reshape(-1, CHANNELS),
        lambda x: torch.stack([row[mask] for row, mask in zip(x, MASK, strict=True)]).flip(1),
        lambda x: x[:, [0, 2, 1]].to(torch.float32),
        lambda x: x.masked_fill(~MASK[..., None], NOTHING),
        lambda x: torch.where(MASK[..., None], x, x.roll(1, dims=1)),
        lambda x: x.gather(1, torch.tensor([[2], [0]])[..., None].expand(2, 1, CHANNELS)),
        lambda x: F.dropout(x, 0.5, training=False).split([1, 2], dim=1)[1],
        written,
        emptied,
        copied,
    ],
)
def test_labels_go_where_elements_go(move, mode):
    flow = TokenFlow()
    with mode():
        x = marked(flow)
        flow.start()
        result = move(x)
        flow.stop()
    assert flow.labels(result).tolist() == result.tolist()
    assert type(result) is torch.Tensor


@pytest.mark.parametrize(
    ("compute", "kept"),
    [
        (lambda x: F.linear(x, torch.ones(7, CHANNELS).double(), torch.zeros(7).double())[..., :CHANNELS], True),
        (lambda x: F.layer_norm(x, (CHANNELS,)), True),
        (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1) * MASK[..., None], True),
        (lambda x: F.gelu(x).add_(1), True),
        (lambda x: x + x.flip(1), False),
        (lambda x: x - x.mean(dim=1, keepdim=True), False),
        (lambda x: x.index_put((torch.tensor([0]),), x[1:], accumulate=True), False),
        (lambda x: x.clone().scatter_(1, torch.zeros(2, 1, CHANNELS).long(), x[:, 1:2], reduce="add"), False),
        (lambda x: F.scaled_dot_product_attention(x, x, x), False),
        (lambda x: F.linear(x.transpose(1, 2), torch.ones(3, 3).double()).transpose(1, 2), False),
    ],
)
@torch.no_grad()
def test_what_is_computed_of_one_token_keeps_its_label_and_of_several_has_none(compute, kept):
    flow = TokenFlow()
    x = marked(flow)
    flow.start()
    labels = flow.labels(compute(x))
    flow.stop()
    if kept:
        assert torch.equal(labels, x.int())
    else:
        assert bool((labels == MIXED).any())
        assert bool(((labels == MIXED) | (labels == x)).all())


def test_what_is_no_more_and_what_comes_from_elsewhere_has_no_labels():
    flow = TokenFlow()
    flow.start()
    for _ in range(20):  # memory is used again
        x = marked(flow)
        assert flow.labels(torch.zeros(2, 3, CHANNELS).double()) is None
        del x
    flow.stop()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
