"""What a run was asked for is told as it was asked, whatever the pipeline makes of it."""

from dataclasses import replace

from diffusers_xai import Samples, record
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


def test_arguments_are_those_that_were_given():
    """Image to image begins late, and overwrites the argument with the number of steps that are left."""
    entry = ZOO["stable-diffusion, image to image"]
    entry = replace(entry, steps=4, call={**entry.call, "strength": 0.5})
    pipe = entry.make()
    with record(pipe, [Samples(x0=False, measures=())]) as recording:
        run(pipe, entry)
    told = recording.profile.provenance
    assert told["arguments"]["num_inference_steps"] == 4
    assert told["arguments"]["strength"] == 0.5
    assert told["num_inference_steps"] == 2
