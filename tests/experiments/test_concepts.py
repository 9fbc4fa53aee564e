"""Concept units, against a network with a planted one and against plain calls."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from scipy import stats
from scipy.stats import binomtest

from diffusers_xai import ChannelAblation, GaussianDenoiser, XAIPipeline, record
from diffusers_xai.analysis import overlap, verdict_difference
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.concepts import of_like_activity
from tests.tiny import convnext_unet, stable_diffusion, unet_2d
from tests.zoo.pipelines import ZOO


EXPERIMENT = EXPERIMENTS["concepts"]
SAMPLING = Sampling(labels=[3], seeds=[4, 9], steps=4)
PLANTED = 5  # a channel of the first layer


def squares(samples):
    """Dark pictures with a red square and a green one, each somewhere; the concept is the red one."""
    source = np.random.default_rng(0)
    images = torch.full(samples.shape, -0.8, dtype=samples.dtype)
    red = np.zeros((len(samples), *samples.shape[-2:]), dtype=bool)
    for image, mask in zip(images, red, strict=True):
        (top, left), (other_top, other_left) = source.integers(0, 11, (2, 2))
        image[1, other_top : other_top + 5, other_left : other_left + 5] = 1
        image[0, top : top + 5, left : left + 5] = 1
        mask[top : top + 5, left : left + 5] = True
    return images, {"red": red}


@pytest.fixture(scope="module")
def pipe():
    """A network whose first layer has a channel that is the red of the input."""
    unet = convnext_unet().double()
    with torch.no_grad():
        unet.conv_in.weight[PLANTED] = 0
        unet.conv_in.bias[PLANTED] = 0
        unet.conv_in.weight[PLANTED, 0, unet.conv_in.kernel_size[0] // 2, unet.conv_in.kernel_size[1] // 2] = 1
    return XAIPipeline(unet, DDPMScheduler())


@pytest.fixture(scope="module")
def result(pipe):
    layers = ["conv_in", "mid_block.resnets.0"]
    return EXPERIMENT.run(
        pipe, SAMPLING, concepts=squares, images=24, layers=layers, times=[0.5, 0.02], units=2, draws=2
    )


def test_a_planted_unit_ranks_first(pipe, result):
    data = result.data
    first = int(data["ablated"].sel(concept="red")[0])
    assert data["channel"][first] == PLANTED
    assert pipe.unet.layer_aliases.get(str(data["layer"][first].values), str(data["layer"][first].values)) == "conv_in"
    assert data["timestep"][int(data["best_time"][0])] == 20
    iou = data["iou"].sel(concept="red").isel(time=1)
    assert iou[first] > 0.95
    assert iou[first] > 1.3 * np.delete(iou.values, first).max()
    assert data["q_value"].sel(concept="red").isel(time=1)[first] < 1e-6
    assert float((data["null_q_value"] <= 0.05).mean()) <= 0.05
    table = EXPERIMENT.table(result)
    assert table["best unit"][0].endswith(f"channel {PLANTED}, t = 20")
    assert table["IoU"][0] == f"{float(iou[first]):.2f}"
    random = data["null_inside"].mean("draw").sel(concept="red")
    excess = (data["inside"].sel(concept="red") - random).values
    assert table["excess over random units"][0].startswith(f"{excess.mean():.3f} (")
    assert table["excess of IoU"][0] == f"{float(iou[first] - data['null_iou'].sel(concept='red').max()):+.2f}"
    p_values = [
        stats.ttest_rel(part["inside"], other).pvalue
        for part in (data.sel(concept=name) for name in data["concept"].values)
        for other in (part["null_inside"].mean("draw"), part["outside"])
    ]
    order = np.argsort(p_values)
    corrected = np.minimum.accumulate(
        (np.array(p_values)[order] * len(p_values) / np.arange(1, len(p_values) + 1))[::-1]
    )
    expected = np.empty(len(p_values))
    expected[order] = corrected[::-1]
    shown = table[["q over random units", "q over elsewhere"]].to_numpy().ravel()
    assert shown.tolist() == [f"{q:.3f}" if q >= 0.001 else "< 0.001" for q in expected]
    assert result.plot().data
    assert result.plot_images().data


def test_a_units_map_is_that_of_a_plain_call(pipe, result):
    pictures, masks = squares(torch.zeros(24, 3, 16, 16, dtype=torch.float64))
    alpha = float(pipe.scheduler.alphas_cumprod[20])
    seen = np.array([noised(picture, alpha, 2 * 10**6 + i)[0].numpy() for i, picture in enumerate(pictures)])
    np.testing.assert_allclose(result.data["map"][0], seen[:4], atol=1e-5)
    active = seen > np.sort(seen.ravel())[-masks["red"].sum() - 1]
    expected = (active & masks["red"]).sum() / (active | masks["red"]).sum()
    assert float(result.data["iou"].max()) == pytest.approx(expected, abs=1e-3)


def noised(picture, alpha, seed):
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise


def test_effects_are_those_of_ablated_runs(pipe, result):
    data = result.data
    channels, layers = data["channel"].values, data["layer"].values
    best = data["ablated"][0].values
    usual = squares(torch.zeros(24, 3, 16, 16))[1]["red"].mean(0)
    for seed in SAMPLING.seeds:
        images = []
        for edits in ([], [ChannelAblation(str(layers[best[0]]), channels=[int(c) for c in channels[best]])]):
            kept = []
            pipe(
                3,
                num_inference_steps=4,
                generator=torch.Generator().manual_seed(seed),
                edits=edits,
                callback_on_step_end=lambda pipe, i, t, tensors, kept=kept: kept.append(tensors["sample"][0]) or {},
            )
            images.append(kept[-1].numpy())
        change = np.abs(images[1] - images[0]).mean(0)
        part = data.sel(seed=seed, concept="red")
        assert float(part["inside"]) == pytest.approx((change * usual).sum() / usual.sum(), abs=1e-6)
        assert float(part["outside"]) == pytest.approx((change * (1 - usual)).sum() / (1 - usual).sum(), abs=1e-6)
    assert data["null_inside"].dims == ("seed", "concept", "draw")
    assert data["null_inside"].sizes["draw"] == 2
    assert (data["null_inside"] > 0).all()


def test_random_units_are_of_the_same_layer_and_of_like_activity():
    activity = np.array([1.0, 5.0, 1.1, 0.9, 5.2, 4.7, 100.0, 1.0])
    layers = np.array([*["a"] * 7, "b"])
    groups = of_like_activity(activity, layers, np.array([0, 1]), draws=60)
    # Beside the chosen 0 and 1 the two nearest, each once: 2 and 3 are as active as 0, and 4 and 5 as 1.
    assert {tuple(group) for group in groups} == {(2, 4), (2, 5), (3, 4), (3, 5)}
    # Where few are left, the second takes what the first has not.
    groups = of_like_activity(activity, layers, np.array([4, 5, 1]), draws=60)
    assert all(len(set(group)) == 3 and not {1, 4, 5, 7} & set(group) for group in groups)


def warm(images):
    """A judge of four attributes: how red, green and blue an image is, and one that is always there."""
    told = torch.sigmoid(20 * images.float().mean((2, 3)))
    return torch.cat([told, torch.ones(len(images), 1)], dim=1)


def test_a_judge_tells_what_the_images_of_ablated_runs_show(pipe):
    options = {"concepts": squares, "images": 4, "layers": ["conv_in"], "times": [0.02], "units": 2, "draws": 1}
    result = EXPERIMENT.run(pipe, SAMPLING, judge=warm, **options)
    data = result.data
    assert tuple(data["attribute"].values) == pipe.unet.config.class_attributes
    units = [int(channel) for channel in data["channel"].values[data["ablated"][0].values]]
    for seed in SAMPLING.seeds:
        for edits, told in (([], "judged_intact"), ([ChannelAblation("conv_in", channels=units)], "judged")):
            generator = torch.Generator().manual_seed(seed)
            image = pipe(3, num_inference_steps=4, generator=generator, edits=edits, output_type="pt").images * 2 - 1
            np.testing.assert_allclose(data[told].sel(seed=seed).squeeze(), warm(image)[0], atol=1e-5)
    assert data["null_judged"].dims == ("seed", "concept", "draw", "attribute")
    assert result.plot().data


def test_what_is_lost_is_counted_among_the_seeds_that_had_it(result):
    """Eight seeds: six had the first attribute and lost it in five, without random units in one; the rest by hand."""
    data = result.data.isel(seed=[0] * 8).assign_coords(seed=range(8))
    source = np.random.default_rng(0)
    inside, outside = source.normal(size=8), source.normal(-2, size=8)
    data["inside"].values[:, 0], data["outside"].values[:, 0] = inside, outside
    data["null_inside"].values[:, 0] = inside[::-1, None]  # no excess at all
    intact, judged, null = np.zeros((8, 2)), np.zeros((8, 1, 2)), np.zeros((8, 1, 2, 2))
    intact[:6, 0], judged[5:, 0, 0], null[1:, 0, 0, 0] = 1, 1, 1
    intact[3, 1] = 1  # in one seed: nothing to test
    data = data.assign(
        judged_intact=(("seed", "attribute"), intact),
        judged=(("seed", "concept", "attribute"), judged),
        null_judged=(("seed", "concept", "draw", "attribute"), null),
    ).assign_coords(attribute=["Bangs", "Male"])
    counted = ExperimentResult(result.name, data, result.settings)
    row = EXPERIMENT.table(counted).iloc[0]
    low, high = binomtest(5, 6).proportion_ci()
    assert row["lost: bangs"] == f"0.833 ({low:.3f} to {high:.3f})"
    assert row["lost without random units: bangs"].startswith("0.167 (")
    low, high, p_value = verdict_difference(4, 0, 6)
    assert row["excess of losses: bangs"] == f"0.667 ({low:.3f} to {high:.3f})"
    assert stats.ttest_rel(inside, outside).pvalue < p_value < stats.ttest_rel(inside, inside[::-1]).pvalue
    assert row["q: bangs"] == f"{p_value * 3 / 2:.3f}"  # the second smallest of three p-values
    assert not [column for column in row.index if column.endswith("male")]
    shares = {tuple(trace.x): trace.z for trace in counted.plot().data if trace.texttemplate}
    ((names, share),) = {names: z.tolist() for names, z in shares.items()}.items()
    assert names == ("bangs<br>(n = 6)", "male<br>(n = 1)")
    assert share == [[1 / 6, 1.0]]  # the control's, drawn last
    titles = [axis.title.text for axis in counted.plot().select_xaxes()]
    assert titles[-2:] == ["share lost without the best units", "share lost without random units"]
    soft = ExperimentResult(result.name, data.assign(judged=data["judged"] * 0.9), result.settings)
    titles = [axis.title.text for axis in soft.plot().select_xaxes()]
    assert titles[-2].startswith("mean fall of the probability<br>without the best")


def test_masks_of_the_models_own_samples(pipe):
    """Without pictures of its own, the function sees finished samples, and the network sees those."""
    seen = []

    def bright(samples):
        seen.append(samples)
        return {"bright": (samples.mean(1) > samples.mean()).numpy()}

    data = EXPERIMENT.run(
        pipe, SAMPLING, concepts=bright, images=5, layers=["conv_in"], times=[0.1], units=1, null="none"
    ).data
    assert seen[0].shape == (5, 3, 16, 16)
    np.testing.assert_array_equal(data["pictures"], seen[0][:4])
    assert not {"null_iou", "null_inside"} & set(data.data_vars)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (None, "expected a function"),
        (lambda samples: {}, "at least one concept, got none"),
        (lambda samples: {"a": np.zeros((8, 16, 16), dtype=bool)}, "neither empty nor everywhere, got bool"),
        (lambda samples: {"a": np.ones((8, 16, 16))}, "expected bool masks of shape .8, 16, 16."),
        (lambda samples: (samples[:, :1], {}), "expected pictures of shape"),
    ],
)
def test_what_tells_no_masks_is_refused(pipe, concepts, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.run(pipe, SAMPLING, concepts=concepts, images=8)


def test_no_random_units_are_refused_before_any_work_and_may_be_left_out(pipe):
    called = []
    options = {"images": 4, "layers": ["conv_in"], "times": [0.02], "units": 1, "judge": warm, "draws": 0}
    with pytest.raises(ValueError, match="`draws` of at least 1, got 0"):
        EXPERIMENT.run(pipe, SAMPLING, concepts=called.append, **options)
    assert not called
    result = EXPERIMENT.run(pipe, SAMPLING, concepts=squares, null="none", **options)
    assert "without random units" not in EXPERIMENT.table(result)


def test_narrow_layers_and_flow_matching_are_refused(pipe):
    with pytest.raises(ValueError, match="at least 20 channels, got conv_in"):
        EXPERIMENT.run(pipe, SAMPLING, concepts=squares, images=4, layers=["conv_in"], units=10)
    closed = XAIPipeline(GaussianDenoiser.fit(torch.rand(8, 3, 16, 16), pipe.scheduler), pipe.scheduler)
    with pytest.raises(ValueError, match="expected a network with layers, got GaussianDenoiser"):
        EXPERIMENT.run(closed, Sampling(seeds=[1], steps=2), concepts=squares, images=3)
    for wrong, got in (
        ({"prompt": "a red square"}, "a prompt"),
        ({"arguments": {"eta": 1.0}}, r"arguments \['eta'\]"),
    ):
        with pytest.raises(ValueError, match=f"labels alone of a call of an XAIPipeline, got {got}"):
            EXPERIMENT.run(pipe, SAMPLING, concepts=squares, images=4, **wrong)
    flow = XAIPipeline(pipe.unet, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="a scheduler with ᾱ"):
        EXPERIMENT.run(flow, SAMPLING, concepts=squares)


def test_the_command_takes_a_function(tmp_path, capsys):
    XAIPipeline(convnext_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    (tmp_path / "mine.py").write_text(
        "def bright(samples):\n    return {'bright': (samples.mean(1) > samples.mean()).numpy()}\n"
    )
    command = ["experiment", "concepts", "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]
    command += ["--concepts", f"{tmp_path / 'mine.py'}:bright", "--seeds", "1", "--steps", "2"]
    assert main(command) == 0
    data = ExperimentResult.load(tmp_path / "out" / "concepts").data
    assert data["concept"].values.tolist() == ["bright"]
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().err
    assert main(["experiment", "ablation", *command[2:]]) == 2
    assert "takes no concepts" in capsys.readouterr().err


def test_the_pictures_that_are_shown_have_every_concept(pipe):
    def two(samples):
        images, masks = squares(samples)
        rare = np.zeros_like(masks["red"])
        rare[9] = masks["red"][9]
        return images, {**masks, "rare": rare}

    data = EXPERIMENT.run(
        pipe, SAMPLING, concepts=two, images=12, layers=["conv_in"], times=[0.02], units=1, null="none"
    ).data
    assert data.sizes["shown"] == 4
    assert data["mask"].any(["shown", "height", "width"]).all()


def bright(pictures):
    """The brighter half of every picture, as a function could find it in any model's."""
    grey = pictures.mean(1)
    return {"bright": (grey > grey.flatten(1).median(1).values[:, None, None]).numpy()}


def test_any_pipeline_is_asked_of_its_own_runs():
    pipe, layer = stable_diffusion(), "up_blocks.0.resnets.0"
    sampling = Sampling(seeds=[4], steps=3)
    options = {"concepts": bright, "images": 3, "layers": [layer], "times": [0.9, 0.1], "units": 1, "draws": 1}
    data = EXPERIMENT.run(pipe, sampling, prompt="a fox", **options).data

    def plain(seed):
        """Picture, and the layer's output at every step."""
        outputs = []
        handle = pipe.unet.get_submodule(layer).register_forward_hook(lambda m, i, out: outputs.append(out[0]))
        generator = torch.Generator().manual_seed(seed)
        image = pipe("a fox", num_inference_steps=3, guidance_scale=1.0, generator=generator, output_type="np")
        handle.remove()
        picture = torch.from_numpy((image.images[0] * 255).round() / 127.5 - 1).permute(2, 0, 1).float()
        return picture, torch.stack(outputs)

    pictures, outputs = zip(*(plain(10**6 + number) for number in range(3)), strict=True)
    masks = bright(torch.stack(pictures))["bright"]
    assert data["timestep"].values.tolist() == [t for t in pipe.scheduler.timesteps.tolist() if t != 334]
    for time, step in enumerate((0, 2)):
        maps = torch.stack([each[step] for each in outputs]).float()
        large = F.interpolate(maps, size=masks.shape[1:], mode="bilinear").numpy()
        expected = overlap(large, masks[None], np.arange(3)).iou
        np.testing.assert_allclose(data["iou"].isel(time=time), expected, atol=0.02)
    unit = int(data["channel"][int(data["ablated"][0, 0])])
    intact = plain(4)[0]
    with record(pipe, [], edits=[ChannelAblation(layer, channels=[unit])]):
        changed = plain(4)[0]
    usual = masks.mean(0)
    change = (changed - intact).abs().mean(0).numpy()
    assert float(data["inside"][0, 0]) == pytest.approx((change * usual).sum() / usual.sum(), abs=1e-3)
    assert float(data["inside"][0, 0]) > 0


def test_pipelines_of_transformers_and_without_prompts_are_asked_too():
    options = {"concepts": bright, "images": 3, "times": [0.5], "units": 1, "draws": 1}
    entry = ZOO["sd3"]
    pipe = entry.make()
    result = EXPERIMENT.run(
        pipe, Sampling(seeds=[4], steps=2), **options, arguments=entry.call, layers=["transformer_blocks.0"]
    )
    assert result.plot().data
    assert result.plot_images().data
    assert (result.data["inside"] > 0).all()
    unconditional = DDPMPipeline(unet_2d(), DDPMScheduler())
    result = EXPERIMENT.run(unconditional, Sampling(seeds=[4], steps=2), **options, layers=["mid_block"])
    assert (result.data["inside"] > 0).all()
    latents = {"prompt": "a fox", "output_type": "latent"}
    with pytest.raises(ValueError, match="a pipeline that returns a picture, got StableDiffusionPipeline"):
        EXPERIMENT.run(stable_diffusion(), Sampling(seeds=[4], steps=2), **options, arguments=latents)
