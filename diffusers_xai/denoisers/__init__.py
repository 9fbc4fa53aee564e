"""One small adapter per model family: its layers, tokens -> grid, guidance branches."""

from typing import Any

from diffusers_xai.denoisers.base import Denoiser, stated_channels
from diffusers_xai.denoisers.convnext_unet import ConvNextUNetDenoiser
from diffusers_xai.denoisers.unet_2d import UNet2DConditionDenoiser, UNet2DDenoiser


# By class name: a class that a Hub repository carries as code has the same name and another module.
DENOISERS: dict[str, type[Denoiser]] = {
    "ConvNextUNet2DModel": ConvNextUNetDenoiser,
    "UNet2DModel": UNet2DDenoiser,
    "UNet2DConditionModel": UNet2DConditionDenoiser,
}


def get_denoiser(pipeline: Any) -> Denoiser:
    """The adapter of a pipeline's denoiser.

    Args:
        pipeline (`DiffusionPipeline`): Any pipeline with a `unet` or `transformer` of a known family.

    Raises:
        TypeError: if the denoiser's family is not known, with the known ones.
    """
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if module is None:
            continue
        family = type(getattr(module, "_orig_mod", module)).__name__
        if family in DENOISERS:
            return DENOISERS[family](module)
        raise TypeError(
            f"Expected a denoiser of one of the families {sorted(DENOISERS)}, got {family} as"
            f" `{type(pipeline).__name__}.{name}`."
        )
    raise TypeError(f"Expected a pipeline with a `unet` or a `transformer`, got {type(pipeline).__name__}.")


__all__ = [
    "DENOISERS",
    "Denoiser",
    "ConvNextUNetDenoiser",
    "UNet2DDenoiser",
    "UNet2DConditionDenoiser",
    "get_denoiser",
    "stated_channels",
]
