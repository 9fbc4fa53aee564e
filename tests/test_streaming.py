"""A profile written to disk while sampling is the profile kept in memory, and readable whatever goes wrong."""

import errno
import functools
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from diffusers_xai import Activations, AttentionOutputs, DiffusionProfile, Samples, record
from diffusers_xai.recording import stores
from tests.tiny import PIPELINES, make_pipeline


SPECS = [Samples(), Activations(layers=["down_blocks.*", "mid_block"], every=2), AttentionOutputs(steps=[1, 2])]


@pytest.fixture
def a_shard_per_step(monkeypatch):
    monkeypatch.setattr(stores, "SHARD_BYTES", 1)


def recorded(name, profile_dir=None, specs=SPECS):
    pipe, sample = make_pipeline(name)
    with record(pipe, specs, profile_dir=profile_dir) as run:
        images = sample().images
    return images, run.profile


def assert_same_arrays(profile, expected, steps=None):
    assert list(profile) == list(expected)
    for name in expected:
        array = expected[name]
        if steps is not None and "step" in array.dims:
            array = array.sel(step=[step for step in array.step.values if step in steps])
        assert profile[name].identical(array), name
        assert profile[name].dtype == array.dtype
        assert profile[name].values.tobytes() == array.values.tobytes()


def fail_at_step(pipe, step, error):
    """Makes the scheduler raise at its call number `step`."""
    original, calls = pipe.scheduler.step, []

    @functools.wraps(original)  # the pipeline looks at its arguments
    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > step:
            raise error
        return original(*args, **kwargs)

    pipe.scheduler.step = failing


def shards(path, name):
    return json.loads((path / "profile.json").read_text())["arrays"][name]["files"]


@pytest.mark.parametrize("name", PIPELINES)
def test_streamed_and_kept_profiles_are_equal_bit_for_bit(name, tmp_path, a_shard_per_step):
    expected_images, expected = recorded(name)
    images, profile = recorded(name, tmp_path / "fox")
    assert np.array_equal(images, expected_images)
    assert_same_arrays(profile, expected)
    assert_same_arrays(DiffusionProfile.from_pretrained(tmp_path / "fox"), expected)
    profile.provenance["created"] = expected.provenance["created"]
    assert profile.provenance == expected.provenance
    assert profile.provenance["complete"] is True
    assert len(shards(tmp_path / "fox", "samples")) == 4
    assert len(shards(tmp_path / "fox", "activations/mid_block")) == 2


def test_shards_gather_steps(tmp_path, monkeypatch):
    # Samples and x0 of two images of 3 x 16 x 16 in float32, and two float64: 12304 bytes per step.
    monkeypatch.setattr(stores, "SHARD_BYTES", 2 * 12304)
    pipe, sample = make_pipeline("xai")
    with record(pipe, [Samples()], profile_dir=tmp_path / "fox"):
        sample(num_inference_steps=6)
    steps = [
        safetensors.numpy.load_file(tmp_path / "fox" / file)["samples"].shape[0]
        for file in shards(tmp_path / "fox", "samples")
    ]
    assert steps == [1, 2, 2, 1]  # the first step alone: a bad folder shows at once


def test_waiting_steps_are_written_when_they_are_old(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD_SECONDS", 0.0)
    recorded("xai", tmp_path / "fox")
    assert len(shards(tmp_path / "fox", "samples")) == 4


def test_the_profile_of_a_run_is_read_when_asked_for(tmp_path):
    _, profile = recorded("xai", tmp_path / "fox")
    (tmp_path / "fox" / "x0.safetensors").unlink()
    assert profile["samples"].shape == (4, 2, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match="x0: its file .* is missing"):
        profile["x0"]


def test_the_pipeline_takes_a_profile_dir(tmp_path):
    _, sample = make_pipeline("xai")
    profile = sample(record=SPECS, profile_dir=tmp_path / "fox").profile
    expected = sample(record=SPECS).profile
    assert_same_arrays(profile, expected)
    assert DiffusionProfile.from_pretrained(tmp_path / "fox").provenance["class_labels"] == [3, 12]


def test_guided_branches_are_streamed(tmp_path, a_shard_per_step):
    _, sample = make_pipeline("xai")
    expected = sample(record=SPECS, guidance_scale=2.0).profile
    assert expected["activations/mid_block"].dims[2] == "branch"
    assert_same_arrays(sample(record=SPECS, guidance_scale=2.0, profile_dir=tmp_path / "fox").profile, expected)


def test_what_exists_is_refused_before_sampling(tmp_path):
    pipe, sample = make_pipeline("xai")
    forwards = []
    pipe.unet.conv_in.register_forward_hook(lambda *args: forwards.append(1))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    (tmp_path / "file").touch()
    for name in ("notes", "file"):
        with pytest.raises(FileExistsError, match=f"a new folder, got .*{name}, which exists"):
            sample(record=SPECS, profile_dir=tmp_path / name)
    assert forwards == []
    (tmp_path / "empty").mkdir()
    assert sample(record=SPECS, profile_dir=tmp_path / "empty").profile.provenance["complete"] is True


def test_a_refused_run_leaves_no_folder(tmp_path):
    _, sample = make_pipeline("xai")
    with pytest.raises(ValueError, match="the run has 4 steps"):
        sample(record=[Samples(steps=9)], profile_dir=tmp_path / "fox")
    assert not (tmp_path / "fox").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
@pytest.mark.parametrize("shard_bytes", [1, stores.SHARD_BYTES])
def test_an_interrupted_run_leaves_the_steps_done(tmp_path, monkeypatch, error, shard_bytes):
    monkeypatch.setattr(stores, "SHARD_BYTES", shard_bytes)
    specs = [Samples(measures=()), Activations(layers="mid_block")]
    pipe, sample = make_pipeline("xai")
    with record(pipe, specs) as run:
        sample()
    expected = DiffusionProfile({name: run.profile[name] for name in run.profile if name != "final_sample"})
    fail_at_step(pipe, 3, error)
    with pytest.raises(type(error)), record(pipe, specs, profile_dir=tmp_path / "fox") as run:  # noqa: PT012
        sample()
    for profile in (run.profile, DiffusionProfile.from_pretrained(tmp_path / "fox")):
        assert_same_arrays(profile, expected, steps=[0, 1, 2])
        assert profile.provenance["complete"] is False


def test_an_interrupt_while_writing_loses_no_step(tmp_path, monkeypatch, a_shard_per_step):
    real, calls = safetensors.numpy.save_file, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # in the midst of the second step's shards
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    pipe, sample = make_pipeline("xai")
    specs = [Samples(), Activations(layers="mid_block")]
    with pytest.raises(KeyboardInterrupt), record(pipe, specs, profile_dir=tmp_path / "fox") as run:  # noqa: PT012
        sample()
    for name in ("samples", "x0", "measures/ssim", "activations/mid_block"):
        assert run.profile[name].step.values.tolist() == [0, 1]
    assert run.profile.provenance["complete"] is False


KILLED = """
import functools, os, signal, sys
from diffusers_xai import Activations, Samples, record
from diffusers_xai.recording import stores
from tests.tiny import make_pipeline

stores.SHARD_BYTES = int(sys.argv[2])
pipe, sample = make_pipeline("xai")
original, calls = pipe.scheduler.step, []

@functools.wraps(original)
def step(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

pipe.scheduler.step = step
with record(pipe, [Samples(), Activations(layers="mid_block")], profile_dir=sys.argv[1]):
    sample(num_inference_steps=6)
"""


@pytest.mark.parametrize(("shard_bytes", "steps"), [(1, [0, 1, 2]), (10**9, [0])])
def test_a_killed_run_leaves_the_steps_written(tmp_path, shard_bytes, steps):
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "fox"), str(shard_bytes)])
    assert child.returncode == -signal.SIGKILL
    pipe, sample = make_pipeline("xai")
    with record(pipe, [Samples(), Activations(layers="mid_block")]) as run:
        sample(num_inference_steps=6)
    expected = DiffusionProfile({name: run.profile[name] for name in run.profile if name != "final_sample"})
    profile = DiffusionProfile.from_pretrained(tmp_path / "fox")
    assert_same_arrays(profile, expected, steps=steps)
    assert profile.provenance["complete"] is False


@pytest.mark.parametrize(("call", "steps"), [(1, 0), (6, 1), (11, 2), (17, 4)])
def test_a_full_disk_is_told_and_leaves_the_steps_before(tmp_path, monkeypatch, a_shard_per_step, call, steps):
    real, calls = safetensors.numpy.save_file, []

    def full(tensors, file, **kwargs):
        calls.append(file)
        real(tensors, file, **kwargs)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    pipe, sample = make_pipeline("xai")
    specs = [Samples(), Activations(layers="mid_block")]  # four arrays per step, and the final sample
    with (
        pytest.raises(OSError, match=f"No space left on device.*fox holds the first {steps} steps"),
        record(pipe, specs, profile_dir=tmp_path / "fox") as run,  # noqa: PT012
    ):
        sample()
    assert len(calls) == call  # nothing is tried again
    files = sorted(file.name for file in (tmp_path / "fox").rglob("*") if file.is_file())
    if steps == 0:
        assert files == []
        assert len(run.profile) == 0
        monkeypatch.undo()
        assert recorded("xai", tmp_path / "fox")[1].provenance["complete"] is True
        return
    assert len(files) == 1 + 4 * steps
    profile = DiffusionProfile.from_pretrained(tmp_path / "fox")
    assert profile["samples"].step.values.tolist() == list(range(steps))
    assert profile.provenance["complete"] is False
