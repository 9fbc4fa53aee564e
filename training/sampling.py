"""Pictures of labels, in batches that fill the device, and side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusers_xai import XAIPipeline


class StoppedError(Exception):
    """What was under way has been given up because the run is to stop."""


def usable_device(name: str | None) -> torch.device:
    """The device of that name, or without one the GPU if there is one.

    Raises:
        ValueError: If it cannot be used.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {error}") from error


def images_that_fill(device: torch.device, size: int) -> int:
    """How many images of `size` x `size` pixels a forward pass takes: an accelerator wants many, a core few."""
    pixels = 2**16 if device.type == "cpu" else 2**20
    return max(1, pixels // size**2)


def sample_labels(
    pipeline: XAIPipeline, labels: Sequence[int] | Sequence[None], per_label: int, *, seed: int = 0, **settings: Any
) -> torch.Tensor:
    """`per_label` images of each label, label by label; the i-th of every label has the seed `seed + i`.

    `settings` are those of `sample_images`, which says what comes out.
    """
    return sample_images(
        pipeline,
        [label for label in labels for _ in range(per_label)],
        [seed + i for _ in labels for i in range(per_label)],
        **settings,
    )


@torch.no_grad()
def sample_images(
    pipeline: XAIPipeline,
    labels: Sequence[int] | Sequence[None],
    seeds: Sequence[int],
    *,
    guidance_scale: float = 1.0,
    num_inference_steps: int = 50,
    batch_size: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """An image of each label: (image, 3, height, width) in [-1, 1], on the CPU.

    An image depends on its label and its seed alone but for rounding, whatever the batch and the device.

    Args:
        pipeline (`XAIPipeline`): Network and scheduler.
        labels (sequence of `int`): A label per image; `None` for an unconditional network.
        seeds (sequence of `int`): A seed of its noise per image.
        guidance_scale (`float`): 1 is none.
        num_inference_steps (`int`): Denoising steps.
        batch_size (`int`, *optional*): Images at once; as many as fill the device if `None`.
        stop (`Callable`): Asked after every step.

    Raises:
        StoppedError: If `stop` says so.
    """
    device = next(pipeline.unet.parameters()).device
    batch_size = batch_size or images_that_fill(device, pipeline.unet.config.sample_size)

    def check(_pipeline: object, _step: int, _timestep: object, _tensors: dict) -> dict:
        if stop():
            raise StoppedError
        return {}

    images = []
    with tqdm(total=len(labels), desc=f"samples at guidance {guidance_scale:g}", leave=False) as bar:
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            images.append(
                pipeline(
                    class_labels=None if labels[start] is None else list(labels[part]),
                    batch_size=len(labels[part]),
                    generator=[torch.Generator().manual_seed(s) for s in seeds[part]],
                    guidance_scale=guidance_scale,
                    num_inference_steps=num_inference_steps,
                    output_type="pt",
                    callback_on_step_end=check,
                ).images.cpu()
            )
            bar.update(len(labels[part]))
    return torch.cat(images) * 2 - 1


def tiles(images: torch.Tensor, columns: int) -> Image.Image:
    """Images (image, 3, height, width) in [-1, 1] side by side, `columns` in a row."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    grid = (torch.cat(rows, dim=1) / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return Image.fromarray((grid * 255).round().byte().numpy())
