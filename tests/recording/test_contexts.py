"""Recordings in threads, dropped ones, and those that would overlap."""

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
)

from diffusers_xai import (
    Activations,
    DiffusionProfile,
    Samples,
    XAIPipeline,
    record,
)
from tests.tiny import unet_2d


def test_threads_get_their_own_run_or_a_refusal():
    pipe = XAIPipeline(unet_2d(), DDIMScheduler())

    def recorded():
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=6, generator=generator, record=[Samples()]).profile["x0"].values

    good, results = recorded(), []

    def work():
        try:
            results.append(recorded())
        except RuntimeError as error:
            results.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(result, np.ndarray) for result in results)
    for result in results:
        assert np.array_equal(result, good) if isinstance(result, np.ndarray) else "being recorded" in result
    assert "step" not in vars(pipe.scheduler)
    assert np.array_equal(recorded(), good)


DROPPED = """
import sys
import torch
from types import SimpleNamespace
from diffusers import DDIMScheduler
from diffusers_xai import Samples, record

loop = SimpleNamespace(unet=torch.nn.Conv2d(3, 3, 1), scheduler=DDIMScheduler())
loop.scheduler.set_timesteps(3)
dropped = record(loop, [Samples()], profile_dir=sys.argv[1])
dropped.__enter__()
x = torch.zeros(1, 3, 8, 8)
for t in loop.scheduler.timesteps[:2]:
    x = loop.scheduler.step(loop.unet(x).detach(), t, x).prev_sample
"""


def test_a_context_that_the_interpreter_ends_with_ends_silently_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", DROPPED, str(tmp_path / "profile")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "ignored" not in ended.stderr
    assert "Traceback" not in ended.stderr
    profile = DiffusionProfile.from_pretrained(tmp_path / "profile")
    assert profile["samples"].step.values.tolist() == [0, 1]
    assert profile.provenance["complete"] is False


def test_a_context_that_is_dropped_leaves_nothing():
    pipe = DDIMPipeline(unet_2d(), DDIMScheduler())
    dropped = record(pipe, [Samples()])
    dropped.__enter__()
    assert "step" in vars(pipe.scheduler)
    del dropped
    assert "step" not in vars(pipe.scheduler)
    with record(pipe, [Samples()]) as recording:
        pipe(num_inference_steps=2)
    assert recording.profile.provenance["complete"] is True


def test_contexts_that_would_overlap_are_refused_whoever_holds_the_network():
    network = unet_2d()
    one, two = (DDIMPipeline(network, DDIMScheduler()) for _ in range(2))
    with record(one, [Samples()]) as recording:
        with pytest.raises(RuntimeError, match="UNet2DModel is being recorded already"):
            record(two, [Samples()]).__enter__()
        one(num_inference_steps=2)
    assert recording.profile.provenance["complete"] is True
    with record(two, [Samples()]):
        two(num_inference_steps=2)


@pytest.mark.parametrize("by_hand", [True, False])
def test_calls_of_the_network_beside_the_run_are_not_mixed_into_it(by_hand):
    network = unet_2d()
    one, two = (DDIMPipeline(network, DDIMScheduler()) for _ in range(2))
    call = partial(network, torch.randn(1, 3, 16, 16), 5) if by_hand else partial(two, num_inference_steps=1)

    def both():
        with record(one, [Activations("mid_block")]):
            call()
            one(num_inference_steps=2)

    with pytest.raises(RuntimeError, match="called beside the recorded run"):
        both()
    assert "step" not in vars(one.scheduler)
