"""Makes the data set of drawn faces, whose labels, masks and captions are exact.

    python -m training.drawn_faces --output drawn-faces --size 32
    python -m training.train --config training/configs/drawn-32.json --data drawn-faces --output runs/drawn-32

The folder holds `train.parquet`, `validation.parquet`, a data card and a sheet to look at. In Python, `drawn_faces()`
gives the same as a `DatasetDict`.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from tqdm.auto import tqdm

from diffusers_xai.checkpoints.face_drawing import (
    ATTRIBUTES,
    BACKGROUND_COLORS,
    HAIR_COLORS,
    PARTS,
    caption,
    draw_face,
    random_face,
)


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "parts": datasets.Image(),
        **{name: datasets.Value("bool") for name in (*ATTRIBUTES, "Eyeglasses")},
        "hair_color": datasets.ClassLabel(names=list(HAIR_COLORS)),
        "background_color": datasets.ClassLabel(names=list(BACKGROUND_COLORS)),
        "caption": datasets.Value("string"),
        "seed": datasets.Value("int64"),
    }
)
CARD_TEMPLATE = Path(__file__).with_name("drawn_faces_card.md")
SHEET_COLUMNS, SHEET_ROWS, SHEET_SIZE = 12, 6, 80


def drawn_faces(
    train: int = 30_000, validation: int = 1_200, *, size: int = 32, seed: int = 0
) -> datasets.DatasetDict:
    """Draws the data set; 30 000 faces of 32 pixels take three minutes and 60 MB of memory.

    Args:
        train (`int`): Faces of the training split.
        validation (`int`): Faces of the validation split.
        size (`int`): Side of the pictures in pixels.
        seed (`int`): Of the first face. Each face has a seed of its own, and no two splits share one.

    Returns:
        `datasets.DatasetDict`: Columns `image`; `parts`, the index in `PARTS` of what covers most of each pixel; the
        attributes and `Eyeglasses`; `hair_color` and `background_color`; `caption`; and `seed`, from which
        `draw_face(random_face(seed), 256)` draws the same face in another size, with the share of each pixel that each
        part covers.

    Raises:
        ValueError: If a number is too small.
    """
    if min(train, validation) < 1 or size < 8 or seed < 0:
        raise ValueError(
            "expected at least 1 face in each split, 8 pixels and a seed of at least 0, got"
            f" train {train}, validation {validation}, size {size}, seed {seed}"
        )
    return datasets.DatasetDict(
        {
            "train": _split(range(seed, seed + train), size),
            "validation": _split(range(seed + train, seed + train + validation), size),
        }
    )


def contact_sheet(seed: int = 0) -> Image.Image:
    """A picture of the faces from `seed` on."""
    faces = [draw_face(random_face(seed + i), SHEET_SIZE).image for i in range(SHEET_COLUMNS * SHEET_ROWS)]
    rows = [np.concatenate(faces[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(faces), SHEET_COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


def write_folder(output: Path, splits: datasets.DatasetDict, size: int, seed: int) -> None:
    """Writes parquet files, card and sheet to a new folder, which takes its name when all of it is there.

    Raises:
        FileExistsError: If there is something at `output`.
    """
    if output.exists():
        raise FileExistsError(f"expected a new folder, got {str(output)!r}, which exists")
    unfinished = output.with_name(f".partial-{output.name}")
    unfinished.mkdir(parents=True)
    try:
        for name, split in splits.items():
            split.to_parquet(unfinished / f"{name}.parquet")
        contact_sheet(seed).save(unfinished / "sheet.png")
        _card(splits, size).save(unfinished / "README.md")
        unfinished.rename(output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _card(splits: datasets.DatasetDict, size: int) -> DatasetCard:
    data = DatasetCardData(
        license="apache-2.0",
        pretty_name="Drawn faces",
        task_categories=["text-to-image", "image-classification", "image-segmentation"],
        tags=["synthetic", "explainable-ai"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}.parquet"} for name in splits],
            }
        ],
    )
    first = splits["train"][:3]
    shares = {
        name: [f"{np.mean(split[name][:]):.1%}" for split in splits.values()] for name in (*ATTRIBUTES, "Eyeglasses")
    }
    return DatasetCard.from_template(
        data, template_path=str(CARD_TEMPLATE), size=size, counts={name: len(s) for name, s in splits.items()},
        shares=shares, captions=first["caption"], parts=PARTS, hair=list(HAIR_COLORS),
        background=list(BACKGROUND_COLORS),
    )  # fmt: skip


def _split(seeds: range, size: int) -> datasets.Dataset:
    columns: dict[str, list] = {name: [] for name in FEATURES}
    for seed in tqdm(seeds, desc="faces", leave=False):
        face = random_face(seed)
        drawing = draw_face(face, size)
        row = {
            "image": _png(drawing.image),
            "parts": _png(drawing.coverage.argmax(axis=0).astype(np.uint8)),
            **face.labels,
            "Eyeglasses": face.glasses,
            "hair_color": face.hair_color,
            "background_color": face.background_color,
            "caption": caption(face, hair=seed % 4 != 0, background=seed % 5 != 0),
            "seed": seed,
        }
        for name, value in row.items():
            columns[name].append(value)
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _png(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    parser.add_argument("--train", type=int, default=30_000, metavar="N", help="default: 30000")
    parser.add_argument("--validation", type=int, default=1_200, metavar="N", help="default: 1200")
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS", help="default: 32")
    parser.add_argument("--seed", type=int, default=0, help="of the first face. Default: 0")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    try:
        if args.output.exists():
            raise FileExistsError(f"expected a new folder, got {str(args.output)!r}, which exists")
        splits = drawn_faces(args.train, args.validation, size=args.size, seed=args.seed)
        write_folder(args.output, splits, args.size, args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.train} and {args.validation} faces of {args.size} pixels to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
