import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet


@pytest.fixture
def pipe():
    return XAIPipeline(convnext_unet(), DDPMScheduler())
