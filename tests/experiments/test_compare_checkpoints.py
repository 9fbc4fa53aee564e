"""Two checkpoints, against one that is the other but for one layer, and against plain calls of the networks."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.nulls import random_weights
from tests.experiments.runs import ssim, states
from tests.tiny import convnext_unet, unet_2d


EXPERIMENT = EXPERIMENTS["compare-checkpoints"]
SAMPLING = Sampling(labels=[3], seeds=[4, 9], steps=5)


def pipeline(unet):
    return XAIPipeline(unet.double(), DDPMScheduler())


def changed(pipe, path):
    """The same pipeline, but for the weights of one layer."""
    unet = copy.deepcopy(pipe.unet)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unet.get_submodule(path).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pipeline(unet)


@pytest.fixture(scope="module")
def pipe():
    return pipeline(convnext_unet())


def test_a_checkpoint_does_not_part_from_itself(pipe):
    result = EXPERIMENT.run(pipe, SAMPLING, others=[pipeline(copy.deepcopy(pipe.unet))], null="none")
    assert (result.data["distance"] == 0).all()
    np.testing.assert_allclose(result.data["ssim"], 1)
    np.testing.assert_allclose(result.data["final_ssim"], 1)
    assert set(EXPERIMENT.table(result).columns) == {"", "checkpoint: checkpoint 2"}
    assert result.plot().data
    assert result.plot_images().data


@pytest.mark.parametrize("network", [convnext_unet, lambda: unet_2d(attention=True)])
@pytest.mark.parametrize("path", ["down_blocks.1.resnets.0", "mid_block.attentions.0", "up_blocks.0.resnets.1"])
def test_the_difference_begins_where_the_weights_differ(network, path):
    pipe = pipeline(network())
    labels = [3] if pipe.unet.config.get("num_class_embeds") else []
    other = changed(pipe, path)
    data = EXPERIMENT.run(pipe, Sampling(labels, [4, 9], 4), others=[other], null="none").data
    aliases = getattr(pipe.unet, "layer_aliases", {})
    layers = [aliases.get(layer, layer) for layer in data["layer"].values.tolist()]
    order = []  # of a forward pass
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: order.append(name))
        for name, module in pipe.unet.named_modules()
        if name in layers
    ]
    pipe.unet(torch.zeros(1, 3, 16, 16).double(), 5, class_labels=torch.tensor(labels) if labels else None)
    for hook in hooks:
        hook.remove()
    assert layers == order
    differs = (data["distance"] > 1e-9).all(["seed", "checkpoint", "step"]).values
    assert (data["distance"].isel(layer=slice(0, layers.index(path))) == 0).all()
    assert differs[layers.index(path) :].all()


def outputs(pipe, path, inputs, timesteps):
    """What a layer puts out for these states, by plain calls."""
    kept = []
    hook = pipe.unet.get_submodule(path).register_forward_hook(lambda module, args, output: kept.append(output[0]))
    with torch.no_grad():
        for x, t in zip(inputs, timesteps, strict=True):
            pipe.unet(x[None], int(t), class_labels=torch.tensor([3]))
    hook.remove()
    return kept


def test_distances_are_those_of_plain_calls(pipe):
    other, layer = changed(pipe, "down_blocks.0"), "downs.1.1"
    data = EXPERIMENT.run(pipe, SAMPLING, others=[other], records=5).data
    path = pipe.unet.layer_aliases[layer]
    for seed in SAMPLING.seeds:
        ours, theirs, apart = (
            states(which, 3, at, 5)[1:] for which, at in ((pipe, seed), (other, seed), (pipe, seed + 10**6))
        )
        arguments = path, ours[:-1], data["timestep"].values[1:]
        for name, which in (("distance", other), ("null_distance", random_weights(pipe))):
            pairs = zip(outputs(pipe, *arguments), outputs(which, *arguments), strict=True)
            expected = [float((b - a).norm() / (a.norm() ** 2 + b.norm() ** 2) ** 0.5) for a, b in pairs]
            mine = data[name].sel(seed=seed, layer=layer).squeeze()
            np.testing.assert_allclose(mine[1:], expected, rtol=1e-6)
        for name, run in (("ssim", theirs), ("null_ssim", apart)):
            mine = data[name].sel(seed=seed).squeeze()
            np.testing.assert_allclose(mine[1:], [ssim(*pair) for pair in zip(ours, run, strict=True)][:-1], atol=1e-6)
            final = data["final_ssim" if run is theirs else "null_final_ssim"].sel(seed=seed)
            assert float(final.squeeze()) == pytest.approx(ssim(ours[-1], run[-1]), abs=1e-6)
    np.testing.assert_allclose(data["final"].sel(run="checkpoint 2"), states(other, 3, 4, 5)[-1])


def test_what_cannot_be_compared_is_refused(pipe):
    with pytest.raises(ValueError, match="at least two checkpoints"):
        EXPERIMENT.run(pipe, SAMPLING)
    wider = pipeline(convnext_unet(block_out_channels=(8, 24)))
    with pytest.raises(ValueError, match="one architecture, got checkpoint 2 with"):
        EXPERIMENT.run(pipe, SAMPLING, others=[wider])
    later = XAIPipeline(pipe.unet, DDIMScheduler(timestep_spacing="trailing"))
    with pytest.raises(ValueError, match="schedulers of the same timesteps"):
        EXPERIMENT.run(pipe, SAMPLING, others=[later])


@pytest.mark.parametrize("names", [("step-20", "step-5"), ("step-20", "step-020"), ("step-20", "other-5"), ("a", "b")])
def test_numbers_of_a_training_are_an_axis(pipe, names):
    others = [changed(pipe, "down_blocks.0"), changed(pipe, "conv_out")]
    for other, name in zip(others, names, strict=True):
        other.register_to_config(_name_or_path=f"runs/{name}")
    result = EXPERIMENT.run(pipe, SAMPLING, others=others, records=2, layers=["conv_in", "conv_out"], null="none")
    above, *below = EXPERIMENT.plot(result).data
    distance = result.data["distance"].mean(["seed", "step"]).values
    if names[1] == "step-5":
        assert result.data["trained"].values.tolist() == [20, 5]
        assert list(above.x) == [5, 20]
        np.testing.assert_allclose(above.z, distance[::-1].T)
        images = next(trace for trace in below if (trace.name or "").startswith("the images"))
        np.testing.assert_allclose(images.y, result.data["final_ssim"].mean("seed").values[::-1])
    else:
        assert "trained" not in result.data.coords
        assert list(above.x) == list(names)
        np.testing.assert_allclose(above.z, distance.T)


def test_the_command_takes_a_training(pipe, tmp_path, capsys):
    for name, which in (
        ("last", pipe),
        ("early", changed(pipe, "down_blocks.0")),
        ("late", changed(pipe, "conv_out")),
    ):
        XAIPipeline(copy.deepcopy(which.unet).float(), which.scheduler).save_pretrained(tmp_path / name)
    command = ["experiment", "compare-checkpoints", *(str(tmp_path / name) for name in ("last", "early", "late"))]
    command += ["--out", str(tmp_path / "out"), "--seeds", "2", "--steps", "4"]
    assert main(command) == 0
    result = ExperimentResult.load(tmp_path / "out" / "compare-checkpoints")
    assert result.data["checkpoint"].values.tolist() == ["early", "late"]
    assert result.data["distance"].dims == ("seed", "checkpoint", "layer", "step")
    late = result.data["distance"].sel(checkpoint="late")
    assert (late.isel(layer=slice(0, -1)) == 0).all()
    table = EXPERIMENT.table(result).set_index("")
    assert list(table.columns) == [
        "checkpoint: early", "checkpoint: late", "control", "excess: early", "q: early", "excess: late", "q: late",
    ]  # fmt: skip
    shown = table["checkpoint: late"]
    assert shown.iloc[-2].startswith(f"{float(late.isel(layer=-1).mean()):.3f} (")
    assert shown["SSIM of the images"].startswith(f"{float(result.data['final_ssim'][:, 1].mean()):.3f} (")
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().err
    assert main([*command[:2], command[2], command[4], *command[5:]]) == 2  # another request
    assert "compare-checkpoints: expected others [" in capsys.readouterr().err.splitlines()[-1]
