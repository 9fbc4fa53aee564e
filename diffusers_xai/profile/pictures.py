"""Recorded samples as pictures."""

import base64
import io

import numpy as np
from PIL import Image


def to_rgb(image: np.ndarray) -> np.ndarray:
    """A `(C, H, W)` image in [-1, 1] -> `(H, W, 3)` uint8; values outside the range are clipped.

    One channel becomes grey. Latents (any other number of channels) show their first three, each stretched to its own
    range.
    """
    image = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if len(image) == 1:
        image = np.repeat(image, 3, axis=0)
    elif len(image) != 3:
        image = np.concatenate([image, image[-1:]])[:3]
        low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)
        image = 2 * (image - low) / np.maximum(high - low, 1e-12) - 1
    return ((image.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)


def thumbnail(rgb: np.ndarray, size: int) -> np.ndarray:
    """`(H, W, 3)` uint8 -> the same picture with at most `size` pixels on a side."""
    if max(rgb.shape[:2]) <= size:
        return rgb
    picture = Image.fromarray(rgb)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def png(rgb: np.ndarray) -> bytes:
    """`(H, W, 3)` uint8 -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_data_uri(rgb: np.ndarray) -> str:
    """`(H, W, 3)` uint8 -> `"data:image/png;base64,…"`."""
    return "data:image/png;base64," + base64.b64encode(png(rgb)).decode("ascii")
