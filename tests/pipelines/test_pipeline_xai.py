import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_xai import Activations, ConvNextUNet2DModel, GradientMaps, Samples, XAIPipeline, XAIPipelineOutput
from diffusers_xai.report.origin import python_code
from tests.tiny import convnext_unet, stable_diffusion, unet_2d


def make(unet=None, scheduler=None):
    return XAIPipeline(unet or convnext_unet(), scheduler or DDPMScheduler())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pixels_of_ddpm_pipeline(prediction_type):
    unet, scheduler = unet_2d(), DDPMScheduler(prediction_type=prediction_type)
    reference = DDPMPipeline(unet, scheduler)
    expected = reference(batch_size=2, generator=seeded(5), num_inference_steps=4, output_type="np").images
    ours = make(unet, scheduler)(batch_size=2, generator=seeded(5), num_inference_steps=4, output_type="np").images
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_pixels_of_ddim_pipeline(eta):
    unet, scheduler = unet_2d(), DDIMScheduler()
    reference = DDIMPipeline(unet, scheduler)
    arguments = {"batch_size": 2, "num_inference_steps": 4, "eta": eta, "output_type": "np"}
    expected = reference(generator=seeded(5), **arguments).images
    assert np.array_equal(make(unet, scheduler)(generator=seeded(5), **arguments).images, expected)


@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_from_pretrained_opens_ordinary_repositories(pipeline_class, tmp_path):
    scheduler = DDPMScheduler() if pipeline_class is DDPMPipeline else DDIMScheduler()
    pipeline_class(unet_2d(), scheduler).save_pretrained(tmp_path)
    reference = pipeline_class.from_pretrained(tmp_path)
    pipe = XAIPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe, XAIPipeline)
    expected = reference(generator=seeded(1), num_inference_steps=3, output_type="np").images
    assert np.array_equal(pipe(generator=seeded(1), num_inference_steps=3, output_type="np").images, expected)


def test_save_pretrained_round_trips(tmp_path):
    pipe = make(scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    pipe.save_pretrained(tmp_path)
    loaded = XAIPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.unet, ConvNextUNet2DModel)
    assert isinstance(loaded.scheduler, DDIMScheduler)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    arguments = {"class_labels": [3], "num_inference_steps": 3, "output_type": "np"}
    expected = pipe(generator=seeded(), **arguments).images
    assert np.array_equal(loaded(generator=seeded(), **arguments).images, expected)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffusers_xai", "ConvNextUNet2DModel"]


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        HeunDiscreteScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
        LCMScheduler,
        FlowMatchEulerDiscreteScheduler,
    ],
)
def test_any_scheduler_runs_and_generators_make_a_batch_equal_its_single_runs(scheduler):
    pipe = make(scheduler=scheduler())
    arguments = {"num_inference_steps": 4, "output_type": "np"}
    batch = pipe(class_labels=[3, 12], generator=[seeded(1), seeded(2)], **arguments).images
    for i, (label, seed) in enumerate([(3, 1), (12, 2)]):
        single = pipe(class_labels=[label], generator=[seeded(seed)], **arguments).images
        np.testing.assert_allclose(batch[i], single[0], atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (3, [3]),
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
        (torch.tensor([3, 12]), [3, 12]),
        (np.array([3, -1]), [3, -1]),
        (range(2), [0, 1]),
        ([torch.tensor(3), np.array(12)], [3, 12]),
        ({"Smiling": True, "Wearing_Lipstick": True}, [0b0011]),
        ([{"Smiling": 1, "Wearing_Lipstick": True, "Male": False}, 12], [0b0011, 12]),
        (torch.nn.functional.one_hot(torch.tensor([3, 12]), 16), [3, 12]),
        (torch.eye(16)[[15]], [15]),
        (np.eye(16, dtype=bool)[[0, 9]], [0, 9]),
        (torch.tensor([[0, 0, 1, 1]]), [0b0011]),
        (torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bfloat16), [0b0011, 0b1100]),
        ([[True, False, False, True]], [0b1001]),
        ([np.array([1, 0, 0, 1]), torch.tensor([0, 0, 0, 0])], [0b1001, 0]),
    ],
)
def test_labels_of_every_form(labels, expected):
    """Images come in the order of the labels: bits are written as thesis section 3.4 does, most significant first."""
    assert make().encode_labels(labels) == expected


def test_labels_choose_the_image():
    pipe = make()
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    expected = pipe(class_labels=[0b0011], generator=seeded(), **arguments).images
    other = pipe(class_labels=[0b1100], generator=seeded(), **arguments).images
    assert not np.array_equal(expected, other)
    bits = torch.tensor([[0, 0, 1, 1]])
    assert np.array_equal(pipe(class_labels=bits, generator=seeded(), **arguments).images, expected)
    repeated = pipe(class_labels=3, batch_size=2, generator=[seeded(), seeded()], **arguments).images
    np.testing.assert_allclose(repeated, np.concatenate([expected, expected]), atol=1e-5)


def test_guidance_combines_as_the_thesis_says():
    """ε̃ = (1 + w)·ε(x, y) − w·ε(x, ∅) with w = guidance_scale − 1 (eq. 3.4.3), checked on one DDPM step by hand."""
    pipe = make(scheduler=DDPMScheduler(clip_sample=False))
    sample = torch.randn(1, 3, 16, 16, generator=seeded(3))
    out = pipe(
        class_labels=[5],
        guidance_scale=3.0,
        sample=sample,
        num_inference_steps=1,
        generator=seeded(9),
        record=[Samples()],
        output_type="pt",
    )
    with torch.no_grad():
        cond = pipe.unet(sample, 0, torch.tensor([5])).sample
        uncond = pipe.unet(sample, 0, torch.tensor([-1])).sample
    eps = 3 * cond - 2 * uncond
    alpha_bar = 1 - 1e-4  # the only timestep of a one-step run is t = 0
    x0 = (sample - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    np.testing.assert_allclose(out.profile["x0"].values[0], x0.numpy(), rtol=1e-4, atol=1e-4)
    # At t = 0 the scheduler adds no noise: the result is x̂_0 itself.
    np.testing.assert_allclose(out.profile["final_sample"].values, x0.numpy(), rtol=1e-4, atol=1e-4)


def test_guidance_scale_one_is_no_guidance():
    pipe = make()
    calls = []
    pipe.unet.register_forward_pre_hook(lambda m, args: calls.append(args[0].shape[0]))
    pipe(class_labels=[5], num_inference_steps=2, generator=seeded())
    pipe(class_labels=[5], guidance_scale=1.5, num_inference_steps=2, generator=seeded())
    assert calls == [1, 1, 2, 2]


def test_outputs(tmp_path):
    pipe = make()
    arguments = {"class_labels": [1, 2], "num_inference_steps": 2}
    pil = pipe(generator=seeded(), **arguments)
    assert isinstance(pil, XAIPipelineOutput)
    assert pil.profile is None
    assert [image.size for image in pil.images] == [(16, 16)] * 2
    array = pipe(generator=seeded(), output_type="np", **arguments).images
    tensor = pipe(generator=seeded(), output_type="pt", **arguments).images
    assert array.shape == (2, 16, 16, 3)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert np.array_equal(np.asarray(pil.images[0]), (array[0] * 255).round().astype("uint8"))
    images, profile = pipe(generator=seeded(), output_type="np", return_dict=False, record=[Samples()], **arguments)
    assert np.array_equal(images, array)
    assert profile.provenance["class_labels"] == [1, 2]
    assert profile.provenance["seeds"] == [0, 0]
    assert profile.provenance["guidance_scale"] == 1.0


def test_initial_sample_is_the_noise_that_is_denoised():
    pipe = make(scheduler=HeunDiscreteScheduler())
    noise = torch.randn(1, 3, 8, 16, generator=seeded(4))
    out = pipe(class_labels=[1], sample=noise, num_inference_steps=2, record=[Samples()], output_type="pt")
    assert out.images.shape == (1, 3, 8, 16)
    expected = noise * pipe.scheduler.init_noise_sigma
    np.testing.assert_array_equal(out.profile["samples"].values[0], expected.numpy())


def test_callback_sees_and_replaces_the_sample():
    pipe = make()
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        seen.append((step, int(timestep), tensors["sample"].shape))
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 2 else {}

    out = pipe(class_labels=[1], num_inference_steps=3, callback_on_step_end=callback, output_type="pt")
    assert seen == [(0, 666, (1, 3, 16, 16)), (1, 333, (1, 3, 16, 16)), (2, 0, (1, 3, 16, 16))]
    assert torch.equal(out.images, torch.full((1, 3, 16, 16), 0.5))


def test_official_callbacks_say_what_they_take_and_see_the_run():
    class Stop(PipelineCallback):
        tensor_inputs = ["sample"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append((pipeline.num_timesteps, pipeline.guidance_scale, sorted(callback_kwargs)))
            pipeline._interrupt = step_index == 1
            return {"sample": callback_kwargs["sample"] * 0.5}

    pipe, seen, calls = make(), [], []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].clone()))
    arguments = {"class_labels": [1], "guidance_scale": 2.0, "num_inference_steps": 4, "output_type": "pt"}
    both = MultiPipelineCallbacks([Stop(), Stop()])
    out = pipe(generator=seeded(), record=[Samples()], callback_on_step_end=both, **arguments)
    assert seen == [(4, 2.0, ["sample"])] * 4  # two callbacks at each of two steps
    assert len(calls) == 2
    assert out.profile["samples"].sizes["step"] == 2
    assert out.profile.provenance["complete"] is False
    assert torch.equal(calls[1][0], torch.from_numpy(out.profile["samples"].values[1, 0]))
    whole = pipe(generator=seeded(), **arguments).images
    assert len(calls) == 6  # an interruption is one run's
    assert not torch.equal(whole, out.images)


def test_a_callback_may_end_guidance():
    pipe, batches = make(), []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))

    def end_guidance(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0 if step == 1 else pipeline.guidance_scale

    pipe([1], guidance_scale=3.0, num_inference_steps=4, callback_on_step_end=end_guidance)
    assert batches == [2, 2, 1, 1]


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
def test_own_timesteps_and_sigmas_are_those_of_the_scheduler(name):
    values = {"timesteps": [900, 500, 10], "sigmas": [9.0, 2.0, 0.5, 0.0]}[name]
    pipe, seen = make(scheduler=EulerDiscreteScheduler()), []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1])))
    out = pipe([1], generator=seeded(), output_type="pt", record=[Samples()], **{name: np.array(values)})
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(**{name: values})
    assert seen == scheduler.timesteps.tolist()
    assert pipe.num_timesteps == 3
    # By hand: the steps of Euler's method from noise of the first sigma.
    sample = torch.randn(1, 3, 16, 16, generator=seeded()) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipe.unet(scheduler.scale_model_input(sample, t), t, torch.tensor([1])).sample
            sample = scheduler.step(output, t, sample).prev_sample
    assert torch.equal(out.images, (sample / 2 + 0.5).clamp(0, 1))
    code = python_code(out.profile.provenance)
    assert f"    {name}={values!r}," in code
    assert "num_inference_steps" not in code


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [(DDPMScheduler(num_train_timesteps=7), 7), (DDIMScheduler(), 50), (DDIMScheduler(num_train_timesteps=7), 7)],
)
def test_steps_where_none_are_asked_for(scheduler, steps):
    pipe, calls = make(unet_2d(attention=False), scheduler), []
    pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    out = pipe(record=[Samples(every=1000)])
    assert len(calls) == pipe.num_timesteps == out.profile.provenance["num_inference_steps"] == steps


@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_from_pipe_takes_over_the_network_and_gives_it_back(pipeline_class):
    class Changed(UNet2DModel):
        pass

    for network in (UNet2DModel, Changed):
        unet = unet_2d().half()
        unet.__class__ = network  # diffusers itself hands no subclass over
        pipe = XAIPipeline.from_pipe(pipeline_class(unet, DDIMScheduler()))
        assert type(pipe) is XAIPipeline
        assert pipe.unet is unet
        assert unet.dtype is torch.float16
        assert isinstance(pipe.scheduler, DDIMScheduler)
    other = DDPMScheduler()
    assert XAIPipeline.from_pipe(pipe, scheduler=other).scheduler is other
    pipe = XAIPipeline(unet_2d(), DDIMScheduler())
    back = pipeline_class.from_pipe(pipe)
    arguments = {"num_inference_steps": 3, "output_type": "np"}
    expected = pipe(generator=seeded(), **arguments).images
    assert np.array_equal(back(generator=seeded(), **arguments).images, expected)


def test_from_pipe_refuses_what_would_lose_components():
    with pytest.raises(TypeError, match="got object with no components"):
        XAIPipeline.from_pipe(object())
    with pytest.raises(TypeError, match=r"got StableDiffusionPipeline with vae, text_encoder.*record\(pipeline"):
        XAIPipeline.from_pipe(stable_diffusion())


def test_offloaded_networks_give_the_same_images_and_arrays():
    """accelerate's hooks, with the CPU as the device that is offloaded from."""
    pipe, mask = make(), np.eye(16, dtype=bool)
    record = [Samples(), Activations(layers="mid_block"), GradientMaps(layers="mid_block", mask=mask, steps=[1])]
    arguments = {"class_labels": [3], "num_inference_steps": 3, "output_type": "np", "record": record}
    expected = pipe(generator=seeded(), **arguments)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        out = pipe(generator=seeded(), **arguments)
        assert np.array_equal(out.images, expected.images)
        for name, array in expected.profile.items():
            np.testing.assert_array_equal(out.profile[name].values, array.values)
        assert hasattr(pipe.unet, "_hf_hook")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {},
            ValueError,
            r"integers in 0..15 or dicts of \['Bangs', 'Male', 'Smiling', 'Wearing_Lipstick'\], got None",
        ),
        ({"class_labels": [1], "profile_dir": "profile"}, ValueError, "Expected `record` beside"),
        ({"class_labels": [17]}, ValueError, "label in 0..15 or the null label -1, got 17"),
        ({"class_labels": [0.5]}, TypeError, "got 0.5"),
        ({"class_labels": []}, ValueError, "at least one label"),
        ({"class_labels": torch.zeros(0, 4)}, ValueError, "at least one label"),
        ({"class_labels": torch.tensor([3.0])}, TypeError, "got 3.0"),
        ({"class_labels": np.array([True])}, TypeError, "got True"),
        ({"class_labels": "3"}, TypeError, "got '3'"),
        ({"class_labels": torch.tensor([[3], [5]])}, ValueError, r"rows of 16 zeros with a single one or of 4 bits"),
        ({"class_labels": torch.tensor([[0, 0, 2, 1]])}, ValueError, r"got the row \[0, 0, 2, 1\]"),
        ({"class_labels": torch.ones(2, 16)}, ValueError, "a single one"),
        ({"class_labels": torch.zeros(1, 2, 4)}, ValueError, "got the row"),
        ({"class_labels": [[0, 0, 1, 1], 3]}, ValueError, "got the row 3"),
        ({"class_labels": {"Smilling": True}}, ValueError, "got 'Smilling'. Did you mean 'Smiling'"),
        ({"class_labels": [1, 2], "batch_size": 3}, ValueError, "1 or 3 `class_labels`"),
        ({"class_labels": [1], "num_inference_steps": 0}, ValueError, "in 1..1000"),
        ({"class_labels": [1], "num_inference_steps": 1001}, ValueError, "in 1..1000"),
        ({"class_labels": [1], "timesteps": [9], "num_inference_steps": 2}, ValueError, "_steps and timesteps"),
        ({"class_labels": [1], "timesteps": [9], "sigmas": [1.0]}, ValueError, "got timesteps and sigmas"),
        ({"class_labels": {"Smiling": "no"}}, ValueError, "Smiling as True or False, got 'no'"),
        ({"class_labels": [1], "batch_size": 1.5}, ValueError, "an integer of at least 1, got 1.5"),
        ({"class_labels": [1], "num_inference_steps": 2.5}, ValueError, "in 1..1000 .* got 2.5"),
        ({"class_labels": [1], "num_inference_steps": "3"}, ValueError, "in 1..1000 .* got '3'"),
        ({"class_labels": [1], "timesteps": []}, ValueError, r"one or several numbers, got \[\]"),
        ({"class_labels": [1], "timesteps": [[900, 100]]}, ValueError, "one or several numbers"),
        ({"class_labels": [1], "timesteps": "abc"}, ValueError, "one or several numbers, got 'abc'"),
        ({"class_labels": [1], "timesteps": [5, -5]}, ValueError, r"from 0 on, descending, got \[5, -5\]"),
        ({"class_labels": [1], "timesteps": [5, 5]}, ValueError, "descending"),
        ({"class_labels": [1], "timesteps": [5, 9]}, ValueError, "descending"),
        (
            {"class_labels": [1], "sigmas": [1.0]},
            ValueError,
            "DDPMScheduler takes, got `sigmas`; available: num_inference_steps",
        ),
        ({"class_labels": [1], "output_type": "latent"}, ValueError, "'latent'"),
        ({"class_labels": [1], "generator": [torch.Generator()] * 2}, ValueError, "Expected 1 generators"),
        ({"class_labels": [1], "sample": torch.zeros(1, 4, 16, 16)}, ValueError, r"\(1, 3, height, width\)"),
        ({"class_labels": [1], "callback_on_step_end_tensor_inputs": ["latents"]}, ValueError, "latents"),
    ],
)
def test_bad_input_is_refused_before_sampling(arguments, error, message):
    pipe = make()
    pipe.unet.register_forward_pre_hook(lambda *args: pytest.fail("the denoiser ran"))
    with pytest.raises(error, match=message):
        pipe(**arguments)


@pytest.mark.parametrize("sigmas", [[0.1, 1.0], [float("nan")], [float("inf"), 1.0], [1.0, -0.1]])
def test_sigmas_that_no_process_has_are_refused(sigmas):
    pipe = make(scheduler=EulerDiscreteScheduler())
    with pytest.raises(ValueError, match="Expected `sigmas`"):
        pipe(class_labels=[1], sigmas=sigmas)


def test_unconditional_models_take_no_labels_and_no_guidance():
    pipe = make(unet_2d())
    with pytest.raises(ValueError, match="unconditional"):
        pipe(class_labels=[1], num_inference_steps=2)
    with pytest.raises(ValueError, match="null label"):
        pipe(guidance_scale=2.0, num_inference_steps=2)
