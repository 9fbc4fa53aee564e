"""The command line: `diffusers-xai profile …`.

Every subcommand is one function that adds its parser and one that runs it. A `CommandError`, or an error of the
library that says what is wrong with the request, becomes one line on stderr and exit code 2.
"""

import argparse
import importlib.metadata
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from diffusers_xai.backbones import Backbone, get_backbone
from diffusers_xai.backbones.labels import encode_label
from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.explainers import Activations, AttentionMaps, RecordSpec, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import layers_with_maps
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report import write_report


PROGRAM = "diffusers-xai"
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
_DEFAULT_LABEL = "0011"
# Attention layers and block outputs, by their article-style names.
_LAYERS = ("downs.*.2.fn", "downs.*.3", "mid_attn.fn", "mid_block2", "ups.*.2.fn", "ups.*.3")
_RECORDED_STEPS = 100
_PROFILE_BYTES = 48e6


class CommandError(Exception):
    """A request that cannot be met; the text is for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: The exit code: 0, 2 after an error that the user can mend, 130 after an interruption.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    try:
        args = _parser().parse_args(argv)
        with _quiet(unless=debug):
            args.run(args)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (CommandError, ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        if debug:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{PROGRAM}: error: {' '.join(str(text).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Shows how a diffusion model forms an image, step by step.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_profile(commands)
    return parser


def _add_profile(commands: Any) -> None:
    parser = commands.add_parser(
        "profile",
        help="sample one image and write its diffusion profile with a report",
        description="Samples one image, records how it was formed, and writes the profile with report.html inside.",
    )
    parser.set_defaults(run=_run_profile)
    add = parser.add_argument
    add(
        "--label",
        help="what to generate: bits of the attributes (0011), names of those that hold (Smiling,Wearing_Lipstick), or"
        " an integer (3). As many digits 0 and 1 as there are attributes are always bits. Default: 0011",
    )
    add("--seed", type=int, default=321, metavar="INT", help="seed of the noise. Default: 321")
    add("--out", type=Path, default=Path("profile"), metavar="DIR", help="folder to write. Default: profile")
    add("--overwrite", action="store_true", help="replace the profile that is at --out, once the new one is complete")
    add("--checkpoint", metavar="DIR|HUB_ID", help="pipeline to sample with. Default: the model inside the package")
    add("--revision", help="revision of the checkpoint on the Hub")
    add("--scheduler", choices=SCHEDULERS, help="how to sample. Default: the checkpoint's own scheduler")
    add("--steps", type=_positive, default=1000, metavar="N", help="number of denoising steps. Default: 1000")
    add("--guidance-scale", type=float, default=1.0, metavar="W", help="classifier-free guidance. Default: 1.0, none")
    add(
        "--layers",
        nargs="+",
        metavar="GLOB",
        help="layers to record, as module paths or article-style names (downs.*.2.fn). Default: all attention layers"
        " and, where they have such names, the outputs of the blocks",
    )
    add(
        "--every",
        type=_positive,
        metavar="N",
        help="record every N-th step. Default: so that about 100 steps are kept and the profile stays near 50 MB",
    )
    add(
        "--mask",
        type=Path,
        metavar="IMAGE",
        help="choose the max channels within the bright part of this image, which is of the samples' size",
    )
    add("--device", default="cpu", help="where to compute, such as cuda or mps. Default: cpu")
    add(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads. Default: 1 for the model inside the package, which is too small for more, else all cores",
    )
    add("--debug", action="store_true", help="show tracebacks and the warnings of libraries")


def _run_profile(args: argparse.Namespace) -> None:
    _check_out(args.out, args.overwrite)
    mask = _read_mask(args.mask) if args.mask else None
    _say(f"Loading {args.checkpoint or 'the model inside the package'}")
    pipe = _load_pipeline(args)
    labels = _class_labels(args.label, pipe.unet.config)
    layers = args.layers or _default_layers(get_backbone(pipe))
    pipe.scheduler.set_timesteps(args.steps)
    calls = len(pipe.scheduler.timesteps)  # some schedulers call the network twice in a step

    # Threads that wait for each other take longer than one alone when the network is small and the cores are shared.
    threads = args.threads or (torch.get_num_threads() if args.checkpoint else 1)

    def sample(steps: int, every: int) -> DiffusionProfile:
        with _num_threads(threads):
            output: Any = pipe(
                class_labels=labels,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(args.seed)],
                guidance_scale=args.guidance_scale,
                record=_specs(pipe, layers, every),
            )
        return output.profile

    # One step shows what is wrong with the request before the long run, and how much a recorded step takes.
    pipe.set_progress_bar_config(disable=True)
    rehearsal = sample(steps=1, every=1)
    _check_mask(mask, rehearsal)
    step_bytes = sum(array.nbytes for array in rehearsal.values())
    every = args.every or max(calls // _RECORDED_STEPS, math.ceil(calls * step_bytes / _PROFILE_BYTES))
    _check_disk(args.out, step_bytes * math.ceil(calls / every))

    _say(f"Sampling {args.steps} steps" + (f", recording every {every}th" if every > 1 else ""))
    pipe.set_progress_bar_config(disable=False)
    profile = sample(args.steps, every)
    _say("Writing the profile and its report")
    with _new_folder(args.out) as folder:
        profile.save_pretrained(folder)
        if mask is not None:
            Image.fromarray(mask).save(folder / "mask.png")
        write_report(profile, folder / "report.html", mask=mask, command=_command(args, labels, every))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Profile: {args.out} ({size / 1e6:.0f} MB)\nReport:  {args.out / 'report.html'}")


def _load_pipeline(args: argparse.Namespace) -> XAIPipeline:
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {args.device} cannot be used: {error}") from error
    checkpoint = args.checkpoint or demo_checkpoint()
    # What is not the form of a Hub id can only be a folder.
    is_path = checkpoint.startswith((".", "~", os.sep)) or checkpoint.count("/") != 1
    if is_path and not Path(checkpoint).is_dir():
        raise CommandError(f"no checkpoint at {checkpoint}: expected a folder or a Hub id such as user/model")
    try:
        pipe = XAIPipeline.from_pretrained(checkpoint, revision=args.revision)
    except Exception as error:  # any library's: a folder of another kind, no network, corrupt weights
        raise CommandError(f"cannot load the checkpoint {checkpoint}: {error}") from error
    if args.scheduler:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[args.scheduler]).from_config(pipe.scheduler.config)
    return pipe.to(args.device)


def _class_labels(text: str | None, config: Mapping[str, Any]) -> list[int] | None:
    if config.get("num_class_embeds") is not None:
        return [parse_label(text or _DEFAULT_LABEL, config)]
    if text is not None:
        raise CommandError(f"--label {text}: this checkpoint takes no labels")
    return None


def parse_label(text: str, config: Mapping[str, Any]) -> int:
    """The label that `text` names.

    Args:
        text (`str`): As many digits 0 and 1 as the label has bits (`"0011"`), an integer (`"3"`), or the attributes
            that hold, separated by commas (`"Smiling,Wearing_Lipstick"`).
        config (`Mapping[str, Any]`): The model's: `num_class_embeds`, `class_attributes`, `null_class_label`.

    Raises:
        CommandError: if `text` names no label of the model.
    """
    count = config["num_class_embeds"]
    bits = (count - 1).bit_length()
    label: int | dict[str, bool]
    if len(text) == bits and set(text) <= {"0", "1"}:
        label = int(text, 2)
    elif text.removeprefix("-").isdecimal():
        label = int(text)
    else:
        label = {name.strip(): True for name in text.split(",")}
    try:
        return encode_label(label, count, config.get("null_class_label"), config.get("class_attributes"))
    except ValueError as error:
        raise CommandError(f"--label {text}: {error}") from error


def _default_layers(backbone: Backbone) -> list[str]:
    return list(_LAYERS if backbone.aliases else backbone.attention_outputs())


def _specs(pipe: XAIPipeline, layers: Sequence[str], every: int) -> list[RecordSpec]:
    specs: list[RecordSpec] = [Samples(every=every)]
    if get_backbone(pipe).attention_outputs():
        specs.append(AttentionMaps(every=every))
    if layers:
        specs.append(Activations(layers=layers, every=every))
    return specs


def _read_mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            brightness, opacity = np.asarray(image.convert("LA")).transpose(2, 0, 1)
    except OSError as error:
        raise CommandError(f"--mask {path}: cannot be read as an image: {error}") from error
    mask = (brightness > 127) & (opacity > 127)
    if not mask.any():
        raise CommandError(f"--mask {path}: the mask is empty, it has no bright pixel")
    return mask


def _check_mask(mask: np.ndarray | None, profile: DiffusionProfile) -> None:
    """Raises if `mask` is not of the samples' size, or vanishes at the size of a recorded layer."""
    for layer in layers_with_maps(profile) if mask is not None else []:
        try:
            profile.max_channel(layer, step=0, mask=mask)
        except ValueError as error:
            raise CommandError(f"--mask does not fit {layer}: {error}") from error


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises if a folder could not be made at `out`."""
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise CommandError(f"{out} exists: choose another --out, or --overwrite to replace the profile there")
        if not (out.is_dir() and ((out / "profile.json").is_file() or not any(out.iterdir()))):
            raise CommandError(f"{out} is not a profile: --overwrite replaces nothing else")
    try:
        with tempfile.TemporaryDirectory(prefix=".diffusers-xai-", dir=_existing_parent(out)):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error


def _check_disk(out: Path, expected: float) -> None:
    free = shutil.disk_usage(_existing_parent(out)).free
    needed = expected + 10e6  # the report
    if free < needed:
        raise CommandError(f"the disk of {out} has {free / 1e6:.0f} MB free, the profile takes {needed / 1e6:.0f} MB")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A path for a folder beside `out` that takes its place, and removes what is there, when the context succeeds."""
    with tempfile.TemporaryDirectory(prefix=".diffusers-xai-", dir=_existing_parent(out)) as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        yield new
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        replaced = out.exists()
        if replaced:
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if replaced:
                old.rename(out)
            raise


def _command(args: argparse.Namespace, labels: list[int] | None, every: int) -> list[str]:
    """The command with every default written out, so that it means the same in later versions."""
    command = [PROGRAM, "profile"]
    values = {**vars(args), "every": every, "label": (args.label or _DEFAULT_LABEL) if labels else None}
    for name in ("label", "seed", "steps", "guidance_scale", "every", "scheduler", "checkpoint", "revision", "mask"):
        if values[name] is not None:
            command += [f"--{name.replace('_', '-')}", str(values[name])]
    if args.layers:
        command += ["--layers", *args.layers]
    return [*command, "--out", args.out.name]


def _version() -> str:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:  # run from a clone
        return "0 (not installed)"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return int(text)


@contextmanager
def _num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet(unless: bool) -> Iterator[None]:
    """Silences the warnings of libraries, and diffusers' bar over the parts of a pipeline."""
    logging = diffusers.utils.logging
    level = logging.get_verbosity()
    with warnings.catch_warnings():
        if not unless:
            warnings.simplefilter("ignore")
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
