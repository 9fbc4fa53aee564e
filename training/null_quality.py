"""Measures how good the covariance null is: what it says of the gradients, where the truth is known.

    python -m training.null_quality                  # of drawn faces
    python -m training.null_quality --data DATA      # of photographs

The truth is the Gaussian with the mean and covariance of all images. Estimates see a few draws of it, as a null fitted
to a model's samples does; several sets of draws show how far chance moves them. All are asked what the experiment
`localisation` asks: where the eyes' gradients reach. The table is printed in Markdown.
"""

import argparse
import sys
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DDPMScheduler
from tqdm.auto import tqdm

from diffusers_xai import GaussianDenoiser, XAIPipeline, demo_checkpoint
from diffusers_xai.checkpoints import part_of_face
from diffusers_xai.checkpoints.drawn_parts import parts
from diffusers_xai.cli.options import count as positive
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.findings_page import markdown_rows
from diffusers_xai.measures import mask_from_box
from diffusers_xai.profile.selection import nearest
from training.config import TrainingConfig
from training.data import load_splits


SETS = 4  # of draws
ASKED = {
    "PGV of μ: share of input pixels": ("reached_step", [100]),
    "PGV of ε: share of input pixels": ("reached_noise", [600, 100]),
    "radius of x̂_0's gradient (px)": ("radius", [950, 600, 100]),
}


def draws(truth: GaussianDenoiser, count: int, seed: int) -> torch.Tensor:
    """Images drawn from the Gaussian of a denoiser with principal components, (count, channel, height, width)."""
    covariance = truth.covariance
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(count, len(covariance.variances), generator=generator, dtype=torch.float64)
    vectors = (along * covariance.variances.sqrt().double()) @ covariance.components.double()
    return (vectors + truth.mean.double()).unflatten(1, truth.sample_shape).to(truth.mean)


def gradients(denoiser: GaussianDenoiser, mask: np.ndarray) -> np.ndarray:
    """The numbers in `ASKED` of a denoiser, (row,)."""
    pipe = XAIPipeline(denoiser, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    data = EXPERIMENTS["localisation"].run(pipe, Sampling(seeds=[0]), mask=mask, null="none").data.isel(seed=0)
    timesteps = data["timestep"].values
    return np.array([float(data[name][nearest(timesteps, t)]) for name, times in ASKED.values() for t in times])


def quality(
    images: torch.Tensor, mask: np.ndarray, *, few: int = 256, many: int = 1024, rank: int = 256, sets: int = SETS
) -> pd.DataFrame:
    """A row for each number, with the truth and the range of each estimate over the sets of draws.

    Args:
        images (`torch.Tensor` of shape `(image, channel, height, width)`): In [-1, 1]; more than an image has values,
            or the truth has directions without any variance.
        mask (`np.ndarray` of shape `(height, width)`): The eyes.
        few (`int`): Draws in a set, and
        many (`int`): in a larger one.
        rank (`int`): Components of the third estimate.
        sets (`int`): Sets of draws; of the components and the texture, which take the larger ones, half as many.

    Raises:
        ValueError: for fewer images.
    """
    values = images[0].numel()
    if len(images) <= values:
        raise ValueError(f"images: expected more than an image has values, {values:,}, got {len(images):,}.")
    scheduler = DDPMScheduler()
    truth = GaussianDenoiser.fit(images, scheduler)
    shrunk, texture = ({"covariance_type": kind} for kind in ("shrunk", "spectrum"))
    half = max(1, sets // 2)
    estimates: dict[str, tuple[dict[str, Any], int, int]] = {
        f"{few:,} draws, shrunk": (shrunk, few, sets),
        f"{many:,} draws, shrunk": (shrunk, many, sets),
        f"{rank:,} components of {many:,} draws": ({"rank": rank}, many, half),
        f"a texture of {many:,} draws, the same everywhere": (texture, many, half),
    }
    table: dict[str, list] = {
        "": [name for name, (_, times) in ASKED.items() for _ in times],
        "t": [t for _, times in ASKED.values() for t in times],
    }
    with tqdm(total=1 + sum(number for *_, number in estimates.values()), disable=None) as bar:
        table["the truth"] = _texts(gradients(truth, mask)[None])
        bar.update()
        for name, (options, count, number) in estimates.items():
            found = []
            for seed in range(number):
                estimate = GaussianDenoiser.fit(draws(truth, count, seed), scheduler, **options)
                found.append(gradients(estimate, mask))
                bar.update()
            table[name] = _texts(np.stack(found))
    return pd.DataFrame(table)


def _texts(values: np.ndarray) -> list[str]:
    """The range of numbers (set, row), row by row."""
    shares = [name != "radius" for name, times in ASKED.values() for _ in times]
    texts = []
    for column, is_share in zip(values.T, shares, strict=True):
        ends = [f"{100 * x:.1f}" if is_share else f"{x:.1f}" for x in (column.min(), column.max())]
        texts.append("–".join(dict.fromkeys(ends)) + (" %" if is_share else ""))
    return texts


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="photographs of faces, cropped as those of lfw-32, as in training.train; drawn faces without"
    )
    parser.add_argument("--size", type=positive, default=32, metavar="PIXELS", help="default: 32")
    parser.add_argument("--images", type=positive, metavar="N", help="default: all of DATA, 4000 drawn faces")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    try:
        if args.data is None:
            images, masks = parts(torch.empty(args.images or 4000, 3, args.size, args.size))
            mask = masks["eyes"].mean(0) > 0.5
        else:
            config = TrainingConfig(model={"sample_size": args.size}, scheduler={}, max_images=args.images)
            faces, _ = load_splits(args.data, None, config, None)
            images = faces.images.float() / 127.5 - 1
            size = (args.size, args.size)
            mask = mask_from_box(part_of_face("eyes", demo_checkpoint("lfw-32"), size), size)
        table = quality(images, mask)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(images):,} images, a region of {int(mask.sum())} pixels\n")
    print("\n".join(markdown_rows(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
