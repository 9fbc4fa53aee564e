"""The training loop: one process or several, interruptible at any moment."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffusers_xai import ConvNextUNet2DModel
from training.batches import Batch, BatchesAhead, BatchStream
from training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_optimizer_states,
    optimizer_states,
    remove_leftovers,
    save_checkpoint,
)
from training.config import TrainingConfig
from training.data import FaceImages
from training.evaluation import sample_labels_in_config, tiles, validate
from training.export import load_weights
from training.objective import diffusion_loss, min_snr_weights, training_target
from training.optim import build_optimizers


class TrainingDivergedError(ArithmeticError):
    """The loss or the gradients are no longer finite."""


class Trainer:
    """A run: network, optimizer, running mean, and the step they are at.

    Args:
        config (`TrainingConfig`): The settings.
        train (`FaceImages`): Images to learn from.
        validation (`FaceImages`): Images to measure on.
        output (`Path`): Folder for checkpoints, `log.jsonl`, the tracker's files and sample grids.
    """

    def __init__(self, config: TrainingConfig, train: FaceImages, validation: FaceImages, output: Path):
        self.config, self.validation, self.output = config, validation, output
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.tracker,
            project_dir=output,
        )
        set_seed(config.seed)
        self.scheduler = DDPMScheduler(**config.scheduler)
        self.network = ConvNextUNet2DModel(**config.model).to(self.accelerator.device)
        if config.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        if config.zero_init_output:
            torch.nn.init.zeros_(self.network.conv_out.weight)
            torch.nn.init.zeros_(self.network.conv_out.bias)
        self.ema = EMAModel(self.network.parameters(), config.ema_decay, foreach=True)
        model = torch.compile(self.network) if config.compile else self.network
        self.model, *self.optimizers = self.accelerator.prepare(model, *build_optimizers(self.network, config))
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.stream = BatchStream(
            train,
            config,
            null_label=self.network.config.null_class_label,
            num_train_timesteps=self.scheduler.config.num_train_timesteps,
            device=self.accelerator.device,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self.batches = BatchesAhead(self.stream)
        values, counts = train.labels.unique(return_counts=True)
        self.label_counts = {str(int(v)): int(n) for v, n in zip(values, counts, strict=True)}
        self.step = 0
        self.stop_requested = False

    def resume(self, checkpoint: str | Path) -> None:
        """Takes over weights, running mean, optimizer and step of a checkpoint."""
        tensors, state = load_checkpoint(checkpoint)
        if state["seed"] != self.config.seed:
            raise ValueError(f"expected a checkpoint of seed {self.config.seed}, got one of seed {state['seed']}")
        images = state["images_per_step"]
        if images != self.stream.images_per_step:
            raise ValueError(
                f"expected {images} images per step, as in the checkpoint, got {self.stream.images_per_step}"
                " (batch_size * gradient_accumulation_steps * processes); --start-from takes over the weights alone"
            )
        load_weights(self.network, tensors["model"], checkpoint)
        self._set_mean(tensors["ema"])
        load_optimizer_states(self.optimizers, tensors["optimizer"], state["optimizer"])
        if self.accelerator.scaler is not None and state["grad_scaler"]:
            self.accelerator.scaler.load_state_dict(state["grad_scaler"])
        self.step = self.ema.optimization_step = state["step"]

    def start_from(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Takes over the weights of a finished network; steps and optimizer start anew."""
        load_weights(self.network, weights, source)
        self._set_mean(weights)

    def save(self) -> None:
        """Writes a checkpoint of the present step."""
        if self.accelerator.is_main_process:
            optimizer_tensors, optimizer_rest = optimizer_states(self.optimizers)
            scaler = self.accelerator.scaler
            names = [name for name, _ in self.network.named_parameters()]
            save_checkpoint(
                self.output,
                self.step,
                {
                    "model": self.network.state_dict(),
                    "ema": dict(zip(names, self.ema.shadow_params, strict=True)),
                    "optimizer": optimizer_tensors,
                },
                {
                    "seed": self.config.seed,
                    "optimizer": optimizer_rest,
                    "grad_scaler": scaler.state_dict() if scaler is not None else None,
                    "config": self.config.to_dict(),
                    "images_per_step": self.stream.images_per_step,
                    "label_counts": self.label_counts,
                },
                self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def train_step(self) -> tuple[float, float]:
        """One optimizer step; returns the mean loss of its forward passes and the gradients' norm before clipping.

        Raises:
            TrainingDivergedError: If one of them is not finite; the weights are then those before the step.
        """
        config, accelerator = self.config, self.accelerator
        factor = config.learning_rate_factor(self.step)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        losses, norm = [], 0.0
        for batch in self.batches.take(self.step):
            with accelerator.accumulate(self.model):
                loss = self._loss(batch)
                accelerator.backward(loss)
                losses.append(loss.item())
                if accelerator.sync_gradients:
                    limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
                    norm = float(accelerator.clip_grad_norm_(self.model.parameters(), limit))
                    self._check_finite(losses, norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        self.step += 1
        return sum(losses) / len(losses), norm

    def run(self) -> None:
        """Trains to the last step, or until `stop_requested`.

        Raises:
            TrainingDivergedError: If the loss or the gradients are no longer finite.
            OSError: If writing fails. In both cases the last checkpoint stays as it was.
        """
        config, main = self.config, self.accelerator.is_main_process
        if main:
            remove_leftovers(self.output)
            self._forget_later_records()
        self.accelerator.init_trackers("tracker", init_kwargs={"tensorboard": {"purge_step": self.step + 1}})
        self.model.train()
        with tqdm(initial=self.step, total=config.max_steps, disable=not main, desc="steps", mininterval=2.0) as bar:
            self._run_steps(bar)
        self.accelerator.end_training()

    def _run_steps(self, bar: tqdm) -> None:
        config, main = self.config, self.accelerator.is_main_process
        losses, start = [], time.perf_counter()
        stop = False
        while self.step < config.max_steps and not stop:
            loss, norm = self.train_step()
            losses.append(loss)
            bar.update()
            last, stop = self.step == config.max_steps, self._stop_requested_anywhere()
            if self.step % config.log_every == 0:
                mean = sum(losses) / len(losses)
                seconds = (time.perf_counter() - start) / len(losses)
                lr = config.learning_rate * config.learning_rate_factor(self.step - 1)
                bar.set_postfix(loss=f"{mean:.4f}")
                self._log(loss=mean, grad_norm=norm, lr=lr, seconds_per_step=round(seconds, 4))
                losses, start = [], time.perf_counter()
            if main and (last or self.step % config.validate_every == 0):
                with self._mean_weights():
                    self._log(**validate(self.network, self.scheduler, self.validation, config))
                start = time.perf_counter()
            if main and (last or self.step % config.sample_every == 0):
                self._save_samples()
                start = time.perf_counter()
            if last or stop or self.step % config.checkpoint_every == 0:
                self.save()

    def _loss(self, batch: Batch) -> torch.Tensor:
        config, clean, noise, timesteps = self.config, batch.images, batch.noise, batch.timesteps
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        if config.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        labels = batch.labels if self.network.class_embedding is not None else None
        with self.accelerator.autocast():
            prediction = self.model(noisy, timesteps, labels).sample
        weights = None
        if config.min_snr_gamma is not None:
            weights = min_snr_weights(self.scheduler, timesteps, config.min_snr_gamma, config.min_snr_power)
        target = training_target(self.scheduler, clean, noise, timesteps)
        return diffusion_loss(prediction, target, config.loss, weights)

    def _check_finite(self, losses: list[float], norm: float) -> None:
        # With fp16 the scaler skips steps of infinite gradients and lowers its factor.
        if all(map(math.isfinite, losses)) and (math.isfinite(norm) or self.accelerator.scaler is not None):
            return
        loss = next((value for value in losses if not math.isfinite(value)), losses[-1])
        checkpoints = list_checkpoints(self.output)
        rest = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        raise TrainingDivergedError(
            f"step {self.step + 1} has the loss {loss:g} and gradients of norm {norm:g}; {rest}. A lower"
            " learning_rate, more warmup_steps or mixed_precision 'no' may help."
        )

    def _stop_requested_anywhere(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        flag = torch.tensor([float(self.stop_requested)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _set_mean(self, weights: dict[str, torch.Tensor]) -> None:
        for (name, _), value in zip(self.network.named_parameters(), self.ema.shadow_params, strict=True):
            value.copy_(weights[name])

    @contextlib.contextmanager
    def _mean_weights(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights and is in evaluation mode."""
        self.ema.store(self.network.parameters())
        training = self.network.training
        try:
            self.ema.copy_to(self.network.parameters())
            self.network.eval()
            yield
        finally:
            self.ema.restore(self.network.parameters())
            self.network.train(training)

    def _save_samples(self) -> None:
        with self._mean_weights():
            samples = sample_labels_in_config(self.network, self.scheduler, self.config)
        columns = self.config.samples_per_label
        tiles(torch.cat(list(samples.values())), columns).save(self.output / f"samples-{self.step:08d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                images = {f"samples/{name}": (x * 0.5 + 0.5).clamp(0, 1).numpy() for name, x in samples.items()}
                tracker.log_images(images, step=self.step)

    def _log(self, **values: float) -> None:
        if not self.accelerator.is_main_process:
            return
        images = self.step * self.stream.images_per_step
        record = {"time": int(time.time()), "step": self.step, "images": images}
        record["epoch"] = round(images / len(self.stream.data), 4)
        record |= {name: round(value, 7) for name, value in values.items()}
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.accelerator.log(values, step=self.step)

    def _forget_later_records(self) -> None:
        """Takes out of the log what a killed run wrote after the checkpoint that this one goes on from."""
        log = self.output / "log.jsonl"
        if not log.is_file():
            return
        kept = []
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the kill
                if json.loads(line)["step"] <= self.step:
                    kept.append(line + "\n")
        temporary = log.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, log)
