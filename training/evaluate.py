"""Measures a checkpoint: losses, label fidelity, diversity, and a sheet of samples.

    python training/evaluate.py --checkpoint FOLDER --data DATA --output FOLDER

Writes `evaluation.json`, `evaluation.md` and `samples.png` to the output folder, and the attribute classifier that it
trains to `--classifier`, where the next evaluation finds it.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, it finds its own package

from diffusers_xai import XAIPipeline  # noqa: E402
from training.attribute_classifier import CONFIG_FILE, AttributeClassifier, train_classifier  # noqa: E402
from training.card import add_metrics  # noqa: E402
from training.config import load_config  # noqa: E402
from training.data import FaceImages, load_splits  # noqa: E402
from training.diversity import diversity  # noqa: E402
from training.evaluation import bucket_losses  # noqa: E402
from training.evaluation_report import card_metrics, to_markdown  # noqa: E402
from training.label_fidelity import balanced_rows, label_fidelity, trainable_labels  # noqa: E402
from training.sampling import sample_images, sample_labels, tiles, usable_device  # noqa: E402


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
    add(
        "--classifier",
        type=Path,
        help="folder of the attribute classifier, trained if it is not there. Default: --output",
    )
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


def attribute_classifier(
    folder: Path, train: FaceImages, validation: FaceImages, attributes: tuple[str, ...], device: torch.device
) -> tuple[AttributeClassifier, dict]:
    """The classifier in the folder, or a new one that is written there, with its facts; on the device.

    Raises:
        ValueError: If the one in the folder is of other attributes or of another image size.
    """
    if not (folder / CONFIG_FILE).is_file():
        classifier, facts = train_classifier(train, validation, attributes, device=device)
        classifier.save(folder, facts)
        return classifier, facts
    classifier, facts = AttributeClassifier.load(folder)
    expected = (list(attributes), train.images.shape[-1])
    got = (classifier.config["attributes"], classifier.config["sample_size"])
    if got != expected:
        raise ValueError(
            f"the classifier in {str(folder)!r} is of {got}, expected {expected}: choose another --classifier"
        )
    return classifier.to(device), facts


def evaluate(pipeline: XAIPipeline, train: FaceImages, validation: FaceImages, args: argparse.Namespace) -> dict:
    """Measures the pipeline, writes the sample sheet, and returns the numbers as JSON-able data."""
    unet = pipeline.unet
    pipeline.set_progress_bar_config(disable=True)
    training_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    attributes = tuple(unet.config.class_attributes)
    folder = args.classifier or args.output
    classifier, facts = attribute_classifier(folder, train, validation, attributes, unet.device)
    labels = trainable_labels(train, args.least_images)
    if not labels:
        raise ValueError(f"no label has --least-images {args.least_images} training images")
    settings = {"num_inference_steps": args.steps, "seed": args.seed}
    result = {
        "checkpoint": str(args.checkpoint),
        "settings": {**settings, "scheduler": "DDIM", "per_label": args.per_label, "least_images": args.least_images},
        "attributes": attributes,
        "buckets": bucket_losses(unet, training_scheduler, validation),
        "classifier": {name: facts[name] for name in ("accuracy", "balanced_accuracy", "training_images")},
        "fidelity": {},
    }
    rows = balanced_rows(validation.labels, labels, args.per_label)
    real = validation.images.float() / 127.5 - 1
    result["real"] = label_fidelity(classifier, real[rows], validation.labels[rows])
    for guidance in args.guidance:
        images = sample_labels(pipeline, labels, args.per_label, guidance_scale=guidance, **settings)
        wanted = torch.tensor(labels).repeat_interleave(args.per_label)
        result["fidelity"][f"{guidance:g}"] = label_fidelity(classifier, images, wanted)

    sheet_labels = [labels[i % len(labels)] for i in range(SHEET_SAMPLES)]
    seeds = [args.seed + 1000 + i for i in range(SHEET_SAMPLES)]
    images = sample_images(pipeline, sheet_labels, seeds, num_inference_steps=args.steps)
    tiles(images, SHEET_COLUMNS).save(args.output / "samples.png")
    result["sheet_labels"] = sheet_labels
    photographs = real[_same_labels(validation, sheet_labels)]
    result["diversity"] = diversity(images, photographs, train, classifier.features, unet.device)
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
            raise ValueError(f"{args.checkpoint!r} has no class_attributes: there is no label to be faithful to")
        if args.update_card and not Path(args.checkpoint).is_dir():
            raise ValueError(f"--update-card needs a folder as --checkpoint, got {args.checkpoint!r}")
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
