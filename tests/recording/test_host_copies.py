"""What comes from a GPU comes in a thread behind the run: in order, whole, and with its errors."""

import threading

import numpy as np
import pytest
import torch

from diffusers_xai import Activations, AttentionOutputs, DiffusionProfile, Samples
from diffusers_xai.recording import host_copies
from diffusers_xai.recording.host_copies import HostCopies, WorkBehind
from diffusers_xai.recording.stores import MemoryStore
from tests.tiny import make_pipeline


SPECS = [Samples(), AttentionOutputs(every=2), Activations("mid_block")]


@pytest.fixture
def as_from_a_gpu(monkeypatch):
    """Steps are moved into the profile by the thread, which they are held up in."""
    gate = threading.Event()
    monkeypatch.setattr(HostCopies, "arrived", lambda self: gate.wait)
    return gate


def sample(guidance=2.0, **arguments):
    pipe, _ = make_pipeline("xai")
    generator = torch.Generator().manual_seed(0)
    return pipe(3, num_inference_steps=6, generator=generator, guidance_scale=guidance, record=SPECS, **arguments)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_steps_that_arrive_late_make_the_same_profile(as_from_a_gpu, monkeypatch, guidance, tmp_path):
    finish = WorkBehind.finish
    monkeypatch.setattr(WorkBehind, "finish", lambda self: as_from_a_gpu.set() or finish(self))
    got = sample(guidance)
    as_from_a_gpu.clear()
    streamed = sample(guidance, profile_dir=tmp_path / "profile")
    monkeypatch.undo()
    expected = sample(guidance)
    assert np.array_equal(got.images, expected.images)
    for profile in (got.profile, streamed.profile, DiffusionProfile.from_pretrained(tmp_path / "profile")):
        assert set(profile) == set(expected.profile)
        assert profile.provenance["complete"] is True
        for name, array in expected.profile.items():
            assert profile[name].identical(array), name


def test_a_step_that_cannot_be_written_stops_the_run(as_from_a_gpu, monkeypatch):
    as_from_a_gpu.set()
    add_step, threads = MemoryStore.add_step, set()

    def full(store, step, *rest):
        threads.add(threading.current_thread())
        if step == 2:
            raise OSError("no space left on device")
        add_step(store, step, *rest)

    monkeypatch.setattr(MemoryStore, "add_step", full)
    with pytest.raises(OSError, match="no space left"):
        sample()
    assert threads.isdisjoint({threading.current_thread()})


def test_work_is_done_in_order_and_the_first_error_ends_it():
    done, work = [], WorkBehind()
    for number in range(20):
        work.add(lambda number=number: done.append(number), 1)
    work.finish()
    assert done == list(range(20))

    def fail():
        raise OSError("full")

    held = threading.Event()
    work = WorkBehind()
    work.add(lambda: held.wait() and None, 1)
    work.add(fail, 1)
    work.add(lambda: done.append("after the error"), 1)
    held.set()
    with pytest.raises(OSError, match="full"):
        work.finish()
    work.finish()
    assert done == list(range(20))


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(host_copies, "MOST_BYTES_UNDER_WAY", 100)
    held, begun, work = threading.Event(), threading.Event(), WorkBehind()
    work.add(lambda: begun.set() or held.wait() and None, 60)
    work.add(lambda: None, 40)  # together as much as may wait
    adding = threading.Thread(target=work.add, args=(lambda: None, 40))
    adding.start()
    assert begun.wait(60)
    adding.join(0.1)
    assert adding.is_alive()
    held.set()
    adding.join(60)
    assert not adding.is_alive()
    work.finish()
