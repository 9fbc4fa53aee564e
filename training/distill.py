"""Distils a model into a student of few steps, without any photograph.

    python -m training.distill --output RUN --export FOLDER
    python -m training.distill --output RUN --resume --export FOLDER
    python -m training.distill --teacher FOLDER --steps 8 --teacher-steps 40 --output RUN --export FOLDER

The teacher, by default `lfw-32` of the package, samples by DDIM from its own noise. The student begins with the
teacher's weights and learns to do in one step what the teacher does in several. A run stopped by Ctrl-C, SIGTERM or a
kill continues with --resume: exactly as if it had never stopped, where no --time-limit changes its number of steps.

Source: Salimans and Ho 2022, *Progressive Distillation for Fast Sampling of Diffusion Models*, eq. 8, over all of a
student's step at once.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, SchedulerMixin
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline, demo_checkpoint
from diffusers_xai.cli.options import checkpoint
from diffusers_xai.experiments.few_steps import few_step_scheduler
from diffusers_xai.measures import structural_similarity
from training.batches import step_generator
from training.card import write_facts
from training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_optimizer_states,
    optimizer_states,
    remove_leftovers,
    save_checkpoint,
)
from training.denormals import denormals_as_zero
from training.export import load_weights
from training.log import forget_after, write_record
from training.objective import implied_clean_and_noise
from training.schedule import TimeLimit
from training.teacher_runs import RUNS_AT_ONCE, TeacherRuns, label_shares, teacher_states
from training.train import check_folder
from training.trainer import TrainingDivergedError


EMA_DECAY, MAX_NORM, WARMUP = 0.99, 1.0, 10
LOG_EVERY, KEEP = 20, 2
TEST_RUNS = 64
FIXED = ("teacher", "steps", "teacher_steps", "runs", "batch_size", "learning_rate", "seed")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher",
        type=checkpoint,
        default=demo_checkpoint("lfw-32"),
        help="folder, Hub id, or the name of an embedded model. Default: lfw-32",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--export", type=Path, help="write the averaged weights as a pipeline to this folder")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="end well in this time")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0, metavar="MINUTES", help="Default: 5")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of Adam, falling to zero. Default: 2e-4")
    for name, default, text in (
        ("steps", 4, "the student's"),
        ("teacher-steps", 40, "the teacher's, a multiple of --steps"),
        ("runs", 1024, "of the teacher, to learn from"),
        ("batch-size", 64, "states in a training step"),
        ("train-steps", 600, "training steps"),
        ("seed", 0, "of all that is drawn"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text}. Default: {default}")
    args = parser.parse_args(arguments)
    for name in ("time_limit", "checkpoint_minutes", "learning_rate", "steps", "runs", "batch_size", "train_steps"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"expected --{name.replace('_', '-')} above 0, got {value:g}")
    if args.seed < 0:
        parser.error(f"expected --seed from 0 on, got {args.seed}")
    if args.teacher_steps % args.steps or args.teacher_steps <= args.steps:
        parser.error(f"expected --teacher-steps as a multiple of --steps ({args.steps}), got {args.teacher_steps}")
    return args


class Distiller:
    """Teacher, student, and the step they are at.

    Args:
        args (`argparse.Namespace`): The settings.

    Raises:
        ValueError, OSError: If the teacher cannot be read or be taught from.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.teacher = XAIPipeline.from_pretrained(args.teacher, dtype=torch.float32).to(device)
        kind = self.teacher.scheduler.config.get("prediction_type")
        if not isinstance(self.teacher.unet, ConvNextUNet2DModel) or kind not in ("sample", "v_prediction"):
            raise ValueError(
                f"expected a teacher of ConvNextUNet2DModel that predicts 'sample' or 'v_prediction', since the noise"
                f" in pure noise says nothing of the image, got {type(self.teacher.unet).__name__} and {kind!r}"
            )
        timesteps = self.teacher.scheduler.config.num_train_timesteps
        if timesteps % args.teacher_steps:  # DDIM would lie between timesteps, and the student's state beside its t
            raise ValueError(
                f"expected --teacher-steps, and so --steps, as divisors of the {timesteps} timesteps, got"
                f" {args.teacher_steps}"
            )
        self.scheduler = few_step_scheduler(self.teacher.scheduler)
        self.scheduler.set_timesteps(args.steps)
        shares = label_shares(self.teacher, Path(args.teacher))
        every = args.teacher_steps // args.steps
        self.data = TeacherRuns(args.output, self.teacher, shares, args.teacher_steps, every, args.seed)
        self.student = ConvNextUNet2DModel.from_config(self.teacher.unet.config)
        self.student.load_state_dict(self.teacher.unet.state_dict())
        self.student.to(device, memory_format=torch.channels_last)
        self.parameters = list(self.student.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=args.learning_rate)
        self.ema = EMAModel(self.parameters, EMA_DECAY, foreach=True)
        self.step, self.max_steps = 0, args.train_steps
        self.stop_requested = False

    def settings(self) -> dict[str, Any]:
        """What a resumed run has to have in common with this one."""
        return {name: getattr(self.args, name) for name in FIXED}

    def resume(self) -> None:
        """Takes over the last checkpoint.

        Raises:
            ValueError: If it is of other settings.
        """
        tensors, state = load_checkpoint(self.args.output)
        differing = [name for name, value in self.settings().items() if state["settings"].get(name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"expected {name}={state['settings'].get(name)!r} as of the run in {str(self.args.output)!r}, got"
                f" {getattr(self.args, name)!r}: repeat its settings, or choose another --output"
            )
        load_weights(self.student, tensors["model"], self.args.output)
        for (name, _), value in zip(self.student.named_parameters(), self.ema.shadow_params, strict=True):
            value.copy_(tensors["ema"][name])
        load_optimizer_states([self.optimizer], tensors["optimizer"], state["optimizer"])
        self.step = self.ema.optimization_step = state["step"]

    def save(self) -> None:
        """Writes a checkpoint."""
        tensors, rest = optimizer_states([self.optimizer])
        names = [name for name, _ in self.student.named_parameters()]
        mean = dict(zip(names, self.ema.shadow_params, strict=True))
        save_checkpoint(
            self.args.output,
            self.step,
            {"model": self.student.state_dict(), "ema": mean, "optimizer": tensors},
            {"optimizer": rest, "settings": self.settings()},
            KEEP,
        )

    def run(self, limit: TimeLimit | None) -> None:
        """Lets the teacher run, then trains, to the last step or until the time is up.

        Raises:
            TrainingDivergedError: If the loss is no longer finite.
            OSError: If writing fails. In both cases the last checkpoint stays.
        """
        remove_leftovers(self.args.output)
        forget_after(self.args.output, self.step)
        parts = -(-self.args.runs // RUNS_AT_ONCE)
        found = []
        for number in tqdm(range(parts), desc="teacher's runs", unit_scale=RUNS_AT_ONCE, leave=False):
            if self._over(limit):
                return
            found.append(self.data.part(number, min(RUNS_AT_ONCE, self.args.runs - number * RUNS_AT_ONCE)))
        states = torch.cat([part["states"] for part in found])
        labels = torch.cat([part["labels"] for part in found]) if "labels" in found[0] else None
        self.student.train()
        saved_at, losses = time.monotonic(), []
        with tqdm(initial=self.step, total=self.max_steps, desc="steps", mininterval=2.0) as bar:
            while self.step < self.max_steps and not self._over(limit):
                losses.append(self.train_step(states, labels))
                bar.update()
                if limit is not None and limit.due:
                    seconds = limit.seconds_per_step(self.step)
                    if seconds is not None:
                        left = limit.steps_left(seconds, TEST_RUNS * self.args.teacher_steps * seconds / 100)
                        self.max_steps = min(self.args.train_steps, self.step + left)
                if self.step % LOG_EVERY == 0 or self.step >= self.max_steps:
                    record = {"time": int(time.time()), "step": self.step, "loss": sum(losses) / len(losses)}
                    write_record(self.args.output, record)
                    losses = []
                if time.monotonic() - saved_at >= 60 * self.args.checkpoint_minutes:
                    self.save()
                    saved_at = time.monotonic()
        self.save_if_new()

    def save_if_new(self) -> None:
        """Writes a checkpoint of the present step, unless it is there."""
        last = list_checkpoints(self.args.output)[-1:]
        if self.step and (not last or int(last[0].name.split("-")[1]) != self.step):
            self.save()

    def train_step(self, states: torch.Tensor, labels: torch.Tensor | None) -> float:
        """One optimizer step on states of the teacher's runs; returns the loss.

        Raises:
            TrainingDivergedError: If it is not finite.
        """
        generator = step_generator(self.args.seed, 1, self.step)
        device = self.parameters[0].device
        rows = torch.randint(len(states), (self.args.batch_size,), generator=generator)
        moments = torch.randint(self.args.steps, (self.args.batch_size,), generator=generator)
        noisy, after = (states[rows, k].float().to(device) for k in (moments, moments + 1))
        timesteps = self.scheduler.timesteps[moments]
        target = clean_target(self.scheduler, noisy, after, moments)
        chosen = None if labels is None else labels[rows].to(device)
        prediction = self.student(noisy, timesteps.to(device), chosen).sample
        clean, _ = implied_clean_and_noise(self.scheduler, prediction, noisy, timesteps)
        loss = (clean - target).square().mean()
        if not torch.isfinite(loss):
            raise TrainingDivergedError(f"step {self.step + 1} has the loss {float(loss):g}: a lower --learning-rate?")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        factor = min((self.step + 1) / WARMUP, (self.max_steps - self.step) / self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        self.step += 1
        return float(loss.detach())

    def _over(self, limit: TimeLimit | None) -> bool:
        return self.stop_requested or (limit is not None and limit.over)


def clean_target(
    scheduler: SchedulerMixin, noisy: torch.Tensor, after: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """The x̂_0 with which one DDIM step takes the states `noisy` of the student's steps `moments` to `after`.

    Source: Salimans and Ho 2022, eq. 8.
    """
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    signal, noise = (part.sqrt()[moments].view(-1, 1, 1, 1).to(noisy) for part in (alphas, 1 - alphas))
    later = torch.cat([alphas[1:], torch.ones(1, dtype=torch.float64)])
    signal_after, noise_after = (part.sqrt()[moments].view(-1, 1, 1, 1).to(noisy) for part in (later, 1 - later))
    ratio = noise_after / noise
    return (after - ratio * noisy) / (signal_after - ratio * signal)


def export(args: argparse.Namespace, teacher: XAIPipeline) -> list[list[Any]]:
    """Writes the averaged weights of the last checkpoint as fp16, with the facts for a card; returns its measures.

    Raises:
        FileNotFoundError, ValueError: If there is no usable checkpoint.
    """
    tensors, state = load_checkpoint(args.output)
    student = ConvNextUNet2DModel.from_config(teacher.unet.config)
    load_weights(student, tensors["ema"], args.output)
    settings = state["settings"]
    pipe = XAIPipeline(student.eval().to(teacher.device), few_step_scheduler(teacher.scheduler))
    measures = compare(teacher, pipe, settings, label_shares(teacher, Path(settings["teacher"])))
    pipe.unet.half()
    pipe.save_pretrained(str(args.export), safe_serialization=True)
    name = Path(settings["teacher"]).name
    write_facts(
        args.export,
        {
            "model_name": f"{name}-{settings['steps']}-steps",
            "data": f"None but {settings['runs']} runs of its teacher, {name}, of {settings['teacher_steps']} steps.",
            "labelling": f"As of {name}.",
            "training": {
                "steps": state["step"],
                **{n.replace("_", " "): settings[n] for n in FIXED if n not in ("teacher", "steps", "seed")},
                "steps of the student": settings["steps"],
                "objective": "progressive distillation, one stage",
            },
            "metrics": measures,
            "limitations": [
                f"It is made for {settings['steps']} steps of its own scheduler, and for no other number."
            ],
        },
    )
    return measures


@torch.no_grad()
def compare(
    teacher: XAIPipeline, student: XAIPipeline, settings: dict[str, Any], shares: torch.Tensor | None
) -> list[list[Any]]:
    """SSIM to the teacher's image of many steps from the same, unseen noise: of the student, and of other ways.

    Chance is the SSIM with the teacher's image of the same label from other noise.
    """
    steps, many = settings["steps"], settings["teacher_steps"]
    runs = TeacherRuns(Path(), teacher, shares, many, many, settings["seed"] + 10**6, label_dropout=0.0)
    _, noise = runs.draw(0, TEST_RUNS)
    labels = None if shares is None else [int(shares.argmax())] * TEST_RUNS
    noise = noise.to(teacher.device)
    reference = teacher_states(teacher, labels, noise, many, many)[:, -1].clamp(-1, 1)
    ways = {
        "the student": student,
        "the teacher, DDIM": XAIPipeline(teacher.unet, few_step_scheduler(teacher.scheduler)),
        "the teacher, DPM-Solver++": XAIPipeline(
            teacher.unet, few_step_scheduler(teacher.scheduler, DPMSolverMultistepScheduler)
        ),
        "the teacher, LCM": XAIPipeline(teacher.unet, few_step_scheduler(teacher.scheduler, LCMScheduler)),
    }
    where = f"{TEST_RUNS} unseen noises, to the teacher's image of {many} steps"
    rows = []
    for name, pipe in ways.items():
        pipe.set_progress_bar_config(disable=True)
        generator = [torch.Generator().manual_seed(i) for i in range(TEST_RUNS)]
        output: Any = pipe(
            class_labels=labels, batch_size=TEST_RUNS, num_inference_steps=steps, sample=noise, generator=generator,
            output_type="pt",
        )  # fmt: skip
        value = structural_similarity(reference, 2 * output.images - 1).mean()
        rows.append([f"SSIM in {steps} steps, {name}", round(float(value), 4), where])
    chance = structural_similarity(reference, reference.roll(1, 0)).mean()
    return [*rows, ["SSIM by chance", round(float(chance), 4), "the same images, of different noises"]]


@denormals_as_zero()
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    started = time.monotonic()
    args = parse_args(arguments)
    try:
        for folder in filter(None, (args.output, args.export)):
            check_folder(folder)
        distiller = Distiller(args)
        if args.resume:
            if list_checkpoints(args.output):
                distiller.resume()
        elif args.output.is_dir() and any(args.output.iterdir()):
            raise ValueError(
                f"--output: expected a new folder, got {str(args.output)!r} with a run: add --resume or choose another"
            )
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    def request_stop(*_: object) -> None:
        distiller.stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, request_stop)
    try:
        distiller.run(None if args.time_limit is None else TimeLimit(60 * args.time_limit, started))
    except (TrainingDivergedError, OSError) as error:
        print(f"error: training stopped: {error}", file=sys.stderr)
        return 1
    if distiller.stop_requested:
        print(f"stopped after step {distiller.step}; --resume continues from there", file=sys.stderr)
    if args.export is not None:
        try:
            measures = export(args, distiller.teacher)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(json.dumps({name: value for name, value, _ in measures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
