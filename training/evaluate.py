"""Measures a checkpoint: losses, label fidelity, diversity, and a sheet of samples.

    python -m training.evaluate --checkpoint FOLDER --data DATA --output FOLDER

Writes `evaluation.json`, `evaluation.md` and `samples.png` to the output folder, and the judge that it trains to
`--judge`, where the next evaluation finds it. A second judge, which saw none of our data, is asked if `--human-models`
says where it is.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import XAIPipeline
from training.attribute_classifier import label_bits
from training.card import add_metrics
from training.config import load_config
from training.data import FaceImages, load_splits
from training.diversity import diversity
from training.evaluation import bucket_losses
from training.evaluation_report import card_metrics, to_markdown
from training.human_models import HOW_TO_GET
from training.judges import (
    CONFIG_FILE,
    FOLDS,
    HeldOutJudge,
    Judge,
    OutsideJudge,
    decided,
    person_parts,
    softened,
    thresholds,
)
from training.label_fidelity import balanced_rows, label_fidelity, trainable_labels
from training.sampling import sample_images, sample_labels, tiles, usable_device


SHEET_COLUMNS, SHEET_SAMPLES = 8, 64


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder or Hub id of the pipeline")
    add("--revision", help="revision of the checkpoint on the Hub")
    add("--config", required=True, help="the training's settings: how the images are cropped and chosen")
    add("--data", required=True, help="as in train.py")
    add("--data-config", help="the Hub data set's configuration")
    add(
        "--output",
        required=True,
        type=Path,
        help="folder for the results; files of an earlier evaluation are replaced",
    )
    add("--judge", type=Path, help="folder of the first judge, trained if it is not there. Default: --output")
    add("--human-models", type=Path, metavar="MODELS", help=f"the second judge's files: {HOW_TO_GET}")
    add("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0], metavar="W", help="default: 1 2 4")
    add("--per-label", type=int, default=32, metavar="N", help="samples of each label. Default: 32")
    add("--steps", type=int, default=50, metavar="N", help="DDIM steps. Default: 50")
    add(
        "--least-images",
        type=int,
        default=50,
        metavar="N",
        help="leave out labels with fewer training images. Default: 50",
    )
    add("--seed", type=int, default=0, help="of the samples' noise. Default: 0")
    add("--update-card", action="store_true", help="put the label fidelity into card.json in the checkpoint's folder")
    add("--device", help="such as cuda. Default: cuda where there is one, else cpu")
    add("--threads", type=int, help="CPU threads")
    args = parser.parse_args(arguments)
    for name in ("per_label", "steps", "least_images"):
        if getattr(args, name) < 1:
            parser.error(f"expected --{name.replace('_', '-')} of at least 1, got {getattr(args, name)}")
    return args


def held_out_judge(
    folder: Path, validation: FaceImages, attributes: tuple[str, ...], device: torch.device
) -> HeldOutJudge:
    """The judge in the folder, or a new one that is written there; on the device.

    Raises:
        ValueError: If the one in the folder is of other attributes or photographs.
    """
    if (folder / CONFIG_FILE).is_file():
        return HeldOutJudge.load(folder, attributes, validation).to(device)
    judge = HeldOutJudge.train(validation, attributes, device=device)
    judge.save(folder)
    return judge


def verdicts(
    judge: Judge,
    photographs: FaceImages,
    parts: torch.Tensor,
    soft: torch.Tensor,
    samples: dict[str, torch.Tensor],
    wanted: torch.Tensor,
    attributes: tuple[str, ...],
) -> dict[str, dict]:
    """What a judge sees in photographs, in the same made as soft as samples, and in samples at each guidance scale."""
    truth = label_bits(photographs.labels, len(attributes))[:, [attributes.index(name) for name in judge.attributes]]
    soft_scores = judge.scores(soft, parts)
    limits = thresholds(soft_scores, truth, parts)
    in_turn = torch.arange(len(wanted)) % FOLDS

    def fidelity(scores: torch.Tensor, parts: torch.Tensor, labels: torch.Tensor) -> dict:
        return label_fidelity(decided(scores, limits, parts), judge.attributes, labels, attributes)

    return {
        "photographs": fidelity(judge.scores(as_floats(photographs.images), parts), parts, photographs.labels),
        "soft photographs": fidelity(soft_scores, parts, photographs.labels),
        "samples": {
            scale: fidelity(judge.scores(images, in_turn), in_turn, wanted) for scale, images in samples.items()
        },
    }


def as_floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def evaluate(pipeline: XAIPipeline, train: FaceImages, validation: FaceImages, args: argparse.Namespace) -> dict:
    """Measures the pipeline, writes the sample sheet, and returns the numbers as JSON-able data."""
    unet = pipeline.unet
    pipeline.set_progress_bar_config(disable=True)
    training_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    attributes = tuple(unet.config.class_attributes)
    labels = trainable_labels(train, args.least_images)
    if not labels:
        raise ValueError(f"--least-images: expected at most what one label has in training, got {args.least_images}")
    outside = [] if args.human_models is None else [OutsideJudge(args.human_models)]
    own = held_out_judge(args.judge or args.output, validation, attributes, unet.device)
    judges: list[Judge] = [own, *(j for j in outside if set(j.attributes) <= set(attributes))]
    settings = {"num_inference_steps": args.steps, "seed": args.seed}
    rows = balanced_rows(validation.labels, labels, args.per_label).tolist()
    photographs = FaceImages(validation.images[rows], validation.labels[rows])
    parts = person_parts(validation, FOLDS)[rows]
    samples = {
        f"{guidance:g}": sample_labels(pipeline, labels, args.per_label, guidance_scale=guidance, **settings)
        for guidance in args.guidance
    }
    wanted = torch.tensor(labels).repeat_interleave(args.per_label)
    soft = softened(as_floats(photographs.images), next(iter(samples.values())))
    result = {
        "checkpoint": str(args.checkpoint),
        "settings": {**settings, "scheduler": "DDIM", "per_label": args.per_label, "least_images": args.least_images},
        "attributes": attributes,
        "buckets": bucket_losses(unet, training_scheduler, validation),
        "held_out_images": len(validation),
        "photographs": len(rows),
        "judges": {
            judge.name: verdicts(judge, photographs, parts, soft, samples, wanted, attributes) for judge in judges
        },
    }

    sheet_labels = [labels[i % len(labels)] for i in range(SHEET_SAMPLES)]
    seeds = [args.seed + 1000 + i for i in range(SHEET_SAMPLES)]
    images = sample_images(pipeline, sheet_labels, seeds, num_inference_steps=args.steps)
    tiles(images, SHEET_COLUMNS).save(args.output / "samples.png")
    result["sheet_labels"] = sheet_labels
    alike = as_floats(validation.images[_same_labels(validation, sheet_labels)])
    result["diversity"] = diversity(images, alike, train, own.features, unet.device)
    return result


def _same_labels(data: FaceImages, wanted: list[int]) -> list[int]:
    """A row for each wanted label, none twice; of any other label, or none, where the data has too few of it."""
    free = list(range(len(data)))
    rows = []
    for label in wanted[: len(free)]:
        row = next((row for row in free if int(data.labels[row]) == label), free[0])
        free.remove(row)
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        device = usable_device(args.device)
        pipeline = XAIPipeline.from_pretrained(args.checkpoint, revision=args.revision, dtype=torch.float32).to(device)
        attributes = pipeline.unet.config.get("class_attributes")
        if not attributes:
            raise ValueError(
                f"expected a checkpoint with labels, got {args.checkpoint!r}, which has no class_attributes"
            )
        if args.update_card and not Path(args.checkpoint).is_dir():
            raise ValueError(f"--update-card: expected a folder as --checkpoint, got {args.checkpoint!r}")
        config = load_config(args.config)
        config.model["sample_size"] = pipeline.unet.config.sample_size
        train, validation = load_splits(args.data, args.data_config, config, attributes)
        args.output.mkdir(parents=True, exist_ok=True)
        result = evaluate(pipeline, train, validation, args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result["card_metrics"] = card_metrics(result)
    (args.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = to_markdown(result)
    (args.output / "evaluation.md").write_text(text, encoding="utf-8")
    if args.update_card:
        add_metrics(Path(args.checkpoint), result["card_metrics"])
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
