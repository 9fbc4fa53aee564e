"""The sweep in one pass against one run for each switch."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from diffusers_xai import LabelSwitch, Samples, XAIPipeline
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from tests.tiny import convnext_unet


SEEDS = [4, 9, 2]
STEPS = 10


def make(scheduler):
    return XAIPipeline(convnext_unet(), scheduler)


def separate_run(pipe, switch, **options):
    out = pipe(
        [3] * len(SEEDS),
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        edits=[] if switch is None else [LabelSwitch(from_step=switch, to=12)],
        record=[Samples(every=STEPS)],
        **options,
    )
    return torch.from_numpy(out.profile["final_sample"].values)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (DDPMScheduler(), {}),
        (DDPMScheduler(), {"guidance_scale": 2.0}),
        (DDIMScheduler(), {}),
        (DDIMScheduler(), {"eta": 1.0}),
        (DPMSolverMultistepScheduler(), {}),  # its steps depend on earlier outputs
        (HeunDiscreteScheduler(), {}),  # calls the network twice in a step
    ],
    ids=["ddpm", "ddpm-guided", "ddim", "ddim-eta", "dpm-solver", "heun"],
)
def test_every_branch_equals_a_run_of_its_own(scheduler, options):
    pipe = make(scheduler)
    switches = [0, 3, 7, 9]
    arguments = {"num_inference_steps": STEPS, **options}
    exact = switch_sweep(pipe, 3, 12, SEEDS, switches, max_rows=len(SEEDS), **arguments)
    batched = switch_sweep(pipe, 3, {"Bangs": True, "Male": True}, SEEDS, switches, max_rows=64, **arguments)
    assert pipe.scheduler is scheduler
    for index, switch in enumerate([None, *switches]):
        expected = separate_run(pipe, switch, **options)
        assert torch.equal(exact[index], expected)
        torch.testing.assert_close(batched[index], expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(exact[0], exact[1])


def test_ten_switches_take_six_tenths_of_the_rows():
    pipe, rows = make(DDPMScheduler()), []
    handle = pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    switch_sweep(pipe, 3, 12, SEEDS, range(0, 50, 5), num_inference_steps=50, max_rows=64)
    handle.remove()
    assert sum(rows) <= 0.6 * 11 * 50 * len(SEEDS)
    assert len(rows) == 50  # every step is one call
    assert max(rows) == 11 * len(SEEDS)


def test_no_call_is_larger_than_asked():
    pipe, rows = make(DDPMScheduler()), []
    handle = pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    switch_sweep(pipe, 3, 12, SEEDS, [0, 1, 2], num_inference_steps=4, max_rows=7)
    handle.remove()
    assert max(rows) == 6


def test_the_callback_sees_the_unswitched_run_at_every_step():
    pipe, seen, expected = make(DDPMScheduler()), [], []
    final = switch_sweep(
        pipe, 3, 12, SEEDS, [0, 5], num_inference_steps=STEPS, max_rows=len(SEEDS),
        callback_on_step_end=lambda pipe, step, t, tensors: seen.append((step, int(t), tensors["sample"].clone())),
    )  # fmt: skip
    pipe(
        [3] * len(SEEDS), num_inference_steps=STEPS, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        callback_on_step_end=lambda pipe, step, t, tensors: expected.append((step, int(t), tensors["sample"].clone())),
    )  # fmt: skip
    assert [(step, t) for step, t, _ in seen] == [(step, t) for step, t, _ in expected]
    assert all(torch.equal(one[2], other[2]) for one, other in zip(seen, expected, strict=True))
    assert torch.equal(seen[-1][2], final[0])


def test_an_error_of_the_callback_ends_the_sweep_and_leaves_the_pipeline():
    scheduler, steps = DDPMScheduler(), []
    pipe = make(scheduler)

    def stop_at_third(pipe, step, t, tensors):
        steps.append(step)
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        switch_sweep(
            pipe, 3, 12, SEEDS, [0, 5], num_inference_steps=STEPS, callback_on_step_end=stop_at_third
        )  # fmt: skip
    assert steps == [0, 1, 2]
    assert pipe.scheduler is scheduler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 12, SEEDS, [10]), r"`switch_steps` in 0\.\.9, each once, got \[10\]"),
        ((3, 12, SEEDS, [2, 2]), "each once"),
        ((3, 16, SEEDS, [2]), "16"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        switch_sweep(make(DDPMScheduler()), *arguments, num_inference_steps=STEPS)
