"""Channels set to zero, in the whole run and for an artifact."""

import numpy as np
import pytest
import torch

from diffusers_xai import Activations, ChannelAblation, Samples
from diffusers_xai.experiments import EXPERIMENTS
from tests.experiments.runs import SEEDS, measured, run, ssim, states


def test_ablation(pipe):
    settings = {"labels": [3], "seeds": SEEDS[:2], "steps": 5, "random_channels": 2}
    data = run("ablation", pipe, **settings, batch_size=7).data
    assert data["ssim"].dims == ("seed", "layer")
    for seed in SEEDS[:2]:
        intact = states(pipe, 3, seed, 5)[-1]
        for layer in ("downs.0.3", "mid_attn.fn"):
            part = data.sel(seed=seed, layer=layer)
            channels = [int(part["channel"]), *part["null_channel"].values.tolist()]
            assert len(set(channels)) == 3
            recorded = pipe(
                3, num_inference_steps=5, generator=torch.Generator().manual_seed(seed),
                record=[Samples(), Activations(layers=layer)],
            ).profile  # fmt: skip
            assert channels[0] == recorded.max_channel(layer, timestep=200)
            values = [float(part["ssim"]), *part["null_ssim"].values.tolist()]
            for channel, value in zip(channels, values, strict=True):
                changed = states(pipe, 3, seed, 5, edits=[ChannelAblation(layer, channels=channel)])[-1]
                assert value == pytest.approx(ssim(intact, changed), abs=1e-3)
                if seed == SEEDS[0] and channel == channels[0]:
                    np.testing.assert_allclose(data["ablated"].sel(layer=layer), changed, atol=1e-3)
                    np.testing.assert_allclose(data["intact"], intact, atol=1e-3)
    alone = run("ablation", pipe, **settings, null="none").data
    np.testing.assert_allclose(alone["ssim"], data["ssim"], atol=1e-3)
    assert "null_ssim" not in alone


def test_the_ablation_table(pipe):
    result = measured("ablation", pipe, labels=[3], seeds=SEEDS, steps=2, random_channels=2)
    table = EXPERIMENTS["ablation"].table(result).set_index("layer")
    best, others = (result.data[name].sel(layer="downs.0.3").values for name in ("ssim", "null_ssim"))
    assert table.loc["downs.0.3", "c*"].startswith(f"{best.mean():.3f} (")
    assert table.loc["downs.0.3", "excess"].startswith(f"{(others.mean(1) - best).mean():.3f} (")
    assert table.loc["mid_attn.fn", "kind"] == "attention"


def test_artifact(pipe):
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:9, 4:9] = True
    result = run("artifact", pipe, labels=[3], seeds=SEEDS, steps=5, mask=mask, layer="ups.0.3")
    for seed in SEEDS:
        part = result.data.sel(seed=seed, shown=seed)
        intact = states(pipe, 3, seed, 5)[-1]
        changed = states(pipe, 3, seed, 5, edits=[ChannelAblation("ups.0.3", channels=int(part["channel"]))])[-1]
        np.testing.assert_allclose(part["images"].sel(run="ablated"), changed, atol=1e-3)
        expected = (changed - intact).abs().mean(0).numpy()[mask].mean()
        assert float(part["inside"]) == pytest.approx(expected, abs=1e-3)
