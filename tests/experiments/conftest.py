import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet


@pytest.fixture
def pipe():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe
