"""Trains a label-conditioned ConvNeXt U-Net on face images, and exports it as a pipeline.

    accelerate launch -m training.train --config training/configs/lfw-32.json --data DATA --output RUN
    python -m training.train --config training/configs/lfw-32.json --data DATA --output RUN --resume
    python -m training.train --config training/configs/lfw-32.json --output RUN --export FOLDER

Every random draw of a step follows from the seed and the number of the step, so that a resumed run continues
exactly as if it had never stopped. A run stopped by Ctrl-C or SIGTERM writes a checkpoint first.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


_IMPORTS_BEGAN = time.monotonic()  # they take seconds, which are the time limit's too

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel
from training.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint
from training.config import TrainingConfig, load_config
from training.data import FaceImages, load_splits
from training.denormals import denormals_as_zero
from training.export import export_pipeline, load_weights
from training.rehearsal import (
    check_same_data,
    check_same_run,
    rehearse_device,
    rehearse_network,
    rehearse_scheduler,
)
from training.run import Run, TimeIsUpError
from training.schedule import TimeLimit
from training.trainer import Trainer, TrainingDivergedError


_IMPORT_SECONDS = time.monotonic() - _IMPORTS_BEGAN


def parse_args(arguments: list[str] | None = None, description: str | None = __doc__) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the run's settings, a JSON file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--data", help="parquet file, folder or Hub id; without it nothing is trained")
    parser.add_argument("--data-config", help="the Hub data set's configuration")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        help="continue from this checkpoint, or from the last one in --output",
    )
    parser.add_argument(
        "--start-from", metavar="PIPELINE", help="folder or Hub id of a pipeline whose weights to start from"
    )
    parser.add_argument("--export", type=Path, help="write the averaged weights as a pipeline to this folder")
    parser.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="put a JSON value over the configuration's; may be repeated",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="MINUTES",
        help="end well in this time: as many of max_steps as fit in, the learning rate falling over the last ones",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="write a checkpoint at least so often, beside those of checkpoint_every. Default: 10",
    )
    args = parser.parse_args(arguments)
    for name in ("time_limit", "checkpoint_minutes"):
        value = getattr(args, name)
        if value is not None and not 0 < 60 * value < float("inf"):
            parser.error(f"expected --{name.replace('_', '-')} above 0 and finite, got {value:g}")
    if args.data is None and args.export is None:
        parser.error("expected --data to train, --export to write out a finished run, or both")
    if args.resume is not None and args.start_from is not None:
        parser.error("expected one of --resume (a run's checkpoint) and --start-from (a finished pipeline), got both")
    return args


def prepare(args: argparse.Namespace, started: float) -> tuple[TrainingConfig, Run | None]:
    """All that can fail before training: settings, folders, checkpoint, and last, since it takes longest, the data.

    The time runs since `started`.
    """
    config = load_config(args.config, args.set)
    model = rehearse_network(config)
    rehearse_scheduler(config)
    for folder in filter(None, (args.output, args.export)):
        check_folder(folder)
    if args.data is None:
        return config, None
    rehearse_device(config)
    check_teacher(args, config)
    checkpoint = checkpoint_to_resume(args, config)
    if checkpoint is not None:
        load_weights(model, checkpoint[0]["model"], resumed_from(args))
    weights = None
    if args.start_from is not None:
        pretrained = ConvNextUNet2DModel.from_pretrained(args.start_from, subfolder="unet", dtype=torch.float32)
        weights = pretrained.state_dict()
        load_weights(model, weights, args.start_from)
    attributes = model.config.class_attributes if model.class_embedding is not None else None
    train, validation = load_splits(args.data, args.data_config, config, attributes)
    if checkpoint is not None:
        check_same_data(checkpoint[1], train, validation)
    args.output.mkdir(parents=True, exist_ok=True)
    report_faulty({"train": train.faulty, "validation": validation.faulty}, args.output)
    return config, start(args, Trainer(config, train, args.output), validation, weights, started)


def check_teacher(args: argparse.Namespace, config: TrainingConfig) -> None:
    """Raises a ValueError unless the run has the teacher that it asks for, and one that predicts what it learns."""
    if config.distilled_guidance_scale is None or args.resume is not None:
        return
    if args.start_from is None:
        raise ValueError("expected --start-from PIPELINE, the teacher of distilled_guidance_scale, got none")
    teacher = DDPMScheduler.load_config(args.start_from, subfolder="scheduler")
    predicted = teacher.get("prediction_type", "epsilon")
    if predicted != config.prediction_type:
        raise ValueError(
            f"--start-from: expected a teacher that predicts {config.prediction_type!r}, as the scheduler of the"
            f" configuration says, got one that predicts {predicted!r}"
        )


def resumed_from(args: argparse.Namespace) -> str | Path:
    """The checkpoint, or the folder whose last one it is, that `--resume` names."""
    return args.output if args.resume == "latest" else args.resume


def checkpoint_to_resume(
    args: argparse.Namespace, config: TrainingConfig
) -> tuple[dict[str, dict[str, torch.Tensor]], dict] | None:
    """Tensors and state of the checkpoint that `--resume` names.

    Raises:
        ValueError: If the run would mix with what `--output` holds, or differ in meaning from the checkpoint's.
    """
    if args.resume is None:
        if list_checkpoints(args.output):
            raise ValueError(
                f"--output: expected a new folder, got {str(args.output)!r} with a run: add --resume or choose another"
            )
        return None
    tensors, state = load_checkpoint(resumed_from(args))
    later = list_checkpoints(args.output)[-1:]
    if later and checkpoint_step(later[0]) > state["step"]:
        raise ValueError(
            f"--output: expected no checkpoint later than step {state['step']} of --resume, got {later[0]}: choose"
            " another for the branch"
        )
    check_same_run(state, config, PartialState().num_processes)
    return tensors, state


def start(
    args: argparse.Namespace,
    trainer: Trainer,
    validation: FaceImages,
    weights: dict[str, torch.Tensor] | None,
    started: float,
) -> Run:
    """The run of a trainer, from the checkpoint of `--resume` or the weights of `--start-from` where there are any."""
    if args.resume is not None:
        trainer.resume(resumed_from(args))
    elif weights is not None:
        trainer.start_from(weights, args.start_from)
    limit = TimeLimit(60 * args.time_limit, started) if args.time_limit is not None else None
    return Run(trainer, validation, args.output, limit, 60 * args.checkpoint_minutes)


def check_folder(folder: Path) -> None:
    """Raises an OSError unless `folder` is one that can be written to, or can be made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"expected {str(folder)!r} as a folder, got the file {str(nearest)!r} in its place")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"expected a folder that can be written to, got {str(folder)!r}")


def report_faulty(faulty: dict[str, list[tuple[str, str]]], output: Path) -> None:
    """Lists what was left out in `faulty.json`, and says how much it was."""
    count = sum(map(len, faulty.values()))
    if count and PartialState().is_main_process:
        (output / "faulty.json").write_text(json.dumps(faulty, indent=1) + "\n", encoding="utf-8")
        print(f"left out {count} faulty rows, listed in {output / 'faulty.json'}", file=sys.stderr)


@denormals_as_zero()
def execute(
    args: argparse.Namespace, prepare: Callable[..., tuple[TrainingConfig, Run | None]], export: Callable[..., int]
) -> int:
    """Prepares, trains and exports; returns the exit code."""
    started = time.monotonic() - _IMPORT_SECONDS
    try:
        config, run = prepare(args, started)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # on one line
        return 2

    if run is not None:

        def request_stop(*_) -> None:
            run.stop_requested = True

        signal.signal(signal.SIGINT, request_stop)
        signal.signal(signal.SIGTERM, request_stop)
        try:
            run.run()
        except (TrainingDivergedError, TimeIsUpError, OSError) as error:
            print(f"error: training stopped: {error}", file=sys.stderr)
            return 1
        if run.stop_requested and run.main:
            print(f"stopped after step {run.trainer.step}; --resume continues from there", file=sys.stderr)
    if args.export is not None and (run is None or run.main):
        try:
            steps = export(args.output, config, args.export)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"wrote the averaged weights after {steps} steps to {args.export}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return execute(parse_args(arguments), prepare, export_pipeline)


if __name__ == "__main__":
    sys.exit(main())
