"""Whose call this thread is in."""

import numpy as np
import pytest
import torch

from diffusers_xai import WordMaps, record
from diffusers_xai.taps.call import another_runs
from tests.zoo.pipelines import ZOO


class Around:
    """An object with the scheduler of the pipeline that it calls."""

    def __init__(self, pipe):
        self.pipe, self.scheduler = pipe, pipe.scheduler

    def __call__(self, prompt, **call):
        text, other = self.pipe.encode_prompt(prompt, "cpu", 1, True)
        return self.pipe(prompt_embeds=text, negative_prompt_embeds=other, **call)


def test_an_object_that_encodes_the_prompt_for_the_pipeline_is_not_another_one():
    entry = ZOO["stable-diffusion"]
    sizes = {name: entry.call[name] for name in ("height", "width") if name in entry.call}
    call = {"num_inference_steps": 1, "output_type": "latent", **sizes}
    maps = []
    for make in (lambda pipe: pipe, Around):
        pipe = entry.make()
        with record(pipe, [WordMaps(["fox"])]) as recording:
            make(pipe)("a red fox", generator=torch.Generator().manual_seed(0), **call)
        maps.append(recording.profile["word_maps"].values)
    assert np.array_equal(*maps)


class Model:
    """Has a scheduler, calls something, and can be asked who runs."""

    scheduler = None

    def __init__(self, called=None):
        self.called = called

    def __call__(self, asked=None):
        return self.called() if asked is None else another_runs(asked)

    def encode(self, asked):
        return another_runs(asked)


@pytest.mark.parametrize("is_another", [False, True])
def test_a_pipeline_given_to_a_function_does_not_run(is_another):
    pipe, other = Model(), Model()

    def compared(pipe, called):
        return called(pipe)

    assert compared(pipe, other if is_another else pipe) is is_another


def test_methods_inside_the_call_of_another_are_the_pipelines():
    pipe = Model()
    assert Model(lambda: pipe.encode(pipe))() is False
    assert Model(lambda: Model()(pipe))() is True
    pipe.called = lambda: Model()(pipe)
    assert pipe() is False
    assert another_runs(pipe) is False
