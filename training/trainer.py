"""What is trained: the network, its optimizers and running mean, one step, and its state on disk."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from diffusers_xai import ConvNextUNet2DModel
from training.batches import Batch, BatchesAhead, BatchStream
from training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_optimizer_states,
    optimizer_states,
    save_checkpoint,
)
from training.config import TrainingConfig
from training.data import FaceImages
from training.evaluation import sample_labels_in_config
from training.export import load_weights
from training.objective import diffusion_loss, min_snr_weights, training_target
from training.optim import build_optimizers
from training.schedule import Schedule


class TrainingDivergedError(ArithmeticError):
    """The loss or the gradients are no longer finite."""


class Trainer:
    """Network, optimizer, running mean, and the step they are at.

    A step waits for nothing on the device: losses stay there until `read_losses`.

    Args:
        config (`TrainingConfig`): The settings.
        train (`FaceImages`): Images to learn from.
        output (`Path`): Folder for checkpoints and the tracker's files.
    """

    def __init__(self, config: TrainingConfig, train: FaceImages, output: Path):
        self.config, self.output = config, output
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.tracker,
            project_dir=output,
        )
        set_seed(config.seed)
        self.scheduler = DDPMScheduler(**config.scheduler)
        self.network = self._placed_network()
        self.parameters = list(self.network.parameters())
        self.ema = EMAModel(self.parameters, config.ema_decay, foreach=True)
        self.teacher: ConvNextUNet2DModel | None = None
        model = torch.compile(self.network) if config.compile else self.network
        self.model, *self.optimizers = self.accelerator.prepare(model, *build_optimizers(self.network, config))
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.schedule = Schedule.of(config)
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
        self.learning_rate = 0.0  # of the last step
        self.losses: list[float] = []  # of the steps since the last line of the log
        self.grad_norm = 0.0
        self._unread: list[tuple[list[torch.Tensor], torch.Tensor]] = []

    def build_network(self) -> ConvNextUNet2DModel:
        """The network of the configuration, with its first weights."""
        network = ConvNextUNet2DModel(**self.config.model)
        if self.config.zero_init_output:
            torch.nn.init.zeros_(network.conv_out.weight)
            torch.nn.init.zeros_(network.conv_out.bias)
        return network

    def resume(self, checkpoint: str | Path) -> None:
        """Takes over weights, running mean, optimizer and step of a checkpoint of the same run (`check_same_run`).

        A schedule that was fitted to a time limit and has not ended is kept, unless the configuration's has changed.
        """
        tensors, state = load_checkpoint(checkpoint)
        load_weights(self.network, tensors["model"], checkpoint)
        self._set_mean(tensors["ema"])
        self._set_teacher(tensors.get("teacher", {}), checkpoint)
        load_optimizer_states(self.optimizers, tensors["optimizer"], state["optimizer"])
        if self.accelerator.scaler is not None and state["grad_scaler"]:
            self.accelerator.scaler.load_state_dict(state["grad_scaler"])
        self.step = self.ema.optimization_step = state["step"]
        self.losses = state.get("losses", [])
        fitted, own = state.get("schedule"), dataclasses.asdict(Schedule.of(self.config))
        if fitted is not None and fitted["own"] == own and self.step < fitted["max_steps"]:
            self.schedule = Schedule(**{name: fitted[name] for name in own})

    def start_from(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Takes over the weights of a finished network; steps and optimizer start afresh."""
        load_weights(self.network, weights, source)
        self._set_mean(weights)
        self._set_teacher(weights, source)

    def save(self, **state: str) -> None:
        """Writes a checkpoint of the present step, and what else it is to say of the run.

        Raises:
            TrainingDivergedError: If a loss or the gradients of the steps before were not finite.
            OSError: If writing fails. In both cases the last checkpoint stays as it was.
        """
        self.read_losses()
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
                }
                | ({} if self.teacher is None else {"teacher": self.teacher.state_dict()}),
                {
                    "optimizer": optimizer_rest,
                    "grad_scaler": scaler.state_dict() if scaler is not None else None,
                    "config": self.config.to_dict(),
                    "images_per_step": self.stream.images_per_step,
                    "label_counts": self.label_counts,
                    "data": self.stream.data.fingerprint,
                    "losses": self.losses,
                    **state,
                    "schedule": dataclasses.asdict(self.schedule)
                    | {"own": dataclasses.asdict(Schedule.of(self.config))},
                },
                self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def train_step(self) -> None:
        """One optimizer step."""
        accelerator, limit = self.accelerator, self.config.max_grad_norm
        factor = self.schedule.factor(self.step)
        self.learning_rate = self.config.learning_rate * factor
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        losses = []
        for batch in self.batches.take(self.step):
            with accelerator.accumulate(self.model):
                loss = self._loss(batch)
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
                    self._unread.append((losses, norm))
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        self.update_mean()
        self.step += 1

    @torch.no_grad()
    def update_mean(self) -> None:
        """Moves the running mean towards the weights: `EMAModel.step` in one pass over the memory."""
        self.ema.optimization_step += 1
        decay = self.ema.get_decay(self.ema.optimization_step)
        torch._foreach_lerp_(self.ema.shadow_params, self.parameters, 1 - decay)

    def read_losses(self) -> None:
        """Waits for the device and takes the losses and the last gradient norm of the steps since the last call.

        Raises:
            TrainingDivergedError: If one of them is not finite.
        """
        if not self._unread:
            return
        steps, self._unread = self._unread, []
        read = iter(torch.stack([value for losses, norm in steps for value in (*losses, norm)]).tolist())
        for step, (losses, _) in enumerate(steps, start=self.step - len(steps) + 1):
            values, self.grad_norm = [next(read) for _ in losses], next(read)
            self._check_finite(step, values, self.grad_norm)
            self.losses.append(sum(values) / len(values))

    def samples(self, stop: Callable[[], bool] = lambda: False) -> dict[str, torch.Tensor]:
        """Rows of the sample grid by name, images in [-1, 1] on the CPU; `StoppedError` if `stop` says so."""
        return sample_labels_in_config(self.network, self.scheduler, self.config, stop)

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
        if config.distilled_guidance_scale is None:
            target = training_target(self.scheduler, clean, noise, timesteps)
        else:
            target = self._guided(config.distilled_guidance_scale, noisy, timesteps, batch.labels)
        return diffusion_loss(prediction, target, config.loss, weights)

    @torch.no_grad()
    def _guided(
        self, scale: float, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The teacher's prediction with guidance, (batch, channel, height, width); of the null label, without.

        Source: Meng et al. 2023, *On Distillation of Guided Diffusion Models*, section 3.1, with one scale.
        """
        null = torch.full_like(labels, self.network.config.null_class_label)
        with self.accelerator.autocast():
            unconditional, conditional = (self.teacher(noisy, timesteps, row).sample.float() for row in (null, labels))
        return unconditional + scale * (conditional - unconditional)

    def _check_finite(self, step: int, losses: list[float], norm: float) -> None:
        # With fp16 the scaler skips steps of infinite gradients and lowers its factor.
        if all(map(math.isfinite, losses)) and (math.isfinite(norm) or self.accelerator.scaler is not None):
            return
        loss = next((value for value in losses if not math.isfinite(value)), losses[-1])
        checkpoints = list_checkpoints(self.output)
        rest = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        raise TrainingDivergedError(
            f"step {step} has the loss {loss:g} and gradients of norm {norm:g}; {rest}. A lower"
            " learning_rate, more warmup_steps or mixed_precision 'no' may help."
        )

    def _placed_network(self) -> ConvNextUNet2DModel:
        """A new network on the run's device, in its memory format."""
        network = self.build_network().to(self.accelerator.device)
        return network.to(memory_format=torch.channels_last) if self.config.channels_last else network

    def _set_teacher(self, weights: dict[str, torch.Tensor], source: str | Path) -> None:
        """Keeps the network whose guided predictions are learned, where the configuration asks for one."""
        if self.config.distilled_guidance_scale is not None:
            self.teacher = self._placed_network().requires_grad_(False).eval()
            load_weights(self.teacher, weights, source)

    def _set_mean(self, weights: dict[str, torch.Tensor]) -> None:
        for (name, _), value in zip(self.network.named_parameters(), self.ema.shadow_params, strict=True):
            value.copy_(weights[name])

    @contextlib.contextmanager
    def mean_weights(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights and is in evaluation mode."""
        self.ema.store(self.parameters)
        training = self.network.training
        try:
            self.ema.copy_to(self.parameters)
            self.network.eval()
            yield
        finally:
            self.ema.restore(self.parameters)
            self.network.train(training)
