"""Runs of a model: what they yield, how they end, and that they wait for each other."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, HeunDiscreteScheduler

from diffusers_xai import LabelSwitch, Samples, XAIPipeline
from diffusers_xai.app import models, runs, settings
from diffusers_xai.measures import structural_similarity
from tests.tiny import convnext_unet, unet_2d


Settings, Limits, run_stream = settings.Settings, settings.Limits, runs.run_stream


def make(unet, scheduler=None):
    return models.Model("tiny", XAIPipeline(unet, scheduler or DDPMScheduler()))


def test_sampling_streams_states_and_ends_with_the_profile():
    wanted = Settings(label=1, steps=4, every=2, gradients=False, layers=("mid_block.attentions.0.attn",))
    items = list(run_stream(runs.sample, make(convnext_unet()), wanted, Limits()))
    assert all(isinstance(item, runs.State) and item.sample.shape == (3, 16, 16) for item in items[:-1])
    assert all((item.total, 1 <= item.done <= 4) == (4, True) for item in items[:-1])
    profile = items[-1]
    assert profile["samples"]["step"].values.tolist() == [0, 2]
    assert profile["attention_outputs"].sizes["step"] == 2
    assert "activations/mid_block.attentions.0.attn" in profile


@pytest.mark.parametrize(
    ("unet", "label"),
    [(unet_2d(), None), (unet_2d(attention=False, num_class_embeds=10), 3)],
    ids=["plain", "classes"],
)
def test_models_without_labels_or_attention_are_sampled_as_by_their_pipeline(unet, label):
    model = make(unet)
    wanted = Settings(label=label, seed=4, steps=3, every=1, layers=("mid_block.resnets.0",))
    *_, profile = run_stream(runs.sample, model, wanted, Limits())
    generator = torch.Generator().manual_seed(4)
    expected = model.pipe(label, num_inference_steps=3, generator=generator, output_type="pt").images[0]
    shown = torch.from_numpy(profile["final_sample"].values[0]).div(2).add(0.5).clamp(0, 1)
    assert torch.equal(shown, expected)
    assert ("attention_outputs" in profile) == model.has_attention
    *_, plan = run_stream(runs.plan, model, wanted, Limits())
    assert plan.nbytes == sum(array.nbytes for array in profile.values())


def test_the_sweep_equals_runs_of_their_own():
    model = make(convnext_unet())
    wanted = Settings(label=3, switch_to=12, seed=8, steps=10)
    rows = []
    hook = model.pipe.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(len(inputs[0])))
    *states, result = run_stream(runs.sweep, model, wanted, Limits())
    hook.remove()
    assert runs.sweep_seconds(SimpleNamespace(sampling_seconds=10.0)) == pytest.approx(sum(rows))  # 1 s a row
    assert all(state.total == 10 for state in states)
    assert result.data.sizes["switch"] == 10
    images = []
    for edits in ([], [LabelSwitch(from_step=4, to=12)]):
        generator = [torch.Generator().manual_seed(seed) for seed in (8, 9, 10)]
        output = model.pipe(
            [3] * 3,
            num_inference_steps=10,
            generator=generator,
            edits=edits,
            record=[Samples(every=10)],
            output_type="pt",
        )
        images.append(torch.from_numpy(output.profile["final_sample"].values))
    torch.testing.assert_close(
        torch.from_numpy(result.data["ssim"].isel(switch=4).values), structural_similarity(*images).float(),
        rtol=1e-3, atol=1e-4, check_dtype=False,
    )  # fmt: skip


def test_a_scheduler_that_calls_twice_a_step_counts_its_calls():
    model = make(convnext_unet(), HeunDiscreteScheduler())
    *states, _ = run_stream(runs.sweep, model, Settings(label=3, switch_to=12, steps=5), Limits())
    assert {state.total for state in states} == {9}


@pytest.mark.parametrize("task", [runs.sample, runs.sweep], ids=["sample", "sweep"])
def test_a_stopped_and_a_late_run_end_readably_and_leave_the_model_free(task):
    model, stop = make(convnext_unet()), threading.Event()
    wanted = Settings(label=1, switch_to=2, steps=10, gradients=False)
    stop.set()
    with pytest.raises(runs.Stopped, match="Cancelled"):
        list(run_stream(task, model, wanted, Limits(), stop))
    with pytest.raises(runs.Stopped, match="limit"):
        list(run_stream(task, model, wanted, Limits(max_seconds=0)))
    *_, result = run_stream(task, model, wanted, Limits())
    assert result is not None
    assert not model.lock.locked()


def test_runs_of_one_model_wait_and_those_of_another_do_not():
    one, other = make(convnext_unet()), make(unet_2d())
    running, highest, let_go = [], [], threading.Event()

    def task(model, wanted, limits, on_step_end):
        running.append(model)
        highest.append(running.count(model))
        let_go.wait(timeout=300)
        running.remove(model)

    threads = [
        threading.Thread(target=lambda model=model: list(run_stream(task, model, Settings(), Limits())))
        for model in (one, one, other)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 300
    while {id(model) for model in running} != {id(one), id(other)}:
        assert time.monotonic() < deadline, "the runs of two models wait for each other"
        time.sleep(0.01)
    let_go.set()
    for thread in threads:
        thread.join(timeout=300)
    assert highest == [1, 1, 1]


def test_a_run_that_waits_can_be_cancelled():
    model, stop = make(convnext_unet()), threading.Event()
    with model.lock:
        threading.Timer(0.5, stop.set).start()
        with pytest.raises(runs.Stopped, match="Cancelled"):
            list(run_stream(runs.sample, model, Settings(label=1), Limits(), stop))
