"""How the files of our repositories read where this package is installed."""

from typing import Any


NETWORK_MODULE = "diffusers_xai.models"


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
