"""What is asked of every pipeline: own networks, chunks, other attention processors, cut schedules."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.models.attention_processor import AttnProcessor

from diffusers_xai import (
    Activations,
    AttentionWeights,
    ChannelAblation,
    GradientVolume,
    LayerEdit,
    Patch,
    PromptSwitch,
    Samples,
    WordMaps,
    plan,
    record,
)
from tests.recording.own_network import OwnNetwork
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


def test_a_plain_module_in_a_loop_of_one_s_own():
    torch.manual_seed(0)
    network, scheduler = OwnNetwork(), DDIMScheduler(clip_sample=False)
    noise = torch.randn(2, 3, 16, 16)

    @torch.no_grad()
    def sample():
        scheduler.set_timesteps(4)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        return x

    own = SimpleNamespace(network=network, scheduler=scheduler)
    plain = sample()
    with record(
        own, [Samples(), Activations("body.1"), GradientVolume(pixels=[(3, 4)], of="noise", steps=0)]
    ) as recording:
        assert torch.equal(sample(), plain)
    profile = recording.profile
    assert np.array_equal(profile["final_sample"].values, plain.numpy())
    expected = torch.nn.functional.silu(network.body[0](noise)).detach()
    assert np.array_equal(profile["activations/body.1"].sel(step=0).values, expected.numpy())
    leaf = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf, 0)[:, :, 3, 4].sum(), leaf)
    np.testing.assert_allclose(
        profile["gradient_volume"].values[0, :, 0], gradient.sum(dim=1).numpy(), rtol=1e-4, atol=1e-6
    )
    with record(own, edits=[ChannelAblation("body.0", 1)]):
        ablated = sample()
    with torch.no_grad():
        network.body[0].weight[1] = 0
        network.body[0].bias[1] = 0
    torch.testing.assert_close(ablated, sample())


def test_the_sign_of_the_noise_is_the_pipeline_s_or_it_is_refused_before_a_step():
    torch.manual_seed(0)
    network, noise = OwnNetwork(), torch.randn(1, 3, 8, 8)
    scheduler = DDIMScheduler(clip_sample=False)
    own = SimpleNamespace(network=network, scheduler=scheduler)
    spec = GradientVolume(pixels=[(3, 4)], of="noise", steps=[0, 1])

    def sample(told):
        scheduler.set_timesteps(2)
        x = noise
        with torch.no_grad(), record(own, [spec]) as recording:
            for t in scheduler.timesteps:
                x = scheduler.step(told(network(x, t)), t, x).prev_sample
        return recording.profile["gradient_volume"].values

    own_sign, other_sign = sample(lambda prediction: prediction), sample(lambda prediction: -prediction)
    leaf = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf, 0)[:, :, 3, 4].sum(), leaf)
    expected = gradient.sum(dim=1).numpy()
    np.testing.assert_allclose(own_sign[0, :, 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other_sign[0, :, 0], -expected, rtol=1e-4, atol=1e-6)
    scheduler.step = lambda *args, **kwargs: pytest.fail("a step was made")
    for no_sum in (torch.tanh, torch.zeros_like):
        with pytest.raises(RuntimeError, match="which may have the other sign"):
            sample(no_sum)


class TimestepFirst(OwnNetwork):
    def forward(self, t, x):
        return super().forward(x, t)


class ByKeyword(OwnNetwork):
    def forward(self, *, t, x):
        return super().forward(x, t)


class PassingOn(OwnNetwork):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("network_class", "call"),
    [
        (TimestepFirst, lambda network, x, t: network(t, x)),
        (TimestepFirst, lambda network, x, t: network(t[None].expand(len(x)), x=x)),
        (ByKeyword, lambda network, x, t: network(t=t, x=x)),
        (PassingOn, lambda network, x, t: network(t=t, x=x)),
    ],
)
def test_the_sample_may_stand_anywhere_among_the_arguments(network_class, call):
    torch.manual_seed(0)
    network, scheduler = network_class(), DDIMScheduler(clip_sample=False)
    own, noise = SimpleNamespace(network=network, scheduler=scheduler), torch.randn(2, 3, 8, 8)

    def sample():
        scheduler.set_timesteps(2)
        x = noise
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(call(network, x, t), t, x).prev_sample
        return x

    plain = sample()
    specs = [Samples(measures=()), Activations("body.1"), GradientVolume(pixels=[(3, 4)], of="noise", steps=0)]
    with record(own, specs) as recording:
        assert torch.equal(sample(), plain)
    profile, leaf = recording.profile, noise.clone().requires_grad_()
    assert np.array_equal(profile["samples"].values[0], noise.numpy())
    assert profile["activations/body.1"].dims == ("step", "sample", "channel", "height", "width")
    (gradient,) = torch.autograd.grad(network.body(leaf)[:, :, 3, 4].sum(), leaf)
    np.testing.assert_allclose(
        profile["gradient_volume"].values[0, :, 0], gradient.sum(dim=1).numpy(), rtol=1e-4, atol=1e-6
    )


class ConditionFirst(OwnNetwork):
    def forward(self, low, x, t):
        return super().forward(x + low, t)


@pytest.mark.parametrize("of", ["noise", "x0", "step"])
def test_gradients_are_none_of_a_condition_that_looks_like_the_sample(of):
    network, scheduler = ConditionFirst(), DDIMScheduler(clip_sample=False)
    own, x, low = SimpleNamespace(network=network, scheduler=scheduler), *torch.randn(2, 1, 3, 8, 8)
    scheduler.set_timesteps(2)
    t = scheduler.timesteps[0]
    with (
        pytest.raises(RuntimeError, match="got something else as 'low', and the state behind it"),
        torch.no_grad(),
        record(own, [GradientVolume(pixels=[(3, 4)], of=of, steps=0)]),
    ):
        scheduler.step(network(low, x, t), t, x)


class OfTokens(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(x)


def test_a_sequence_of_tokens_of_a_network_of_one_s_own_has_its_channels_last():
    scheduler, noise = DDIMScheduler(clip_sample=False), torch.randn(2, 7, 5)
    own = SimpleNamespace(network=OfTokens(5, 5), scheduler=scheduler)
    with torch.no_grad(), record(own, [Samples(measures=())]) as recording:
        scheduler.set_timesteps(1)
        scheduler.step(own.network(noise, 0), scheduler.timesteps[0], noise)
    samples = recording.profile["samples"].isel(step=0)
    assert np.array_equal(samples.transpose("sample", "token", "channel").values, noise.numpy())


@pytest.mark.parametrize(
    ("scheduler_class", "told"),
    [(DDIMScheduler, False), (EulerDiscreteScheduler, False), (HeunDiscreteScheduler, False),
     (HeunDiscreteScheduler, True)],
)  # fmt: skip
def test_a_loop_of_one_s_own_may_begin_late(scheduler_class, told):
    network, scheduler, begin = OwnNetwork(), scheduler_class(), 4
    own = SimpleNamespace(network=network, scheduler=scheduler)
    with torch.no_grad(), record(own, [Samples(steps=[0, -1], measures=())]) as recording:
        scheduler.set_timesteps(6)
        if told:
            scheduler.set_begin_index(begin)
        x, timesteps = torch.randn(1, 3, 8, 8), scheduler.timesteps[begin:]
        for t in timesteps:
            given = t / 1000 if told else t  # some networks have a unit of their own
            x = scheduler.step(network(scheduler.scale_model_input(x, t), given), t, x).prev_sample
    samples = recording.profile["samples"]
    assert samples.step.values.tolist() == [0, len(timesteps) - 1]
    assert samples.timestep.values.tolist() == timesteps[[0, -1]].tolist()
    assert np.array_equal(recording.profile["final_sample"].values, x.numpy())


def test_a_loop_whose_first_timestep_is_the_schedule_s_last_in_another_unit_is_whole():
    network, scheduler = OwnNetwork(), FlowMatchEulerDiscreteScheduler()
    own = SimpleNamespace(network=network, scheduler=scheduler)
    with torch.no_grad(), record(own, [Samples(measures=())]) as recording:
        scheduler.set_timesteps(4)
        assert scheduler.timesteps[0] / 1000 == scheduler.timesteps[-1]
        x = torch.randn(1, 3, 8, 8)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t / 1000), t, x).prev_sample
    assert recording.profile["samples"].timestep.values.tolist() == scheduler.timesteps.tolist()


def test_gradients_of_a_step_that_changes_the_prediction_are_refused_before_it_is_made():
    network, scheduler = OwnNetwork(), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    scheduler.step = lambda *args, **kwargs: pytest.fail("a step was made")
    own = SimpleNamespace(network=network, scheduler=scheduler)
    x, t = torch.randn(1, 3, 8, 8), scheduler.timesteps[0]
    with pytest.raises(RuntimeError, match="Use `of='noise'`"), record(own, [GradientVolume(pixels=[(3, 4)])]):
        scheduler.step(network(x, t).tanh(), t, x)


def test_a_branch_that_comes_after_the_first_step_is_not_lost():
    entry = ZOO["sd3"]
    skipped = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    pipe, entry, outputs = entry.make(), replace(entry, call={**entry.call, **skipped}), []
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda m, a, output: outputs.append(output[1]))
    with record(pipe, [Activations("transformer_blocks.0")]) as recording:
        run(pipe, entry)
    array = recording.profile["activations/transformer_blocks.0"]
    assert array.branch.values.tolist() == ["uncond", "cond", "skipped"]
    assert np.isnan(array.sel(step=0, branch="skipped")).all()
    expected = torch.cat(outputs[1:]).transpose(1, 2).unflatten(2, (4, 4))
    assert np.array_equal(array.sel(step=1, sample=0), expected)


def test_attention_that_leaves_out_rows_is_refused_by_name_and_left_out_of_all():
    entry = ZOO["stable-diffusion, perturbed attention"]
    pipe, path = entry.make(), "mid_block.attentions.0.transformer_blocks.0.attn1"
    pipe.scheduler.step = lambda *args, **kwargs: pytest.fail("a step was made")
    with pytest.raises(ValueError, match="leaves out some"), record(pipe, [AttentionWeights(layers=path)]):
        run(pipe, entry)
    del pipe.scheduler.step
    with record(pipe, [AttentionWeights(steps=0)]) as recording:
        run(pipe, entry)
    assert f"attention_weights/{path}" not in recording.profile
    assert f"attention_weights/{path[:-1]}2" in recording.profile


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "sd3", "animatediff", "wan", "kandinsky-2.2", "z-image"])
def test_chunks_of_pixels_equal_one_after_the_other(name):
    entry = ZOO[name]
    pipe = entry.make()
    video = name in ("animatediff", "wan")
    pixels = [(0, 1, 2), (1, 2, 0), (2, 0, 1)] if video else [(0, 0), (1, 2), (2, 1)]
    volumes = []
    for chunk_size in (1, 3):
        with record(pipe, [GradientVolume(pixels=pixels, of="noise", steps=1, chunk_size=chunk_size)]) as recording:
            run(pipe, entry)
        volumes.append(recording.profile["gradient_volume"].values)
    np.testing.assert_allclose(*volumes, atol=1e-5 * np.abs(volumes[0]).max())


@pytest.mark.parametrize("how", ["sliced", "plain"])
def test_attention_that_computes_its_own_softmax_gives_the_same_weights(how):
    entry = ZOO["stable-diffusion"]
    profiles = []
    for processor in ("sdpa", how):
        pipe = entry.make()
        if processor == "sliced":
            pipe.enable_attention_slicing(1)
        if processor == "plain":
            pipe.unet.set_attn_processor(AttnProcessor())
        with record(pipe, [AttentionWeights(steps=1), WordMaps("a", steps=1)]) as recording:
            run(pipe, entry)
        profiles.append(recording.profile)
    assert list(profiles[0]) == list(profiles[1])
    for name in profiles[0]:
        np.testing.assert_allclose(profiles[1][name].values, profiles[0][name].values, atol=1e-5)


def test_frames_that_are_the_scheduler_s_rows_stay_with_their_video():
    entry = ZOO["text-to-video"]
    pipe = entry.make()
    states = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, t, sample, **more: states.append(sample) or step(output, t, sample, **more)
    call = {**entry.call, "prompt": ["a fox", "a red cat"], "output_type": "latent"}
    with record(pipe, [Samples(every=1, measures=())]) as recording:
        latents = pipe(**call).frames
    assert np.array_equal(recording.profile["final_sample"].values, latents.numpy())
    frames = latents.shape[2]
    for index, state in enumerate(states):  # (video · frame, channel, height, width), one video after the other
        videos = np.stack([state[video * frames : (video + 1) * frames].transpose(0, 1) for video in (0, 1)])
        assert np.array_equal(recording.profile["samples"].sel(step=index).values, videos)


def test_a_schedule_that_is_cut_short_has_its_own_last_step():
    entry = ZOO["stable-diffusion-xl"]
    pipe = entry.make()
    with record(pipe, [Samples(steps=[-1], measures=())]) as recording:
        latents = pipe(**entry.call, num_inference_steps=10, denoising_end=0.5, output_type="latent").images
    assert recording.profile["samples"].step.values.tolist() == [4]
    assert len(recording.profile.provenance["timesteps"]) == 5
    assert np.array_equal(recording.profile["final_sample"].values, latents.numpy())


def test_gradients_of_weights_that_are_cast_after_each_forward_pass_are_refused_before_a_step():
    entry = ZOO["stable-diffusion"]
    pipe = entry.make()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    gradient = GradientVolume(pixels=[(1, 1)], of="noise", steps=-1)
    with pytest.raises(RuntimeError, match="layerwise casting"), record(pipe, [gradient]) as recording:
        run(pipe, entry)
    assert recording.run.step == 0


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "flux", "flux, true guidance"])
def test_a_prompt_switch_at_the_start_is_the_other_prompt_and_at_the_end_is_none(name):
    entry = ZOO[name]
    pipe = entry.make()
    plain = run(pipe, entry)
    other = ["a dog", "a hat"] if isinstance(entry.call["prompt"], list) else "a dog"
    expected = run(pipe, replace(entry, call={**entry.call, "prompt": other}))
    with record(pipe, edits=[PromptSwitch(to=other, from_step=0)]):
        assert np.array_equal(run(pipe, entry), expected)
    with record(pipe, edits=[PromptSwitch(to=other, from_step=entry.steps)]):
        assert np.array_equal(run(pipe, entry), plain)
    with record(pipe, edits=[PromptSwitch(to=other, from_step=1)]):
        between = run(pipe, entry)
    assert not np.array_equal(between, plain)
    assert not np.array_equal(between, expected)


@pytest.mark.parametrize("name", ["stable-diffusion", "dit", "flux, true guidance", "wan"])
def test_patches_of_a_run_into_itself_change_nothing_and_of_everything_give_the_other(name):
    entry = ZOO[name]
    pipe = entry.make()
    last = {"stable-diffusion": "conv_out", "dit": "proj_out_2", "flux, true guidance": "proj_out", "wan": "proj_out"}[
        name
    ]
    with record(pipe, [Activations([entry.layer, last])]) as recording:
        plain = run(pipe, entry)
    with record(pipe, edits=[Patch([entry.layer, last], recording.profile)]):
        assert np.array_equal(run(pipe, entry), plain)
    doubled = LayerEdit(entry.layer, lambda output: 2 * output)
    with record(pipe, edits=[doubled]):
        assert not np.array_equal(run(pipe, entry), plain)
    with record(pipe, edits=[doubled, Patch(last, recording.profile)]):  # what comes last decides
        np.testing.assert_allclose(run(pipe, entry), plain, atol=1e-5)


def test_a_plan_of_any_pipeline_is_what_its_run_records():
    entry = ZOO["flux, true guidance"]
    pipe = entry.make()
    specs = [
        Samples(measures=(), every=2),
        Activations(entry.layer),
        GradientVolume(pixels=[(0, 1)], of="noise", steps=1),
    ]
    planned = plan(pipe, specs, num_inference_steps=entry.steps, **entry.call)
    with record(pipe, specs) as recording:
        run(pipe, entry)
    sizes = {array.name: array.nbytes for part in planned.entries for array in part.arrays}
    assert sizes == {name: array.nbytes for name, array in recording.profile.items()}
    assert planned.backward_passes == 1
    assert "step" not in vars(pipe.scheduler)
