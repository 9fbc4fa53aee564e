"""Masks: which pixels of an image count, as a bool array (height, width)."""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw


def as_mask(mask: ArrayLike | torch.Tensor | os.PathLike, size: tuple[int, ...] | None = None) -> np.ndarray:
    """A mask as a checked array.

    Args:
        mask (`torch.Tensor` or array of shape `(height, width)`, bool, or a path): The mask, or a picture of it (see
            [`mask_from_png`]).
        size (`tuple[int, int]`, *optional*): Height and width that it must have.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool.

    Raises:
        ValueError: If the mask is not bool, not 2-D, of another size, or has no True pixel.
        OSError: If the picture cannot be read.
    """
    if isinstance(mask, (str, os.PathLike)):
        return mask_from_png(mask, size)
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != bool or array.ndim != 2:
        hint = " Compare numbers with a threshold, as in `mask > 0.5`." if array.dtype != bool else ""
        raise ValueError(
            f"expected a mask of shape (height, width) and dtype bool, got shape {array.shape} and {array.dtype}."
            f"{hint}"
        )
    if size is not None and array.shape != tuple(size):
        raise ValueError(
            f"expected a mask of the samples' size (height, width) = {tuple(size)}, got {array.shape}. Draw it on a"
            " sampled image, or resize it."
        )
    if not array.any():
        raise ValueError(f"expected a mask with at least one True pixel, got an empty one of {array.shape}.")
    return array


def mask_from_png(path: str | os.PathLike, size: tuple[int, ...] | None = None) -> np.ndarray:
    """The bright and opaque pixels of a picture file.

    Args:
        path (`str` or `os.PathLike`): A picture that Pillow reads.
        size (`tuple[int, int]`, *optional*): Height and width that it must have.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool: True where a pixel's brightness and opacity are above
        one half.

    Raises:
        ValueError: If the picture is of another size, or has no such pixel.
        OSError: If it cannot be read.
    """
    with Image.open(path) as image:
        brightness, opacity = np.asarray(image.convert("LA")).transpose(2, 0, 1)
    try:
        return as_mask((brightness > 127) & (opacity > 127), size)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error} (Bright, opaque pixels count.)") from error


def mask_from_box(box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """A rectangle.

    Args:
        box (sequence of 4 `int`): Left, top, right, bottom in pixels, right and bottom excluded, as in
            `PIL.Image.crop`.
        size (`tuple[int, int]`): Height and width of the samples.

    Returns:
        `np.ndarray` of shape `size` and dtype bool.

    Raises:
        ValueError: If the box does not lie in the image, or holds no pixel.
    """
    height, width = size
    values = tuple(box)
    if len(values) != 4 or any(int(value) != value for value in values):
        raise ValueError(f"expected a box (left, top, right, bottom) in whole pixels, got {values}.")
    left, top, right, bottom = map(int, values)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"expected a box (left, top, right, bottom) with 0 <= left < right <= {width} and 0 <= top < bottom <="
            f" {height}, got {values}."
        )
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def mask_from_drawing(drawn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a small image that a drawing on its enlargement touches by a quarter or more.

    Args:
        drawn (`np.ndarray` of shape `(height, width)`, bool): True where something was drawn; at least as large as
            `size`.
        size (`tuple[int, int]`): Height and width of the samples.

    Returns:
        `np.ndarray` of shape `size` and dtype bool; may be all False.

    Raises:
        ValueError: If the drawing is smaller than the samples.
    """
    height, width = drawn.shape
    if height < size[0] or width < size[1]:
        raise ValueError(f"Expected a drawing of at least {size[0]}x{size[1]} pixels, got {height}x{width}.")
    rows = np.arange(height) * size[0] // height
    columns = np.arange(width) * size[1] // width
    touched, whole = np.zeros(size), np.zeros(size)
    np.add.at(touched, (rows[:, None], columns[None]), drawn)
    np.add.at(whole, (rows[:, None], columns[None]), 1)
    return touched >= whole / 4


def mask_from_polygon(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """A filled polygon, its outline included; what lies outside the image is cut off.

    Args:
        points (sequence of `tuple[float, float]`): At least three corners (x, y) in pixels, from the left and the top.
        size (`tuple[int, int]`): Height and width of the samples.

    Returns:
        `np.ndarray` of shape `size` and dtype bool.

    Raises:
        ValueError: If there are fewer than three points, or no pixel inside the image.
    """
    height, width = size
    corners = [tuple(point) for point in points]
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise ValueError(f"expected a polygon of at least three points (x, y), got {corners}.")
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon(corners, fill=1)
    mask = np.asarray(image, dtype=bool)
    if not mask.any():
        raise ValueError(f"expected a polygon inside an image of {width} x {height} pixels (x, y), got {corners}.")
    return mask


def mask_to_runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as short JSON-able data: its size, and the lengths of its runs of equal pixels, row by row.

    The first run is False, and may have length 0. [`mask_from_runs`] goes back.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): The mask.
    """
    pixels = mask.ravel().tolist()
    runs = [] if not pixels[0] else [0]
    runs += [len(list(run)) for _, run in groupby(pixels)]
    return {"size": list(mask.shape), "runs": runs}


def mask_from_runs(data: dict[str, Any]) -> np.ndarray:
    """The mask that [`mask_to_runs`] described.

    Raises:
        ValueError: If the runs do not fill the size.
    """
    values = np.arange(len(data["runs"])) % 2 == 1
    return np.repeat(values, data["runs"]).reshape(data["size"])
