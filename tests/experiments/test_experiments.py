"""Every experiment on a tiny network, against a direct computation."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import ndimage
from skimage.metrics import structural_similarity

from diffusers_xai import Activations, AttentionOutputs, ChannelAblation, LabelSwitch, Samples, XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling, emergence
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
    settings = {"labels": [3, 12], "seeds": SEEDS, "steps": 8, "switches": 4}
    result = run("predetermination", pipe, **settings, batch_size=12)
    assert result.data["step"].values.tolist() == [0, 2, 4, 6]
    assert result.data["share"].values.tolist() == [0, 0.25, 0.5, 0.75]
    for seed in SEEDS:
        whole = states(pipe, 3, seed, 8)[-1]
        switched = [states(pipe, 3, seed, 8, edits=[LabelSwitch(from_step=at, to=12)])[-1] for at in (0, 2, 4, 6)]
        expected = [ssim(whole, image) for image in switched]
        np.testing.assert_allclose(result.data["ssim"].sel(seed=seed), expected, atol=1e-3)
    first = result.data["images"]
    np.testing.assert_allclose(first[0], states(pipe, 3, SEEDS[0], 8)[-1], atol=1e-3)
    np.testing.assert_allclose(
        first[2], states(pipe, 3, SEEDS[0], 8, edits=[LabelSwitch(from_step=2, to=12)])[-1], atol=1e-3
    )
    table = EXPERIMENTS["predetermination"].table(result)
    assert table["SSIM"][1].startswith(f"{float(result.data['ssim'][:, 1].mean()):.3f} (")
    assert table["steps done"].tolist()[:4] == ["0.00", "0.25", "0.50", "0.75"]
    assert table["steps done"][4].startswith(f"{float(result.data['index'].mean()):.3f} (")


def test_label_pairs(pipe):
    result = run("label-pairs", pipe, labels=[3, 5, 12], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    assert np.isnan(result.data["index"].sel(first=3, second=3)).all()
    alone = measured("predetermination", pipe, labels=[12, 5], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    np.testing.assert_array_equal(result.data["index"].sel(first=12, second=5), alone.data["index"])
    np.testing.assert_array_equal(result.data["switched_ssim"].sel(first=12, second=5), alone.data["ssim"][:, 0])


def test_ablation(pipe):
    settings = {"labels": [3], "seeds": SEEDS[:2], "steps": 5, "random_channels": 2}
    result = run("ablation", pipe, **settings, batch_size=7)
    assert result.data["ssim"].dims == ("seed", "layer", "draw")
    for seed in SEEDS[:2]:
        intact = states(pipe, 3, seed, 5)[-1]
        channels = result.data["channel"].sel(seed=seed)
        for layer in ("downs.0.3", "mid_attn.fn"):
            mine = channels.sel(layer=layer).values.tolist()
            assert len(set(mine)) == 3
            recorded = pipe(
                3, num_inference_steps=5, generator=torch.Generator().manual_seed(seed),
                record=[Samples(), *_activations(layer)],
            ).profile  # fmt: skip
            assert mine[0] == recorded.max_channel(layer, timestep=200)
            for draw, channel in enumerate(mine):
                changed = states(pipe, 3, seed, 5, edits=[ChannelAblation(layer, channels=channel)])[-1]
                value = float(result.data["ssim"].sel(seed=seed, layer=layer)[draw])
                assert value == pytest.approx(ssim(intact, changed), abs=1e-3)
                if seed == SEEDS[0] and draw == 0:
                    np.testing.assert_allclose(result.data["ablated"].sel(layer=layer), changed, atol=1e-3)
                    np.testing.assert_allclose(result.data["intact"], intact, atol=1e-3)


def test_the_ablation_table(pipe):
    result = measured("ablation", pipe, labels=[3], seeds=SEEDS, steps=2, random_channels=2)
    table = EXPERIMENTS["ablation"].table(result).set_index("layer")
    ssim = result.data["ssim"].sel(layer="downs.0.3").values
    assert table.loc["downs.0.3", "c*"].startswith(f"{ssim[:, 0].mean():.3f} (")
    difference = (ssim[:, 1:].mean(1) - ssim[:, 0]).mean()
    assert table.loc["downs.0.3", "difference"].startswith(f"{difference:.3f} (")
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
    mine = result.data["energy"].sel(seed=4)[2].values
    np.testing.assert_allclose(mine / mine.max(), energy / energy.max(), atol=2e-3)
    inside = (energy[mask] ** 2).sum() / (energy**2).sum()
    assert float(result.data["inside"].sel(seed=4)[2]) == pytest.approx(inside, abs=1e-3)
    rows, columns = np.argwhere(mask).T
    distance = np.array(
        [[np.sqrt(((rows - i) ** 2 + (columns - j) ** 2).min()) for j in range(16)] for i in range(16)]
    )
    radius = np.sqrt((energy**2 * distance**2).sum() / (energy**2).sum())
    assert float(result.data["radius"].sel(seed=4)[2]) == pytest.approx(radius, rel=2e-3)


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
    np.testing.assert_allclose(result.data["samples"].sel(seed=9), torch.stack(run_states[:-1]), atol=1e-3)
    result = run("layer-types", pipe, labels=[3], seeds=SEEDS, steps=5)
    names = {"downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"}
    assert set(result.data["layer"].values) == names
    recorded = pipe(
        3, num_inference_steps=5, generator=torch.Generator().manual_seed(9), record=_activations("downs.0.1")
    ).profile  # fmt: skip
    channel = recorded.max_channel("downs.0.1", timestep=200)
    part = result.data.sel(seed=9, layer="downs.0.1")
    assert int(part["channel"]) == channel
    values = recorded.sel("activations/downs.0.1", timestep=200)[0, channel]
    np.testing.assert_allclose(part["map"], values, rtol=1e-3, atol=1e-4)


def first_twice(above, steps):
    for i, value in enumerate(above):
        if value and (i + 1 == len(above) or above[i + 1]):
            return steps[i] / 6
    return np.nan


def test_emergence(pipe, monkeypatch):
    low = 0.08  # untrained layers show no more of an image
    monkeypatch.setattr(emergence, "THRESHOLD", low)
    result = run("emergence", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=6)
    data = result.data
    assert data["layer"].values[0] == "x_t"
    layer, edge = "downs.0.2.fn", data["correlation"].sel(target="edges")
    for seed in SEEDS:
        profile = pipe(
            3, num_inference_steps=6, generator=torch.Generator().manual_seed(seed), record=_activations(layer)
        ).profile
        luminance = np.tensordot([0.299, 0.587, 0.114], states(pipe, 3, seed, 6)[-1].double(), 1)
        edges = np.hypot(ndimage.sobel(luminance, 0, mode="nearest"), ndimage.sobel(luminance, 1, mode="nearest"))
        values = profile[f"activations/{layer}"].values[:, 0].astype(np.float64)
        for kind, maps in (("sum", values.sum(1)), ("c*", [v[v.sum((1, 2)).argmax()] for v in values])):
            expected = [abs(np.corrcoef(m.ravel(), edges.ravel())[0, 1]) for m in maps]
            np.testing.assert_allclose(edge.sel(seed=seed, map=kind, layer=layer), expected, atol=2e-3)
    steps = data["step"].values.tolist()
    for index in np.ndindex(len(SEEDS), 2, 2, data.sizes["layer"]):
        mine, state = data["correlation"].values[index], data["correlation"].values[(*index[:3], 0)]
        shown, state_shown = first_twice(mine > low, steps), first_twice(state > low, steps)
        lead = (1.0 if np.isnan(state_shown) else state_shown) - shown
        np.testing.assert_allclose(data["lead"].values[index], lead)
        exceeds = first_twice((mine > low) & (mine > state), steps)
        np.testing.assert_allclose(data["exceeds"].values[index], exceeds)
    assert np.isfinite(data["exceeds"]).any()
    table = EXPERIMENTS["emergence"].table(result).set_index(["layer", "map"])
    share = np.isfinite(data["exceeds"].sel(layer=layer, map="c*", target="foreground")).mean()
    assert table.loc[(layer, "c*"), "foreground: exceeds x_t in"].startswith(f"{100 * float(share):.0f} % of seeds")
    with pytest.raises(ValueError, match="at least two seeds"):
        measured("emergence", pipe, labels=[3], seeds=[1])


def test_artifact(pipe):
    mask = np.zeros((16, 16), dtype=bool)
    mask[5:9, 4:9] = True
    result = run("artifact", pipe, labels=[3], seeds=SEEDS, steps=5, mask=mask, layer="ups.0.3")
    for seed in SEEDS:
        part = result.data.sel(seed=seed)
        intact = states(pipe, 3, seed, 5)[-1]
        changed = states(pipe, 3, seed, 5, edits=[ChannelAblation("ups.0.3", channels=int(part["channel"]))])[-1]
        np.testing.assert_allclose(part["images"].sel(run="ablated"), changed, atol=1e-3)
        expected = (changed - intact).abs().mean(0).numpy()[mask].mean()
        assert float(part["change"].sel(changed="ablated", part="inside")) == pytest.approx(expected, abs=1e-3)


def test_networks_of_diffusers_without_labels():
    pipe = XAIPipeline(unet_2d(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for name, experiment in EXPERIMENTS.items():
        if experiment.labels == 1:
            run(name, pipe, seeds=[1, 2], steps=5)


def test_localisation_without_attention():
    pipe = XAIPipeline(unet_2d(attention=False), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    result = run("localisation", pipe, seeds=[1], steps=5)
    layers = sorted(result.data["layer"].values.tolist())
    assert layers == ["down_blocks.0.downsamplers.0", "mid_block.resnets.1", "up_blocks.1.resnets.1"]
    assert (abs(result.data["gradient_map"]).max(["height", "width"]) > 0).all()


def test_the_command_keeps_what_is_finished(tmp_path, capsys):
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    base = ["experiment", "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--seeds", "2"]
    base += ["--label", "01", "--other-label", "10"]
    base[1:1] = ["all"]
    assert main([*base, "--steps", "10"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(experiment.title in page for experiment in EXPERIMENTS.values())
    first = ExperimentResult.load(tmp_path / "out" / "ssim-trajectory")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/profile.json")}
    assert len(stamps) == len(EXPERIMENTS)

    assert main([*base, "--steps", "10"]) == 0
    assert capsys.readouterr().err.count("finished before, kept") == len(EXPERIMENTS)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())

    base[1] = "ssim-trajectory"
    assert main([*base, "--steps", "5"]) == 0
    assert (
        ExperimentResult.load(tmp_path / "out" / "ssim-trajectory").data.sizes["step"] == 5 != first.data.sizes["step"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["predetermination", "--other-label", "0011"], "--other-label: expected another label than --label"),
        (["ablation", "--seeds", "0"], "expected an integer in 1..1000000"),
        (["ablation", "--checkpoint", "./nowhere"], "no checkpoint at ./nowhere"),
    ],
)
def test_bad_commands_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "experiments").exists()
