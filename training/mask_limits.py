"""Measures how well maps of few pixels could agree with masks at best: those of the masks themselves.

    python -m training.mask_limits

The masks of drawn faces are averaged to a map's size and enlarged as the experiments enlarge maps, then compared with
themselves as those compare: parts by `concepts`, at each size of the layers of `drawn-32`; words by `words`, as the
mean over maps of the sizes of all layers of `drawn-text-32` that look at text. Chance is a map that knows nothing.
Last, for the experiment `emergence`: how far a map whose pixels are enlarged to squares can correlate with edges and
foreground of images of `lfw-32`. The tables are printed in Markdown.
"""

import argparse
import math
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from diffusers import DDIMScheduler, UNet2DConditionModel

from diffusers_xai import XAIPipeline, demo_checkpoint
from diffusers_xai.analysis.overlap import overlap
from diffusers_xai.analysis.structure import edge_strength, foreground
from diffusers_xai.checkpoints.drawn_parts import parts, words
from diffusers_xai.cli.options import count as positive
from diffusers_xai.experiments.findings_page import markdown_rows
from diffusers_xai.experiments.maps import pooled, resized, standardised
from diffusers_xai.experiments.word_masks import CHANCE, MAP, agreement
from training.sampling import sample_images


SIZES = (16, 8, 4)  # of the layers of drawn-32 that are smaller than the image
PROMPT = "a smiling woman with bangs, lipstick, glasses and ginger hair, green background"  # that of the page on words


def seen_at(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks (…, height, width) as a map of `size` × `size` pixels could show them, enlarged again."""
    return resized(pooled(masks, (size, size)).astype(np.float32), masks.shape[-2:], "bilinear")


def limits_of_parts(masks: dict[str, np.ndarray], sizes: Sequence[int] = SIZES) -> pd.DataFrame:
    """A row for each part: the IoU over all images of the best map of each size, as the experiment `concepts` has it.

    Args:
        masks (`dict[str, np.ndarray]`): By part, bool (image, height, width).
        sizes (`Sequence[int]`): Heights of square maps.
    """
    stacked = np.stack(list(masks.values()))
    order = np.arange(stacked.shape[1])
    share = stacked.mean((1, 2, 3))
    table = {"part": list(masks)}
    for size in sizes:
        maps = seen_at(stacked, size).swapaxes(0, 1)  # each concept's own masks, as the map of a unit
        table[f"{size}×{size}"] = [f"{iou:.2f}" for iou in np.diag(overlap(maps, stacked, order).iou)]
    table["chance"] = [f"{iou:.2f}" for iou in share / (2 - share)]
    return pd.DataFrame(table)


def limits_of_words(masks: Sequence[dict[str, np.ndarray]], sizes: Sequence[int]) -> pd.DataFrame:
    """A row for each word: the mean IoU over the faces of the best map, as the experiment `words` has it.

    Args:
        masks (`Sequence[dict[str, np.ndarray]]`): Of each face, by word, bool (height, width).
        sizes (`Sequence[int]`): Heights of the square maps whose mean the word's map is.
    """
    names = list(masks[0])
    stacked = np.stack([[of_face[name] for name in names] for of_face in masks])
    maps = np.mean([seen_at(stacked, size) for size in sizes], axis=0)
    dims = ("seed", "word", "height", "width")
    data = xr.Dataset(
        {
            "seen_map": (("seed", "word", "step", "height", "width"), maps[:, :, None]),
            "seen_changed": (dims, maps),
            "mask": (("seed", "word", "mask_height", "mask_width"), stacked),
        }
    )
    iou = agreement(data)["iou"].mean("seed")
    columns = {name: [f"{value:.2f}" for value in iou.sel(by=by).values] for name, by in _COLUMNS.items()}
    return pd.DataFrame({"word": names, **columns})


_COLUMNS = {"mean of maps of all layers": MAP, "chance": CHANCE}


def limits_of_structure(images: np.ndarray, sizes: Sequence[int] = SIZES) -> pd.DataFrame:
    """The highest correlation that a map of squares can have with the edges, and the foreground, of each image.

    Of all maps that are constant in each square, the squares' means correlate most.

    Args:
        images (`np.ndarray` of shape `(image, channel, height, width)`): In any range.
        sizes (`Sequence[int]`): Heights of square maps.

    Returns:
        `pd.DataFrame`: for each size the mean over the images, and the lowest and highest.
    """
    table: dict[str, list[str]] = {"": ["edges", "foreground"]}
    targets = [edge_strength(images), foreground(images)]
    for size in sizes:
        table[f"{size}×{size}"] = []
        for target in targets:
            squares = resized(pooled(target, (size, size)), target.shape[-2:], "nearest")
            found = (standardised(squares) * standardised(target)).sum(-1)
            table[f"{size}×{size}"].append(f"{found.mean():.2f} ({found.min():.2f}–{found.max():.2f})")
    return pd.DataFrame(table)


def images_of(checkpoint: str, label: int, count: int) -> np.ndarray:
    """Images of a label (image, channel, height, width), of DDIM with 25 steps."""
    pipe = XAIPipeline.from_pretrained(demo_checkpoint(checkpoint))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return sample_images(pipe, [label] * count, list(range(count)), num_inference_steps=25).numpy()


def map_sizes(unet: UNet2DConditionModel) -> list[int]:
    """Heights of the square maps of all layers of a network that look at text, in order."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: sizes.append(math.isqrt(args[0].shape[1])))
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
    ]
    config = unet.config
    with torch.no_grad():
        noise = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        unet(noise, 0, encoder_hidden_states=torch.zeros(1, 1, config.cross_attention_dim))
    for hook in hooks:
        hook.remove()
    return sizes


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=64, metavar="N", help="faces for the parts. Default: 64")
    parser.add_argument("--seeds", type=positive, default=8, metavar="N", help="faces for the words. Default: 8")
    parser.add_argument("--samples", type=positive, default=30, metavar="N", help="images of lfw-32. Default: 30")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    try:
        unet = UNet2DConditionModel.from_pretrained(demo_checkpoint("drawn-text-32"), subfolder="unet")
        size = unet.config.sample_size
        of_parts = limits_of_parts(parts(torch.empty(args.images, 3, size, size))[1])
        picture = torch.empty(3, size, size)
        sizes = map_sizes(unet)
        of_words = limits_of_words([words(picture, PROMPT, seed)[1] for seed in range(args.seeds)], sizes)
        of_structure = limits_of_structure(images_of("lfw-32", 0b0011, args.samples))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Parts of {args.images} faces:\n")
    print("\n".join(markdown_rows(of_parts)))
    print(f"\nWords of {args.seeds} faces, layers of {', '.join(map(str, sizes))} pixels:\n")
    print("\n".join(markdown_rows(of_words)))
    print(f"\nEdges and foreground of {args.samples} images of lfw-32, mean (lowest–highest correlation):\n")
    print("\n".join(markdown_rows(of_structure)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
