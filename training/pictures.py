"""A picture of any kind as the square of 8-bit RGB that a network is trained on."""

import numpy as np
from PIL import Image, ImageCms


_WIDE_MODES = ("I", "F")  # and "I;16…": one channel of more than 8 bits, which Pillow would cut off at 255


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB: what is transparent lies on white, 16-bit greys are scaled to 8 bits.

    Raises:
        ValueError: If the picture's values are not finite, or its mode is unknown.
    """
    if image.mode in _WIDE_MODES or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"expected a picture of finite values, got others in one of mode {mode}")
    most = values.max()
    if mode == "F" and most <= 1:
        white = 1.0
    elif mode == "F" and most <= 255:
        white = 255.0
    else:  # 16-bit files come as "I;16" or "I"; what holds more has no white of its own
        white = max(65535.0, most)
    return (values.clip(0, white) * (255 / white)).round().astype(np.uint8)


def square(image: Image.Image, side: int | None, size: int) -> np.ndarray:
    """The centred square of `side` pixels, the largest if `None`, resized: uint8 of shape (size, size, 3)."""
    side = min(side or min(image.size), *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    part = image.crop((left, top, left + side, top + side))  # `resize(box=…)` would look over the edge
    return np.asarray(part.resize((size, size), Image.Resampling.LANCZOS))
