"""The trained models inside the package."""

from pathlib import Path


# Left, top, right, bottom in the faces of "lfw-32", in pixels; right and bottom excluded.
EYES = (7, 11, 25, 17)
FACE = (6, 8, 26, 28)
_FOLDER = Path(__file__).parent


def demo_checkpoint(name: str = "lfw-32") -> str:
    """Path of an embedded checkpoint of faces.

    Args:
        name (`str`, *optional*, defaults to `"lfw-32"`): A folder beside this file. `"lfw-32"`: a small ConvNeXt U-Net
            of photographed faces at 32 px. `"lfw-64"`: a larger one at 64 px, five times as slow. `"drawn-32"`: one
            of faces that a program drew, whose labels and parts are known exactly. These are for
            `XAIPipeline.from_pretrained`. `"drawn-text-32"`: a text-to-image model of drawn faces, for
            `DiffusionPipeline.from_pretrained`.

    Data, limits and licence are in the folder's `README.md`.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    available = embedded_checkpoints()
    if name not in available:
        raise ValueError(
            f"Expected the name of an embedded checkpoint, got {name!r}; available: {', '.join(available)}."
        )
    return str(_FOLDER / name)


def embedded_checkpoints() -> list[str]:
    """The names that `demo_checkpoint` knows."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))


def name_of_embedded(checkpoint: str | None) -> str | None:
    """The name of the embedded checkpoint with this path; `None` for any other path."""
    return next((name for name in embedded_checkpoints() if checkpoint == str(_FOLDER / name)), None)
