"""How far layers move in a step."""

import numpy as np
import torch

from diffusers_xai import Activations
from tests.experiments.runs import SEEDS, run


def test_layer_distance(pipe):
    result = run("layer-distance", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=16)
    profile = pipe(
        3,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(9),
        record=[Activations(layers="downs.0.2.fn")],
    ).profile
    values = profile["activations/downs.0.2.fn"].values[:, 0].astype(np.float64)
    expected = np.sqrt(((values[1:] - values[:-1]) ** 2).reshape(5, -1).sum(1))
    np.testing.assert_allclose(result.data["distance"].sel(seed=9, layer="downs.0.2.fn"), expected, rtol=1e-3)


def test_the_maps_around_the_largest_jump(pipe):
    result = run("layer-distance", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=16)
    profile = pipe(
        3, num_inference_steps=6, generator=torch.Generator().manual_seed(SEEDS[0]),
        record=[Activations(layers=["downs.0.2.fn", "mid_attn.fn"])],
    ).profile  # fmt: skip
    timesteps = profile["activations/mid_attn.fn"]["timestep"].values
    for layer in ("downs.0.2.fn", "mid_attn.fn"):
        values = profile[f"activations/{layer}"].values[:, 0]
        before = int(((values[1:] - values[:-1]).astype(np.float64) ** 2).sum((1, 2, 3)).argmax())
        mine = result.data.sel(layer=layer)
        for moment, step in (("before", before), ("after", before + 1)):
            channel = int(values[step].sum((1, 2)).argmax())
            assert int(mine["channel"].sel(moment=moment)) == channel
            scale = 16 // values.shape[-1]
            expected = np.kron(values[step, channel], np.ones((scale, scale)))
            np.testing.assert_allclose(mine["map"].sel(moment=moment), expected, rtol=1e-3, atol=1e-4)
            assert float(mine["map_timestep"].sel(moment=moment)) == timesteps[step]
