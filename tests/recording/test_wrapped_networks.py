"""Networks within wrappers, and subclasses of known ones."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    UNet2DModel,
)

from diffusers_xai import (
    Activations,
    AttentionWeights,
    PromptSwitch,
    Samples,
    WordMaps,
    record,
)
from tests.recording.own_network import OwnNetwork
from tests.tiny import unet_2d
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


def test_a_subclass_is_its_parent_s_family():
    class Mine(UNet2DModel):
        pass

    original = unet_2d()
    mine = Mine.from_config(original.config).eval()
    mine.load_state_dict(original.state_dict())
    profiles = []
    for network in (original, mine):
        pipe = DDIMPipeline(network, DDIMScheduler())
        with record(pipe, [Samples(), AttentionWeights(), Activations("mid_block")]) as recording:
            pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0))
        profiles.append(recording.profile)
    assert list(profiles[0]) == list(profiles[1])
    for name in profiles[0]:
        assert np.array_equal(profiles[0][name].values, profiles[1][name].values)


class Wrapper(torch.nn.Module):
    """A network inside another that only passes on what it gets, by names that its signature does not have."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.dtype, self.device = inner, inner.config, inner.dtype, inner.device

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class WrapperWithMore(Wrapper):
    """One that has a layer of its own."""

    def __init__(self, inner):
        super().__init__(inner)
        self.own = torch.nn.Identity()


@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        lambda network: Wrapper(Wrapper(network)),
        lambda network: torch.compile(Wrapper(network), backend="eager"),
        lambda network: Wrapper(torch.compile(network, backend="eager")),
    ],
)
def test_a_wrapper_that_adds_nothing_is_the_network_in_it(wrap):
    entry = ZOO["stable-diffusion"]
    pipe = entry.make()
    specs = [Activations("mid_block"), AttentionWeights(relation="image_to_text"), WordMaps("fox")]

    def profile():
        with record(pipe, [replace(spec, steps=-1) for spec in specs]) as recording:
            result = run(pipe, entry)
        return result, recording.profile

    entry = replace(entry, call={**entry.call, "prompt": ["a red fox", "a fox"]})
    plain, expected = profile()
    pipe.unet = wrap(pipe.unet)
    result, got = profile()
    assert np.array_equal(result, plain)
    assert list(got) == list(expected)
    assert all(np.array_equal(got[name].values, array.values) for name, array in expected.items())
    assert got.provenance["model"]["class"] == "UNet2DConditionModel"


def distributed(network):
    return torch.nn.parallel.DistributedDataParallel(network)


@pytest.fixture
def a_group_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, distributed])
@pytest.mark.usefixtures("a_group_of_one")
def test_data_parallel_is_the_network_in_it_whatever_its_class(wrap):
    network = OwnNetwork()
    loop = SimpleNamespace(unet=wrap(network), scheduler=DDIMScheduler(clip_sample=False))
    loop.scheduler.set_timesteps(1)
    noise = torch.randn(1, 3, 16, 16)
    with torch.no_grad(), record(loop, [Activations("body.0")]) as recording:
        loop.scheduler.step(loop.unet(noise, 1), loop.scheduler.timesteps[0], noise)
    with torch.no_grad():
        expected = network.body[0](noise)
    assert np.array_equal(recording.profile["activations/body.0"].isel(step=0).values, expected)


def test_of_a_network_inside_another_all_is_told_but_what_its_class_would_have_to_say():
    entry = ZOO["stable-diffusion"]
    pipe = entry.make()
    plain = run(pipe, entry)
    with record(pipe, [Activations("mid_block")]) as recording:
        run(pipe, entry)
    expected = recording.profile["activations/mid_block"].values
    other = run(pipe, replace(entry, call={**entry.call, "prompt": ["b dog", "b dog"]}))
    pipe.unet = WrapperWithMore(pipe.unet)
    with record(pipe, [Activations("inner.mid_block"), AttentionWeights(steps=0)]) as recording:
        assert np.array_equal(run(pipe, entry), plain)
    assert np.array_equal(recording.profile["activations/inner.mid_block"].values, expected)
    with record(pipe, edits=[PromptSwitch(to="b dog", from_step=0)]):
        assert np.array_equal(run(pipe, entry), other)
    for unknown in (AttentionWeights(relation="image_to_text"), AttentionWeights(pixels=[(1, 1)]), WordMaps("fox")):
        with pytest.raises(ValueError, match="xpected"), record(pipe, [unknown]) as recording:
            run(pipe, entry)
        assert recording.run.step == 0
