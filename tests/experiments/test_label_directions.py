"""Moving a layer along a label's mean difference, against runs by hand."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from tests.tiny import convnext_unet


SEEDS, STEPS, LAYER = [4, 9, 2], 3, "mid_block"


def pipeline(unet):
    return XAIPipeline(unet, DDIMScheduler(clip_sample=False))


def run(pipe, seed, label, moves=None):
    """The final image in [-1, 1], and what the layer puts out at each step before it is moved."""
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    seen = []

    def hook(module, arguments, output):
        seen.append(output)
        return output if moves is None else output + moves[len(seen) - 1]

    with torch.no_grad(), pipe.unet.get_submodule(LAYER).register_forward_hook(hook):
        for t in pipe.scheduler.timesteps:
            output = pipe.unet(x, t, class_labels=torch.tensor([label])).sample
            x = pipe.scheduler.step(output, t, x).prev_sample
    return x[0].clamp(-1, 1).numpy().astype(np.float64), seen


@pytest.mark.parametrize("held", [64, 2])
def test_the_share_is_that_of_runs_by_hand(held, monkeypatch):
    """Also of seeds beyond those whose mean is the direction."""
    monkeypatch.setattr("diffusers_xai.experiments.label_directions.MAX_HELD", held)
    pipe = pipeline(convnext_unet(sample_size=8))
    judge = lambda images: images.mean((2, 3))[:, [0, 1, 2, 0]]  # noqa: E731
    result = EXPERIMENTS["label-directions"].run(
        pipe, Sampling([3, 12], SEEDS, STEPS, batch_size=4), strengths=[1.0, 3.0], judge=judge
    )
    data = result.data
    first, second = ({seed: run(pipe, seed, label) for seed in SEEDS} for label in (3, 12))
    for k, seed in enumerate(SEEDS):
        others = [s for s in SEEDS[:held] if s != seed]
        steps = range(STEPS)
        moves = [torch.stack([second[s][1][i] - first[s][1][i] for s in others]).mean(0) for i in steps]
        change = second[seed][0] - first[seed][0]
        pixels = np.mean([second[s][0] - first[s][0] for s in others], 0)
        for strength in (1.0, 3.0):
            moved, _ = run(pipe, seed, 3, [strength * move for move in moves])
            for kind, image in (("layer", moved), ("pixels", (first[seed][0] + strength * pixels).clip(-1, 1))):
                part, prefix = (
                    data.sel(seed=seed, kind=kind, strength=strength),
                    {"layer": "", "pixels": "pixel_"}[kind],
                )
                own = image - first[seed][0]
                share = (own * change).sum() / (change**2).sum()
                assert float(part[f"{prefix}share"]) == pytest.approx(share, abs=2e-3)
                left = np.linalg.norm(own - share * change) / np.linalg.norm(change)
                assert float(part[f"{prefix}else"]) == pytest.approx(left, abs=2e-3)
                np.testing.assert_allclose(data["images"][k].sel(kind=kind, strength=strength), image, atol=1e-3)
                np.testing.assert_allclose(part["judged"], image.mean((1, 2))[[0, 1, 2, 0]], atol=1e-3)
                assert part["attribute"].values.tolist() == ["Bangs", "Male", "Smiling", "Wearing_Lipstick"]
    assert float(abs(data["null_share"] - data["share"]).min()) > 0
    assert not [name for name, array in data.items() if {"seed", "height"} <= {*array.dims}]
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS["label-directions"].table(result)
    assert table["the model"][0].startswith(f"{float(data['share'].sel(strength=1.0).mean()):.3f} (")


def test_what_does_not_fit_is_refused():
    pipe = pipeline(convnext_unet(sample_size=8))
    for seeds, options, message in (
        ([1], {}, "label-directions: expected at least 2 seeds"),
        ([1, 2], {"strengths": []}, "at least one strength"),
        ([1, 2], {"layer": "time_mlp"}, "maps"),
    ):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS["label-directions"].run(pipe, Sampling([3, 12], seeds, STEPS), **options)
