"""The divergence of two labels."""

import numpy as np
import pytest
import torch

from diffusers_xai import AttentionOutputs
from tests.experiments.runs import SEEDS, clean_image_energy, measured, run, ssim, states


def test_the_images_of_label_divergence(pipe):
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    result = run("label-divergence", pipe, labels=[3, 12], seeds=SEEDS, steps=20, mask=mask)
    data = result.data
    assert data["moment_timestep"].values.tolist() == [950, 800, 600, 400, 200, 50]
    for i, label in enumerate((3, 12)):
        run_states = states(pipe, label, SEEDS[0], 20)
        np.testing.assert_allclose(data["final"][i], run_states[-1], atol=1e-3)
        for moment, step in enumerate((0, 3, 7, 11, 15, 18)):
            np.testing.assert_allclose(data["sample"][i, moment], run_states[step], atol=1e-3)
        energy = clean_image_energy(pipe, run_states[11], 400, label, mask)
        mine = data["energy"][i, 3].values
        np.testing.assert_allclose(mine / mine.max(), energy / energy.max(), atol=2e-3)
        alone = pipe(
            label,
            num_inference_steps=20,
            generator=torch.Generator().manual_seed(SEEDS[0]),
            record=[AttentionOutputs()],
        ).profile
        np.testing.assert_allclose(
            data["attention_outputs"][i, 3],
            np.squeeze(alone["attention_outputs"].sel(step=11).values),
            rtol=1e-3,
            atol=1e-3,
        )


def test_label_divergence(pipe):
    result = run("label-divergence", pipe, labels=[3, 12], seeds=SEEDS, steps=6, batch_size=4)
    for seed in SEEDS:
        first, second = states(pipe, 3, seed, 6), states(pipe, 12, seed, 6)
        expected = [ssim(a, b) for a, b in zip(first[:-1], second[:-1], strict=True)]
        np.testing.assert_allclose(result.data["ssim"].sel(seed=seed), expected, atol=1e-4)
        assert result.data["final_ssim"].sel(seed=seed) == pytest.approx(ssim(first[-1], second[-1]), abs=1e-4)
    assert (result.data["attention_distance"] > 0).all()
    with pytest.raises(ValueError, match="two different labels"):
        measured("label-divergence", pipe, labels=[3, 3])
