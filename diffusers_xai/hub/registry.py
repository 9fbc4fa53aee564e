"""What diffusers must know to load our network."""

from typing import Any

from diffusers.pipelines import pipeline_loading_utils


NETWORK_MODULE = "diffusers_xai.models"


def register_with_diffusers(model_class: type) -> None:
    """Lets `DiffusionPipeline.from_pretrained` find our network by `["diffusers_xai", "ConvNextUNet2DModel"]`.

    diffusers refuses to load a component from a library that it does not know, and looks the base classes of what it
    loads (`ModelMixin`) up at the library's top level. The registry is private, so that a test holds it.
    """
    model_class.__module__ = "diffusers_xai"
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("diffusers_xai", {})
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(NETWORK_MODULE, {})


def installed_classes(index: dict[str, Any]) -> dict[str, Any]:
    """A `model_index.json` as it reads for whoever has this package, so that no code of the repository is run.

    A repository made by [`XAIPipeline.push_to_hub`] names the classes in its own `pipeline.py` and
    `unet/diffusers_xai.py`, for users of plain diffusers. diffusers takes a component's class from a file of the
    repository wherever one has the library's name; under the name of the module there is none.

    Args:
        index (`dict`): The file's content. Other JSON files are returned as they are.
    """
    index = dict(index)
    if isinstance(index.get("_class_name"), list):
        index["_class_name"] = index["_class_name"][-1]
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[0] == "diffusers_xai":
            index[name] = [NETWORK_MODULE, value[1]]
    return index
