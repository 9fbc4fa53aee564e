"""However many vector-Jacobian products are taken at once, they are the same."""

import numpy as np
import pytest
import torch

from diffusers_xai import (
    GradientEnergy,
    GradientVolume,
)
from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.recording.repeat import repeated
from tests.explainers.gradients import make, run


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_every_chunk_size_gives_the_same_volume(chunk_size):
    pipe = make()
    pixels = [(i, 2 * i) for i in range(7)]
    arguments = {"steps": 3, "guidance_scale": 2.0, "batch_size": 2}
    expected = run(pipe, [GradientVolume(pixels=pixels, steps=1, chunk_size=1)], **arguments).profile
    profile = run(pipe, [GradientVolume(pixels=pixels, steps=1, chunk_size=chunk_size)], **arguments).profile
    for name in ("gradient_volume", "label_sensitivity"):
        np.testing.assert_allclose(profile[name].values, expected[name].values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [GradientVolume, GradientEnergy])
def test_passes_side_by_side_give_the_same_gradients(kind):
    pipe, threads = make(), torch.get_num_threads()
    spec = kind(pixels=[(i % 16, i // 16) for i in range(40)], steps=1)
    profiles = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            profiles.append(run(pipe, [spec]).profile)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for name in profiles[0]:
        np.testing.assert_allclose(profiles[1][name].values, profiles[0][name].values, rtol=1e-4, atol=1e-6)


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    pipe = make()
    pixels = [(i, 2 * i) for i in range(7)]
    expected = run(pipe, [GradientVolume(pixels=pixels, steps=1, chunk_size=1)]).profile["gradient_volume"]
    rows = []
    original = torch.autograd.grad

    def grad(outputs, *args, **kwargs):
        rows.append(outputs.shape[0])
        if outputs.shape[0] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(outputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    profile = run(pipe, [GradientVolume(pixels=pixels, steps=1, chunk_size=8)]).profile
    assert sorted(set(rows)) == [1, 3, 7]
    assert rows.count(1) == 7
    np.testing.assert_allclose(profile["gradient_volume"].values, expected.values, rtol=1e-4, atol=1e-6)


def test_rows_in_a_list_are_repeated_as_rows_however_many_channels_they_have():
    rows = [torch.full((4, 1, 2, 2), float(i)) for i in range(4)]
    call = DenoiserCall("transformer", torch.nn.Identity(), (rows,), {"t": torch.arange(4)})
    args, kwargs = repeated(call, samples=2, copies=2)
    assert [row.unique().tolist() for row in args[0]] == [[i] for i in (0, 1, 0, 1, 2, 3, 2, 3)]
    assert all(row.shape == (4, 1, 2, 2) for row in args[0])
    assert kwargs["t"].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
