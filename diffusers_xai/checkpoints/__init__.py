"""The trained models inside the package."""

from pathlib import Path


# Left, top, right, bottom in the faces of "lfw-32", in pixels; right and bottom excluded.
EYES = (7, 11, 25, 17)
FACE = (6, 8, 26, 28)


def demo_checkpoint(name: str = "lfw-32") -> str:
    """Path of an embedded checkpoint of faces at 32 px.

    Args:
        name (`str`, *optional*, defaults to `"lfw-32"`):
            - `"lfw-32"`: photographs, for `XAIPipeline.from_pretrained`,
            - `"drawn-32"`: drawn faces, whose labels and masks are exactly known; the fastest,
            - `"drawn-text-32"`: drawn faces by captions, a `StableDiffusionPipeline` for plain diffusers.

    Data, limits and licence of each are in its folder's `README.md`.

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
