"""Face images with attribute columns, and the order in which a run sees them."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from training.celeba import attribute_values, check_attributes, labels_from_values, open_splits
from training.config import TrainingConfig
from training.objective import draw_timesteps


@dataclass
class FaceImages:
    """A split in memory: 60 000 images of 128 px take 3 GB.

    Args:
        images (`torch.Tensor` of shape `(row, 3, height, width)`): uint8.
        labels (`torch.Tensor` of shape `(row,)`): int64, bits of the attributes; -1 throughout where there are none.
        faulty (`list[tuple[str, str]]`): Name, and what was wrong, of each row that was left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    faulty: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Batch:
    """One forward pass: images in [-1, 1], labels with some dropped, 0-based timesteps, and the noise to add."""

    images: torch.Tensor
    labels: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor


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
    for split in splits.values():
        check_attributes([*(attributes or ()), *config.max_values], split.column_names)

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
    return _decode(train, config, attributes, config.max_images), _decode(held_out, config, attributes)


def _decode(
    split: datasets.Dataset, config: TrainingConfig, attributes: Sequence[str] | None, most: int | None = None
) -> FaceImages:
    """The first `most` good rows of the split, cropped and resized, with a list of the faulty ones among them."""
    keep = np.ones(len(split), dtype=bool)
    for column, limit in config.max_values.items():
        keep &= np.asarray(split[column][:]).astype(float) <= limit
    split = split.select(np.flatnonzero(keep))
    values = attribute_values(split, attributes or ())
    size, pictures = config.model.get("sample_size", 64), split["image"]

    def read(row: int) -> np.ndarray | str:
        missing = [name for name, value in zip(attributes or (), values[row], strict=True) if np.isnan(value)]
        if missing:
            return f"attributes missing or neither -1, 0 nor 1: {', '.join(missing)}"
        cell = pictures[row]
        try:
            with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]) as image:
                if image.mode != "RGB":
                    return f"expected a picture of mode RGB, got {image.mode}"
                return _crop_and_resize(image, config.center_crop, size)
        except (OSError, SyntaxError, TypeError) as error:  # what PIL raises for truncated and alien files
            return f"not a readable picture: {error}"

    arrays: list[np.ndarray] = []
    good: list[int] = []
    faulty: list[tuple[str, str]] = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=min(most or len(split), len(split)), desc="images", leave=False) as bar,
    ):
        for first in range(0, len(split), 1024):
            rows = range(first, min(first + 1024, len(split)))
            for row, found in zip(rows, pool.map(read, rows), strict=True):
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
        raise ValueError(f"none of {len(split)} rows holds a readable image and its attributes{first_fault}")
    labels = np.full(len(good), -1) if attributes is None else labels_from_values(values[good])
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return FaceImages(images, torch.from_numpy(labels), faulty)


def _name_of(cell: dict, row: int) -> str:
    return cell.get("path") or f"row {row}"


def _crop_and_resize(image: Image.Image, center_crop: int | None, size: int) -> np.ndarray:
    side = min(center_crop or min(image.size), *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # `resize(box=…)` would look over the edge
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def sampling_weights(labels: torch.Tensor, balance: float, floor: int) -> torch.Tensor:
    """How often each row is drawn: n ** -balance with n = max(images of its label, floor); float64, sums to 1."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    weights = counts.clamp(min=max(floor, 1)).double()[inverse] ** -balance
    return weights / weights.sum()


def step_generator(seed: int, *position: int) -> torch.Generator:
    """A generator that depends on the seed and the position alone, so that a resumed run needs no stored state."""
    state = np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class BatchStream:
    """The batches of a run as a function of the step: step 1000 is the same whether or not 999 was drawn before.

    What a step sees depends on how many images it takes, not on how processes and forward passes share them.

    Args:
        data (`FaceImages`): The training split.
        config (`TrainingConfig`): Batch size, balance, flips, label dropout, timesteps and seed.
        null_label (`int`): The label that stands for "no label".
        num_train_timesteps (`int`): Length of the noise schedule.
        process (`int`): This process and
        num_processes (`int`): how many share a step.
    """

    def __init__(
        self,
        data: FaceImages,
        config: TrainingConfig,
        null_label: int,
        num_train_timesteps: int,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.data = data
        self.config = config
        self.null_label = null_label
        self.num_train_timesteps = num_train_timesteps
        self.process = process
        self.images_per_step = config.batch_size * config.gradient_accumulation_steps * num_processes
        self.weights = sampling_weights(data.labels, config.class_balance, config.class_balance_floor)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def epoch_order(self, epoch: int) -> torch.Tensor:
        """Rows of an epoch: each `len(data) * weight` times, rounded down or up at random, in random order.

        With equal weights every row comes once.
        """
        generator = step_generator(self.config.seed, 0, epoch)
        count = len(self.data)
        points = (torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
        rows = torch.searchsorted(self.weights.cumsum(0), points).clamp(max=count - 1)
        return rows[torch.randperm(count, generator=generator)]

    def rows(self, step: int) -> torch.Tensor:
        """Row numbers of all images of the 0-based step, in all processes."""
        chosen = []
        for position in range(step * self.images_per_step, (step + 1) * self.images_per_step):
            epoch, offset = divmod(position, len(self.data))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self.epoch_order(epoch)
            chosen.append(self._order[offset])
        return torch.stack(chosen)

    def batches(self, step: int) -> list[Batch]:
        """This process's batches of the 0-based step, one per forward pass."""
        config, count = self.config, self.images_per_step
        generator = step_generator(config.seed, 1, step)
        rows = self.rows(step)
        mirrored = torch.rand(count, generator=generator) < (0.5 if config.horizontal_flip else 0.0)
        dropped = torch.rand(count, generator=generator) < config.label_dropout
        timesteps = draw_timesteps(count, self.num_train_timesteps, config.stratified_timesteps, generator)
        noise = torch.randn((count, *self.data.images.shape[1:]), generator=generator)
        labels = self.data.labels[rows].masked_fill(dropped, self.null_label)

        first = self.process * config.gradient_accumulation_steps * config.batch_size
        batches = []
        for i in range(config.gradient_accumulation_steps):
            part = slice(first + i * config.batch_size, first + (i + 1) * config.batch_size)
            images = self.data.images[rows[part]].float() / 127.5 - 1
            images = torch.where(mirrored[part, None, None, None], images.flip(-1), images)
            batches.append(Batch(images, labels[part], timesteps[part], noise[part]))
        return batches
