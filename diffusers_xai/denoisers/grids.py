"""Where the tokens of a sample lie: (height, width), of videos (frame, height, width), of sound (frame,)."""

import functools
from math import prod
from typing import Any

import torch

from diffusers_xai.denoisers.call import DenoiserCall


def patches(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a sample (row, channel, [frame,] height, width)."""
    return _patches(call, frames_axis=2)


def patches_frames_first(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a sample (row, frame, channel, height, width)."""
    return _patches(call, frames_axis=1)


def patches_channels_last(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a sample (row, frame, height, width, channel), in their order.

    Raises:
        ValueError: if the network is told to put them into another one, for sparse attention.
    """
    if (call.arguments.get("sparse_params") or {}).get("to_fractal"):
        raise ValueError(
            f"Expected {type(call.module).__name__} with the tokens of an image in their order, got sparse attention,"
            " which puts them into blocks: load it with `attention_type='regular'`."
        )
    patches = _config(call)["patch_size"]
    return tuple(size // patch for size, patch in zip(call.sample.shape[1:4], patches, strict=True))


def _patches(call: DenoiserCall, frames_axis: int) -> tuple[int, ...]:
    config = _config(call)
    patch, patch_t = config.get("patch_size", 1), config.get("patch_size_t")
    if isinstance(patch, (list, tuple)):
        patch_t, patch = (patch[0] if len(patch) == 3 else patch_t), patch[-1]
    height, width = call.sample.shape[-2] // patch, call.sample.shape[-1] // patch
    if call.sample.ndim < 5:
        return height, width
    return -(-call.sample.shape[frames_axis] // (patch_t or 1)), height, width


def listed_patches(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a list of rows (channel, frame, height, width), of the size that the call names."""
    patch, patch_t = call.arguments.get("patch_size", 2), call.arguments.get("f_patch_size", 1)
    height, width = call.sample.shape[-2] // patch, call.sample.shape[-1] // patch
    return (height, width) if call.sample.ndim == 4 else (call.sample.shape[2] // patch_t, height, width)


def image_ids(call: DenoiserCall) -> tuple[int, ...]:
    """From `img_ids` (token, 3 or 4): the rows and columns of the tokens of the image itself (reference 0)."""
    ids = call.arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[ids[:, 0] == ids[0, 0]]
    return tuple(len(torch.unique(own[:, column])) for column in (1, 2))


def image_shapes(call: DenoiserCall) -> tuple[int, ...]:
    """From `img_shapes`, a list per row of (frames, height, width): the first is the image itself."""
    shape = call.arguments["img_shapes"][0]
    frames, height, width = shape[0] if isinstance(shape[0], (list, tuple)) else shape
    return (height, width) if frames == 1 else (frames, height, width)


def keywords(call: DenoiserCall) -> tuple[int, ...]:
    """From the keywords `num_frames`, `height` and `width`, counted in tokens."""
    return tuple(int(call.arguments[name]) for name in ("num_frames", "height", "width"))


def sequence(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a sample (row, channel, frame)."""
    return (call.sample.shape[2] // _config(call).get("patch_size", 1),)


def sequence_frames_first(call: DenoiserCall) -> tuple[int, ...]:
    """Patches of a sample (row, frame, channel), the last one filled up."""
    return (-(-call.sample.shape[1] // _config(call).get("patch_size", 1)),)


def _config(call: DenoiserCall) -> Any:
    return getattr(call.module, "config", {})


@functools.cache
def strided(tokens: int, sample_size: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid of `tokens` tokens of a U-Net's level; `None` if they do not cover the sample evenly."""
    nearest = round((prod(sample_size) / tokens) ** (1 / len(sample_size)))
    for stride in (nearest, nearest + 1, nearest - 1):  # odd sizes are rounded up where a layer down-samples
        if stride > 0 and prod(grid := tuple(-(-size // stride) for size in sample_size)) == tokens:
            return grid
    return None
