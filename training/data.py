"""Face images with attribute columns."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_xai.measures.pictures import open_picture
from training.celeba import (
    attribute_values,
    check_attributes,
    labels_from_values,
    mark_contradictions,
    open_splits,
    row_faults,
)
from training.config import TrainingConfig
from training.pictures import as_rgb, square
from training.tables import as_number


PERSON_COLUMNS = ("identity", "celeb_id")


@dataclass
class FaceImages:
    """A split in memory: 60 000 images of 128 px take 3 GB.

    Args:
        images (`torch.Tensor` of shape `(row, 3, height, width)`): uint8.
        labels (`torch.Tensor` of shape `(row,)`): int64, bits of the attributes; -1 throughout where there are none.
        faulty (`list[tuple[str, str]]`): Name, and what was wrong, of each row that was left out.
        people (`list[str]`, *optional*): Whose face each row shows, where a column `identity` or `celeb_id` tells.
    """

    images: torch.Tensor
    labels: torch.Tensor
    faulty: list[tuple[str, str]] = field(default_factory=list)
    people: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images, their order and their labels."""
        digest = hashlib.blake2b(str(tuple(self.images.shape)).encode(), digest_size=16)
        digest.update(self.images.contiguous().numpy())
        digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()


def load_splits(
    data: str, subset: str | None, config: TrainingConfig, attributes: Sequence[str] | None
) -> tuple[FaceImages, FaceImages]:
    """Reads the training and the validation images.

    Where the data has no split named validation, valid or test, the last `config.validation_images` training rows are
    held out.

    Args:
        data (`str`): A file, folder or Hub id as in `celeba.open_splits`.
        subset (`str`, *optional*): The Hub data set's configuration.
        config (`TrainingConfig`): Image size, crop, filters and numbers of images.
        attributes (`Sequence[str]`, *optional*): Columns that make up the label, most significant bit first.

    Raises:
        ValueError: If the data has no usable rows, no image column, or lacks an attribute.
        OSError: If there is no such data.
    """
    splits = open_splits(data, subset)
    for name, split in splits.items():
        check_attributes([*(attributes or ()), *config.max_values], split.column_names)
        splits[name] = mark_contradictions(split, attributes or ())

    train = splits["train"]
    held_out = next((splits[name] for name in ("validation", "valid", "test") if name in splits), None)
    if held_out is None:
        if len(train) <= config.validation_images:
            raise ValueError(
                f"{data!r} has no validation split and only {len(train)} rows: expected more than validation_images"
                f" ({config.validation_images})"
            )
        start = len(train) - config.validation_images
        held_out, train = train.select(range(start, len(train))), train.select(range(start))
    images, validation = _decode(train, config, attributes, config.max_images), _decode(held_out, config, attributes)
    if config.permuted_labels:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
        images = replace(images, labels=images.labels[order])
    return images, validation


def _decode(
    split: datasets.Dataset, config: TrainingConfig, attributes: Sequence[str] | None, most: int | None = None
) -> FaceImages:
    """The first `most` good rows of the split, cropped and resized, with a list of the faulty ones among them."""
    limited = {column: np.array([as_number(cell) for cell in split[column][:]]) for column in config.max_values}
    kept = [not any(limited[c][i] > limit for c, limit in config.max_values.items()) for i in range(len(split))]
    rows = np.flatnonzero(kept)
    values, faults, pictures = attribute_values(split, attributes or ()), row_faults(split), split["image"]
    size = config.model.get("sample_size", 64)

    def read(row: int) -> np.ndarray | str:
        if faults[row]:
            return faults[row]
        missing = [name for name, value in zip(attributes or (), values[row], strict=True) if np.isnan(value)]
        if missing:
            return f"attributes missing or neither -1, 0 nor 1: {', '.join(missing)}"
        unknown = [column for column, numbers in limited.items() if np.isnan(numbers[row])]
        if unknown:
            return f"no number: {', '.join(unknown)}"
        cell = pictures[row]
        if cell is None or not (cell["bytes"] or cell["path"]):
            return "no picture"
        try:
            image = open_picture(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
            return square(as_rgb(image), config.center_crop, size)
        except Exception as error:  # one picture never stops a run, whatever is wrong with it
            return str(error) or type(error).__name__

    arrays: list[np.ndarray] = []
    good: list[int] = []
    faulty: list[tuple[str, str]] = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=min(most or len(rows), len(rows)), desc="images", leave=False) as bar,
    ):
        for first in range(0, len(rows), 1024):
            part = rows[first : first + 1024].tolist()
            for row, found in zip(part, pool.map(read, part), strict=True):
                if most is not None and len(good) == most:
                    break
                if isinstance(found, str):
                    faulty.append((_name_of(pictures[row], row), found))
                else:
                    arrays.append(found)
                    good.append(row)
                    bar.update()
    if not good:
        first_fault = f"; the first, {faulty[0][0]}: {faulty[0][1]}" if faulty else ""
        within = f" within max_values {config.max_values}" if config.max_values else ""
        raise ValueError(
            f"expected rows with a readable image and its attributes, got none in {len(rows)}{within}{first_fault}"
        )
    labels = np.full(len(good), -1) if attributes is None else labels_from_values(values[good])
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    person = next((column for column in PERSON_COLUMNS if column in split.column_names), None)
    people = None if person is None else [str(name) for name in split.select(good)[person]]
    return FaceImages(images, torch.from_numpy(labels), faulty, people)


def _name_of(cell: dict | None, row: int) -> str:
    return (cell or {}).get("path") or f"row {row}"
