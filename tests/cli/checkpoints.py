"""Tiny checkpoints on disk."""

from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet, unet_2d


def save_tiny(folder, scheduler=None, **config):
    """A network of the package with random weights, its labels those of the faces unless `config` says otherwise."""
    XAIPipeline(convnext_unet(**config), scheduler or DDPMScheduler()).save_pretrained(folder)


def save_unet_2d(folder, scheduler=None, **config):
    """A network of diffusers, whose labels have no names."""
    XAIPipeline(unet_2d(**config), scheduler or DDPMScheduler()).save_pretrained(folder)
