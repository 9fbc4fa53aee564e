"""Directions against the SVD of full Jacobians, and pushed runs against runs by hand."""

import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import GaussianDenoiser, XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from tests.tiny import convnext_unet


STEPS, SEEDS = 10, [4, 9]


def pipeline(unet):
    return XAIPipeline(unet, DDIMScheduler(clip_sample=False))


@pytest.fixture(scope="module")
def pipe():
    return pipeline(convnext_unet(sample_size=8).double())


OPTIONS = {"count": 4, "walked": 2, "null": "random-weights"}


@pytest.fixture(scope="module")
def counted(pipe):
    """The result, and the images in each of the network's calls that no derivative was taken of."""
    calls = []
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 3:7] = True
    judge = lambda images: images.mean((2, 3))[:, [0, 1, 2, 0]]  # noqa: E731
    count = lambda module, args: None if torch.is_grad_enabled() else calls.append(len(args[0]))  # noqa: E731
    with pipe.unet.register_forward_pre_hook(count):
        found = EXPERIMENTS["directions"].run(pipe, Sampling([3], SEEDS, STEPS), mask=mask, judge=judge, **OPTIONS)
    return found, calls


@pytest.fixture(scope="module")
def result(counted):
    return counted[0]


def test_the_plan_tells_the_products_and_calls_that_come(pipe, counted, monkeypatch):
    result, images = counted
    monkeypatch.setattr("diffusers_xai.experiments.directions.shortest_time", lambda function, device: 3.0)
    text = EXPERIMENTS["directions"].plan(pipe, Sampling([3], SEEDS, STEPS), **OPTIONS)
    products, calls, minutes = map(int, re.findall(r"\d+", text))
    assert result.data["products"].max() <= products <= 1.5 * result.data["products"].max()
    assert sum(images) / len(SEEDS) <= calls <= 1.2 * sum(images) / len(SEEDS)
    assert minutes == math.ceil(len(SEEDS) * (products + calls) * 3.0 / 4 / 60)  # a call of four takes 3 s


def run(pipe, seed, push_at=None, push=None, layer=None, layer_push=None):
    """All states of a run by hand, pushed in its state before a step, or in what a layer puts out in it."""
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    states = []
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step == push_at and push is not None:
            x = x + push
        states.append(x)
        handle = None
        if step == push_at and layer is not None:
            handle = pipe.unet.get_submodule(layer).register_forward_hook(lambda m, i, output: output + layer_push)
        with torch.no_grad():
            output = pipe.unet(x, t, class_labels=torch.tensor([3])).sample
        if handle is not None:
            handle.remove()
        x = pipe.scheduler.step(output, t, x).prev_sample
    return [*states, x]


def clean_and_layer(pipe, x, t, layer):
    kept = []
    with pipe.unet.get_submodule(layer).register_forward_hook(lambda m, i, output: kept.append(output)):
        output = pipe.unet(x, t, class_labels=torch.tensor([3])).sample
    alpha = pipe.scheduler.alphas_cumprod[t].double()
    return (x - (1 - alpha).sqrt() * output) / alpha.sqrt(), kept[0]


def test_the_triplets_of_the_clean_image_and_of_a_layer(pipe, result):
    data, layer = result.data, "mid_block"
    assert data["timestep"].values.tolist() == [800, 600, 400, 200]
    for i, seed in enumerate(SEEDS):
        step, t = int(data["step"][1]), int(data["timestep"][1])
        x = run(pipe, seed)[step]
        weights = torch.from_numpy(data["mask"].values)
        for name, k in (("x0", 0), ("h", 1)):
            full = torch.autograd.functional.jacobian(lambda x, t=t, k=k: clean_and_layer(pipe, x, t, layer)[k], x)
            full = (full * weights[:, :, None, None, None, None] if k == 0 else full).reshape(-1, x.numel())
            values = torch.linalg.svdvals(full)
            part = data.sel(object=name).isel(seed=i, step=1)
            np.testing.assert_allclose(part["values"], values[:4], rtol=2e-3)
            exact = float(values.square().sum() ** 2 / values.pow(4).sum())
            assert float(part["dimension"]) == pytest.approx(exact, rel=0.25)  # of eight random probes


def test_pushes_are_those_of_a_run_by_hand(pipe, result):
    data = result.data
    seed, layer = SEEDS[0], "mid_block"
    intact = run(pipe, seed)
    within = data["mask"].values
    for walk, name in (("x0", "x0"), ("h", "h"), ("h itself", "h")):
        step, t = int(data["step"][2]), int(data["timestep"][2])
        right = torch.from_numpy(data["right"].sel(object=name).isel(step=2, direction=1).values)[None].double()
        size = 0.1 * intact[step].norm()
        finals = []
        for sign in (-1, 1):
            if walk == "h itself":
                x = intact[step]
                _, pushed = torch.autograd.functional.jvp(
                    lambda x, t=t: clean_and_layer(pipe, x, t, layer)[1], x, right
                )
                final = run(pipe, seed, step, layer=layer, layer_push=sign * size * pushed)[-1]
            else:
                final = run(pipe, seed, step, push=sign * size * right)[-1]
            finals.append(final.clamp(-1, 1))
        images = data["images"].sel(walk=walk).isel(step=2, direction=1).values
        np.testing.assert_allclose(images, torch.cat(finals), atol=2e-3)
        squares = (torch.cat(finals) - intact[-1].clamp(-1, 1)).square()
        part = data.sel(walk=walk).isel(seed=0, step=2, direction=1)
        assert float(part["change"]) == pytest.approx(float(squares.mean().sqrt()), rel=2e-2)
        share = float(squares[..., torch.from_numpy(within)].sum() / squares.sum())
        assert float(part["inside"]) == pytest.approx(share, abs=0.02)
        np.testing.assert_allclose(part["judged"].values[:, 1], torch.cat(finals)[:, 1].mean((1, 2)), atol=1e-3)
    np.testing.assert_allclose(data["judged_intact"][0, 2], intact[-1].clamp(-1, 1)[0, 2].mean(), atol=1e-5)
    assert {"random", "random h", "null"} < set(data["walk"].values.tolist())
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS["directions"].table(result)
    row = table[table[""] == "local dimension of x̂_0"].iloc[1]
    assert row["control"].startswith(f"{float(data['null_dimension'].sel(object='x0')[:, 1].mean()):.3f} (")


def test_a_gaussian_is_its_own_control():
    """Its directions are its principal components, the control's those of the same Jacobian; h there is none."""
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    unet = GaussianDenoiser.fit(images, DDIMScheduler(), rank=6)
    pipe = pipeline(unet)
    data = EXPERIMENTS["directions"].run(pipe, Sampling((), [1], STEPS), null=pipe, count=3, walked=2).data
    assert data["object"].values.tolist() == ["x0"]
    np.testing.assert_array_equal(data["values"], data["null_values"])
    for k, t in enumerate(data["timestep"].values):
        alpha = float(unet.alphas_cumprod(float(t)))
        variances = unet.covariance.variances[:3].numpy()
        expected = np.sqrt(alpha) * variances / (alpha * variances + 1 - alpha)
        np.testing.assert_allclose(data["values"][0, 0, k], expected, rtol=1e-3)


def test_what_does_not_fit_is_refused(pipe):
    for options, message in (
        ({"strength": 0.0}, "strength above 0"),
        ({"walked": 9}, "walked in 1..count"),
        ({"layer": "down_blocks.*"}, "name of one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS["directions"].run(pipe, Sampling([3], [1], STEPS), null="none", **options)
    with pytest.raises(ValueError, match="at least two steps"):
        EXPERIMENTS["directions"].run(pipe, Sampling([3], [1], 1), null="none")
