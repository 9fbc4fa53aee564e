"""The promises of a recording, over four pipelines and four schedulers."""

import importlib.metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from skimage.metrics import structural_similarity

from diffusers_xai import Activations, AttentionOutputs, Samples, record
from tests.tiny import PIPELINES, SCHEDULERS, make_pipeline, state_of


SPECS = [Samples(), Activations(layers=["down_blocks.*", "mid_block"]), AttentionOutputs(every=2)]

each_pipeline = pytest.mark.parametrize("name", PIPELINES)


def combinations():
    """Every pipeline with every scheduler that its own loop can drive."""
    for name in PIPELINES:
        for scheduler in SCHEDULERS:
            # DDPMPipeline and DDIMPipeline do not scale their input and pass arguments that Heun does not take.
            if name in ("ddpm", "ddim") and scheduler == "heun":
                continue
            if name == "ddim" and scheduler != "ddim":  # its constructor turns every scheduler into DDIM
                continue
            yield name, scheduler


@pytest.mark.parametrize(("name", "scheduler"), list(combinations()))
def test_recording_changes_nothing_and_leaves_nothing(name, scheduler):
    pipe, sample = make_pipeline(name, SCHEDULERS[scheduler]())
    before = state_of(pipe)
    plain = sample().images
    assert state_of(pipe) == before
    with record(pipe, SPECS) as run:
        recorded = sample().images
    assert np.array_equal(plain, recorded)
    assert state_of(pipe) == before
    assert len(run.profile["samples"].step) == len(pipe.scheduler.timesteps)
    assert run.profile.provenance["complete"] is True


@each_pipeline
def test_nothing_stays_after_an_exception(name):
    pipe, sample = make_pipeline(name)
    before = state_of(pipe)
    original = pipe.scheduler.step
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    pipe.scheduler.step = failing
    with pytest.raises(KeyboardInterrupt), record(pipe, SPECS) as run:  # noqa: PT012
        sample()
    assert pipe.scheduler.step is failing
    del pipe.scheduler.step
    assert state_of(pipe) == before
    assert run.profile.provenance["complete"] is False
    assert run.profile["samples"].step.values.tolist() == [0, 1]


@each_pipeline
def test_recorded_arrays_equal_a_plain_forward(name):
    pipe, sample = make_pipeline(name)
    calls, states, outputs = [], [], []
    pipe.unet.register_forward_pre_hook(lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    original = pipe.scheduler.step

    def spy(model_output, timestep, state, **kwargs):
        result = original(model_output, timestep, state, **kwargs)
        states.append(state.clone())
        outputs.append((result[0] if isinstance(result, tuple) else result.prev_sample).clone())
        return result

    pipe.scheduler.step = spy
    with record(pipe, [Samples(), Activations(layers="mid_block")]) as run:
        sample()

    profile = run.profile
    guided = name == "stable_diffusion"
    dims = ("step", "sample", "branch", "channel", "height", "width")
    expected_dims = dims if guided else tuple(d for d in dims if d != "branch")
    activations = profile["activations/mid_block"]
    assert activations.dims == expected_dims
    captured = {}
    pipe.unet.mid_block.register_forward_hook(lambda m, args, out: captured.update(out=out))
    for step in range(4):
        args, kwargs = calls[step]
        with torch.no_grad():
            pipe.unet(*args, **kwargs)
        expected = captured["out"].numpy()
        recorded = activations.sel(step=step).values
        if guided:
            assert list(activations.branch.values) == ["uncond", "cond"]
            assert np.array_equal(recorded[:, 0], expected[:2])
            assert np.array_equal(recorded[:, 1], expected[2:])
        else:
            assert np.array_equal(recorded, expected)
        assert np.array_equal(profile["samples"].sel(step=step).values, states[step].numpy())
        for i in range(2):
            expected_ssim = structural_similarity(
                states[step][i].numpy(), outputs[step][i].numpy(), win_size=7, channel_axis=0, data_range=2.0
            )
            assert abs(profile["measures/ssim"].sel(step=step, sample=i).item() - expected_ssim) < 1e-4
    assert np.array_equal(profile["final_sample"].values, outputs[-1].numpy())
    assert profile["samples"].timestep.values.tolist() == [float(t) for t in pipe.scheduler.timesteps]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_x0_follows_from_the_prediction(scheduler, prediction_type):
    options = {"heun": {"beta_start": 1e-4, "beta_end": 0.02}, "dpm": {}}.get(scheduler, {"clip_sample": False})
    pipe, sample = make_pipeline("xai", SCHEDULERS[scheduler](prediction_type=prediction_type, **options))
    calls = []
    pipe.unet.register_forward_hook(lambda m, args, kwargs, out: calls.append((args, out.sample)), with_kwargs=True)
    with record(pipe, [Samples()]) as run:
        sample()
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))
    x0 = run.profile["x0"]
    assert len(calls) == len(x0.step)  # of Heun, also the second call of a step
    for step, ((x, t, *_), output) in enumerate(calls):
        # Between the timesteps of the training, Heun interpolates sigma.
        sigma = np.interp(float(t), range(1000), ((1 - alpha_bars) / alpha_bars) ** 0.5)
        alpha_bar = 1 / (1 + sigma**2)
        a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        x, output = x.double().numpy(), output.double().numpy()
        expected = {"epsilon": (x - s * output) / a, "v_prediction": a * x - s * output, "sample": output}
        np.testing.assert_allclose(x0.sel(step=step).values, expected[prediction_type], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["xai", "ddpm", "stable_diffusion"])
def test_attention_map_is_the_sum_of_upsampled_layer_outputs(name):
    pipe, sample = make_pipeline(name)
    outputs = []
    if name == "xai":
        modules = [m for p, m in pipe.unet.named_modules() if p.endswith("attn")]
        assert len(modules) == 4
    else:
        modules = [m.to_out[0] for m in pipe.unet.modules() if type(m).__name__ == "Attention"]
    for module in modules:
        module.register_forward_hook(lambda m, args, out: outputs.append(out.clone()))
    with record(pipe, [AttentionOutputs(steps=0)]) as run:
        sample(num_inference_steps=1)

    size = pipe.unet.config.sample_size
    expected = 0
    for out in outputs:
        if out.ndim == 3:  # tokens
            side = int(out.shape[1] ** 0.5)
            out = out.transpose(1, 2).reshape(out.shape[0], -1, side, side)
        summed = out.sum(1, keepdim=True)
        expected = expected + F.interpolate(summed, (size, size), mode="bilinear", align_corners=False)[:, 0]
    recorded = run.profile["attention_outputs"].sel(step=0)
    if name == "stable_diffusion":
        recorded = recorded.transpose("branch", "sample", "height", "width").values.reshape(4, size, size)
    np.testing.assert_allclose(np.asarray(recorded), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_channels_stand_first_in_a_norm_over_tokens():
    pipe, sample = make_pipeline("ddpm")
    path = "down_blocks.1.attentions.0.group_norm"
    outputs = []
    dict(pipe.unet.named_modules())[path].register_forward_hook(lambda m, args, out: outputs.append(out.clone()))
    with record(pipe, [Activations(layers=path, steps=0)]) as run:
        sample(num_inference_steps=1)
    assert outputs[0].shape == (2, 16, 64)  # (batch, channel, token)
    recorded = run.profile[f"activations/{path}"].sel(step=0)
    assert recorded.dims == ("sample", "channel", "height", "width")
    assert np.array_equal(recorded.values, outputs[0].reshape(2, 16, 8, 8).numpy())


def test_steps_timesteps_and_every_select_what_they_say():
    pipe, sample = make_pipeline("xai")
    specs = [
        Samples(timesteps=[740, 0], measures=()),
        Activations(layers="mid_block", steps=[-1, 1]),
        AttentionOutputs(every=3),
    ]
    with record(pipe, specs) as run:
        sample(num_inference_steps=5)  # t = 800, 600, 400, 200, 0
    profile = run.profile
    assert profile["samples"].step.values.tolist() == [0, 4]
    assert profile["samples"].timestep.values.tolist() == [800, 0]
    assert profile["activations/mid_block"].step.values.tolist() == [1, 4]
    assert profile["attention_outputs"].step.values.tolist() == [0, 3]
    assert "measures/ssim" not in profile


def test_heun_repeats_timesteps_but_not_steps():
    pipe, sample = make_pipeline("xai", HeunDiscreteScheduler())
    with record(pipe, [Samples(measures=())]) as run:
        sample(num_inference_steps=3)
    samples = run.profile["samples"]
    assert samples.step.values.tolist() == [0, 1, 2, 3, 4]
    assert len(set(samples.timestep.values.tolist())) == 3


def test_a_run_may_start_in_the_middle_of_the_schedule():
    pipe, _ = make_pipeline("stable_diffusion")
    image_to_image = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    picture = np.zeros((1, 16, 16, 3), np.float32)
    with record(image_to_image, [Samples(timesteps=500)]) as run:
        image_to_image("a red fox", image=picture, strength=0.5, num_inference_steps=4, output_type="np")
    assert run.profile.provenance["timesteps"] == [251.0, 1.0]
    assert run.profile.provenance["complete"] is True
    assert run.profile["samples"].timestep.values.tolist() == [251.0]


def test_aliases_and_globs_name_layers():
    pipe, sample = make_pipeline("xai")
    with record(pipe, [Activations(layers=["downs.*.2.fn", "mid_attn.fn", "downs.1.3"], steps=0)]) as run:
        sample()
    assert sorted(run.profile.keys()) == [
        "activations/down_blocks.0.attentions.0.attn",
        "activations/down_blocks.1.attentions.0.attn",
        "activations/down_blocks.1.downsamplers.0",
        "activations/mid_block.attentions.0.attn",
    ]
    assert run.profile["activations/downs.1.3"].equals(run.profile["activations/down_blocks.1.downsamplers.0"])


def test_requests_that_match_nothing_are_refused_before_the_first_forward():
    pipe, sample = make_pipeline("xai")
    forwards = []
    pipe.unet.conv_in.register_forward_hook(lambda *args: forwards.append(1))
    for specs, error, message in [
        ([Activations(layers="downs.7.3")], KeyError, r"got 'downs.7.3'; nearest: .*downs\.1\.3"),
        ([Samples(steps=[2, 9])], ValueError, r"0\.\.3 .* got \[9\]; the run has 4 steps"),
        ([AttentionOutputs(timesteps=[-5])], ValueError, r"within 0..1000, got \[-5\]"),
        (["samples"], TypeError, "got 'samples'"),
    ]:
        before = state_of(pipe)
        with pytest.raises(error, match=message), record(pipe, specs):  # noqa: PT012
            sample()
        assert state_of(pipe) == before
    assert forwards == []


def test_a_layer_that_does_not_run_is_an_error():
    pipe, sample = make_pipeline("xai")
    pipe.unet.spare = torch.nn.Identity()
    with (
        pytest.raises(RuntimeError, match="activations/spare yielded nothing at step 0"),
        record(  # noqa: PT012
            pipe, [Activations(layers="spare")]
        ),
    ):
        sample()


def test_one_recording_holds_exactly_one_run():
    pipe, sample = make_pipeline("ddpm")
    with pytest.raises(RuntimeError, match="Nothing was sampled"), record(pipe, [Samples()]):
        pass
    with pytest.raises(RuntimeError, match="one recording holds one run"), record(pipe, [Samples()]):  # noqa: PT012
        sample()
        sample()


def test_what_has_no_network_or_no_scheduler_is_refused():
    with pytest.raises(TypeError, match="one network that denoises, got object with no network"):
        record(object(), [Samples()]).__enter__()
    with pytest.raises(TypeError, match="with a `scheduler`, got SimpleNamespace"):
        record(SimpleNamespace(unet=torch.nn.Linear(1, 1)), [Samples()]).__enter__()
    pipe, _ = make_pipeline("stable_diffusion")
    with pytest.raises(
        TypeError, match=r"`denoiser` among the networks .* unet \(UNet2DConditionModel\).*got \['dit'\]"
    ):
        record(pipe, [Samples()], denoiser="dit").__enter__()


def test_layers_of_a_compiled_denoiser_are_recorded():
    pipe, sample = make_pipeline("xai")
    plain = sample().images
    pipe.unet.compile(backend="eager")
    sample()
    with record(pipe, [Activations(layers="mid_block")]) as run:
        images = sample().images
    assert np.array_equal(images, plain)
    assert run.profile["activations/mid_block"].shape == (4, 2, 16, 8, 8)


def test_bfloat16_is_recorded_as_float32():
    pipe, sample = make_pipeline("xai")
    pipe.to(torch.bfloat16)
    with record(pipe, [Samples(), Activations(layers="mid_block")]) as run:
        sample()
    assert run.profile["activations/mid_block"].dtype == np.float32
    assert run.profile["samples"].dtype == np.float32


def test_provenance_says_how_the_profile_was_made():
    pipe, sample = make_pipeline("ddim")
    with record(pipe, [Samples(every=2)]) as run:
        sample()
    provenance = run.profile.provenance
    assert provenance["pipeline"]["class"] == "DDIMPipeline"
    assert provenance["model"]["class"] == "UNet2DModel"
    assert provenance["model"]["config"]["block_out_channels"] == [8, 16]
    assert provenance["scheduler"]["class"] == "DDIMScheduler"
    assert provenance["record"][0]["type"] == "Samples"
    assert provenance["record"][0]["every"] == 2
    assert provenance["timesteps"] == [750.0, 500.0, 250.0, 0.0]
    assert provenance["versions"]["torch"] == importlib.metadata.version("torch")
