"""The blocks of a U-Net and the layers in them, for people to choose from."""

import re
from typing import Any


_LAYER = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+(?:\.attn)?")


def layers_by_block(denoiser: Any) -> dict[str, list[str]]:
    """The layers of every block of a U-Net, in the order of the forward pass.

    Args:
        denoiser ([`ConvNextUNet2DModel`], [`~diffusers.UNet2DModel`] or another U-Net): Its blocks are called
            `down_blocks.<n>`, `mid_block` and `up_blocks.<n>`.

    Returns:
        `dict[str, list[str]]`: Path of the block -> paths of its layers: residual blocks, attention, resampling.
    """
    found: dict[str, list[str]] = {}
    for path, _ in denoiser.named_modules():
        match = _LAYER.fullmatch(path)
        if match:
            found.setdefault(match[1], []).append(path)
    order = {"down": 0, "mid_": 1, "up_b": 2}
    return dict(
        sorted(
            found.items(), key=lambda item: (order[item[0][:4]], int(item[0].split(".")[-1]) if "." in item[0] else 0)
        )
    )
