"""What a visitor has painted, from the files of the browser; nobody else's image is ever decoded here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from diffusers_xai.app.settings import Limits, SettingsError


def painted(editor: Any, limits: Limits) -> np.ndarray | None:
    """Where there is paint: bool `(height, width)`, or `None` where nothing was painted.

    Args:
        editor: The image editor's data as it comes: files of layers; background and composite are not read.
        limits (`Limits`): How many layers of how many pixels are decoded.

    Raises:
        SettingsError: If there are more, larger or other files than an editor makes.
    """
    layers = editor.get("layers") if isinstance(editor, Mapping) else None
    if not layers:
        return None
    if not isinstance(layers, list) or len(layers) > limits.max_layers:
        count = len(layers) if isinstance(layers, list) else "something else"
        raise SettingsError(f"Expected at most {limits.max_layers} painted layers, got {count}.")
    drawn = [_paint(layer, limits.max_side) for layer in layers if layer is not None]
    if len({layer.shape for layer in drawn}) > 1:
        raise SettingsError("Expected painted layers of one size, got several.")
    mask = np.any(drawn, axis=0) if drawn else None
    return mask if mask is not None and mask.any() else None


def _paint(layer: Any, max_side: int) -> np.ndarray:
    path = layer.get("path") if isinstance(layer, Mapping) else None  # Gradio has seen that it is an upload
    try:
        with Image.open(str(path), formats=("PNG", "WEBP")) as image:
            if max(image.size) > max_side:  # known from the header, before a pixel is decoded
                raise SettingsError(
                    f"Expected a drawing of at most {max_side} × {max_side} pixels, got"
                    f" {image.width} × {image.height}."
                )
            return np.asarray(image.convert("RGBA").getchannel("A")) > 0
    except SettingsError:
        raise
    except Exception as error:  # whatever Pillow raises
        raise SettingsError("The drawing cannot be read: paint it again.") from error
