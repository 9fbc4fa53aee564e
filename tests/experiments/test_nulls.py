"""The controls, against what they are by definition."""

import functools
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
)
from scipy.ndimage import distance_transform_edt

from diffusers_xai import Activations, GaussianDenoiser, Samples, XAIPipeline
from diffusers_xai.cli import experiment_run, main
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.nulls import draw_anew, forward_path, gaussian_null, on_states_of, random_weights
from tests.audit.models import MASK, gaussian, images, mixture
from tests.tiny import convnext_unet


FLOW = FlowMatchEulerDiscreteScheduler(shift=0.5)


def test_the_forward_path_has_the_law_of_training():
    image = np.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    alphas = DDPMScheduler().alphas_cumprod.double().numpy()[[800, 400, 100]]
    seeds = range(3000)
    path = np.stack(
        list(forward_path(np.repeat(image, len(seeds), 0), np.sqrt((1 - alphas) / alphas), seeds, DDPMScheduler()))
    )
    least, more, most = (path[i] - np.sqrt(alpha) * image for i, alpha in enumerate(alphas[::-1]))
    error = 5 / np.sqrt(least.size)
    for noise, alpha in zip((least, more, most), alphas[::-1], strict=True):
        assert noise.mean() == pytest.approx(0, abs=error)
        assert noise.var() == pytest.approx(1 - alpha, rel=2 * error)
    # One path: noise is added to what is there.
    covariance = np.sqrt(alphas[1] / alphas[2]) * (1 - alphas[2])
    assert (least * more).mean() == pytest.approx(covariance, abs=2 * error)


def test_a_network_with_random_weights_is_another_of_the_same_kind(pipe):
    null = random_weights(pipe)
    ours, theirs = dict(pipe.unet.named_parameters()), dict(null.unet.named_parameters())
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}
    assert not torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"])
    again = dict(random_weights(pipe).unet.named_parameters())
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_another_network_is_asked_in_the_states_of_the_run(pipe):
    sampling = Sampling([3], [4, 9], 5)
    profile = sampling.profile(pipe, [4, 9], [Samples()])
    null = random_weights(pipe)
    layer = "mid_block.resnets.0"
    seen = on_states_of(profile, null, sampling, [4, 9], [Samples(), Activations(layers=layer)])
    np.testing.assert_array_equal(seen["samples"], profile["samples"])
    kept = []
    hook = null.unet.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        for states, t in zip(profile["samples"].values, profile["samples"]["timestep"].values, strict=True):
            null.unet(torch.from_numpy(states), int(t), class_labels=torch.tensor([3, 3]))
    hook.remove()
    np.testing.assert_allclose(seen[f"activations/{layer}"], torch.stack(kept), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="samples of all 5 steps, got 2"):
        on_states_of(sampling.profile(pipe, [4], [Samples(every=3)]), null, sampling, [4], [])


def test_the_gaussians_take_the_models_place(pipe):
    null = gaussian_null(pipe, [3, 12], num_samples=40)
    assert type(null.scheduler) is DDPMScheduler
    assert null.unet.config["num_class_embeds"] == pipe.unet.config["num_class_embeds"]
    assert not np.allclose(*null.unet.means.numpy())


def test_a_control_that_an_experiment_does_not_know_is_refused(pipe):
    with pytest.raises(ValueError, match="ablation: expected a null of random-channel, none, got 'gaussian'"):
        EXPERIMENTS["ablation"].run(pipe, Sampling([3], [1], 2), null="gaussian")
    with pytest.raises(ValueError, match="expected a null of gaussian, none, got None"):
        EXPERIMENTS["label-divergence"].run(pipe, Sampling([3, 4], [1], 2), null=None)


def test_a_gaussian_is_its_own_control():
    """Where the model is the closed form itself, nothing exceeds its control."""
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = XAIPipeline(GaussianDenoiser.fit(images, scheduler, rank=8), scheduler)
    data = EXPERIMENTS["ssim-trajectory"].run(pipe, Sampling((), range(3), 20), null=pipe).data
    np.testing.assert_array_equal(data["ssim"], data["null_ssim"])


def test_the_command_fits_the_gaussians_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment_run, "gaussian_null", functools.partial(gaussian_null, num_samples=16))
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    base = ["--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--seeds", "2", "--steps", "20"]
    base += ["--label", "01", "--other-label", "10"]
    for name in ("predetermination", "label-divergence"):
        assert main(["experiment", name, *base]) == 0
    assert capsys.readouterr().err.count("fits Gaussians") == 1
    assert json.loads((tmp_path / "out" / ".gaussian-null" / "fitted.json").read_text())["labels"] == [1, 2]


CLOSED = {"mixture": mixture(), "gaussian": gaussian()}


WITHOUT_LAYERS = [name for name, experiment in EXPERIMENTS.items() if experiment.needs in (None, "checkpoints")]


def drawn(result):
    return [figure and figure.to_json() for figure in (result.plot(), result.plot_images())]


@pytest.mark.parametrize("name", WITHOUT_LAYERS)
def test_every_experiment_runs_on_a_closed_form(name):
    experiment = EXPERIMENTS[name]
    pipe = CLOSED["mixture" if experiment.labels > 1 else "gaussian"]
    labels = [0, 1] if experiment.labels > 1 else []
    null = pipe if experiment.nulls[0] == "gaussian" else experiment.nulls[0]
    options = {"others": [pipe]} if name == "compare-checkpoints" else {}
    result = experiment.run(pipe, Sampling(labels, range(3), 5), null=null, **options)
    assert result.plot().data
    own, theirs = result.data, {str(key): key for key in result.data if str(key).startswith("null_")}
    assert theirs  # the control is there, in the figures and in the table too
    without = experiment.run(pipe, Sampling(labels, range(3), 5), null="none", **options)
    assert drawn(result) != drawn(without)
    assert not experiment.table(without).equals(experiment.table(result))
    table = experiment.table(result)
    assert any(str(name).startswith(("control", "random channel")) for name in table.columns)
    assert any(str(name).startswith("excess") for name in table.columns)
    if "excess" in table and "control" in table:
        assert (table["control"][table["excess"] != ""] != "").all()
    if null is pipe:  # and of the same model the same
        for key in theirs:
            np.testing.assert_allclose(own[key], own[key.removeprefix("null_")], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler(clip_sample=False), EulerDiscreteScheduler(timestep_spacing="leading"), FLOW],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_gradients_are_those_of_the_noised_image_whatever_the_scheduler(scheduler):
    """Of a Gaussian, ∂x̂_0/∂x_t = √ᾱ Σ (ᾱΣ + (1 − ᾱ)I)⁻¹; of a flow ᾱ = (1 − σ)² / ((1 − σ)² + σ²)."""
    data = images().double()
    pipe = XAIPipeline(GaussianDenoiser.fit(data, scheduler, rank=20), scheduler)
    found = EXPERIMENTS["localisation"].run(pipe, Sampling((), [1], 9), mask=MASK, null=pipe).data
    vectors = data.flatten(1).numpy()
    variances, components = np.linalg.eigh(np.cov(vectors.T, bias=True))
    rest, variances, components = variances[:-20].mean(), variances[-20:], components[:, -20:]
    rows = np.eye(768).reshape(3, 256, 768)[:, MASK.ravel()].sum(0)  # of the mask's pixels, their colours summed
    for index, t in enumerate(found["timestep"].values):
        if scheduler is FLOW:
            sigma = t / 1000
            alpha = (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
        else:
            alpha = float(scheduler.alphas_cumprod[int(t)])
        along, beside = (np.sqrt(alpha) * v / (alpha * v + 1 - alpha) for v in (variances, rest))
        jacobian = beside * rows + (rows @ components) * (along - beside) @ components.T
        squares = (jacobian.reshape(-1, 3, 16, 16) ** 2).sum((0, 1))
        distance = distance_transform_edt(~MASK)
        # At t = 1000 of a flow nothing of the image is left, and nothing depends on it.
        radius = np.sqrt((squares * distance**2).sum() / squares.sum()) if alpha else np.nan
        for prefix in ("", "null_"):
            assert float(found[f"{prefix}radius"][0, index]) == pytest.approx(radius, rel=2e-3, nan_ok=True)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), FLOW], ids=["exploding", "flow"])
def test_the_forward_path_has_the_scheduler_s_form(scheduler):
    image = np.full((500, 1, 4, 4), 0.5)
    scheduler.set_timesteps(4)
    sigmas = scheduler.sigmas[:4].numpy()
    for state, sigma in zip(forward_path(image, sigmas, range(500), scheduler), sigmas[::-1], strict=True):
        signal = 1 - sigma if scheduler is FLOW else 1
        error = 5 / np.sqrt(state.size)
        assert state.mean() == pytest.approx(0.5 * signal, abs=sigma * error)
        assert state.std() == pytest.approx(sigma, rel=error)


def test_what_no_module_draws_itself_is_drawn_anew_too():
    def network(seed):
        torch.manual_seed(seed)
        sizes = {"sample_size": 8, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
        return PixArtTransformer2DModel(**sizes, cross_attention_dim=8, caption_channels=8, norm_num_groups=1)

    first, second = network(0), network(1)
    tables = [name for name, _ in first.named_parameters() if name.endswith("scale_shift_table")]
    for net in (first, second):
        for parameter in net.parameters():
            parameter.data.fill_(5.0)
        draw_anew(net, 7)
    assert len(tables) == 2
    for name, parameter in first.named_parameters():
        assert not (parameter == 5.0).any(), name
        assert torch.equal(parameter, second.get_parameter(name))
