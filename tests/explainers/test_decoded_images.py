"""Decoded pictures equal those that the pipeline itself makes of the same latents."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from diffusers_xai import DecodedImages, Samples, plan, record
from tests.tiny import unet_2d
from tests.zoo import autoencoders
from tests.zoo.pipelines import ZOO


# By name in the zoo: the autoencoder where the zoo has none.
FAMILIES = {
    "stable-diffusion": None,
    "stable-diffusion-xl": None,
    "dit": None,
    "sd3": None,
    "flux": None,
    "kandinsky-2.2": None,
    "animatediff": None,
    "qwen-image": autoencoders.qwen,
    "wan": autoencoders.wan,
    "ltx-video": autoencoders.ltx,
    "cogvideox": autoencoders.cogvideox,
}


def make(name):
    entry = ZOO[name]
    pipe = entry.make()
    if FAMILIES.get(name) is not None:
        pipe.register_modules(vae=FAMILIES[name]())
        if hasattr(pipe, "vae_scaling_factor_image"):  # read from the autoencoder when the pipeline is made
            pipe.vae_scaling_factor_image = pipe.vae.config.scaling_factor
    return pipe, entry.call


def run(pipe, call, steps=1, **more):
    return pipe(
        **call, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="np", **more
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_picture_is_that_of_the_pipeline(name):
    pipe, call = make(name)
    with record(pipe, [DecodedImages()]) as recording:
        made = np.asarray(run(pipe, call)[0])  # (sample, [frame,] height, width, color)
    picture = recording.profile["final_image"]
    assert picture.dtype == np.uint8
    names = ("sample", "frame", "height", "width", "channel")
    recorded = picture.transpose(*[name for name in names if name in picture.dims]).values
    assert recorded.shape == made.shape
    assert made.std() > 0.003  # the pictures show something
    # Bytes are rounded, and one picture at a time is computed in another order than several.
    np.testing.assert_allclose(recorded / 255, made, atol=1.01 / 510)


def test_pictures_of_the_steps_are_decoded_predictions():
    pipe, call = make("stable-diffusion")
    with record(pipe, [DecodedImages(every=2), Samples(every=2, measures=())]) as recording:
        run(pipe, call, steps=4)
    profile = recording.profile
    assert profile["images"].dims == ("step", "sample", "channel", "height", "width")
    assert profile["images"]["step"].values.tolist() == [0, 2]
    for step in (0, 2):
        latents = torch.as_tensor(profile["x0"].sel(step=step).values)
        with torch.no_grad():
            expected = pipe.vae.decode(latents / 0.5).sample.clamp(-1, 1)  # the zoo's scaling factor
        np.testing.assert_allclose(profile["images"].sel(step=step).values, (expected + 1) * 127.5, atol=0.51)


def test_pixels_need_no_autoencoder():
    pipe = DDPMPipeline(unet_2d(), DDPMScheduler())
    with record(pipe, [DecodedImages(), Samples()]) as recording:
        images = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    made = recording.profile["final_image"].transpose("sample", "height", "width", "channel").values
    np.testing.assert_allclose(made / 255, images, atol=1.01 / 510)


def test_the_plan_knows_the_size():
    pipe, call = make("stable-diffusion")
    arguments = {**call, "num_inference_steps": 5}
    planned = plan(pipe, [DecodedImages(every=2)], **arguments)
    with record(pipe, [DecodedImages(every=2)]) as recording:
        run(pipe, call, steps=5)
    arrays = {name: array.nbytes for name, array in recording.profile.items()}
    assert {array.name: array.nbytes for array in planned.entries[0].arrays} == arrays
    assert planned.nbytes == sum(arrays.values())


def test_half_precision_that_overflows_is_decoded_in_float32():
    pipe, call = make("stable-diffusion")
    half = copy.copy(pipe)
    vae = copy.deepcopy(pipe.vae).to(torch.float16)
    vae.register_to_config(force_upcast=True)
    half.register_modules(vae=vae)
    pictures = []
    for each in (pipe, half):
        with record(each, [DecodedImages()]) as recording:
            each(**call, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="latent")
        pictures.append(recording.profile["final_image"].values.astype(int))
    assert vae.dtype == torch.float16
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # weights rounded to half precision


@pytest.mark.parametrize(("name", "text"), [("sana", "'vae'"), ("dance-diffusion", "noise level")])
def test_what_cannot_be_decoded_is_refused_before_the_first_step_ends(name, text):
    pipe, call = make(name)
    steps = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1]
    with pytest.raises(ValueError, match=text), record(pipe, [DecodedImages()]):
        pipe(**call, num_inference_steps=2)
    assert not steps
