"""Every experiment on a tiny network, against a direct computation."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import ndimage
from skimage.metrics import structural_similarity

from diffusers_xai import Activations, AttentionOutputs, ChannelAblation, LabelSwitch, Samples, XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.nulls import gaussian_null
from tests.tiny import convnext_unet, unet_2d


SEEDS = [4, 9, 2]


@pytest.fixture
def pipe():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def states(pipe, label, seed, steps, **options):
    """All states of a run, the result last, by a plain loop of the pipeline's own callback."""
    kept = []
    pipe(
        class_labels=label, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=lambda pipe, i, t, tensors: kept.append(tensors["sample"][0].clone()) or {}, **options,
    )  # fmt: skip
    first = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return [first, *kept]


def ssim(a, b):
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return structural_similarity(a, b, win_size=7, channel_axis=0, data_range=2.0)


def measured(name, pipe, **settings):
    """`settings` are those of `Sampling`, and the experiment's own options."""
    fields = {key: settings.pop(key) for key in Sampling.__dataclass_fields__ if key in settings}
    if EXPERIMENTS[name].nulls[0] == "gaussian":  # which takes a thousand samples
        settings.setdefault("null", "none")
    return EXPERIMENTS[name].run(pipe, Sampling(**fields), **settings)


def run(name, pipe, **settings):
    result = measured(name, pipe, **settings)
    for figure in (result.plot(), result.plot_images()):
        assert figure is None or figure.data
    assert len(result.to_dataframe())
    return result


def test_ssim_trajectory(pipe):
    result = run("ssim-trajectory", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=2)
    assert result.data["ssim"].dims == ("seed", "step")
    for seed in SEEDS:
        run_states = states(pipe, 3, seed, 6)
        expected = [ssim(a, b) for a, b in zip(run_states, run_states[1:], strict=False)]
        np.testing.assert_allclose(result.data["ssim"].sel(seed=seed), expected, atol=1e-4)


def clean_image_energy(pipe, x, t, label, mask):
    """Root of the summed squares of the gradients of the region's predicted clean image, but for a factor."""
    x = x[None].clone().requires_grad_()
    output = pipe.unet(x, t, class_labels=torch.tensor([label])).sample
    alpha = pipe.scheduler.alphas_cumprod[t]
    clean = {
        "epsilon": (x - (1 - alpha).sqrt() * output) / alpha.sqrt(),
        "sample": output,
        "v_prediction": alpha.sqrt() * x - (1 - alpha).sqrt() * output,
    }[pipe.scheduler.config.prediction_type]
    energy = torch.zeros(x.shape[-2:])
    for row, column in np.argwhere(mask):
        (gradient,) = torch.autograd.grad(clean[0, :, row, column].sum(), x, retain_graph=True)
        energy += gradient[0].square().sum(0)
    return energy.sqrt().numpy()


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


def test_predetermination(pipe):
    null = gaussian_null(pipe, [3, 12], num_samples=24)
    settings = {"labels": [3, 12], "seeds": SEEDS, "steps": 8, "switches": 4}
    result = run("predetermination", pipe, **settings, batch_size=12, null=null)
    data = result.data
    assert data["step"].values.tolist() == [0, 2, 4, 6]
    assert data["share"].values.tolist() == [0, 0.25, 0.5, 0.75]
    assert result.settings["null"] == "gaussian"
    for which, name in ((pipe, "ssim"), (null, "null_ssim")):
        for seed in SEEDS:
            whole = states(which, 3, seed, 8)[-1]
            switched = [states(which, 3, seed, 8, edits=[LabelSwitch(from_step=at, to=12)])[-1] for at in (0, 2, 4, 6)]
            expected = [ssim(whole, image) for image in switched]
            np.testing.assert_allclose(data[name].sel(seed=seed), expected, atol=1e-3)
    np.testing.assert_allclose(data["images"][0], states(pipe, 3, SEEDS[0], 8)[-1], atol=1e-3)
    np.testing.assert_allclose(
        data["images"][2], states(pipe, 3, SEEDS[0], 8, edits=[LabelSwitch(from_step=2, to=12)])[-1], atol=1e-3
    )
    table = EXPERIMENTS["predetermination"].table(result)
    assert table["the model"][1].startswith(f"{float(data['ssim'][:, 1].mean()):.3f} (")
    assert table["control"][4].startswith(f"{float(data['null_index'].mean()):.3f} (")
    assert table["excess"][4].startswith(f"{float((data['index'] - data['null_index']).mean()):.3f} (")


def test_when_each_attribute_locks_in(pipe):
    """A judge that sees brightness in the first attribute, and the second in every image."""
    steps, places = 8, (0, 2, 4, 6)

    def judge(images):
        bright = images.mean((1, 2, 3)) > middle
        return torch.stack([bright, torch.ones_like(bright), ~bright, bright], dim=1).float()

    settings = {"labels": [3, 12], "seeds": SEEDS, "steps": steps, "switches": 4}
    brightness = {}
    for seed in SEEDS:
        runs = [[], *([LabelSwitch(from_step=at, to=12)] for at in places)]
        brightness[seed] = [float(states(pipe, 3, seed, steps, edits=e)[-1].clamp(-1, 1).mean()) for e in runs]
    # So that the first switch of the first seed changes what the judge sees.
    middle = (brightness[SEEDS[0]][0] + brightness[SEEDS[0]][1]) / 2
    data = run("predetermination", pipe, **settings, judge=judge).data
    assert data["lock_in"].sel(attribute="Male").isnull().all()
    for seed in SEEDS:
        seen = np.array(brightness[seed]) > middle
        mine = float(data["lock_in"].sel(seed=seed, attribute="Bangs"))
        if seen[1] == seen[0]:
            assert np.isnan(mine)
        else:
            last = max(k for k in range(4) if seen[1 + k] != seen[0])
            assert mine == pytest.approx((last + 0.5) / 4)
    assert np.isfinite(data["lock_in"].sel(seed=SEEDS[0], attribute="Bangs"))
    unnamed = XAIPipeline(convnext_unet(class_attributes=None), DDPMScheduler())
    with pytest.raises(ValueError, match="whose attributes have names"):
        measured("predetermination", unnamed, labels=[3, 12], steps=8, switches=4, judge=judge)


def test_label_pairs(pipe):
    result = run("label-pairs", pipe, labels=[3, 5, 12], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    assert np.isnan(result.data["index"].sel(first=3, second=3)).all()
    alone = measured("predetermination", pipe, labels=[12, 5], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    np.testing.assert_array_equal(result.data["index"].sel(first=12, second=5), alone.data["index"])
    np.testing.assert_array_equal(result.data["switched_ssim"].sel(first=12, second=5), alone.data["ssim"][:, 0])


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
                record=[Samples(), *_activations(layer)],
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
    assert table.loc["downs.0.3", "difference"].startswith(f"{(others.mean(1) - best).mean():.3f} (")
    assert table.loc["mid_attn.fn", "kind"] == "attention"


def _activations(layer):
    return [Activations(layers=layer)]


def test_layer_distance(pipe):
    result = run("layer-distance", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=16)
    profile = pipe(
        3, num_inference_steps=6, generator=torch.Generator().manual_seed(9), record=_activations("downs.0.2.fn")
    ).profile
    values = profile["activations/downs.0.2.fn"].values[:, 0].astype(np.float64)
    expected = np.sqrt(((values[1:] - values[:-1]) ** 2).reshape(5, -1).sum(1))
    np.testing.assert_allclose(result.data["distance"].sel(seed=9, layer="downs.0.2.fn"), expected, rtol=1e-3)


def test_the_maps_around_the_largest_jump(pipe):
    result = run("layer-distance", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=16)
    profile = pipe(
        3, num_inference_steps=6, generator=torch.Generator().manual_seed(SEEDS[0]),
        record=_activations(["downs.0.2.fn", "mid_attn.fn"]),
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


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_localisation_is_that_of_the_clean_image(prediction_type):
    pipe = XAIPipeline(convnext_unet(), DDIMScheduler(prediction_type=prediction_type, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    result = run("localisation", pipe, labels=[3], seeds=[4], steps=10, mask=mask)
    t = int(result.data["timestep"][2])
    x = states(pipe, 3, 4, 10)[int(result.data["step"][2])]
    energy = clean_image_energy(pipe, x, t, 3, mask)
    mine = result.data["energy"].sel(shown=4)[2].values
    np.testing.assert_allclose(mine / mine.max(), energy / energy.max(), atol=2e-3)
    inside = (energy[mask] ** 2).sum() / (energy**2).sum()
    assert float(result.data["inside"].sel(seed=4)[2]) == pytest.approx(inside, abs=1e-3)
    rows, columns = np.argwhere(mask).T
    distance = np.array(
        [[np.sqrt(((rows - i) ** 2 + (columns - j) ** 2).min()) for j in range(16)] for i in range(16)]
    )
    radius = np.sqrt((energy**2 * distance**2).sum() / (energy**2).sum())
    assert float(result.data["radius"].sel(seed=4)[2]) == pytest.approx(radius, rel=2e-3)


def test_the_volumes_of_the_thesis(pipe):
    """Those of ε and of the scheduler's mean, of a model and of Gaussians, by automatic differentiation."""
    pipe = XAIPipeline(pipe.unet, DDPMScheduler(clip_sample=False))
    null = gaussian_null(pipe, [3], num_samples=24)
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    data = run("localisation", pipe, labels=[3], seeds=[4], steps=10, mask=mask, null=null).data
    run_states = states(pipe, 3, 4, 10)
    pipe.scheduler.set_timesteps(10)
    for i, step in enumerate(data["step"].values):
        for which, prefix in ((pipe, ""), (null, "null_")):
            x = run_states[step][None].clone().requires_grad_()
            t = int(data["timestep"][i])
            noise = which.unet(x, t, class_labels=torch.tensor([3])).sample
            mean = pipe.scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
            for name, output in (("reached_noise", noise), ("reached_step", mean)):
                rows = [
                    torch.autograd.grad(output[0, :, row, column].sum(), x, retain_graph=True)[0][0].sum(0)
                    for row, column in np.argwhere(mask)
                ]
                volume = torch.stack(rows)
                share = float((volume > volume.mean()).float().mean())
                assert float(data[f"{prefix}{name}"][0, i]) == pytest.approx(share, abs=0.01)


def test_the_gradient_maps_of_localisation(pipe):
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:7, 4:9] = True
    layer = "downs.0.2.fn"
    result = run("localisation", pipe, labels=[3], seeds=SEEDS, steps=10, mask=mask, layers=[layer])
    assert result.data["layer"].values.tolist() == [layer]
    kept = []
    module = pipe.unet.get_submodule(pipe.unet.layer_aliases[layer])
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    t, step = (int(result.data[name][2]) for name in ("timestep", "step"))
    x = states(pipe, 3, SEEDS[0], 10)[step]
    kept.clear()
    output = pipe.unet(x[None].requires_grad_(), t, class_labels=torch.tensor([3])).sample
    hook.remove()
    (gradient,) = torch.autograd.grad(output[0][:, torch.from_numpy(mask)].sum(), kept[0])
    channel = int(gradient[0].abs().sum((1, 2)).argmax())
    part = result.data.sel(layer=layer).isel(step=2)
    assert int(part["gradient_channel"]) == channel
    np.testing.assert_allclose(part["gradient_map"], gradient[0, channel], rtol=1e-3, atol=1e-4)


def test_process_and_layer_types(pipe):
    result = run("process", pipe, labels=[3], seeds=SEEDS, steps=10)
    run_states = states(pipe, 3, 9, 10)
    np.testing.assert_allclose(result.data["samples"].sel(shown=9), torch.stack(run_states[:-1]), atol=1e-3)
    result = run("layer-types", pipe, labels=[3], seeds=SEEDS, steps=5)
    names = {"downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"}
    assert set(result.data["layer"].values) == names
    recorded = pipe(
        3, num_inference_steps=5, generator=torch.Generator().manual_seed(9), record=_activations("downs.0.1")
    ).profile  # fmt: skip
    channel = recorded.max_channel("downs.0.1", timestep=200)
    part = result.data.sel(seed=9, shown=9, layer="downs.0.1")
    assert int(part["channel"]) == channel
    values = recorded.sel("activations/downs.0.1", timestep=200)[0, channel]
    np.testing.assert_allclose(part["map"], values, rtol=1e-3, atol=1e-4)


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
            3, num_inference_steps=6, generator=torch.Generator().manual_seed(seed), record=_activations(layer)
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


def test_networks_of_diffusers_without_labels():
    pipe = XAIPipeline(unet_2d(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for name, experiment in EXPERIMENTS.items():
        if experiment.labels == 1 and experiment.needs is None:
            result = run(name, pipe, seeds=[1, 2, 3], steps=5)
            assert result.settings["seeds"] == [1, 2, 3]
            assert [key for key, values in result.data.items() if not np.isfinite(values).any()] == []


def test_localisation_without_attention():
    pipe = XAIPipeline(unet_2d(attention=False), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    result = run("localisation", pipe, seeds=[1], steps=5)
    layers = sorted(result.data["layer"].values.tolist())
    assert layers == ["down_blocks.0.downsamplers.0", "mid_block.resnets.1", "up_blocks.1.resnets.1"]
    assert (abs(result.data["gradient_map"]).max(["height", "width"]) > 0).all()
