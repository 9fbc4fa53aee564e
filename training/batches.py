"""The order in which a run sees its images, and its batches, made in threads before they are needed."""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from training.config import TrainingConfig
from training.data import FaceImages
from training.objective import draw_timesteps


@dataclass
class Batch:
    """One forward pass: images in [-1, 1], labels with some dropped, 0-based timesteps, and the noise to add."""

    images: torch.Tensor
    labels: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor


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

    What a step sees depends on how many images it takes, not on how processes and forward passes share them. All is
    drawn on the CPU, so that it does not depend on the device either.

    Args:
        data (`FaceImages`): The training split.
        config (`TrainingConfig`): Batch size, balance, flips, label dropout, timesteps and seed.
        null_label (`int`): The label that stands for "no label".
        num_train_timesteps (`int`): Length of the noise schedule.
        device (`torch.device`, *optional*): Where the batches are wanted; the CPU if `None`.
        process (`int`): This process and
        num_processes (`int`): how many share a step.
    """

    def __init__(
        self,
        data: FaceImages,
        config: TrainingConfig,
        null_label: int,
        num_train_timesteps: int,
        device: torch.device | None = None,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.data = data
        self.config = config
        self.null_label = null_label
        self.num_train_timesteps = num_train_timesteps
        self.device = device or torch.device("cpu")
        self.process = process
        self.images_per_step = config.batch_size * config.gradient_accumulation_steps * num_processes
        self.weights = sampling_weights(data.labels, config.class_balance, config.class_balance_floor)
        self._order = functools.lru_cache(maxsize=2)(self.epoch_order)  # threads may stand on both sides of an epoch

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
        first, end, count = step * self.images_per_step, (step + 1) * self.images_per_step, len(self.data)
        epochs = range(first // count, (end - 1) // count + 1)
        return torch.cat([self._order(e)[max(first - e * count, 0) : end - e * count] for e in epochs])

    def batches(self, step: int) -> list[Batch]:
        """This process's batches of the 0-based step, one per forward pass, on the device."""
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
            # Bytes travel to the device, a quarter of what floats would.
            images = self._to_device(self.data.images.index_select(0, rows[part])).float().div_(127.5).sub_(1)
            images = torch.where(self._to_device(mirrored[part])[:, None, None, None], images.flip(-1), images)
            batches.append(Batch(images, *map(self._to_device, (labels[part], timesteps[part], noise[part]))))
        return batches

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":  # from pinned memory a copy waits for nothing
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


class BatchesAhead:
    """Makes the batches of the next steps in threads while a step trains.

    Args:
        stream (`BatchStream`): Says what a step sees.
        steps (`int`): How many steps ahead.
    """

    def __init__(self, stream: BatchStream, steps: int = 2):
        self.stream = stream
        self.steps = steps
        self._threads = ThreadPoolExecutor(steps, "batches", initializer=self._begin_thread)
        self._made: dict[int, Future[list[Batch]]] = {}

    def _begin_thread(self) -> None:
        torch.set_num_threads(1)  # the cores are the training's
        if self.stream.device.type == "cuda" and self.stream.device.index is not None:
            torch.cuda.set_device(self.stream.device)  # or memory is pinned for the first of several

    def take(self, step: int) -> list[Batch]:
        """The batches of the 0-based step; those of the next ones are begun."""
        wanted = range(step, step + 1 + self.steps)
        self._made = {s: self._made.get(s) or self._threads.submit(self.stream.batches, s) for s in wanted}
        return self._made.pop(step).result()
