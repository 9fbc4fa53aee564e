"""Everything that concerns the Hub."""

from diffusers.pipelines import pipeline_loading_utils


def register_with_diffusers(model_class: type) -> None:
    """Lets `DiffusionPipeline.from_pretrained` find our network by `["diffusers_xai", "ConvNextUNet2DModel"]`.

    diffusers refuses to load a component from a library that it does not know, and looks the base classes of what it
    loads (`ModelMixin`) up at the library's top level. The registry is private, so that a test holds it.
    """
    model_class.__module__ = "diffusers_xai"
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("diffusers_xai", {})
