"""The trained models inside the package."""

from pathlib import Path


# Left, top, right, bottom in the faces of "lfw-32", in pixels; right and bottom excluded.
EYES = (7, 11, 25, 17)
FACE = (6, 8, 26, 28)


def demo_checkpoint(name: str = "lfw-32") -> str:
    """Path of an embedded checkpoint of faces at 32 px.

    Args:
        name (`str`, *optional*, defaults to `"lfw-32"`): A folder beside this file. `"lfw-32"`: a small ConvNeXt U-Net
            of photographed faces, for `XAIPipeline.from_pretrained`.

    Data, limits and licence ("for research") are in the folder's `README.md`.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    folder = Path(__file__).parent
    available = sorted(path.parent.name for path in folder.glob("*/model_index.json"))
    if name not in available:
        raise ValueError(
            f"Expected the name of an embedded checkpoint, got {name!r}; available: {', '.join(available)}"
        )
    return str(folder / name)
