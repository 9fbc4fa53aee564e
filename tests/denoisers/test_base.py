import pytest
import torch

from diffusers_xai.denoisers import Denoiser, DenoiserCall, get_denoiser
from diffusers_xai.denoisers.grids import strided
from diffusers_xai.denoisers.labelling import Labelling
from tests.tiny import make_pipeline
from tests.zoo.pipelines import ZOO


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("mid_block", ["mid_block"]),
        ("mid_attn.fn", ["mid_block.attentions.0.attn"]),
        ("down_blocks.*", ["down_blocks.0", "down_blocks.1"]),
        ("downs.?.3", ["down_blocks.0.downsamplers.0", "down_blocks.1.downsamplers.0"]),
        (
            "**.attn",
            [
                "down_blocks.0.attentions.0.attn",
                "down_blocks.1.attentions.0.attn",
                "mid_block.attentions.0.attn",
                "up_blocks.0.attentions.0.attn",
            ],
        ),
        (["conv_out", "init_conv"], ["conv_in", "conv_out"]),  # in the network's order
    ],
)
def test_layers_are_found_by_path_alias_and_glob(patterns, expected):
    pipe, _ = make_pipeline("xai")
    denoiser = get_denoiser(pipe)
    found = denoiser.resolve_layers(patterns)
    assert list(found) == expected
    modules = dict(pipe.unet.named_modules())
    assert all(found[path] is modules[path] for path in expected)


def test_lists_that_never_run_are_no_layers():
    pipe, _ = make_pipeline("xai")
    assert not any(isinstance(module, torch.nn.ModuleList) for module in get_denoiser(pipe).layers.values())
    with pytest.raises(KeyError, match="layers of ConvNextUNet2DModel, got 'down_blocks'"):
        get_denoiser(pipe).resolve_layers("down_blocks")
    with pytest.raises(KeyError, match="at least one layer name"):
        get_denoiser(pipe).resolve_layers([])


@pytest.mark.parametrize(
    ("tokens", "sample_size", "expected"),
    [
        (64, (8, 8), (8, 8)),
        (16, (8, 8), (4, 4)),
        (32, (16, 8), (8, 4)),
        (77, (64, 64), None),
        (12, (15, 9), (4, 3)),  # odd sizes are rounded up where a layer down-samples
        (16, (64,), (16,)),
        (33, (65,), (33,)),
        (50, (64,), None),
    ],
)
def test_strided_grid(tokens, sample_size, expected):
    assert strided(tokens, sample_size) == expected


def test_tokens_become_the_grid_they_came_from():
    pipe, _ = make_pipeline("stable_diffusion")
    grid = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    tokens = grid.flatten(2).transpose(1, 2)
    call = DenoiserCall("unet", pipe.unet, (torch.zeros(2, 4, 8, 8), 5, torch.zeros(2, 12, 16)), {})
    attention = "mid_block.attentions.0.transformer_blocks.0.attn2"
    labelled = Labelling(get_denoiser(pipe), call).output(attention, tokens)["image"]
    assert labelled.dims == ("channel", "height", "width")
    assert torch.equal(labelled.values, grid)


def test_tokens_of_a_condition_are_no_image_whatever_their_number():
    pipe, _ = make_pipeline("stable_diffusion")
    condition = torch.rand(2, 16, 8)  # as many tokens as the 4 x 4 level has
    call = DenoiserCall("unet", pipe.unet, (torch.zeros(2, 4, 8, 8), 5, torch.zeros(2, 16, 16)), {})
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    labelled = Labelling(get_denoiser(pipe), call, {path: [[{1: (False,) * 16}]]}).output(path, condition)
    assert list(labelled) == ["text"]
    assert labelled["text"].dims == ("channel", "token")
    assert torch.equal(labelled["text"].values, condition.transpose(1, 2))


def test_registers_of_sound_stand_in_front_of_its_frames():
    network = ZOO["stable-audio"].make().transformer
    given = {"global_hidden_states": torch.zeros(2, 1, 16), "encoder_hidden_states": torch.zeros(2, 9, 8)}
    call = DenoiserCall("transformer", network, (torch.zeros(2, 4, 8), torch.ones(1)), given)
    sound_of_block = [[{1: (False, *[True] * 8)}]]
    origins = {"transformer_blocks.0": sound_of_block, "transformer_blocks.0.attn1": sound_of_block}
    origins["transformer_blocks.0.attn2.to_k"] = [[{1: (False,) * 9}]]
    labelling = Labelling(Denoiser({"transformer": network}), call, origins)
    values = torch.rand(2, 9, 8)  # as many tokens as the condition has
    sound = labelling.output("transformer_blocks.0.attn1", values)
    assert {name: part.dims for name, part in sound.items()} == {"image": ("channel", "frame")}
    assert torch.equal(sound["image"].values, values[:, 1:].transpose(1, 2))
    condition = labelling.output("transformer_blocks.0.attn2.to_k", values)
    assert {name: part.dims for name, part in condition.items()} == {"text": ("channel", "token")}
    edited = labelling.edited("transformer_blocks.0", values, "image", lambda stream: stream.values * 2)
    assert torch.equal(edited[:, :1], values[:, :1])
    assert torch.equal(edited[:, 1:], values[:, 1:] * 2)


class Sequence(torch.nn.Module):
    """A network of a class that nobody described, with what its configuration says."""

    def __init__(self, config):
        super().__init__()
        self.config = config


@pytest.mark.parametrize(("config", "swapped"), [({"in_channels": 3}, True), ({"in_channels": 5}, False), ({}, False)])
def test_a_sequence_of_unknown_kind_has_its_channels_where_its_configuration_says(config, swapped):
    network, sample = Sequence(config), torch.rand(2, 5, 3)
    labelled = Labelling(Denoiser({"model": network}), DenoiserCall("model", network, (sample,), {})).sample(sample)
    assert labelled.dims == ("channel", "token")
    assert torch.equal(labelled.values, sample.transpose(1, 2) if swapped else sample)
