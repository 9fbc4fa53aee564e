"""The blocks of a U-Net and the layers in them, for people to choose from."""

import re
from collections.abc import Sequence

from torch import nn

from diffusers_xai.denoisers.base import Denoiser
from diffusers_xai.models import ClosedFormDenoiser


_LAYER = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+(?:\.attn)?")


def layers_by_block(denoiser: nn.Module) -> dict[str, list[str]]:
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


def block_layers(denoiser: Denoiser) -> list[str]:
    """Globs of the layers in a U-Net's blocks, of another network of its blocks; see [`innermost`]."""
    if layers_by_block(denoiser.module):
        return ["mid_block.*.*", "*_blocks.*.*.*"]
    return ["*.*"] if any("." in path for path in denoiser.layers) else []


def innermost(denoiser: Denoiser, paths: Sequence[str]) -> list[str]:
    """Those of several layers that have weights and hold no other of them, so that each weight counts once."""
    return [
        path
        for path in paths
        if not any(other.startswith(f"{path}.") for other in paths)
        and any(True for _ in denoiser.layers[path.partition("@")[0]].parameters())
    ]


def telling_layers(denoiser: Denoiser) -> list[str]:
    """The layers that are shown where none are named: attention, else the last layers of blocks, else the result.

    Args:
        denoiser ([`Denoiser`]): Any network.

    Raises:
        ValueError: If it has neither attention, nor blocks as a U-Net has them, nor a closed form's result.
    """
    found = list(denoiser.attention_outputs()) or [paths[-1] for paths in layers_by_block(denoiser.module).values()]
    if not found and isinstance(denoiser.module, ClosedFormDenoiser):
        found = ["x0"]
    if not found:
        raise ValueError(f"Expected `layers`: {denoiser.name} has neither attention nor the blocks of a U-Net.")
    return found
