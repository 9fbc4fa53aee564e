"""Measures a model of drawn faces by the exact judge: one of labels by its labels, one of captions by its captions.

    python -m training.evaluate_drawn --checkpoint FOLDER --data drawn-faces --output FOLDER

Writes `evaluation.json`, and `samples.png` of 64 samples without guidance, to the output folder. Captions are those of
faces that are in no data set. `--update-card` puts the numbers into the checkpoint's `card.json`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from diffusers_xai import XAIPipeline
from diffusers_xai.checkpoints.drawn_judge import DrawnFaceJudge
from diffusers_xai.checkpoints.face_drawing import ATTRIBUTES, Face, caption, draw_face, random_face
from training.card import add_metrics, write_captioned_card
from training.celeba import open_splits
from training.diversity import nearest_distances
from training.label_fidelity import Share
from training.sampling import sample_images, tiles, usable_device


SHEET_COLUMNS, SHEET_SAMPLES = 8, 64
NEW_FACES = 90_000_000  # seeds of faces that are in no data set
Traits = dict[str, list]  # name of a trait -> its value in each picture


def faces_asked_for(count: int) -> list[Face]:
    """New faces, each of the sixteen labels equally often."""
    fields = ("bangs", "male", "smiling", "wearing_lipstick")
    bits = [dict(zip(fields, map(bool, map(int, f"{i % 16:04b}")), strict=True)) for i in range(count)]
    return [random_face(NEW_FACES + i, **fixed) for i, fixed in enumerate(bits)]


def asked_traits(faces: Sequence[Face], colors: bool) -> Traits:
    """What is asked for: the attributes, and the two colours that a caption names."""
    traits: Traits = {name: [face.labels[name] for face in faces] for name in ATTRIBUTES}
    if colors:
        traits["hair color"] = [face.hair_color for face in faces]
        traits["background color"] = [face.background_color for face in faces]
    return traits


def seen_traits(images: torch.Tensor) -> Traits:
    """What the judge sees in images (image, 3, height, width) in [-1, 1]."""
    judge = DrawnFaceJudge()
    seen: Traits = dict(zip(ATTRIBUTES, judge.predict(images).T.tolist(), strict=True))
    return seen | {"hair color": judge.hair_colors(images), "background color": judge.background_colors(images)}


def fidelity(asked: Traits, seen: Traits) -> dict[str, dict[str, float]]:
    """For each trait that is asked for, and for all at once, the share of pictures in which it comes out so.

    `chance` is what the same pictures would reach if the requests were dealt out at random: the sum over the values of
    (share asked for) * (share seen).
    """
    right = {name: np.array([a == s for a, s in zip(asked[name], seen[name], strict=True)]) for name in asked}
    chances = {name: _agreement(asked[name], seen[name]) for name in asked}
    right["all of them"] = np.all(list(right.values()), axis=0)
    chances["all of them"] = float(np.prod(list(chances.values())))
    return {name: Share(int(r.sum()), r.size).to_dict() | {"chance": chances[name]} for name, r in right.items()}


def _agreement(asked: list, seen: list) -> float:
    counts = Counter(asked), Counter(seen)
    return sum(counts[0][value] * counts[1][value] for value in counts[0]) / len(asked) ** 2


def pictures(
    pipeline: DiffusionPipeline, faces: Sequence[Face], *, seed: int, guidance_scale: float, steps: int
) -> torch.Tensor:
    """A picture for each face's label or caption, (image, 3, height, width) in [-1, 1]."""
    seeds = [seed + i for i in range(len(faces))]
    if isinstance(pipeline, XAIPipeline):
        labels = [int("".join(str(int(v)) for v in face.labels.values()), 2) for face in faces]
        return sample_images(pipeline, labels, seeds, guidance_scale=guidance_scale, num_inference_steps=steps)
    images = []
    for part in torch.arange(len(faces)).split(64):
        images.append(
            pipeline(
                [caption(faces[i]) for i in part],
                generator=[torch.Generator().manual_seed(seeds[i]) for i in part],
                guidance_scale=guidance_scale,
                num_inference_steps=steps,
                output_type="pt",
            ).images.cpu()
        )
    return torch.cat(images) * 2 - 1


def quality(samples: torch.Tensor, faces: Sequence[Face], train: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compares samples with as many new drawings of the same labels: sharpness, and distances to others.

    Returns:
        `dict`: `{"samples": …, "drawings": …}`, each with `sharpness` (mean absolute difference of neighbours),
        and medians over the pictures of the root mean square distance to the nearest `other` picture of the set and to
        the nearest `training` image.
    """
    size = samples.shape[-1]
    drawings = torch.from_numpy(np.stack([draw_face(face, size).image for face in faces])).permute(0, 3, 1, 2)
    table = {}
    for name, images in (("samples", samples), ("drawings", drawings / 127.5 - 1)):
        table[name] = {
            "sharpness": float(images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2,
            "other": float(nearest_distances(images).median()),
            "training": float(
                torch.minimum(*(nearest_distances(x, train) for x in (images, images.flip(-1)))).median()
            ),
        }
    return table


def evaluate(pipeline: DiffusionPipeline, train: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the pipeline, writes the sample sheet, and returns the numbers as JSON-able data."""
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline, XAIPipeline):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    faces = faces_asked_for(args.samples)
    asked = asked_traits(faces, colors=not isinstance(pipeline, XAIPipeline))
    result: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "settings": {"samples": args.samples, "scheduler": "DDIM", "steps": args.steps, "seed": args.seed},
        "fidelity": {},
    }
    for scale in args.guidance:
        images = pictures(pipeline, faces, seed=args.seed, guidance_scale=scale, steps=args.steps)
        result["fidelity"][f"{scale:g}"] = fidelity(asked, seen_traits(images))
        if scale == args.guidance[0]:
            tiles(images[:SHEET_SAMPLES], SHEET_COLUMNS).save(args.output / "samples.png")
            result["quality"] = quality(images[:SHEET_SAMPLES], faces[:SHEET_SAMPLES], train)
    return result


def card_metrics(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows (measure, value, how it was measured) for a model card."""
    settings, rows = result["settings"], []
    how = f"{settings['samples']} samples, DDIM {settings['steps']} steps, decided by an exact measurement"
    for scale, table in result["fidelity"].items():
        for name, share in table.items():
            value = f"{share['share']:.1%} ({100 * share['low']:.1f}–{100 * share['high']:.1f})"
            chance = f"{how}; requests dealt out at random: {share['chance']:.1%}"
            rows.append([f"{name} as asked, guidance {scale}", value, chance])
    for what, text in (
        ("sharpness", "mean difference of neighbouring pixels"),
        ("other", "distance to the most similar other sample, median"),
        ("training", "distance to the most similar training image, median"),
    ):
        samples, drawings = (result["quality"][name][what] for name in ("samples", "drawings"))
        where = f"{SHEET_SAMPLES} samples (range [-1, 1]); as many new drawings: {drawings:.3f}"
        rows.append([text, f"{samples:.3f}", where])
    return rows


def open_pipeline(folder: str) -> DiffusionPipeline:
    """An `XAIPipeline` of labels or a `StableDiffusionPipeline` of captions, whichever the folder's index names."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"expected a folder with a pipeline, got {folder!r}")
    captioned = json.loads(index.read_text())["_class_name"] == "StableDiffusionPipeline"
    return (StableDiffusionPipeline if captioned else XAIPipeline).from_pretrained(folder, dtype=torch.float32)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder of the pipeline")
    add("--data", required=True, help="what it was trained on, for the distances to training images")
    add("--output", required=True, type=Path, help="folder for the results, which replace earlier ones")
    add("--guidance", type=float, nargs="+", default=[1.0, 2.0], metavar="W", help="default: 1 2")
    add("--samples", type=int, default=512, metavar="N", help="a multiple of 64. Default: 512")
    add("--steps", type=int, default=50, metavar="N", help="DDIM steps. Default: 50")
    add("--seed", type=int, default=0, help="of the samples' noise. Default: 0")
    add("--device", help="such as cuda. Default: cuda where there is one, else cpu")
    add("--update-card", action="store_true", help="put the numbers into card.json in the checkpoint's folder")
    args = parser.parse_args(arguments)
    if args.samples < SHEET_SAMPLES or args.samples % SHEET_SAMPLES or args.steps < 1:
        parser.error(f"expected --samples as a multiple of {SHEET_SAMPLES} and --steps of at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    try:
        device = usable_device(args.device)
        pipeline = open_pipeline(args.checkpoint).to(device)
        size = pipeline.unet.config.sample_size
        split = open_splits(args.data)["train"].cast_column("image", datasets.Image())
        first = np.asarray(split[0]["image"]).shape
        if first != (size, size, 3):
            raise ValueError(f"expected drawn faces of {size} pixels, as the model's, got pictures of shape {first}")
        train = torch.from_numpy(np.stack([np.asarray(image) for image in split["image"]])).permute(0, 3, 1, 2)
        args.output.mkdir(parents=True, exist_ok=True)
        result = evaluate(pipeline, train / 127.5 - 1, args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = card_metrics(result)
    (args.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.update_card:
        add_metrics(Path(args.checkpoint), rows)
        if isinstance(pipeline, StableDiffusionPipeline):
            write_captioned_card(Path(args.checkpoint))
    print("\n".join(f"{name}: {value} [{how}]" for name, value, how in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
