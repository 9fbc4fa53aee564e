"""The trained models inside the package."""

from pathlib import Path


# Experiments and the audit sample thousands of images: by default they take the fast model of photographed faces.
FAST = "lfw-32"
# Left, top, right, bottom of the parts of a photographed face, in 32nds of the image; right and bottom excluded.
_PARTS = {"eyes": (7, 11, 25, 17), "face": (6, 8, 26, 28)}
_FOLDER = Path(__file__).parent


def demo_checkpoint(name: str = "lfw-64") -> str:
    """Path of an embedded checkpoint of faces.

    Args:
        name (`str`, *optional*, defaults to `"lfw-64"`): A folder beside this file. `"lfw-64"`: a ConvNeXt U-Net of
            photographed faces at 64 px, the best one to look at. `"lfw-32"`: a smaller one at 32 px, five times as
            fast, on which experiments, findings and audit stand. `"drawn-32"`: one of faces that a program drew,
            whose labels and parts are known exactly. These are for `XAIPipeline.from_pretrained`.
            `"drawn-text-32"`: a text-to-image model of drawn faces, for `DiffusionPipeline.from_pretrained`.

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


def part_of_face(part: str, checkpoint: str | None, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Where a part of the face lies in the images of an embedded checkpoint of photographed faces.

    Args:
        part (`str`): `"eyes"` or `"face"`.
        checkpoint (`str`, *optional*): The checkpoint's path.
        size (`tuple[int, int]`): Height and width of its images.

    Returns:
        `tuple` of `int`, *optional*: left, top, right and bottom in pixels, right and bottom excluded; `None` for any
        other checkpoint or part.
    """
    if part not in _PARTS or not (name_of_embedded(checkpoint) or "").startswith("lfw-"):
        return None
    height, width = size
    left, top, right, bottom = _PARTS[part]
    return left * width // 32, top * height // 32, right * width // 32, bottom * height // 32
