"""A picture of samples for a model card."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from diffusers_xai.labels import label_bits


_LABELS, _NOISES, _STEPS, _SECONDS = 16, 4, 50, 90.0
_CELL, _CAPTION = 64, 18  # pixels


@torch.no_grad()
def sample_grid(pipe: DiffusionPipeline, seed: int = 0) -> Image.Image:
    """A picture of samples (DDIM, 50 steps): a column for each of 16 labels, a row for each of four noises.

    Fewer where that would take more than about a minute and a half: then rows are left out, and at last labels.

    Args:
        pipe (`XAIPipeline`): What to sample from; its scheduler is put back at the end.
        seed (`int`): Of the first row's noise.
    """
    config = pipe.unet.config
    count, attributes = config.get("num_class_embeds"), config.get("class_attributes")
    labels = [*range(min(count, _LABELS))] if count is not None else [None] * 4
    rows: list[list[Image.Image]] = []
    scheduler = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config)
    steps = min(_STEPS, pipe.scheduler.config.num_train_timesteps)

    def draw(labels: Sequence[int | None], seeds: Sequence[int], steps: int) -> list[Image.Image]:
        return pipe(
            class_labels=labels if count is not None else None,
            batch_size=len(labels),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images

    try:
        # All of a row's images are drawn in one batch, and at least one row is.
        columns = min(len(labels), max(1, int(_SECONDS / (steps * _seconds(lambda: draw(labels[:1], [seed], 1))))))
        labels = [labels[i * len(labels) // columns] for i in range(columns)]
        start = time.perf_counter()
        while len(rows) < _NOISES:
            # The same noise under every label, and other noise in every column where there are no labels.
            first = seed + len(rows) * (1 if count is not None else columns)
            rows.append(draw(labels, [first + (0 if count is not None else i) for i in range(columns)], steps))
            if (time.perf_counter() - start) * (len(rows) + 1) / len(rows) > _SECONDS:
                break
    finally:
        pipe.scheduler = scheduler
    return _captioned(rows, ["" if label is None else label_bits(label, attributes or ()) for label in labels])


def _seconds(call: Any) -> float:
    """The time of the quicker of two calls: the first one makes caches."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _captioned(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """The rows under captions of their columns; small images enlarged by a whole factor, pixel by pixel."""
    width, height = rows[0][0].size
    factor = max(1, _CELL // min(width, height))
    width, height = width * factor, height * factor
    grid = Image.new("RGB", (width * len(captions), _CAPTION + height * len(rows)), "white")
    draw = ImageDraw.Draw(grid)
    for i, caption in enumerate(captions):
        centre = ((i + 0.5) * width, _CAPTION / 2)
        draw.text(centre, caption, fill="black", anchor="mm", font=ImageFont.load_default(12))
        for j, row in enumerate(rows):
            grid.paste(row[i].resize((width, height), Image.Resampling.NEAREST), (i * width, _CAPTION + j * height))
    return grid
