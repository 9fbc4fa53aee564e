"""Masks: which pixels of an image count, as a bool array (height, width)."""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from skimage.draw import polygon

from diffusers_xai.measures.pictures import open_picture


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
            f"Expected a mask of shape (height, width) and dtype bool, got shape {array.shape} and {array.dtype}."
            f"{hint}"
        )
    if size is not None and array.shape != tuple(size):
        raise ValueError(
            f"Expected a mask of the samples' size (height, width) = {tuple(size)}, got {array.shape}. Draw it on a"
            " sampled image, or resize it."
        )
    if not array.any():
        raise ValueError(f"Expected a mask with at least one True pixel, got an empty one of {array.shape}.")
    return array


def region_or_middle(mask: ArrayLike | torch.Tensor | os.PathLike | None, size: tuple[int, ...]) -> np.ndarray:
    """The mask of this size, see [`as_mask`]; a square in the middle of the image if it is `None`."""
    if mask is not None:
        return as_mask(mask, size)
    height, width = size
    return mask_from_box((3 * width // 8, 3 * height // 8, 5 * width // 8, 5 * height // 8), (height, width))


def mask_from_png(path: str | os.PathLike, size: tuple[int, ...] | None = None) -> np.ndarray:
    """The painted pixels of a picture file, turned upright.

    What counts is what an editor leaves behind when a region is painted:

    - on transparency, the opaque pixels, whatever their colour;
    - in black and white, the bright pixels;
    - in one colour on a white or a black page, the coloured pixels;
    - as a label map of 0 and one other number, the pixels of that number.

    Args:
        path (`str` or `os.PathLike`): A picture that Pillow reads.
        size (`tuple[int, int]`, *optional*): Height and width that it must have.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool.

    Raises:
        ValueError: If the picture is of another size, has no painted pixel, or does not tell what is painted: several
            colours or labels, a photograph, grey on white.
        OSError: If it cannot be read.
    """
    try:
        mask = as_mask(_painted(open_picture(path)), size)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if border.all() and not mask.all():
            raise ValueError(f"{_EXPECTED}, got a border that is painted all round and a hole: which one counts?")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{os.fspath(path)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return mask


_EXPECTED = "expected white on black, one colour on transparency, white or black, or a label map of 0 and 1"


def _painted(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        *colors, opacity = np.asarray(image.convert("RGBA")).transpose(2, 0, 1).astype(int)
        opaque = opacity > 127
        if not opaque.all():
            tones = np.max(colors, axis=0)[opaque]
            if tones.size and tones.min() < 64 and np.min(colors, axis=0)[opaque].max() > 191:
                raise ValueError(f"{_EXPECTED}, got black and white pixels on transparency.")
            return opaque
        image = image.convert("RGB")
    elif len(image.getbands()) == 1 and image.mode != "P":
        return _painted_in_grey(np.asarray(image))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    if chroma.max() <= 64:
        return _painted_in_grey(pixels[:, :, 1])
    page = pixels[chroma <= 64].mean(axis=1)
    white = 255.0 if page.size and page.mean() > 127 else 0.0
    line = pixels.reshape(-1, 3)[chroma.argmax()] - white  # from the page to the paint
    # Each pixel as a mixture of both: 0 on the page, 1 in the paint; whatever is off the line is a third colour.
    share = (pixels - white) @ line / (line @ line)
    distance = np.linalg.norm(pixels - white - share[:, :, None] * line, axis=2)
    if not page.size or (distance > 64).mean() > 0.01:
        raise ValueError(f"{_EXPECTED}, got several colours.")
    return share > 0.5


def _painted_in_grey(values: np.ndarray) -> np.ndarray:
    levels = np.unique(values)
    low, high = float(levels[0]), float(levels[-1])
    if low == 0 and len(levels) <= 2:  # black and white, or a label map
        return values > 0
    white = 255.0 if values.dtype == np.uint8 else next((top for top in (1.0, 255.0) if high <= top), 65535.0)
    grey = ((values > white / 8) & (values < white * 7 / 8)).mean()
    if len(levels) > 1 and (low > white / 8 or high < white * 7 / 8 or grey > 0.5):
        raise ValueError(f"{_EXPECTED}, got {len(levels)} greys from {low:g} to {high:g}.")
    return values > white / 2


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
        raise ValueError(f"Expected a box (left, top, right, bottom) in whole pixels, got {values}.")
    left, top, right, bottom = map(int, values)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"Expected a box (left, top, right, bottom) with 0 <= left < right <= {width} and 0 <= top < bottom <="
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
    """A filled polygon: the pixels whose centres lie in it or on its outline.

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
        raise ValueError(f"Expected a polygon of at least three points (x, y), got {corners}.")
    x, y = np.array(corners, dtype=np.float64).T
    mask = np.zeros((height, width), dtype=bool)
    mask[polygon(y, x, mask.shape)] = True
    if not mask.any():
        raise ValueError(f"Expected a polygon inside an image of {width} x {height} pixels (x, y), got {corners}.")
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
