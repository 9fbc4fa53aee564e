"""Trains a label-conditioned ConvNeXt U-Net on face images, and exports it as a pipeline.

    accelerate launch training/train.py --config training/configs/lfw-32.json --data DATA --output RUN
    python training/train.py --config training/configs/lfw-32.json --data DATA --output RUN --resume
    python training/train.py --config training/configs/lfw-32.json --output RUN --export FOLDER

Every random draw of a step follows from the seed and the number of the step, so that a resumed run goes on exactly as
if it had never stopped. A run stopped by Ctrl-C or SIGTERM writes a checkpoint first.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from diffusers import DDPMScheduler
from tqdm.auto import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, it finds its own package

from diffusers_xai import ConvNextUNet2DModel  # noqa: E402
from training.checkpoint import (  # noqa: E402
    list_checkpoints,
    load_checkpoint,
    load_optimizer_states,
    optimizer_states,
    save_checkpoint,
)
from training.config import TrainingConfig, load_config  # noqa: E402
from training.data import BatchStream, FaceImages, load_splits  # noqa: E402
from training.ema import EMA  # noqa: E402
from training.evaluation import sample_grid, validate  # noqa: E402
from training.export import export_pipeline, load_weights  # noqa: E402
from training.objective import diffusion_loss, min_snr_weights, training_target  # noqa: E402
from training.optim import build_optimizers  # noqa: E402


class Trainer:
    """A run: network, optimizer, running mean, and the step they are at.

    Args:
        config (`TrainingConfig`): The settings.
        train (`FaceImages`): Images to learn from.
        validation (`FaceImages`): Images to measure on.
        output (`Path`): Folder for checkpoints, `log.jsonl` and sample grids.
    """

    def __init__(self, config: TrainingConfig, train: FaceImages, validation: FaceImages, output: Path):
        self.config, self.validation, self.output = config, validation, output
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps
        )
        set_seed(config.seed)
        self.scheduler = DDPMScheduler(**config.scheduler)
        model = ConvNextUNet2DModel(**config.model).to(self.accelerator.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if config.zero_init_output:
            torch.nn.init.zeros_(model.conv_out.weight)
            torch.nn.init.zeros_(model.conv_out.bias)
        self.ema = EMA(model, config.ema_decay)
        self.model, *self.optimizers = self.accelerator.prepare(model, *build_optimizers(model, config))
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.stream = BatchStream(
            train,
            config,
            null_label=model.config.null_class_label,
            num_train_timesteps=self.scheduler.config.num_train_timesteps,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self.step = 0
        self.stop_requested = False

    @property
    def network(self) -> ConvNextUNet2DModel:
        """The network without accelerate's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    def resume(self, checkpoint: str | Path) -> None:
        """Takes over weights, running mean, optimizer and step of a checkpoint."""
        tensors, state = load_checkpoint(checkpoint)
        if state["seed"] != self.config.seed:
            raise ValueError(f"expected a checkpoint of seed {self.config.seed}, got one of seed {state['seed']}")
        load_weights(self.network, tensors["model"], checkpoint)
        for name, value in self.ema.shadow.items():
            value.copy_(tensors["ema"][name])
        load_optimizer_states(self.optimizers, tensors["optimizer"], state["optimizer"])
        if self.accelerator.scaler is not None and state["grad_scaler"]:
            self.accelerator.scaler.load_state_dict(state["grad_scaler"])
        self.step = state["step"]

    def start_from(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Takes over the weights of a finished network; steps and optimizer start anew."""
        load_weights(self.network, weights, source)
        for name, value in self.ema.shadow.items():
            value.copy_(weights[name])

    def save(self) -> None:
        """Writes a checkpoint of the present step."""
        if self.accelerator.is_main_process:
            optimizer_tensors, optimizer_rest = optimizer_states(self.optimizers)
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.output,
                self.step,
                {"model": self.network.state_dict(), "ema": self.ema.shadow, "optimizer": optimizer_tensors},
                {
                    "seed": self.config.seed,
                    "optimizer": optimizer_rest,
                    "grad_scaler": scaler.state_dict() if scaler is not None else None,
                    "config": self.config.to_dict(),
                },
                self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def train_step(self) -> tuple[float, float]:
        """One optimizer step; returns the mean loss of its forward passes and the gradients' norm before clipping."""
        config, accelerator = self.config, self.accelerator
        factor = config.learning_rate_factor(self.step)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        losses, norm = [], 0.0
        for i in range(config.gradient_accumulation_steps):
            with accelerator.accumulate(self.model):
                loss = self._loss(self.step * config.gradient_accumulation_steps + i)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm))
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(loss.item())
        self.ema.update(self.network, self.step)
        self.step += 1
        return sum(losses) / len(losses), norm

    def _loss(self, batch_number: int) -> torch.Tensor:
        config, device = self.config, self.accelerator.device
        batch = self.stream.batch(batch_number)
        clean, noise, timesteps = batch.images.to(device), batch.noise.to(device), batch.timesteps.to(device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        if config.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(device) if self.network.class_embedding is not None else None
        with self.accelerator.autocast():
            prediction = self.model(noisy, timesteps, labels).sample
        weights = None
        if config.min_snr_gamma is not None:
            weights = min_snr_weights(self.scheduler, timesteps, config.min_snr_gamma, config.min_snr_power)
        target = training_target(self.scheduler, clean, noise, timesteps)
        return diffusion_loss(prediction, target, config.loss, weights)

    def run(self) -> None:
        """Trains to the last step, or until `stop_requested`."""
        config, main = self.config, self.accelerator.is_main_process
        self.model.train()
        bar = tqdm(initial=self.step, total=config.max_steps, disable=not main, desc="steps", mininterval=2.0)
        losses, start = [], time.perf_counter()
        while self.step < config.max_steps and not self.stop_requested:
            loss, norm = self.train_step()
            losses.append(loss)
            bar.update()
            last = self.step == config.max_steps
            if self.step % config.log_every == 0:
                mean = sum(losses) / len(losses)
                seconds = (time.perf_counter() - start) / len(losses)
                lr = config.learning_rate * config.learning_rate_factor(self.step - 1)
                bar.set_postfix(loss=f"{mean:.4f}")
                self._log(loss=mean, grad_norm=norm, lr=lr, seconds_per_step=round(seconds, 4))
                losses, start = [], time.perf_counter()
            if main and (last or self.step % config.validate_every == 0):
                with self.ema.applied(self.network):
                    self._log(**validate(self.network, self.scheduler, self.validation, config))
                start = time.perf_counter()
            if main and (last or self.step % config.sample_every == 0):
                with self.ema.applied(self.network):
                    grid = sample_grid(self.network, self.scheduler, config)
                grid.save(self.output / f"samples-{self.step:08d}.png")
                start = time.perf_counter()
            if last or self.stop_requested or self.step % config.checkpoint_every == 0:
                self.save()
        bar.close()

    def _log(self, **values: float) -> None:
        if not self.accelerator.is_main_process:
            return
        per_step = self.config.batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes
        record = {"time": int(time.time()), "step": self.step, "images": self.step * per_step}
        record |= {name: round(value, 7) for name, value in values.items()}
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the run's settings, a JSON file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--data", help="parquet file, folder or Hub id; without it nothing is trained")
    parser.add_argument("--data-config", help="the Hub data set's configuration")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        help="go on from this checkpoint, or from the last one in --output",
    )
    parser.add_argument(
        "--start-from", metavar="PIPELINE", help="folder or Hub id of a pipeline whose weights to go on from"
    )
    parser.add_argument("--export", type=Path, help="write the averaged weights as a pipeline to this folder")
    parser.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="put a JSON value over the configuration's; may be repeated",
    )
    args = parser.parse_args(arguments)
    if args.data is None and args.export is None:
        parser.error("expected --data to train, --export to write out a finished run, or both")
    if args.resume is not None and args.start_from is not None:
        parser.error("expected one of --resume (a run's checkpoint) and --start-from (a finished pipeline), got both")
    return args


def prepare(args: argparse.Namespace) -> tuple[TrainingConfig, Trainer | None]:
    """All that can fail before training: settings, data, network, checkpoint."""
    config = load_config(args.config, args.set)
    try:
        model = ConvNextUNet2DModel(**config.model)
        length = DDPMScheduler(**config.scheduler).config.num_train_timesteps
    except TypeError as error:
        raise ValueError(f"model or scheduler settings: {error}") from error
    if not all(0 <= t < length for t in config.validation_timesteps):
        raise ValueError(f"expected validation_timesteps in 0..{length - 1}, got {config.validation_timesteps}")
    if args.data is None:
        return config, None
    if args.resume is None and list_checkpoints(args.output):
        raise ValueError(f"{str(args.output)!r} holds a run already: add --resume, or choose another --output")
    attributes = model.config.class_attributes if config.model.get("num_class_embeds", 16) is not None else None
    train, validation = load_splits(args.data, args.data_config, config, attributes)
    weights = None
    if args.start_from is not None:
        pretrained = ConvNextUNet2DModel.from_pretrained(args.start_from, subfolder="unet", dtype=torch.float32)
        weights = pretrained.state_dict()
    args.output.mkdir(parents=True, exist_ok=True)
    report_faulty({"train": train.faulty, "validation": validation.faulty}, args.output)
    trainer = Trainer(config, train, validation, args.output)
    if args.resume is not None:
        trainer.resume(args.output if args.resume == "latest" else args.resume)
    elif weights is not None:
        trainer.start_from(weights, args.start_from)
    return config, trainer


def report_faulty(faulty: dict[str, list[tuple[str, str]]], output: Path) -> None:
    """Lists what was left out in `faulty.json`, and says how much it was."""
    count = sum(map(len, faulty.values()))
    if count and PartialState().is_main_process:
        (output / "faulty.json").write_text(json.dumps(faulty, indent=1) + "\n", encoding="utf-8")
        print(f"left out {count} faulty rows, listed in {output / 'faulty.json'}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parse_args(arguments)
    try:
        config, trainer = prepare(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    if trainer is not None:

        def request_stop(*_) -> None:
            trainer.stop_requested = True

        signal.signal(signal.SIGINT, request_stop)
        signal.signal(signal.SIGTERM, request_stop)
        trainer.run()
    if args.export is not None and (trainer is None or trainer.accelerator.is_main_process):
        try:
            steps = export_pipeline(args.output, config, args.export)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"wrote the averaged weights after {steps} steps to {args.export}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
