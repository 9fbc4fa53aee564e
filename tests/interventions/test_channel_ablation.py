"""A channel ablation against networks whose weights are zeroed or whose forward is replaced."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_xai import Activations, ChannelAblation, Samples, record
from diffusers_xai.measures import mask_from_box, mask_from_runs
from tests.reference.bilinear import bilinear
from tests.tiny import PIPELINES, make_pipeline, state_of


# Layer that is ablated -> convolutions or projections that produce its channels.
LAYERS = {
    "xai": {"downs.0.3": ["down_blocks.0.downsamplers.0"], "up_blocks.0": ["up_blocks.0.upsamplers.0"]},
    "ddpm": {
        "down_blocks.0": ["down_blocks.0.downsamplers.0.conv"],  # returns (hidden, skips) with hidden is skips[-1]
        "mid_block.attentions.0.to_out.0": ["mid_block.attentions.0.to_out.0"],  # tokens
    },
    "ddim": {"*.0.downsamplers.*": ["down_blocks.0.downsamplers.0.conv"], "conv_in": ["conv_in"]},
    "stable_diffusion": {
        "down_blocks.0": ["down_blocks.0.downsamplers.0.conv"],
        "**.attn2.to_out.0": [
            f"{block}.transformer_blocks.0.attn2.to_out.0"
            for block in ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0")
        ]
        + ["up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"],
    },
}
CASES = [(name, layer) for name, layers in LAYERS.items() for layer in layers]


def with_edits(name, edits, **more):
    pipe, sample = make_pipeline(name)
    with record(pipe, edits=edits):
        return sample(**more).images


def with_zeroed_weights(name, channels_of, **more):
    pipe, sample = make_pipeline(name)
    with torch.no_grad():
        for path, channels in channels_of.items():
            module = pipe.unet.get_submodule(path)
            output = 1 if isinstance(module, torch.nn.ConvTranspose2d) else 0
            module.weight.index_fill_(output, torch.tensor(channels), 0.0)
            module.bias[channels] = 0.0
    return sample(**more).images


def with_patched_forward(name, path, change, **more):
    """Images of a network in which `change(output, call)` follows the forward of one module."""
    pipe, sample = make_pipeline(name)
    module = pipe.unet.get_submodule(path)
    forward, calls = module.forward, []

    def patched(*args, **kwargs):
        calls.append(1)
        return change(forward(*args, **kwargs), len(calls) - 1)

    module.forward = patched
    return sample(**more).images


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_zero_equals_zeroed_weights(name, layer):
    plain = with_edits(name, [])
    ablated = with_edits(name, [ChannelAblation(layer, channels=[5, 1])])
    expected = with_zeroed_weights(name, {path: [1, 5] for path in LAYERS[name][layer]})
    assert np.abs(ablated - plain).max() > 1e-4
    np.testing.assert_allclose(ablated, expected, atol=1e-6)


def test_guided_runs_of_the_pipeline():
    images = with_edits("xai", [ChannelAblation("downs.0.3", 5)], guidance_scale=3.0)
    expected = with_zeroed_weights("xai", {"down_blocks.0.downsamplers.0": [5]}, guidance_scale=3.0)
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_several_ablations_at_once():
    edits = [ChannelAblation("downs.0.3", 5), ChannelAblation("conv_in", [0, 7]), ChannelAblation("downs.0.3", 2)]
    expected = with_zeroed_weights("xai", {"down_blocks.0.downsamplers.0": [2, 5], "conv_in": [0, 7]})
    np.testing.assert_allclose(with_edits("xai", edits), expected, atol=1e-6)
    several = ChannelAblation(["downs.0.3", "conv_in"], [3, 4])
    expected = with_zeroed_weights("xai", {"down_blocks.0.downsamplers.0": [3, 4], "conv_in": [3, 4]})
    np.testing.assert_allclose(with_edits("xai", [several]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["xai", "ddpm", "stable_diffusion"])
def test_a_skip_that_is_the_hidden_state_carries_the_ablation_unless_told_not_to(name):
    path = "down_blocks.1"

    def both(output, call):
        hidden, skips = output
        assert hidden is skips[-1]
        hidden[:, 3] = 0  # in place: the skip is the same tensor
        return output

    def hidden_alone(output, call):
        hidden, skips = output
        hidden = hidden.clone()
        hidden[:, 3] = 0
        return hidden, skips

    expected_both = with_patched_forward(name, path, both)
    expected_hidden = with_patched_forward(name, path, hidden_alone)
    assert np.abs(expected_both - expected_hidden).max() > 1e-5
    assert np.array_equal(with_edits(name, [ChannelAblation(path, 3)]), expected_both)
    assert np.array_equal(with_edits(name, [ChannelAblation(path, 3, skip=False)]), expected_hidden)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("skip", [True, False])
def test_containers_stay_and_outputs_are_not_changed_in_place(name, skip):
    pipe, sample = make_pipeline(name)
    originals, edited = [], []
    block = pipe.unet.down_blocks[1]

    def before(module, args, out):
        originals.append((out, out[0].clone()))

    block.register_forward_hook(before)
    with record(pipe, edits=[ChannelAblation("down_blocks.1", 3, skip=skip)]):
        block.register_forward_hook(lambda module, args, out: edited.append(out))
        sample()
    for ((hidden, skips), clone), (new_hidden, new_skips) in zip(originals, edited, strict=True):
        assert torch.equal(hidden, clone)
        assert isinstance(new_skips, tuple)
        assert len(new_skips) == len(skips)
        assert all(new is old for new, old in zip(new_skips[:-1], skips[:-1], strict=True))
        assert new_skips[-1] is (new_hidden if skip else hidden)
        assert torch.all(new_hidden[:, 3] == 0)
        assert not torch.all(new_skips[-1][:, 3] == 0) or skip


RULES = {  # keywords of the edit -> replacement r and amount a for channels [1, 5] of an output in numpy
    "mean": ({"replace": "mean"}, lambda out: out.mean(axis=(2, 3), keepdims=True), 1.0),
    "half": ({"amount": 0.5}, lambda out: 0.0, 0.5),
    "nothing": ({"amount": 0.0}, lambda out: 0.0, 0.0),
    "value": ({"replace": torch.tensor(0.7)}, lambda out: 0.7, 1.0),
    "per channel": (
        {"replace": np.array([[[0.3]], [[-0.2]]], dtype=np.float32), "amount": 0.8},
        lambda out: np.array([0.3, -0.2])[:, None, None],
        0.8,
    ),
    "picture": (
        {"replace": torch.arange(64.0).reshape(8, 8) / 64},
        lambda out: np.arange(64).reshape(8, 8) / 64,
        1.0,
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_one_rule_for_replacement_amount_and_mask(rule, masked):
    options, replacement, amount = RULES[rule]
    mask = mask_from_box((3, 2, 12, 9), (16, 16))
    weights = amount * (bilinear(mask, 8, 8) if masked else 1.0)

    def change(output, call):
        out = output.double().numpy()
        old = out[:, [1, 5]]
        out[:, [1, 5]] = old * (1 - weights) + replacement(old) * weights
        return torch.from_numpy(out).float()

    expected = with_patched_forward("xai", "down_blocks.0.downsamplers.0", change)
    edit = ChannelAblation("downs.0.3", [1, 5], mask=mask if masked else None, **options)
    np.testing.assert_allclose(with_edits("xai", [edit]), expected, atol=1e-5)


def test_masks_and_means_of_tokens():
    mask = mask_from_box((0, 4, 9, 16), (16, 16))
    weights = bilinear(mask, 8, 8)

    def change(output, call):
        out = output.double().numpy()  # (batch, token, channel)
        tokens = out[:, :, 2]
        out[:, :, 2] = tokens * (1 - weights.ravel()) + tokens.mean(axis=1, keepdims=True) * weights.ravel()
        return torch.from_numpy(out).float()

    path = "mid_block.attentions.0.to_out.0"
    expected = with_patched_forward("ddpm", path, change)
    edit = ChannelAblation(path, 2, "mean", mask=torch.from_numpy(mask))
    np.testing.assert_allclose(with_edits("ddpm", [edit]), expected, atol=1e-5)


def test_text_tokens_and_vectors_have_channels_too():
    for name, layer in [("stable_diffusion", "mid_block.**.attn2.to_k"), ("xai", "time_embedding")]:
        pipe, sample = make_pipeline(name)
        module = pipe.unet.get_submodule(layer.replace("**", "attentions.0.transformer_blocks.0"))
        seen = []
        with record(pipe, edits=[ChannelAblation(layer, 3)]):
            module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out))
            sample(num_inference_steps=1)
        assert torch.all(seen[0][..., 3] == 0)
        assert not torch.any(torch.all(seen[0][..., [2, 4]] == 0, dim=0))


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        ({"steps": [1, -1]}, {1, 3}),
        ({"timesteps": [760, 250]}, {0, 2}),
        ({"every": 2}, {0, 2}),
    ],
)
def test_only_at_the_chosen_steps(when, steps):
    def change(output, call):
        if call in steps:
            output = output.clone()
            output[:, 3] = 0
        return output

    expected = with_patched_forward("xai", "mid_block", change)
    assert np.array_equal(with_edits("xai", [ChannelAblation("mid_block", 3, **when)]), expected)


def test_what_is_recorded_has_the_ablation_in_it_and_nothing_stays():
    pipe, sample = make_pipeline("xai")
    before = state_of(pipe)
    plain = sample().images
    with record(pipe, [Samples(), Activations(layers="downs.0.3")], [ChannelAblation("downs.0.3", 5)]) as run:
        sample()
    recorded = run.profile["activations/downs.0.3"].values
    assert np.all(recorded[:, :, 5] == 0)
    assert np.all(np.any(recorded[:, :, 4] != 0, axis=(1, 2, 3)))
    assert state_of(pipe) == before
    with pytest.raises(KeyboardInterrupt), record(pipe, edits=[ChannelAblation("downs.0.3", 5)]):
        raise KeyboardInterrupt
    assert state_of(pipe) == before
    assert np.array_equal(sample().images, plain)


def test_the_edit_describes_itself(tmp_path):
    mask = mask_from_box((3, 2, 12, 9), (16, 16))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = ChannelAblation(["downs.0.3"], np.array([3, 1]), torch.ones(2, 8, 8), 0.5, tmp_path / "mask.png", every=2)
    data = json.loads(json.dumps(edit.to_dict()))
    assert len(json.dumps(data)) < 600
    assert np.array_equal(mask_from_runs(data.pop("mask")), mask)
    replace = data.pop("replace")
    assert (replace["shape"], replace["dtype"], len(replace["sha256"])) == ([2, 8, 8], "float32", 64)
    assert replace != ChannelAblation("a", 1, torch.zeros(2, 8, 8)).to_dict()["replace"]
    assert data == {
        "type": "ChannelAblation",
        "layers": ["downs.0.3"],
        "channels": [3, 1],
        "amount": 0.5,
        "stream": "image",
        "branch": None,
        "skip": True,
        "steps": None,
        "timesteps": None,
        "every": 2,
    }
    values = ChannelAblation("a", 1, torch.tensor([[[0.5]], [[2.0]]])).to_dict()["replace"]
    assert values == {"shape": [2, 1, 1], "dtype": "float32", "values": [[[0.5]], [[2.0]]]}

    pipe, sample = make_pipeline("xai")
    with record(pipe, [Activations(layers="mid_block")]) as run:
        sample()
    other = run.profile
    with record(pipe, [Samples()], [ChannelAblation("mid_block", 1, other)]) as run:
        sample()
    described = run.profile.provenance["edits"][0]["replace"]
    assert described["type"] == "DiffusionProfile"
    assert described["created"] == other.provenance["created"]


def test_later_changes_of_a_given_tensor_or_mask_do_not_count():
    tensor, mask = torch.ones(1), np.ones((4, 4), dtype=bool)
    edit = ChannelAblation("a", 1, tensor, mask=mask)
    assert edit != copy.copy(edit)
    assert hash(edit) == hash(edit)
    tensor.fill_(2)
    mask[:] = False
    assert edit.replace.item() == 1
    assert edit.mask.all()


def profile_of(**call):
    pipe, sample = make_pipeline("xai")
    with record(pipe, [Activations(layers="mid_block", steps=[0, 1])]) as run:
        sample(**call)
    return run.profile


EMPTY, WRONG = np.zeros((16, 16), dtype=bool), np.ones((8, 8), dtype=bool)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ChannelAblation("downs.0.3", 8),
            ValueError,
            r"downsamplers.0: expected `channels` in 0..7, got \[8\]",
        ),
        (lambda: ChannelAblation("downs.0.3", []), ValueError, r"one or several different indices .*, got \[\]"),
        (lambda: ChannelAblation("downs.0.3", [2, 2]), ValueError, "different indices"),
        (lambda: ChannelAblation("downs.0.3", -1), ValueError, r"from 0 on, got \[-1\]"),
        (lambda: ChannelAblation("downs.0.3", 1.5), TypeError, "got 1.5"),
        (lambda: ChannelAblation("downs.0.3", "5"), TypeError, "got '5'"),
        (lambda: ChannelAblation(3, 5), TypeError, "not iterable"),
        (lambda: ChannelAblation("downs.9.3", 5), KeyError, r"got 'downs.9.3'; nearest: .*downs"),
        (lambda: ChannelAblation("downs.0.3", 5, amount=1.5), ValueError, r"`amount` in \[0, 1\], got 1.5"),
        (lambda: ChannelAblation("downs.0.3", 5, amount=float("nan")), ValueError, "got nan"),
        (lambda: ChannelAblation("downs.0.3", 5, mask=EMPTY), ValueError, "at least one True pixel"),
        (lambda: ChannelAblation("downs.0.3", 5, mask=WRONG), ValueError, r"size .* = \(16, 16\), got \(8, 8\)"),
        (lambda: ChannelAblation("downs.0.3", 5, "median"), ValueError, "got 'median'"),
        (lambda: ChannelAblation("downs.0.3", 5, 0.5), TypeError, "got float"),
        (lambda: ChannelAblation("downs.0.3", 5, torch.ones(1, 1, 8, 8)), ValueError, r"got shape \(1, 1, 8, 8\)"),
        (lambda: ChannelAblation("downs.0.3", 5, steps=9), ValueError, r"ChannelAblation: .* got \[9\]"),
        (lambda: ChannelAblation("downs.0.3", 5, steps=1, every=2), ValueError, "steps and every"),
        (
            lambda: ChannelAblation("downs.0.3", 5, profile_of()),
            KeyError,
            "an array of this profile, got 'activations/down_blocks.0",
        ),
        (lambda: ChannelAblation("mid_block", 5, profile_of()), ValueError, "at steps 2, 3; available: 0, 1. Record"),
        (
            lambda: ChannelAblation("mid_block", 5, profile_of(num_inference_steps=8), steps=1),
            ValueError,
            "t=750 at step 1, where this run has t=500",
        ),
        (
            lambda: ChannelAblation("mid_block", 5, profile_of(class_labels=[1, 2, 3]), steps=1),
            ValueError,
            "1 or 2 images, got 3",
        ),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_the_first_forward(make, error, message):
    pipe, sample = make_pipeline("xai")
    pipe.unet.conv_in.register_forward_hook(lambda *args: pytest.fail("the network ran"))
    before = state_of(pipe)
    with pytest.raises(error, match=message), record(pipe, [Samples()], [make()]):  # noqa: PT012
        sample()
    assert state_of(pipe) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ChannelAblation("down_blocks.0", [2, 8], steps=3), r"down_blocks.0: expected `channels` in 0..7, got \[8\]"),
        (ChannelAblation("time_embedding", 1, "mean", steps=3), "an image to take a mean over"),
        (ChannelAblation("time_embedding", 1, mask=~EMPTY), "an output that covers the image for a `mask`"),
        (ChannelAblation("mid_block", [1, 2], torch.ones(3, 1, 1)), r"shape \(2, 8, 8\), got \(3, 1, 1\)"),
    ],
)
def test_what_only_an_output_tells_is_refused_in_the_first_forward(edit, message):
    pipe, sample = make_pipeline("xai")
    before = state_of(pipe)
    with pytest.raises(ValueError, match=message), record(pipe, [Samples()], [edit]) as run:  # noqa: PT012
        sample()
    assert list(run.profile) == []
    assert state_of(pipe) == before


def test_norms_that_put_channels_before_tokens():
    path = "mid_block.attentions.0.group_norm"

    def zeroed(output, call):
        assert output.shape == (2, 16, 64)
        output = output.clone()
        output[:, 1] = 0
        return output

    assert np.array_equal(with_edits("ddpm", [ChannelAblation(path, 1)]), with_patched_forward("ddpm", path, zeroed))


def test_a_layer_that_does_not_run_is_an_error():
    pipe, sample = make_pipeline("xai")
    pipe.unet.spare = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="spare did not run"), record(pipe, edits=[ChannelAblation("spare", 0)]):
        sample()


@pytest.mark.parametrize(
    ("branch", "more", "message"),
    [
        ("uncond", {"guidance_scale": 1.0}, r"\('cond',\) of this run, got 'uncond'"),
        ("conditional", {"guidance_scale": 3.0}, r"\('uncond', 'cond'\) of this run, got 'conditional'"),
    ],
)
def test_a_branch_that_the_run_does_not_have_is_refused(branch, more, message):
    pipe, sample = make_pipeline("stable_diffusion")
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message), record(pipe, edits=[ChannelAblation("conv_in", 0, branch=branch)]):
        sample(**more)
    assert not calls
