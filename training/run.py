"""The training loop: log, validation, samples and checkpoints in their turn, interruptible at any moment."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from training.checkpoint import checkpoint_step, list_checkpoints, remove_leftovers
from training.data import FaceImages
from training.evaluation import validate
from training.log import forget_after, write_record
from training.sampling import StoppedError, tiles
from training.schedule import TimeLimit
from training.trainer import Trainer


class TimeIsUpError(RuntimeError):
    """The time of a run was over before its first step."""


class Run:
    """Trains to the last step, until the time is up, or until `stop_requested`.

    Args:
        trainer (`Trainer`): What is trained.
        validation (`FaceImages`): Images to measure on.
        output (`Path`): Folder for checkpoints, `log.jsonl`, the tracker's files and sample grids.
        time_limit (`TimeLimit`, *optional*): The steps and the learning rate are fitted to it.
        checkpoint_seconds (`float`): A checkpoint is written at the latest so long after the last one.
    """

    def __init__(
        self,
        trainer: Trainer,
        validation: FaceImages,
        output: Path,
        time_limit: TimeLimit | None = None,
        checkpoint_seconds: float = 600.0,
    ):
        self.trainer, self.validation, self.output = trainer, validation, output
        self.time_limit, self.checkpoint_seconds = time_limit, checkpoint_seconds
        self.config, self.accelerator = trainer.config, trainer.accelerator
        self.main = self.accelerator.is_main_process
        self.stop_requested = False
        self._saved_step, self._saved_at = trainer.step, time.monotonic()
        self._logged_step, self._logged_at = trainer.step, time.monotonic()
        self._took: dict[str, float] = {}  # seconds of the last validation, samples and checkpoint

    def run(self) -> None:
        """Runs.

        Raises:
            TrainingDivergedError: If the loss or the gradients are no longer finite.
            OSError: If writing fails. In both cases the last checkpoint stays as it was.
            TimeIsUpError: If the time limit was over before the first step.
        """
        left = self.trainer.step < self.trainer.schedule.max_steps
        if left and self.time_limit is not None and self.time_limit.over:
            raise TimeIsUpError(
                f"the {self.time_limit.seconds / 60:g} minutes of --time-limit were over before the first step: they"
                " count from the command's start, and reading the images belongs to them"
            )
        trainer, done = self.trainer, []
        if self.main:
            remove_leftovers(self.output)
            done = forget_after(self.output, trainer.step)
        self.accelerator.init_trackers("tracker", init_kwargs={"tensorboard": {"purge_step": trainer.step + 1}})
        trainer.model.train()
        total = trainer.schedule.max_steps
        with tqdm(initial=trainer.step, total=total, disable=not self.main, desc="steps", mininterval=2.0) as self.bar:
            own = [checkpoint_step(path) for path in list_checkpoints(self.output)]
            if self.main and own[-1:] == [trainer.step]:  # this run was here before, and may have been stopped midway
                validated = any(record["step"] == trainer.step and "ssim" in record for record in done)
                self._measure(validate_too=not validated, samples_too=not self._samples_file().is_file())
            self._run_steps()
        self.accelerator.end_training()

    def _run_steps(self) -> None:
        trainer, config = self.trainer, self.config
        self._saved_at = self._logged_at = time.monotonic()
        stop = self._over and self.accelerator.num_processes == 1
        while trainer.step < trainer.schedule.max_steps and not stop:
            trainer.train_step()
            self.bar.update()
            save_due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
            fit_due = self.time_limit is not None and self.time_limit.due
            stop, save_due, fit_due = self._agreed(self._over, save_due, fit_due)
            if fit_due:
                self._fit_to_time()
            if trainer.step % config.log_every == 0:
                self._log_losses()
            last = trainer.step >= trainer.schedule.max_steps
            if last or stop or save_due or trainer.step % config.checkpoint_every == 0:
                self._save()
            if self.main and not stop:
                self._measure()
            # Several processes agree after a step that all of them have made.
            stop = stop or (self._over and self.accelerator.num_processes == 1)
        if self._saved_step != trainer.step:
            self._save()

    @property
    def _over(self) -> bool:
        return self.stop_requested or (self.time_limit is not None and self.time_limit.over)

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any of the processes wishes."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        flags = torch.tensor([float(wish) for wish in wishes], device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(flags, "sum").tolist()]

    def _fit_to_time(self) -> None:
        trainer, limit = self.trainer, self.time_limit
        trainer.read_losses()  # waits for the device: only then is it known how long the steps took
        seconds = limit.seconds_per_step(trainer.step)
        if seconds is not None:
            left = limit.steps_left(seconds, self._ending_seconds(seconds))
            trainer.schedule = trainer.schedule.fitted(self.config, trainer.step, left)
        if self.accelerator.num_processes > 1:
            (trainer.schedule,) = broadcast_object_list([trainer.schedule])
        if seconds is not None and self.bar.total != trainer.schedule.max_steps:
            self.bar.total = trainer.schedule.max_steps
            self.bar.refresh()

    def _ending_seconds(self, seconds_per_step: float) -> float:
        """How long the last checkpoint, validation and samples take: as long as before, or by their forward passes."""
        config = self.config
        conditional = self.trainer.network.class_embedding is not None
        grid = config.samples_per_label * config.sample_steps * (len(config.sample_labels) if conditional else 1)
        passes = {
            "validation": config.validation_images * len(config.validation_timesteps),
            "samples": grid * (2 if conditional and config.guidance_scale != 1.0 else 1),
        }
        forward = seconds_per_step / (config.batch_size * config.gradient_accumulation_steps) / 3
        return self._took.get("checkpoint", 1.0) + sum(
            self._took.get(name, count * forward) for name, count in passes.items()
        )

    def _save(self) -> None:
        with self._aside("checkpoint"):
            self.trainer.save(validation=self.validation.fingerprint)
        self._saved_step, self._saved_at = self.trainer.step, time.monotonic()

    def _measure(self, validate_too: bool = True, samples_too: bool = True) -> None:
        """The validation and the samples that are due at this step; given up if the run is to stop."""
        trainer, config = self.trainer, self.config
        step, last = trainer.step, trainer.step >= trainer.schedule.max_steps
        try:
            if validate_too and (last or step % config.validate_every == 0):
                with self._aside("validation"), trainer.mean_weights():
                    found = validate(trainer.network, trainer.scheduler, self.validation, config, lambda: self._over)
                self._log(**found)
            if samples_too and (last or step % config.sample_every == 0):
                with self._aside("samples"), trainer.mean_weights():
                    samples = trainer.samples(lambda: self._over)
                self._write_samples(samples)
        except StoppedError:
            self.bar.write(f"stopped amid the validation or the samples of step {step}", file=sys.stderr)

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[None]:
        """Inside the block time does not count as the steps'."""
        self.trainer.read_losses()  # waits for the device
        start = time.monotonic()
        yield
        self._took[name] = time.monotonic() - start
        self._logged_at += self._took[name]

    def _samples_file(self) -> Path:
        return self.output / f"samples-{self.trainer.step:08d}.png"

    def _write_samples(self, samples: dict[str, torch.Tensor]) -> None:
        tiles(torch.cat(list(samples.values())), self.config.samples_per_label).save(self._samples_file())
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                images = {f"samples/{name}": (x * 0.5 + 0.5).clamp(0, 1).numpy() for name, x in samples.items()}
                tracker.log_images(images, step=self.trainer.step)

    def _log_losses(self) -> None:
        trainer = self.trainer
        trainer.read_losses()
        losses, trainer.losses = trainer.losses, []
        mean = sum(losses) / len(losses)
        seconds = (time.monotonic() - self._logged_at) / (trainer.step - self._logged_step)
        self._logged_step, self._logged_at = trainer.step, time.monotonic()
        self.bar.set_postfix(loss=f"{mean:.4f}")
        values = {"loss": mean, "grad_norm": trainer.grad_norm, "lr": trainer.learning_rate}
        if self.time_limit is not None:
            values["planned_steps"] = trainer.schedule.max_steps
        self._log(**values, seconds_per_step=round(seconds, 4))

    def _log(self, **values: float) -> None:
        if not self.main:
            return
        step, stream = self.trainer.step, self.trainer.stream
        images = step * stream.images_per_step
        record = {"time": int(time.time()), "step": step, "images": images}
        record["epoch"] = round(images / len(stream.data), 4)
        record |= {name: round(value, 7) for name, value in values.items()}
        write_record(self.output, record)
        self.accelerator.log(values, step=step)
