"""Steps become arrays, however many of them were expected."""

import numpy as np
import pytest

from diffusers_xai.recording.stores import DiskStore, MemoryStore, StepArray


@pytest.mark.parametrize("expected", [1, 3, 5, 100])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_array_has_the_steps_that_were_added(expected, on_disk, tmp_path):
    store = DiskStore(tmp_path / "profile") if on_disk else MemoryStore()
    steps = {step: np.random.default_rng(step).normal(size=(2, 3)) for step in (0, 2, 3, 7, 8)}
    for step, values in steps.items():
        arrays = {"activations/a": StepArray(values.copy(), ("sample", "channel"), steps=expected)}
        store.add_step(step, 10.0 * step, 0.5, arrays, dict)
    array = store.finish({})["activations/a"]
    assert array.step.values.tolist() == list(steps)
    assert np.array_equal(array.values, np.stack(list(steps.values())))


def test_steps_of_other_types_lose_nothing_and_of_other_shapes_are_refused():
    store = MemoryStore()
    for step, dtype in enumerate((np.float32, np.float64)):
        values = np.full((1, 2), 0.1, dtype=dtype)
        store.add_step(step, 0.0, 0.0, {"activations/a": StepArray(values, ("sample", "channel"), steps=2)}, dict)
    with pytest.raises(ValueError, match=r"Expected \(1, 2\) as at the steps before, got \(1, 1\)"):
        store.add_step(2, 0.0, 0.0, {"activations/a": StepArray(values[:, :1], ("sample", "channel"))}, dict)
    assert store.finish({})["activations/a"].values.tolist() == [[[np.float32(0.1)] * 2], [[0.1] * 2]]
