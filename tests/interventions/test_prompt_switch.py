"""A prompt that is switched during a run."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from diffusers_xai import PromptSwitch, record
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


@functools.cache
def pipeline(name):
    return ZOO[name].make()


def prompted(entry, prompt):
    return replace(entry, call={**entry.call, "prompt": prompt})


def conditions_of(pipe, entry):
    """What the network is given for text, by call; seen behind every other hook."""
    seen = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    run(pipe, entry)
    handle.remove()
    return seen


# A ControlNet gets the prompt too.
@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion, ControlNet"])
def test_a_later_switch_is_a_callback_that_replaces_the_embeddings(name):
    entry, pipe = ZOO[name], pipeline(name)
    prompt = entry.call["prompt"]
    other = conditions_of(pipe, prompted(entry, "b dog" if isinstance(prompt, str) else ["b dog"] * len(prompt)))[0]
    callback = {
        "callback_on_step_end": lambda pipe, step, timestep, tensors: {"prompt_embeds": other},
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    expected = run(pipe, replace(entry, call={**entry.call, **callback}))
    assert not np.array_equal(expected, run(pipe, entry))
    with record(pipe, edits=[PromptSwitch(to="b dog", from_step=1)]):
        assert np.array_equal(run(pipe, entry), expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("stable-diffusion", {"callback_on_step_end": SDCFGCutoffCallback(None, cutoff_step_index=0)}),
        (
            "sd3",
            {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0},
        ),
    ],
)
def test_steps_that_guide_in_another_way_are_switched_too(name, arguments):
    entry, pipe = replace(ZOO[name], steps=3), pipeline(name)
    entry = replace(entry, call={**entry.call, **arguments, "prompt": "a red fox"})
    expected = run(pipe, prompted(entry, "b dog"))
    assert not np.array_equal(expected, run(pipe, entry))
    with record(pipe, edits=[PromptSwitch(to="b dog", from_step=0)]):
        assert np.array_equal(run(pipe, entry), expected)


def test_a_later_switch_changes_the_conditional_rows_of_the_later_steps_only():
    entry, pipe = replace(ZOO["stable-diffusion"], steps=3), pipeline("stable-diffusion")
    other = conditions_of(pipe, prompted(entry, ["b dog", "b dog"]))
    with record(pipe, edits=[PromptSwitch(to="b dog", from_step=2)]):
        seen = conditions_of(pipe, entry)[-3:]  # before them comes the call beside the run
    uncond, cond = seen[2].chunk(2)
    assert torch.equal(cond, other[2].chunk(2)[1])
    assert torch.equal(uncond, seen[0].chunk(2)[0])
    assert torch.equal(seen[1], seen[0])
    assert not torch.equal(seen[0].chunk(2)[1], cond)


def test_switched_behind_the_last_step_it_changes_nothing():
    entry, pipe = ZOO["stable-diffusion, inpainting"], pipeline("stable-diffusion, inpainting")
    expected = run(pipe, entry)
    with record(pipe, edits=[PromptSwitch(to="b dog", from_step=entry.steps)]):
        assert np.array_equal(run(pipe, entry), expected)
