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
    UniPCMultistepScheduler,
)

from diffusers_xai import ConvNextUNet2DModel, Samples, XAIPipeline, XAIPipelineOutput
from tests.tiny import convnext_unet, unet_2d


def make(unet=None, scheduler=None):
    pipe = XAIPipeline(unet or convnext_unet(), scheduler or DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pixels_of_ddpm_pipeline(prediction_type):
    unet, scheduler = unet_2d(), DDPMScheduler(prediction_type=prediction_type)
    reference = DDPMPipeline(unet, scheduler)
    reference.set_progress_bar_config(disable=True)
    expected = reference(batch_size=2, generator=seeded(5), num_inference_steps=4, output_type="np").images
    ours = make(unet, scheduler)(batch_size=2, generator=seeded(5), num_inference_steps=4, output_type="np").images
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_pixels_of_ddim_pipeline(eta):
    unet, scheduler = unet_2d(), DDIMScheduler()
    reference = DDIMPipeline(unet, scheduler)
    reference.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "num_inference_steps": 4, "eta": eta, "output_type": "np"}
    expected = reference(generator=seeded(5), **arguments).images
    assert np.array_equal(make(unet, scheduler)(generator=seeded(5), **arguments).images, expected)


@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_from_pretrained_opens_ordinary_repositories(pipeline_class, tmp_path):
    scheduler = DDPMScheduler() if pipeline_class is DDPMPipeline else DDIMScheduler()
    pipeline_class(unet_2d(), scheduler).save_pretrained(tmp_path)
    reference = pipeline_class.from_pretrained(tmp_path)
    reference.set_progress_bar_config(disable=True)
    pipe = XAIPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, XAIPipeline)
    expected = reference(generator=seeded(1), num_inference_steps=3, output_type="np").images
    assert np.array_equal(pipe(generator=seeded(1), num_inference_steps=3, output_type="np").images, expected)


def test_save_pretrained_round_trips(tmp_path):
    pipe = make(scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    pipe.save_pretrained(tmp_path)
    loaded = XAIPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
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


def test_labels_as_integers_dicts_and_tensors_mean_the_same():
    pipe = make()
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    expected = pipe(class_labels=[0b0011], generator=seeded(), **arguments).images
    other = pipe(class_labels=[0b1100], generator=seeded(), **arguments).images
    assert not np.array_equal(expected, other)
    for labels in (
        3,
        torch.tensor([3]),
        {"Smiling": True, "Wearing_Lipstick": True},
        [{"Smiling": 1, "Wearing_Lipstick": True, "Male": False}],
    ):
        assert np.array_equal(pipe(class_labels=labels, generator=seeded(), **arguments).images, expected)
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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {},
            ValueError,
            r"integers in 0..15 or dicts of \['Bangs', 'Male', 'Smiling', 'Wearing_Lipstick'\], got None",
        ),
        ({"class_labels": [1], "profile_dir": "profile"}, ValueError, "pass `record` too"),
        ({"class_labels": [17]}, ValueError, "label in 0..15 or the null label -1, got 17"),
        ({"class_labels": [0.5]}, TypeError, "got 0.5"),
        ({"class_labels": []}, ValueError, "at least one label"),
        ({"class_labels": {"Smilling": True}}, ValueError, "got 'Smilling'. Did you mean 'Smiling'"),
        ({"class_labels": [1, 2], "batch_size": 3}, ValueError, "1 or 3 `class_labels`"),
        ({"class_labels": [1], "num_inference_steps": 0}, ValueError, "in 1..1000"),
        ({"class_labels": [1], "num_inference_steps": 1001}, ValueError, "in 1..1000"),
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


def test_unconditional_models_take_no_labels_and_no_guidance():
    pipe = make(unet_2d())
    with pytest.raises(ValueError, match="unconditional"):
        pipe(class_labels=[1], num_inference_steps=2)
    with pytest.raises(ValueError, match="null label"):
        pipe(guidance_scale=2.0, num_inference_steps=2)
