"""The pipeline that a repository carries for plain diffusers, beside the package's own."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.hub import plain_pipeline
from tests.tiny import convnext_unet, unet_2d


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (4, 9)]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (DDPMScheduler, {}),
        (DDIMScheduler, {"eta": 0.5}),
        (DPMSolverMultistepScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
    ],
)
def test_pixels_are_those_of_the_package(scheduler, options, guidance_scale):
    unet = convnext_unet()
    images = []
    for pipeline in (XAIPipeline, plain_pipeline.XAIPipeline):
        pipe = pipeline(unet, scheduler(clip_sample=False) if scheduler is DDIMScheduler else scheduler())
        images.append(
            pipe(
                class_labels=[3, 12], num_inference_steps=7, generator=generators(), guidance_scale=guidance_scale,
                output_type="np", **options,
            ).images
        )  # fmt: skip
    np.testing.assert_array_equal(*images)


def test_an_unconditional_network():
    unet = unet_2d()
    images = []
    for pipeline in (XAIPipeline, plain_pipeline.XAIPipeline):
        pipe = pipeline(unet, DDPMScheduler())
        images.append(pipe(batch_size=2, num_inference_steps=5, generator=generators(), output_type="np").images)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([3, 12]), [3, 12]),
        (np.int64(3), [3]),
        ([{"Smiling": True}, -1], [0b0010, -1]),
        (torch.eye(16)[[15, 2]], [15, 2]),
        (np.array([[0, 0, 1, 1], [1, 1, 0, 0]]), [0b0011, 0b1100]),
        (torch.tensor([[3], [5]]), ValueError),
        (torch.ones(1, 16), ValueError),
        ([0.5], TypeError),
        ([True], TypeError),
    ],
)
def test_labels_are_read_as_the_package_reads_them(labels, expected):
    pipes = [pipeline(convnext_unet(), DDPMScheduler()) for pipeline in (XAIPipeline, plain_pipeline.XAIPipeline)]
    for encode in (pipes[0].encode_labels, pipes[1]._encode):
        if isinstance(expected, list):
            assert encode(labels) == expected
        else:
            with pytest.raises(expected):
                encode(labels)


def test_steps_where_none_are_asked_for():
    calls = []
    for scheduler, steps in ((DDPMScheduler(num_train_timesteps=7), 7), (DDIMScheduler(), 50)):
        pipe = plain_pipeline.XAIPipeline(unet_2d(attention=False), scheduler)
        handle = pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
        pipe()
        handle.remove()
        assert len(calls) == steps
        calls.clear()
