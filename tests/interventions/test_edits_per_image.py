"""Edits image by image: variants of one seed in one batch, equal to the single runs."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import Activations, ChannelAblation, LabelSwitch, Samples, XAIPipeline, record
from tests.tiny import SCHEDULERS, convnext_unet, make_pipeline, state_of


VARIANTS = [
    [],
    [ChannelAblation("downs.0.3", [1, 5])],
    [LabelSwitch(from_step=2, to=12)],
    [
        ChannelAblation("mid_block", 3, "mean", steps=[0, 1]),
        ChannelAblation("downs.0.3", 2),
        LabelSwitch(from_step=0, to=7),
    ],
    [LabelSwitch(from_step=3, to=9), LabelSwitch(from_step=1, to=5)],
]


def make(scheduler=DDPMScheduler):
    pipe = XAIPipeline(convnext_unet(), scheduler())

    def sample(labels=3, edits=(), generator=None, seed=0, **more):
        generator = generator or torch.Generator().manual_seed(seed)
        arguments = {"num_inference_steps": 4, "generator": generator, "output_type": "np", **more}
        return pipe(class_labels=labels, edits=edits, **arguments)

    return pipe, sample


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_batch_of_variants_equals_their_single_runs(scheduler, guidance_scale):
    pipe, sample = make(SCHEDULERS[scheduler])
    pipe.unet.double()  # DPM-Solver with guidance amplifies rounding, which depends on the number of threads
    before = state_of(pipe)
    batch = sample(edits=VARIANTS, guidance_scale=guidance_scale).images
    assert state_of(pipe) == before
    assert batch.shape == (len(VARIANTS), 16, 16, 3)
    for image, edits in zip(batch, VARIANTS, strict=True):
        expected = sample(edits=edits, guidance_scale=guidance_scale).images[0]
        np.testing.assert_allclose(image, expected, atol=1e-6)
    assert np.abs(batch[1:] - batch[:1]).max(axis=(1, 2, 3)).min() > 1e-3


def test_a_sweep_over_layers_is_one_call():
    _, sample = make()
    layers = [f"{block}.resnets.{i}" for block in ("down_blocks.0", "down_blocks.1", "mid_block") for i in (0, 1)]
    layers += ["downs.0.2.fn", "downs.1.2.fn", "mid_attn.fn", "down_blocks.0", "down_blocks.1", "up_blocks.0"]
    sweep = [[ChannelAblation(layer, 4)] for layer in layers]
    batch = sample(edits=[*sweep, []], record=[Samples()])
    for image, edits in zip(batch.images, sweep, strict=False):
        np.testing.assert_allclose(image, sample(edits=edits).images[0], atol=1e-4)
    provenance = batch.profile.provenance
    assert provenance["seeds"] == [0] * 13
    assert provenance["class_labels"] == [3] * 13
    assert [row[0]["layers"] for row in provenance["edits"][:-1]] == [[layer] for layer in layers]
    assert provenance["edits"][-1] == []


def test_all_variants_have_the_same_noise():
    _, sample = make()
    generator = torch.Generator().manual_seed(5)
    out = sample(edits=[[], [], []], generator=generator, record=[Samples()])
    samples = out.profile["samples"].values
    np.testing.assert_allclose(samples, np.repeat(samples[:, :1], 3, axis=1), atol=1e-4)
    assert np.array_equal(samples[0], np.repeat(samples[0, :1], 3, axis=0))

    # The generator goes on from where a single run would have left it.
    alone = torch.Generator().manual_seed(5)
    np.testing.assert_allclose(sample(generator=alone).images, out.images[:1], atol=1e-4)
    assert torch.equal(generator.get_state(), alone.get_state())

    without_generator = make()[0](class_labels=3, edits=[[], []], num_inference_steps=2, output_type="np").images
    np.testing.assert_allclose(without_generator[0], without_generator[1], atol=1e-4)


def test_several_labels_and_generators_stay_those_of_their_images():
    _, sample = make()
    edits = [[ChannelAblation("downs.0.3", 5)], [], [LabelSwitch(from_step=1, to=0)]]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    batch = sample([3, 9, 12], edits, generators).images
    for i, (label, row) in enumerate(zip([3, 9, 12], edits, strict=True)):
        np.testing.assert_allclose(batch[i], sample([label], row, seed=i + 1).images[0], atol=1e-4)


def test_another_runs_activations_image_by_image():
    _, sample = make(DDIMScheduler)
    spec = [Activations(layers="mid_block")]
    three = sample([3, 9, 12], record=spec).profile
    one = sample([7], record=spec, seed=4).profile
    edits = [[], [ChannelAblation("mid_block", range(16), three)], [ChannelAblation("mid_block", range(16), one)]]
    got = sample([1, 1, 1], edits, record=spec).profile["activations/mid_block"].values
    assert np.array_equal(got[:, 1], three["activations/mid_block"].values[:, 1])
    assert np.array_equal(got[:, 2], one["activations/mid_block"].values[:, 0])


@pytest.mark.parametrize("name", ["ddpm", "ddim", "stable_diffusion"])
def test_any_recorded_pipeline(name):
    pipe, sample = make_pipeline(name)
    ablation = ChannelAblation("down_blocks.0", [1, 5])
    plain = sample().images
    with record(pipe, edits=[ablation]):
        ablated = sample().images
    with record(pipe, edits=[[], [ablation]]):
        mixed = sample().images
    np.testing.assert_allclose(mixed[0], plain[0], atol=1e-4)
    np.testing.assert_allclose(mixed[1], ablated[1], atol=1e-4)
    assert np.abs(ablated - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [3, 9]}, "one sequence of edits for each of 2 images, got 3"),
        ({"labels": 3, "batch_size": 2}, "one sequence of edits for each of 2 images, got 3"),
        ({"labels": 3, "generator": [torch.Generator()] * 2}, "Expected 3 generators, one per image, got 2"),
    ],
)
def test_a_wrong_number_of_rows_is_refused(arguments, message):
    pipe, sample = make()
    pipe.unet.register_forward_pre_hook(lambda *args: pytest.fail("the denoiser ran"))
    with pytest.raises(ValueError, match=message):
        sample(edits=[[], [], []], **arguments)


def test_a_wrong_number_of_rows_is_refused_in_any_recorded_pipeline():
    pipe, sample = make_pipeline("stable_diffusion")  # two prompts with guidance: a batch of four
    pipe.unet.conv_in.register_forward_hook(lambda *args: pytest.fail("the network ran"))
    for edits in ([[]], [[]] * 4):
        with pytest.raises(ValueError, match="each of 2 images, got"), record(pipe, edits=edits):
            sample()


def test_layers_without_a_row_per_image_are_refused():
    unet = convnext_unet()
    pipe = XAIPipeline(unet, DDIMScheduler())
    unet.conv_in.register_module("label_table", torch.nn.Linear(2, 4))

    def look_up(module, args, out):
        module.label_table(torch.ones(1, 2))

    unet.conv_in.register_forward_hook(look_up)
    with pytest.raises(ValueError, match="label_table: .* 2 rows of the denoiser's batch, got shape"):
        pipe(3, edits=[[ChannelAblation("conv_in.label_table", 0)], []], num_inference_steps=2)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([ChannelAblation("downs.0.3", 1), []], "got a mixture"),
        ([[], ChannelAblation("downs.0.3", 1)], "got a mixture"),
        (["downs.0.3"], "Expected what to change"),
        ([[[ChannelAblation("downs.0.3", 1)]]], "Expected what to change"),
    ],
)
def test_what_is_no_edit_is_refused(edits, message):
    _, sample = make()
    with pytest.raises(TypeError, match=message):
        sample(edits=edits)
