"""What a plan says before the run is what the profile takes after it."""

import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    ChannelAblation,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    Samples,
    XAIPipeline,
    record,
)
from tests.tiny import PIPELINES, make_pipeline, state_of, unet_2d


MASK = np.zeros((16, 16), bool)
MASK[3:5, 3:6] = True
SPECS = [
    Samples(every=2),
    Activations(layers=["down_blocks.*", "mid_block", "conv_in"]),
    AttentionOutputs(steps=[1, 2]),
]
GRADIENTS = [GradientVolume(mask=MASK, steps=1), GradientMaps(layers=["mid_block", "conv_in"], mask=MASK, every=2)]


def size(profile):
    return sum(profile[name].nbytes for name in profile)


def sizes(plan):
    return {array.name: array.nbytes for entry in plan.entries for array in entry.arrays}


CASES = {
    "plain": ("xai", {}, SPECS),
    "guided": ("xai", {"guidance_scale": 2.0}, SPECS),
    "gradients": ("xai", {}, GRADIENTS),
    "guided gradients": ("xai", {"guidance_scale": 2.0}, GRADIENTS),
    "noise": ("xai", {"guidance_scale": 2.0}, [GradientVolume(mask=MASK, of="noise", dtype="float16", every=3)]),
    "energy": ("xai", {}, [GradientEnergy(mask=MASK, probes=4)]),
    "heun": ("xai", {}, SPECS),
    "bfloat16": ("xai", {}, [Samples(), Activations(layers="**.attn"), AttentionOutputs()]),
    "the same array twice": ("xai", {}, [Samples(every=2), Samples(steps=[0, 3], x0=False), *SPECS]),
}


@pytest.mark.parametrize(("name", "options", "specs"), CASES.values(), ids=CASES)
def test_planned_bytes_are_those_of_the_profile(name, options, specs, request):
    scheduler = HeunDiscreteScheduler() if request.node.callspec.id == "heun" else None
    pipe, sample = make_pipeline(name, scheduler)
    if request.node.callspec.id == "bfloat16":
        pipe.to(torch.bfloat16)
    plan = pipe.plan(specs, num_inference_steps=4, batch_size=2, **options)
    profile = sample(record=specs, **options).profile
    if request.node.callspec.id != "the same array twice":
        assert sizes(plan) == {name: profile[name].nbytes for name in profile}
    assert plan.nbytes == size(profile)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler()])
def test_plan_of_an_unconditional_network(scheduler):
    pipe = XAIPipeline(unet_2d(), scheduler)
    plan = pipe.plan(SPECS, num_inference_steps=4)
    profile = pipe(num_inference_steps=4, record=SPECS).profile
    assert plan.nbytes == size(profile)


def test_the_default_scheduler_of_a_plan_is_the_thesis_run():
    pipe, _ = make_pipeline("xai")
    plan = pipe.plan([Samples(every=100), AttentionOutputs(timesteps=[700, 500, 100])])
    assert (plan.steps, plan.samples) == (1000, 1)
    # 10 records of x_t and of x0, 3 x 16 x 16 float32; SSIM in float64 at every step; the final sample.
    assert plan.nbytes == 2 * 10 * 3072 + 1000 * 8 + 3072 + 3 * 16 * 16 * 4
    assert plan.backward_passes == 0


def test_backward_passes_are_counted():
    pipe, _ = make_pipeline("xai")
    plan = pipe.plan(GRADIENTS, num_inference_steps=4)
    assert [entry.backward_passes for entry in plan.entries] == [6, 2]
    assert plan.backward_passes == 8
    assert plan.seconds > plan.sampling_seconds > 0


@pytest.mark.parametrize("edits", [[], [ChannelAblation("mid_block", channels=[1])]])
def test_a_plan_changes_nothing(edits):
    pipe, sample = make_pipeline("xai")
    plain = sample().images
    timesteps, before, seed = pipe.scheduler.timesteps, state_of(pipe), torch.get_rng_state()
    pipe.plan([*SPECS, *GRADIENTS], edits, num_inference_steps=7)
    assert state_of(pipe) == before
    assert torch.equal(pipe.scheduler.timesteps, timesteps)
    assert torch.equal(torch.get_rng_state(), seed)
    assert np.array_equal(sample().images, plain)


def test_a_plan_prints_as_a_table():
    pipe, _ = make_pipeline("xai")
    edits = [[ChannelAblation("mid_block", channels=[1])], [ChannelAblation("mid_block", channels=[2])]]
    plan = pipe.plan([Samples(every=2), GRADIENTS[0]], edits, num_inference_steps=4)
    lines = str(plan).splitlines()
    assert re.match(r"RecordingPlan: 2 images, 4 steps; [\d.]+ kB, about [\d.e-]+ s$", lines[0])
    assert any(re.match(r"Samples\(every=2\) +samples +2 +2 × 3 × 16 × 16 +12\.3 kB$", line) for line in lines)
    assert any(
        re.match(r"GradientVolume\(steps=\(1,\), mask=…\) +gradient_volume +1 .* 6 +[\d.e-]+ s$", line)
        for line in lines
    )
    assert any("ChannelAblation" in line and "in image 1" in line for line in lines)
    html = plan._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == len(lines) - 2
    assert "<td style='text-align:left'>12.3 kB</td>" in html


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"record": [Activations(layers="downs.7.3")]}, KeyError, "got 'downs.7.3'"),
        ({"record": [Samples(steps=9)], "num_inference_steps": 4}, ValueError, "the run has 4 steps"),
        ({"num_inference_steps": 0}, ValueError, r"in 1\.\.1000"),
        ({"edits": [3]}, TypeError, "got 3"),
        ({"edits": [[]] * 3, "batch_size": 2}, ValueError, "each of 2 images, got 3"),
    ],
)
def test_a_plan_refuses_what_a_run_would(arguments, error, message):
    pipe, _ = make_pipeline("xai")
    with pytest.raises(error, match=message):
        pipe.plan(**arguments)


def test_a_plan_refuses_guidance_without_a_null_label():
    with pytest.raises(ValueError, match="null label"):
        XAIPipeline(unet_2d(), DDPMScheduler()).plan(guidance_scale=2.0)


@pytest.mark.parametrize("name", PIPELINES)
def test_max_bytes_lets_through_what_fits_and_refuses_a_byte_less(name):
    pipe, sample = make_pipeline(name)
    with record(pipe, SPECS) as run:
        images = sample().images
    needed, before, steps = size(run.profile), state_of(pipe), []

    with record(pipe, SPECS, max_bytes=needed) as run:
        assert np.array_equal(sample().images, images)
    assert size(run.profile) == needed

    original = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: steps.append(1)
    with (
        pytest.raises(ValueError, match=f"at most max_bytes={needed - 1} "),
        record(pipe, SPECS, max_bytes=needed - 1),
    ):
        sample()
    assert steps == []
    assert pipe.scheduler.step is not original
    del pipe.scheduler.step
    assert state_of(pipe) == before


def test_max_bytes_names_the_largest_and_what_would_fit(tmp_path):
    pipe, sample = make_pipeline("xai")
    specs = [Samples(measures=()), Activations(layers="mid_block"), AttentionOutputs(steps=3)]
    limit = 150_000
    with pytest.raises(ValueError, match="Expected a profile of at most") as error:
        sample(record=specs, num_inference_steps=20, max_bytes=limit, profile_dir=tmp_path / "fox")
    text = str(error.value)
    # 20 steps of two images: 16 x 8 x 8 and 3 x 16 x 16 float32.
    assert "activations/mid_block 164 kB, samples 123 kB, x0 123 kB" in text
    assert not (tmp_path / "fox").exists()
    every = int(re.search(r"`every=(\d+)` would fit", text)[1])

    def taken(every):
        thinned = [Samples(measures=(), every=every), Activations(layers="mid_block", every=every), specs[2]]
        return size(sample(record=thinned, num_inference_steps=20).profile)

    assert taken(every) <= limit < taken(every - 1)
    with pytest.raises(ValueError, match=r"max_bytes=100 \(100 B\).* Record fewer steps or layers\."):
        sample(record=specs, max_bytes=100)


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([ChannelAblation("downs.9.3", channels=0)], KeyError, "got 'downs.9.3'"),
        ([ChannelAblation("downs.0.3", channels=99)], ValueError, r"in 0..7, got \[99\]"),
        ([ChannelAblation("downs.1.3", channels=0, mask=np.ones((8, 8), bool))], ValueError, r"got \(8, 8\)"),
        ([ChannelAblation("downs.1.3", channels=0, steps=20)], ValueError, r"within 0\.\.9"),
        ([LabelSwitch(from_step=11, to=3)], ValueError, "`from_step` in 0..10, got 11"),
        ([LabelSwitch(from_step=3, to=16)], ValueError, "got 16"),
    ],
)
def test_a_plan_refuses_the_edits_that_a_run_would_refuse(edits, error, message):
    pipe, sample = make_pipeline("xai")
    before = state_of(pipe)
    for attempt in (
        lambda: pipe.plan(SPECS, edits, num_inference_steps=10),
        lambda: sample(edits=edits, num_inference_steps=10),
    ):
        with pytest.raises(error, match=message):
            attempt()
    assert state_of(pipe) == before
