"""A label switch against runs with the other label, and against a network that switches by itself."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import LabelSwitch, Samples, XAIPipeline, record
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.recording.clock import Run
from tests.tiny import SCHEDULERS, convnext_unet, make_pipeline, state_of, unet_2d


STEPS = 4
CALLS = {"ddpm": 4, "ddim": 4, "dpm": 4, "heun": 7}

each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def make(scheduler=DDPMScheduler, unet=None):
    pipe = XAIPipeline(unet or convnext_unet(), scheduler())

    def sample(label, edits=(), seed=0, **more):
        generator = torch.Generator().manual_seed(seed)
        arguments = {"num_inference_steps": STEPS, "generator": generator, "output_type": "np", **more}
        return pipe(class_labels=label, edits=edits, **arguments).images

    return pipe, sample


def with_own_switches(pipe, schedule, branch=slice(None)):
    """A copy whose network itself changes its labels: `schedule` is call -> label."""
    pipe = copy.deepcopy(pipe)
    forward, calls = pipe.unet.forward, []

    def switching(sample, timestep, class_labels):
        past = [label for call, label in sorted(schedule.items()) if call <= len(calls)]
        if past:
            class_labels = class_labels.clone()
            class_labels[branch] = past[-1]
        calls.append(1)
        return forward(sample, timestep, class_labels)

    pipe.unet.forward = switching
    return pipe


@each_scheduler
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_first_and_the_last_switch_are_bit_identical_to_plain_runs(scheduler, guidance_scale):
    pipe, sample = make(SCHEDULERS[scheduler])
    options = {"guidance_scale": guidance_scale}
    original, other = sample([3, 9], **options), sample([12, 12], **options)
    assert not np.array_equal(original, other)
    assert np.array_equal(sample([3, 9], [LabelSwitch(from_step=0, to=12)], **options), other)
    assert np.array_equal(sample([3, 9], [LabelSwitch(from_step=CALLS[scheduler], to=12)], **options), original)
    halfway = sample([3, 9], [LabelSwitch(from_step=CALLS[scheduler] // 2, to=12)], **options)
    assert not np.array_equal(halfway, original)
    assert not np.array_equal(halfway, other)


@each_scheduler
def test_a_switch_equals_a_network_that_switches_by_itself(scheduler):
    pipe, sample = make(SCHEDULERS[scheduler])
    arguments = {"num_inference_steps": STEPS, "output_type": "np"}
    for at in range(CALLS[scheduler] + 1):
        expected = with_own_switches(pipe, {at: 5})([3, 9], generator=torch.Generator().manual_seed(0), **arguments)
        assert np.array_equal(sample([3, 9], [LabelSwitch(from_step=at, to=5)]), expected.images)


def test_guidance_keeps_its_unconditional_branch():
    pipe, sample = make()
    copied = with_own_switches(pipe, {2: 12}, branch=slice(2, 4))
    arguments = {"num_inference_steps": STEPS, "output_type": "np", "guidance_scale": 3.0}
    expected = copied([3, 9], generator=torch.Generator().manual_seed(0), **arguments).images
    assert np.array_equal(sample([3, 9], [LabelSwitch(from_step=2, to=12)], guidance_scale=3.0), expected)


def test_of_several_switches_the_latest_holds_in_whatever_order():
    pipe, sample = make()
    arguments = {"num_inference_steps": STEPS, "output_type": "np"}
    for schedule in ({1: 5, 3: 9}, {1: 5, 2: 3}):  # the second goes back to the first label
        copied = with_own_switches(pipe, schedule)
        expected = copied([3], generator=torch.Generator().manual_seed(0), **arguments).images
        switches = [LabelSwitch(from_step=at, to=to) for at, to in schedule.items()]
        assert np.array_equal(sample([3], switches), expected)
        assert np.array_equal(sample([3], switches[::-1]), expected)


def test_a_timestep_is_its_nearest_step():
    _, sample = make()  # t = 750, 500, 250, 0
    for timestep, at in [(1000, 0), (520, 1), (250, 2), (100, 3), (0, 3)]:
        assert np.array_equal(
            sample([3], [LabelSwitch(from_timestep=timestep, to=8)]), sample([3], [LabelSwitch(from_step=at, to=8)])
        )


def test_labels_by_attributes_and_the_null_label():
    _, sample = make()
    by_name = LabelSwitch(from_step=2, to={"Smiling": True, "Wearing_Lipstick": True, "Male": False})
    assert np.array_equal(sample([12], [by_name]), sample([12], [LabelSwitch(from_step=2, to=3)]))
    assert np.array_equal(sample([12], [LabelSwitch(from_step=np.int64(0), to=torch.tensor(-1))]), sample([-1]))
    assert np.array_equal(sample([-1], [LabelSwitch(from_step=0, to=12)]), sample([12]))


def test_ordinary_class_conditional_networks():
    _, sample = make(DDIMScheduler, unet_2d(num_class_embeds=4))
    assert np.array_equal(sample([1], [LabelSwitch(from_step=0, to=2)]), sample([2]))
    with pytest.raises(ValueError, match="no attribute names"):
        sample([1], [LabelSwitch(from_step=0, to={"Smiling": True})])


def test_labels_given_by_position_are_switched():
    unet = convnext_unet()
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    pipe = SimpleNamespace(unet=unet, scheduler=scheduler)
    run = Run(get_denoiser(pipe), scheduler, pipe)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), run.attached():
        LabelSwitch(from_step=0, to=4).attach(run, None)
        switched = unet(x, 500, torch.tensor([3]), return_dict=False)[0]
    with torch.no_grad():
        assert torch.equal(switched, unet(x, 500, torch.tensor([4]), return_dict=False)[0])


def test_the_profile_says_what_was_switched_and_nothing_stays():
    pipe, sample = make()
    before = state_of(pipe)
    switches = [LabelSwitch(from_step=2, to={"Smiling": True}), LabelSwitch(from_timestep=100, to=7)]
    with record(pipe, [Samples()], switches) as run:
        sample([3])
    assert state_of(pipe) == before
    entries = json.loads(json.dumps(run.profile.provenance["edits"]))
    assert entries == [
        {"type": "LabelSwitch", "to": {"Smiling": True}, "from_step": 2, "from_timestep": None},
        {"type": "LabelSwitch", "to": 7, "from_step": None, "from_timestep": 100},
    ]
    assert switches[1] == LabelSwitch(from_timestep=100, to=7)


@pytest.mark.parametrize(
    ("make_switch", "error", "message"),
    [
        (lambda: LabelSwitch(to=3), ValueError, "one of `from_step` and `from_timestep`, got None and None"),
        (
            lambda: LabelSwitch(from_step=1, from_timestep=3, to=3),
            ValueError,
            "one of `from_step` and `from_timestep`",
        ),
        (lambda: LabelSwitch(from_step=-1, to=3), ValueError, "from 0 on, got -1"),
        (lambda: LabelSwitch(from_step=0.5, to=3), ValueError, "from 0 on, got 0.5"),
        (lambda: LabelSwitch(from_step=1, to="Smiling"), TypeError, "got 'Smiling'"),
        (lambda: LabelSwitch(from_step=1, to=True), TypeError, "got True"),
        (lambda: LabelSwitch(from_step=5, to=3), ValueError, r"`from_step` in 0..4, got 5; the run has 4 steps"),
        (lambda: LabelSwitch(from_timestep=-1, to=3), ValueError, r"LabelSwitch: .* within 0..1000, got \[-1\]"),
        (lambda: LabelSwitch(from_step=1, to=16), ValueError, "label in 0..15 or the null label -1, got 16"),
        (lambda: LabelSwitch(from_step=1, to={"Smilling": True}), ValueError, "Did you mean 'Smiling'"),
    ],
)
def test_switches_to_nowhere_are_refused_before_the_first_forward(make_switch, error, message):
    pipe, sample = make()
    pipe.unet.conv_in.register_forward_hook(lambda *args: pytest.fail("the network ran"))
    before = state_of(pipe)
    with pytest.raises(error, match=message):
        sample([3], [make_switch()])
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", ["ddpm", "stable_diffusion"])
def test_unconditional_models_have_no_label_to_switch(name):
    pipe, sample = make_pipeline(name)
    with (
        pytest.raises(ValueError, match=f"network with class labels, got {type(pipe.unet).__name__}"),
        record(  # noqa: PT012
            pipe, edits=[LabelSwitch(from_step=0, to=3)]
        ),
    ):
        sample()
