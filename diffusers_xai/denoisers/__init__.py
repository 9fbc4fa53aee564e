"""One small adapter per model family: its layers, tokens -> grid, guidance branches."""

from typing import Any

from diffusers_xai.denoisers.base import Backbone, stated_channels
from diffusers_xai.denoisers.convnext_unet import ConvNextUNetBackbone
from diffusers_xai.denoisers.unet_2d import UNet2DBackbone, UNet2DConditionBackbone


# By class name: a class that a Hub repository carries as code has the same name and another module.
BACKBONES: dict[str, type[Backbone]] = {
    "ConvNextUNet2DModel": ConvNextUNetBackbone,
    "UNet2DModel": UNet2DBackbone,
    "UNet2DConditionModel": UNet2DConditionBackbone,
}


def get_backbone(pipeline: Any) -> Backbone:
    """The adapter of a pipeline's denoiser.

    Args:
        pipeline (`DiffusionPipeline`): Any pipeline with a `unet` or `transformer` of a known family.

    Raises:
        TypeError: if the denoiser's family is not known, with the known ones.
    """
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline, name, None)
        if denoiser is None:
            continue
        family = type(getattr(denoiser, "_orig_mod", denoiser)).__name__
        backbone = BACKBONES.get(family)
        if backbone is not None:
            return backbone(denoiser)
        raise TypeError(
            f"Expected a denoiser of one of the families {sorted(BACKBONES)}, got {family} as"
            f" `{type(pipeline).__name__}.{name}`."
        )
    raise TypeError(f"Expected a pipeline with a `unet` or a `transformer`, got {type(pipeline).__name__}.")


__all__ = [
    "BACKBONES",
    "Backbone",
    "ConvNextUNetBackbone",
    "UNet2DBackbone",
    "UNet2DConditionBackbone",
    "get_backbone",
    "stated_channels",
]
