"""Picture files as cameras and editors write them."""

import os
from pathlib import Path
from typing import BinaryIO

from PIL import Image


_ORIENTATION_TAG = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """A picture in its own mode, decoded, and turned upright as its EXIF data say.

    Args:
        source (`str`, `os.PathLike` or binary file): What Pillow reads.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If Pillow cannot read it, whatever Pillow raises then: `SyntaxError`, `ValueError`, `struct.error`,
            `DecompressionBombError` and others.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).exists() and not Path(source).is_file():
        raise OSError("not a readable picture: a directory, a pipe or a device")  # whose end may never come
    try:
        with Image.open(source) as image:
            image.load()
            orientation = _orientation(image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"not a readable picture: {error or type(error).__name__}") from error
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data do not spoil the pixels
        return None
