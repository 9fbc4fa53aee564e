"""When the image is in the maps."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffusers_xai import Activations
from tests.experiments.runs import SEEDS, measured, run, states


def correlations(view, targets):
    return np.array([abs(np.corrcoef(view.ravel(), target.ravel())[0, 1]) for target in targets])


def first_twice(above, steps):
    """The share of the process done at the first of two records in turn that are above; 1 if there are none."""
    for i, value in enumerate(above):
        if value and (i + 1 == len(above) or above[i + 1]):
            return steps[i] / 6
    return 1.0


def test_emergence(pipe):
    data = run("emergence", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=6).data
    layer = "mid_attn.fn"  # of 8×8 pixels
    greys, images, maps = [], [], {"sum": [], "c*": []}
    for seed in SEEDS:
        activations = pipe(
            3, num_inference_steps=6, generator=torch.Generator().manual_seed(seed), record=[Activations(layers=layer)]
        ).profile[f"activations/{layer}"].values[:, 0].astype(np.float64)  # fmt: skip
        maps["sum"].append(activations.sum(1))
        maps["c*"].append([v[v.sum((1, 2)).argmax()] for v in activations])
        run_states = torch.stack(states(pipe, 3, seed, 6)).double()
        luminance = np.einsum("c,schw->shw", [0.299, 0.587, 0.114], run_states)
        edges = [np.hypot(*(ndimage.sobel(x, axis, mode="nearest") for axis in (0, 1))) for x in luminance]
        size = maps["sum"][0].shape[-1]
        halved = np.array(edges).reshape(7, size, 16 // size, size, 16 // size).mean((2, 4))
        images.append(halved[-1])
        grey = run_states[:-1].mean(1).numpy().reshape(6, size, 16 // size, size, 16 // size).mean((2, 4))
        greys.append((grey, halved[:-1]))
    own = np.eye(len(SEEDS), dtype=bool)
    steps = range(6)
    state = np.array([[np.maximum(*(correlations(v[i], images) for v in views)) for i in steps] for views in greys])
    for kind, views in maps.items():
        found = np.array([[correlations(view[i], images) for i in steps] for view in views])  # (seed, step, image)
        part = data.sel(layer=layer, map=kind, target="edges")
        np.testing.assert_allclose(part["correlation"], found.transpose(1, 0, 2)[:, own].T, atol=2e-3)
        others = found.transpose(1, 0, 2)[:, ~own].reshape(6, 3, 2)
        np.testing.assert_allclose(part["chance"], others.mean(2).T, atol=2e-3)
        np.testing.assert_allclose(part["state"], state.transpose(1, 0, 2)[:, own].T, atol=2e-3)
        bars, state_bars = (
            np.quantile(x.transpose(1, 0, 2)[:, ~own].reshape(6, -1), 0.95, axis=1) for x in (found, state)
        )
        for k, seed in enumerate(SEEDS):
            lead = first_twice(state[k, :, k] > state_bars, steps) - first_twice(found[k, :, k] > bars, steps)
            assert float(part["lead"].sel(seed=seed)) == pytest.approx(lead)
    with pytest.raises(ValueError, match="at least 3 seeds"):
        measured("emergence", pipe, labels=[3], seeds=[1, 2])


def test_the_control_of_emergence_sees_the_same_states(pipe):
    same = run("emergence", pipe, labels=[3], seeds=SEEDS, steps=6, null=pipe).data
    np.testing.assert_allclose(same["null_correlation"], same["correlation"], atol=1e-3)
    other = run("emergence", pipe, labels=[3], seeds=SEEDS, steps=6).data
    assert float(abs(other["null_correlation"] - other["correlation"]).max()) > 0.1
